-- A batch is updated at each mark, while its contacts never change: kept aside, an update copies a hundred bytes and not two thousand, and stays on its page.
ALTER TABLE batch ALTER contacts SET STORAGE EXTERNAL;
ALTER TABLE batch SET (toast_tuple_target = 128, fillfactor = 70);

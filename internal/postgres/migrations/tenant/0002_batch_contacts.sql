-- Out of the row: each mark writes the row anew, and 4 KB of recipients with it otherwise.
ALTER TABLE batch ALTER COLUMN contacts SET STORAGE EXTERNAL;

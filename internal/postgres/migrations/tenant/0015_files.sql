-- Files that come with forms, as submission.data names and numbers them (from 1); those that are forgotten are NULL. Not compressed: files are already, mostly.
ALTER TABLE submission ADD COLUMN files bytea[];
ALTER TABLE submission ALTER COLUMN files SET STORAGE EXTERNAL;

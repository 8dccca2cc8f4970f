-- How far an import came that was interrupted: a row named import:HASH, whose id is how many rows of the file are done; written and taken away by internal/csvimport. Like scanners
-- it is no reader of facts.
ALTER TABLE cursor ADD COLUMN data jsonb;                        -- what became of those rows, and the file of those rejected

-- ensure_partitions locks the table alone, and not its partitions too: it waited for whoever made an index on one of them.
DO $$ BEGIN
    EXECUTE replace(pg_get_functiondef('ensure_partitions'::regproc), 'LOCK TABLE %I IN', 'LOCK TABLE ONLY %I IN');
END $$;

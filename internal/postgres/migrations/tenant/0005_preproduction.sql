-- One more reason. Not validated: all rows that are there have one of the reasons before, and to read them would keep the table.
ALTER TABLE delivery DROP CONSTRAINT delivery_reason_check;
ALTER TABLE delivery ADD CONSTRAINT delivery_reason_check CHECK (reason IN ('no_consent', 'pending', 'suppressed', 'capped', 'duplicate', 'expired', 'late', 'quota',
    'cancelled', 'domain_unverified', 'bad_address', 'erased', 'preproduction')) NOT VALID;

-- A tenant's hosts in the order of its file, in the row that every transaction of the tenant reads anyway: new links are made with the first. onda.host keeps two
-- tenants from having the same. Both are empty until onda tenant sync next looks at the tenant; until then links are as they were.
ALTER TABLE onda.tenant
    ADD COLUMN link_hosts text[] NOT NULL DEFAULT '{}',
    ADD COLUMN form_hosts text[] NOT NULL DEFAULT '{}';

-- Nobody ever did it by a tenant's role, and a tenant with a login of its own could keep another from a host.
REVOKE INSERT, DELETE ON onda.host FROM onda_tenant;

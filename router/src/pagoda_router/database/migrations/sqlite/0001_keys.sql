CREATE TABLE api_key (
    id TEXT PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    request_class TEXT NOT NULL,
    models TEXT,
    requests_per_minute INTEGER,
    is_admin INTEGER NOT NULL,
    created_unix_s INTEGER NOT NULL,
    expires_unix_s INTEGER,
    revoked_unix_s INTEGER
) STRICT;

CREATE TABLE api_key (
    id TEXT PRIMARY KEY,
    digest BYTEA NOT NULL UNIQUE,
    prefix TEXT NOT NULL,
    name TEXT NOT NULL,
    tenant TEXT NOT NULL,
    request_class TEXT NOT NULL,
    models TEXT,
    requests_per_minute BIGINT,
    is_admin BIGINT NOT NULL,
    created_unix_s BIGINT NOT NULL,
    expires_unix_s BIGINT,
    revoked_unix_s BIGINT
);

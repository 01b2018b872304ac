ALTER TABLE api_key ADD COLUMN tokens_per_minute INTEGER;
ALTER TABLE api_key ADD COLUMN monthly_tokens INTEGER;
ALTER TABLE api_key ADD COLUMN monthly_nano_usd INTEGER;

CREATE TABLE usage_hour (
    hour_unix_s INTEGER NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    tenant TEXT NOT NULL,
    requests INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    nano_usd INTEGER NOT NULL,
    PRIMARY KEY (hour_unix_s, key_id, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_month (
    month TEXT NOT NULL,
    key_id TEXT NOT NULL,
    tokens INTEGER NOT NULL,
    nano_usd INTEGER NOT NULL,
    PRIMARY KEY (month, key_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_writer (
    id TEXT PRIMARY KEY,
    batch INTEGER NOT NULL,
    written_unix_s INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

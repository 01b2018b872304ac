ALTER TABLE api_key ADD COLUMN tokens_per_minute BIGINT;
ALTER TABLE api_key ADD COLUMN monthly_tokens BIGINT;
ALTER TABLE api_key ADD COLUMN monthly_nano_usd BIGINT;

CREATE TABLE usage_hour (
    hour_unix_s BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    model TEXT NOT NULL,
    tenant TEXT NOT NULL,
    requests BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    nano_usd BIGINT NOT NULL,
    PRIMARY KEY (hour_unix_s, key_id, model)
);

CREATE TABLE usage_month (
    month TEXT NOT NULL,
    key_id TEXT NOT NULL,
    tokens BIGINT NOT NULL,
    nano_usd BIGINT NOT NULL,
    PRIMARY KEY (month, key_id)
);

CREATE TABLE usage_writer (
    id TEXT PRIMARY KEY,
    batch BIGINT NOT NULL,
    written_unix_s BIGINT NOT NULL
);

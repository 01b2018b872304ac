"""One setting's text → its value, or a ConfigError of one line that names the variable. Pure; called by settings.py only."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from pagoda_router.errors import ConfigError


def variable_of(name: str) -> str:
    return f"PAGODA_{name.upper()}"


def whole(values: Mapping[str, str], name: str, default: int, *, least: int, most: int = 2**53) -> int:
    text = values.get(name)
    if text is None or text == "":
        return default
    try:
        number = int(text)
    except ValueError:
        raise ConfigError(f"{variable_of(name)}={text!r} is not a whole number") from None
    if not least <= number <= most:
        raise ConfigError(f"{variable_of(name)}={number} is out of range: {least} to {most}")
    return number


def port(values: Mapping[str, str], name: str, default: int) -> int:
    return whole(values, name, default, least=0, most=65535)


def seconds(values: Mapping[str, str], name: str, default: float) -> float:
    text = values.get(name)
    if text is None or text == "":
        return default
    try:
        number = float(text)
    except ValueError:
        raise ConfigError(f"{variable_of(name)}={text!r} is not a number of seconds") from None
    if not 0 <= number <= 86_400:
        raise ConfigError(f"{variable_of(name)}={text} is out of range: 0 to 86400 seconds")
    return number


def timeout(values: Mapping[str, str], name: str, default: float) -> float:
    given_s = seconds(values, name, default)
    if given_s < 0.1:
        raise ConfigError(f"{variable_of(name)}={values[name]} would end every request: give it 0.1 s or more")
    return given_s


def share(values: Mapping[str, str], name: str, default: float) -> float:
    text = values.get(name)
    if text is None or text == "":
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ConfigError(f"{variable_of(name)}={text!r} is not a share from 0 to 1")
    return number


def factor(values: Mapping[str, str], name: str) -> float:
    text = values.get(name) or "0"
    try:
        factor = float(text)
    except ValueError:
        factor = -1.0
    if not (factor == 0 or 1 <= factor <= 1000):
        raise ConfigError(f"{variable_of(name)}={text!r} is neither 0 nor a number from 1 to 1000")
    return factor


def switch(values: Mapping[str, str], name: str) -> bool:
    match (values.get(name) or "off").lower():
        case "on" | "true" | "1":
            return True
        case "off" | "false" | "0":
            return False
        case other:
            raise ConfigError(f"{variable_of(name)}={other!r} is neither on nor off")


def path(values: Mapping[str, str], name: str, what: str) -> Path:
    text = values.get(name)
    if not text:
        raise ConfigError(f"{variable_of(name)} is not set: {what}")
    return Path(text)


def http_url(values: Mapping[str, str], name: str) -> str | None:
    text = values.get(name)
    if not text:
        return None
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(f"{variable_of(name)}={text!r} is not a URL such as http://collector:4318")
    return text


def database_url(values: Mapping[str, str]) -> str | None:
    """The value may hold a password: it is in no message."""
    text = values.get("database") or None
    if text is not None and "://" in text and not text.startswith(("postgresql://", "postgres://")):
        raise ConfigError("PAGODA_DATABASE is a URL of something else: write postgresql://USER:PASSWORD@HOST/NAME, or a file's path")
    return text


def redis_url(values: Mapping[str, str]) -> str | None:
    text = values.get("redis") or None
    if text is not None and not text.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigError("PAGODA_REDIS is not a URL such as redis://:PASSWORD@HOST:6379/0 or rediss://…")
    return text


def headers(values: Mapping[str, str], name: str) -> tuple[tuple[str, str], ...]:
    """The value is a secret as a rule: it is in no message."""
    pairs = [part.strip().partition("=") for part in values.get(name, "").split(",") if part.strip()]
    for header, equals, value in pairs:
        if re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", header) is None or not equals or not value.isprintable():
            raise ConfigError(f"{variable_of(name)} is not of the form name=value,name=value")
    return tuple((header.lower(), value.strip()) for header, _, value in pairs)

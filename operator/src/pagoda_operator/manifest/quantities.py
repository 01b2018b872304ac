"""Kubernetes quantities ("8", "500m", "48Gi"): parsed exactly, written in the form the API server itself would store.
Times ("500ms", "2s", "5m", "1h"): one number and one unit. Shares ("99%", "99.95%"): up to three decimals."""

import re
from fractions import Fraction

from pagoda_operator.errors import InvalidQuantity

BINARY = {suffix: Fraction(1024) ** power for power, suffix in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"))}
DECIMAL = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]{1,2}))?"
)
_DURATION = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>ms|s|m|h)", re.ASCII)
_PERCENTAGE = re.compile(r"(?P<number>[1-9]?[0-9]([.][0-9]{1,3})?|100)%", re.ASCII)
_SECONDS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}


def parse_quantity(text: str | int) -> Fraction:
    match = _QUANTITY.fullmatch(str(text)) if not isinstance(text, bool) else None
    if match is None:
        raise InvalidQuantity(f"{text!r} is not a quantity: write a number with a unit such as 500m, 2, 16Gi")
    number = Fraction(match["number"])
    if match["exponent"]:
        return number * Fraction(10) ** int(match["exponent"])
    suffix = match["suffix"] or ""
    return number * (BINARY[suffix] if suffix in BINARY else Fraction(1000) ** DECIMAL[suffix])


def parse_duration(text: str) -> Fraction:
    """In seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidQuantity(f"{text!r} is not a time: write a whole number with a unit such as 500ms, 2s, 5m, 1h")
    return int(match["number"]) * _SECONDS[match["unit"]]


def parse_percentage(text: str) -> Fraction:
    """As a share of 1."""
    match = _PERCENTAGE.fullmatch(text)
    if match is None:
        raise InvalidQuantity(f"{text!r} is not a percentage: write a number and a percent sign such as 99% or 99.9%")
    return Fraction(match["number"]) / 100


def format_bytes(count: int) -> str:
    """The canonical form, so that what we apply reads back unchanged: 4Gi, 1500M, 1234567."""
    for suffix in ("Ei", "Pi", "Ti", "Gi", "Mi", "Ki"):
        if count % int(BINARY[suffix]) == 0:
            return f"{count // int(BINARY[suffix])}{suffix}"
    return _decimal(Fraction(count))


def format_cores(cores: float) -> str:
    return _decimal(Fraction(round(cores * 1000), 1000))


def _decimal(value: Fraction) -> str:
    for suffix in ("E", "P", "T", "G", "M", "k", "", "m"):
        unit = Fraction(1000) ** DECIMAL[suffix]
        if value % unit == 0:
            return f"{value // unit}{suffix}"
    raise InvalidQuantity(f"{value} is finer than a thousandth")

"""Tokens and what they cost, as usage and budgets add them up. Pure: whole numbers only, so that sums are exact and come back to zero.

Prices come from a manifest's spec.cost (objectives.py reads it); the ledger prices what requests use.
"""

from dataclasses import dataclass
from typing import NamedTuple

PICO_PER_TOKEN = 1_000_000
"""A price of 1 US dollar for a million tokens, in picodollars for one."""


class Amount(NamedTuple):
    tokens: int = 0
    """Prompt and output together."""
    nano_usd: int = 0

    def plus(self, other: "Amount") -> "Amount":
        return Amount(self.tokens + other.tokens, self.nano_usd + other.nano_usd)

    def minus(self, other: "Amount") -> "Amount":
        return Amount(self.tokens - other.tokens, self.nano_usd - other.nano_usd)

    def up_to(self, other: "Amount") -> "Amount":
        """The smaller of each."""
        return Amount(min(self.tokens, other.tokens), min(self.nano_usd, other.nano_usd))


NOTHING = Amount()


class Used(NamedTuple):
    """By one request, so far."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's."""
    completion_tokens: int = 0
    nano_usd: int = 0

    @property
    def amount(self) -> Amount:
        return Amount(self.prompt_tokens + self.completion_tokens, self.nano_usd)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrices:
    """Picodollars for one token."""

    input_pico_usd: int = 0
    cached_pico_usd: int = 0
    """Of a prompt's token that the worker had in its cache."""
    output_pico_usd: int = 0

    def nano_usd(self, prompt_tokens: int, cached_tokens: int, completion_tokens: int) -> int:
        """Of one request, rounded once."""
        pico_usd = (
            (prompt_tokens - cached_tokens) * self.input_pico_usd
            + cached_tokens * self.cached_pico_usd
            + completion_tokens * self.output_pico_usd
        )
        return (pico_usd + 500) // 1000


def token_prices(input_usd: float | None, cached_usd: float | None, output_usd: float | None) -> TokenPrices | None:
    """Of US dollars for a million tokens each. A cached token costs what another of the prompt does unless told. None: tokens are free."""
    if input_usd is None and cached_usd is None and output_usd is None:
        return None
    usual = input_usd or 0.0
    return TokenPrices(
        input_pico_usd=round(usual * PICO_PER_TOKEN),
        cached_pico_usd=round((usual if cached_usd is None else cached_usd) * PICO_PER_TOKEN),
        output_pico_usd=round((output_usd or 0.0) * PICO_PER_TOKEN),
    )

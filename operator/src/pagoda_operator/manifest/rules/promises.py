"""The part of the table that is about what is promised to clients and what it costs: spec.slo and spec.cost."""

from collections.abc import Mapping

from pagoda_operator.manifest.rules.predicates import Field, Rule, between, lasts, share_between

_PRICE = Field("number", (Rule(between(0, 100_000), "write 0 to 100000 US dollars for an hour, such as 2.5"),))
_TOKEN_PRICE = Field("number", (Rule(between(0, 100_000), "write 0 to 100000 US dollars for a million tokens, such as 0.15"),))
PROMISE_FIELDS: Mapping[str, Field] = {
    "spec.slo": Field("object"),
    "spec.slo.ttft": Field("string", (Rule(lasts("1ms", "1h"), "write a time of 1ms to 1h, such as 500ms or 2s"),), max_size=16),
    "spec.slo.tpot": Field("string", (Rule(lasts("1ms", "1m"), "write a time of 1ms to 1m, such as 50ms"),), max_size=16),
    "spec.slo.objective": Field(
        "string",
        (
            Rule(
                share_between("50%", "100%"),
                'write a percentage above 50% and below 100% with a percent sign, such as "99%" or "99.9%"',
            ),
        ),
        max_size=16,
    ),
    "spec.cost": Field(
        "object",
        (
            Rule(
                lambda given: not given.keys().isdisjoint(("gpuHourUsd", "workerHourUsd", "millionInputUsd", "millionOutputUsd")),
                "write gpuHourUsd, workerHourUsd, millionInputUsd or millionOutputUsd, or leave cost out",
            ),
        ),
    ),
    "spec.cost.gpuHourUsd": _PRICE,
    "spec.cost.workerHourUsd": _PRICE,
    "spec.cost.millionInputUsd": _TOKEN_PRICE,
    "spec.cost.millionCachedUsd": _TOKEN_PRICE,
    "spec.cost.millionOutputUsd": _TOKEN_PRICE,
}

"""docs/api.md against the fields that the schemas and fields.py really know."""

import re
from pathlib import Path

import pytest

from pagoda_router.openai.fields import HARMLESS, REFUSED
from pagoda_router.openai.schemas import ChatRequest, CommonRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text()


def chapter(heading: str) -> str:
    return TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def fields_of_table(heading: str) -> list[str]:
    """Names in the first column."""
    return [name for line in chapter(heading).splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line.split("|")[1])]


COMMON = set(CommonRequest.__struct_fields__)
TABLES = [
    ("Both endpoints that generate", COMMON),
    ("Chat only", set(ChatRequest.__struct_fields__) - COMMON),
    ("Completions only", set(CompletionRequest.__struct_fields__) - COMMON),
    ("Embeddings", set(EmbeddingRequest.__struct_fields__)),
    ("Tokens", {*TokenizeRequest.__struct_fields__, *DetokenizeRequest.__struct_fields__}),
]


@pytest.mark.parametrize(("heading", "known"), TABLES, ids=[heading for heading, _ in TABLES])
def test_a_table_lists_exactly_the_fields_that_are_read(heading: str, known: set[str]) -> None:
    assert sorted(fields_of_table(heading)) == sorted(known)


def test_what_is_accepted_without_effect_and_what_is_refused_is_listed() -> None:
    assert set(re.findall(r"`(\w+)`", chapter("Accepted, without effect"))) == set(HARMLESS)
    assert set(re.findall(r"`(\w+)`", chapter("Refused, unless they ask for nothing"))) == set(REFUSED)

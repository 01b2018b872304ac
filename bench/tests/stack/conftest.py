"""One running quickstart for all tests that only talk to it; tests that break things start their own."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from pagoda_bench.local_stack import LocalStack, local_stack

ROOT = Path(__file__).parents[3]
QUICKSTART = ROOT / "docs/quickstart/inferencemodel.yaml"


@pytest.fixture(scope="session")
def stack() -> Iterator[LocalStack]:
    with local_stack(QUICKSTART, extra_env={"PAGODA_DEVICE": "cpu"}) as running:
        yield running


@pytest.fixture
def client(stack: LocalStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client

"""What this folder's tests do with the API server; without its programs they skip with one line, also under PAGODA_REQUIRE_ALL."""

import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from plane import Cluster, Plane, cluster_of, kube_bin

HERE = Path(__file__).parent
_numbers = itertools.count(1)

collect_ignore = [] if kube_bin() else [path.name for path in HERE.glob("test_*.py") if path.name != "test_parts.py"]
"""Then one skip in test_parts.py speaks for all of them."""


@pytest.fixture
async def cluster(plane: Plane) -> AsyncIterator[Cluster]:
    made = cluster_of(plane)
    made.account_token = plane.facts["accountToken"]
    yield made
    await made.close()


@pytest.fixture
async def fresh(cluster: Cluster) -> AsyncIterator[str]:
    """Fresh namespaces, as many as are asked for."""
    return _namespaces(cluster)


@pytest.fixture
async def namespace(fresh: AsyncIterator[str]) -> str:
    return await anext(fresh)


async def _namespaces(cluster: Cluster) -> AsyncIterator[str]:
    while True:
        name = f"test-{next(_numbers)}"
        await cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        yield name

"""A real API server for this folder's tests; without its programs they skip with one line, also under PAGODA_REQUIRE_ALL."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from plane import Cluster, Plane, cluster_of, kube_bin, prepare
from rights import objects

HERE = Path(__file__).parent
_numbers = itertools.count(1)

collect_ignore = [] if kube_bin() else [path.name for path in HERE.glob("test_*.py") if path.name != "test_parts.py"]
"""Then one skip in test_parts.py speaks for all of them."""


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    started = Plane(tmp_path_factory.mktemp("plane") / "files")
    try:
        asyncio.run(_prepare(started))
        yield started
    finally:
        started.close()


async def _prepare(plane: Plane) -> None:
    cluster = cluster_of(plane)
    await prepare(cluster, *objects())
    plane.facts["accountToken"] = cluster.account_token
    await cluster.close()


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

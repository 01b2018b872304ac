"""Shared by all of the operator's tests. The table of manifests and small builders are in `cases.py`."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime

import hypothesis
import pytest
from api_server import ApiServer, absent, client_of
from plane import Plane, cluster_of, prepare
from rights import objects

from pagoda_operator.render.installation import Settings

# Machines that run tests are busy: how long an example takes says nothing here.
hypothesis.settings.register_profile("pagoda", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("pagoda")


@pytest.fixture
def now() -> datetime:
    return datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def settings() -> Settings:
    return Settings(version="1.2.3")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a real API server come last: it takes a tenth of a core as long as it is there."""
    items.sort(key=lambda item: not {"plane", "api_server"}.isdisjoint(getattr(item, "fixturenames", ())))


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    """A real API server, one for all. Without its programs tests skip, also under PAGODA_REQUIRE_ALL: not every machine can have them."""
    if why := absent():
        pytest.skip(why)
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


@pytest.fixture(scope="session")
def api_server(plane: Plane) -> Iterator[ApiServer]:
    """The same, as tests of the definition and of plans use it."""
    with client_of(plane) as server:
        yield server

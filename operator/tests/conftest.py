"""Shared by all of the operator's tests. The table of manifests and small builders are in `cases.py`."""

from collections.abc import Iterator
from datetime import UTC, datetime

import hypothesis
import pytest
from api_server import ApiServer, absent, running

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


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A real one. Without its programs the tests skip, also under PAGODA_REQUIRE_ALL: not every machine can have them."""
    if why := absent():
        pytest.skip(why)
    with running(tmp_path_factory.mktemp("api-server") / "files") as server:
        yield server

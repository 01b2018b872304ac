"""Shared by all of the operator's tests. The table of manifests and small builders are in `cases.py`."""

from datetime import UTC, datetime

import hypothesis
import pytest

from pagoda_operator.manifests import Settings

# Machines that run tests are busy: how long an example takes says nothing here.
hypothesis.settings.register_profile("pagoda", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("pagoda")


@pytest.fixture
def now() -> datetime:
    return datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture
def settings() -> Settings:
    return Settings(version="1.2.3")

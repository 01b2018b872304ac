"""Prometheus and promtool of the machine; without them one line says which package has them."""

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def promtool() -> str:
    return _program("promtool")


@pytest.fixture(scope="session")
def prometheus_program() -> str:
    return _program("prometheus")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without the programs one skip speaks for all tests that need them."""
    if os.environ.get("PAGODA_REQUIRE_ALL") == "1" or all(map(shutil.which, ("promtool", "prometheus"))):
        return
    needing = [item for item in items if {"promtool", "prometheus_program"} & set(getattr(item, "fixturenames", ()))]
    config.hook.pytest_deselected(items=needing[1:])
    items[:] = [item for item in items if item not in needing[1:]]


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return found
    told = f"there is no {name}: install Debian's package prometheus, which has prometheus and promtool"
    if os.environ.get("PAGODA_REQUIRE_ALL") == "1":
        pytest.fail(told)
    pytest.skip(told)

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


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is not None:
        return found
    told = f"there is no {name}: install Debian's package prometheus, which has prometheus and promtool"
    if os.environ.get("PAGODA_REQUIRE_ALL") == "1":
        pytest.fail(told)
    pytest.skip(told)

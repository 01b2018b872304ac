"""Fixtures of the OpenAI surface's tests, made of what is in scripted.py, and the servers that some need."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from scripted import Caller, ScriptedCatalog, ScriptedDispatcher, assets_of, byte_level_tokenizer
from servers import RedisServer, postgres_server, redis_server
from tokenizers import Tokenizer

from pagoda_router.catalog import TextAssets
from pagoda_router.http.app import create_app
from pagoda_router.http.surface import SurfaceSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Time says nothing on a machine that is shared; what is tested is behaviour.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def assets(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TextAssets:
    return assets_of(tokenizer, Path(tmp_path_factory.mktemp("assets")))


@pytest.fixture
def catalog(assets: TextAssets) -> ScriptedCatalog:
    return ScriptedCatalog(assets)


@pytest.fixture
def dispatcher() -> ScriptedDispatcher:
    return ScriptedDispatcher()


@pytest.fixture
def call(dispatcher: ScriptedDispatcher, catalog: ScriptedCatalog) -> Caller:
    return Caller(create_app(dispatcher=dispatcher, catalog=catalog, settings=SurfaceSettings()))


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Of a module, not of the run: its driver holds the event loop for as long as it lives."""
    from pagoda_bench.chromium import CHROMIUM, chromium

    if not CHROMIUM.exists():
        (pytest.fail if os.environ.get("PAGODA_REQUIRE_ALL") == "1" else pytest.skip)("needs the package 'chromium'")
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    from pagoda_bench.chromium import watched_page

    with watched_page(browser) as page:
        yield page


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Of a server; a test that writes takes a database of its own in it."""
    with postgres_server() as url:
        yield url


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server

"""Fixtures of the OpenAI surface's tests; what they are made of is in scripted.py."""

from pathlib import Path

import pytest
from scripted import ScriptedCatalog, ScriptedDispatcher, assets_of, byte_level_tokenizer
from tokenizers import Tokenizer

from pagoda_router.generation import TextAssets


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

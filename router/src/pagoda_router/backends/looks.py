"""Asking somebody else's server: whether it is healthy, what it serves. And which dialects there are.

Keeps nothing; openai_http.py looks with these every second.
"""

from collections.abc import Mapping
from typing import Any

import aiohttp
import msgspec

from pagoda_router.backends.dialect import Dialect
from pagoda_router.backends.tgi import Tgi
from pagoda_router.backends.trtllm import TensorRtLlm
from pagoda_router.backends.vllm import Vllm

DIALECTS: Mapping[str, Dialect] = {dialect.name: dialect for dialect in (Vllm(), Tgi(), TensorRtLlm())}


class Unhealthy(Exception):
    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


async def fetched(session: aiohttp.ClientSession, url: str, path: str) -> bytes:
    """Raises Unhealthy for a status other than 200, and what aiohttp raises."""
    async with session.get(url + path) as response:
        body = await response.read()
        if response.status != 200:
            raise Unhealthy(f"{path} answered {response.status}", response.status)
        return body


async def described_model(session: aiohttp.ClientSession, url: str, wanted: str) -> dict[str, Any]:
    """In its list: `wanted` if it is there, else the first. Empty: a server without a list calls its one model whatever we like.

    Raises Unhealthy for one that would refuse every request.
    """
    cards: list[dict[str, Any]] = []
    try:
        document = msgspec.json.decode(await fetched(session, url, "/v1/models"))
        cards = [card for card in document["data"] if isinstance(card.get("id"), str)]
    except Unhealthy as error:
        if error.status in (401, 403):
            raise Unhealthy(f"it asks for an API key ({error}): start it without one, as only routers reach it", error.status) from None
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        pass
    return next((card for card in cards if card["id"] == wanted), cards[0] if cards else {})

"""GET /v1/models and /v1/models/{id}: the catalog as OpenAI's model cards, with what Pagoda adds. Called by app.py."""

from typing import Any

import msgspec

from pagoda_router.catalog import Catalog, CatalogEntry
from pagoda_router.keys.key import ApiKey
from pagoda_router.openai.offers import offers_of


def model_card(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "id": entry.served_name,
        "object": "model",
        "created": entry.created,
        "owned_by": "pagoda",
        "root": entry.root or entry.served_name,
        "parent": entry.parent,
        "max_model_len": entry.max_model_len,
        "pagoda": {"ready": entry.ready, "state": entry.state, "reason": entry.reason, "variants": _variants(entry)},
    }


def _variants(entry: CatalogEntry) -> list[dict[str, Any]]:
    """What X-Pagoda-Features and X-Backend may name."""
    return [{"name": offer.variant, "backend": offer.backend, "quantization": offer.quantization or None} for offer in offers_of(entry)]


def model_list_body(catalog: Catalog, key: ApiKey) -> bytes:
    """Those that the key may ask."""
    return msgspec.json.encode(
        {"object": "list", "data": [model_card(entry) for entry in catalog.list() if key.may_ask(entry.served_name)]}
    )


def model_body(catalog: Catalog, served_name: str, key: ApiKey) -> bytes:
    """Raises ModelNotFound, Forbidden."""
    key.require_model(served_name)
    return msgspec.json.encode(model_card(catalog.get(served_name)))

"""GET /v1/models and /v1/models/{id}: the catalog as OpenAI's model cards, with what Pagoda adds. Called by app.py."""

from typing import Any

import msgspec

from pagoda_router.generation import Catalog, CatalogEntry


def model_card(entry: CatalogEntry) -> dict[str, Any]:
    return {
        "id": entry.served_name,
        "object": "model",
        "created": entry.created,
        "owned_by": "pagoda",
        "max_model_len": entry.max_model_len,
        "pagoda": {"ready": entry.ready, "state": entry.state, "reason": entry.reason},
    }


def model_list_body(catalog: Catalog) -> bytes:
    return msgspec.json.encode({"object": "list", "data": [model_card(entry) for entry in catalog.list()]})


def model_body(catalog: Catalog, served_name: str) -> bytes:
    """Raises ModelNotFound."""
    return msgspec.json.encode(model_card(catalog.get(served_name)))

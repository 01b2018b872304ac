"""The Secrets of a namespace: made once, never read. Owned by the routers' account, so that they go with it.

Names of the tokens' secrets carry a fingerprint: a new master key makes new secrets, and pods that name them.
"""

import base64
import secrets
from typing import Any

from pagoda_operator.labels import LABEL_MANAGED_BY, LABEL_PART_OF, MANAGED_BY
from pagoda_operator.render.installation import Settings
from pagoda_operator.render.objects import ROUTER_NAME
from pagoda_operator.render.pods import API_KEY_SECRET
from pagoda_operator.render.tokens import Purpose, secret_name, token

PURPOSES: tuple[Purpose, ...] = ("session", "internal")


def namespace_secrets(namespace: str, account_uid: str, settings: Settings) -> list[dict[str, Any]]:
    assert settings.master_key is not None
    tokens = [token(settings.master_key, purpose, namespace) for purpose in PURPOSES]
    named = [(secret_name(purpose, each), "token", each) for purpose, each in zip(PURPOSES, tokens, strict=True)]
    name, key = API_KEY_SECRET
    named.append((name, key, f"pgd-{secrets.token_urlsafe(32)}"))
    return [_secret(namespace, account_uid, *each) for each in named]


def _secret(namespace: str, account_uid: str, name: str, key: str, value: str) -> dict[str, Any]:
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": ROUTER_NAME, "uid": account_uid}
    metadata = {
        "name": name,
        "namespace": namespace,
        "labels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_PART_OF: "pagoda"},
        "ownerReferences": [owner],
    }
    data = {key: base64.b64encode(value.encode()).decode()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}

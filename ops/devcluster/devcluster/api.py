"""The few questions we ask etcd and the API server ourselves. An unreachable server is an answer (None, False), not an error."""

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

from devcluster import access
from devcluster.components import Site

_NO_PROXY = urllib.request.ProxyHandler({})


def get(site: Site, path: str) -> bytes | None:
    """As admin; None when there is no answer or it is not 200."""
    try:
        context = ssl.create_default_context(cafile=str(site.certificates / "ca.crt"))
        headers = {"Authorization": f"Bearer {access.token(site.folder)}"}
        request = urllib.request.Request(f"{site.url}{path}", headers=headers)  # noqa: S310  always https
        with urllib.request.build_opener(_NO_PROXY, urllib.request.HTTPSHandler(context=context)).open(request, timeout=5) as response:
            return bytes(response.read())
    except (urllib.error.URLError, OSError):
        return None


def ready(site: Site) -> bool:
    return get(site, "/readyz") is not None


def condition(site: Site, path: str, kind: str) -> bool:
    """Whether the object at `path` has the condition `kind` True."""
    body = get(site, path)
    document: dict[str, Any] = json.loads(body) if body else {}
    conditions = document.get("status", {}).get("conditions", [])
    return any(item["type"] == kind and item["status"] == "True" for item in conditions)


def etcd_ready(site: Site) -> bool:
    try:
        with urllib.request.build_opener(_NO_PROXY).open(f"http://127.0.0.1:{site.etcd_port}/health", timeout=2) as response:
            return b'"true"' in response.read()
    except (urllib.error.URLError, OSError):
        return False

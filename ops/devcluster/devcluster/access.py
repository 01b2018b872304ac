"""Who may call the API server: a token per user, and the kubeconfig files that carry them."""

import json
import secrets
from pathlib import Path

ADMIN = "admin"
NODE = "node1"
USERS = {
    ADMIN: ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", ""),
    "kubelet": (f"system:node:{NODE}", "system:nodes"),
    "kwok": ("kwok", "system:masters"),
}
"""Kubeconfig name → user and group."""


def make_all(folder: Path, url: str) -> None:
    """tokens.csv for the API server and NAME.kubeconfig for each of USERS; all readable by their owner only."""
    tokens = {name: secrets.token_hex(16) for name in USERS}
    rows = [f'{tokens[name]},{user},{name},"{group}"' for name, (user, group) in USERS.items()]
    _write(folder / "tokens.csv", "\n".join(rows) + "\n")
    for name, token in tokens.items():
        _write(folder / f"{name}.kubeconfig", _kubeconfig(url, folder / "certificates" / "ca.crt", token))


def token(folder: Path, name: str = ADMIN) -> str:
    document = json.loads((folder / f"{name}.kubeconfig").read_text())
    return str(document["users"][0]["user"]["token"])


def _kubeconfig(url: str, ca: Path, bearer: str) -> str:
    document = {  # JSON is YAML
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "devcluster", "cluster": {"server": url, "certificate-authority": str(ca)}}],
        "users": [{"name": "devcluster", "user": {"token": bearer}}],
        "contexts": [{"name": "devcluster", "context": {"cluster": "devcluster", "user": "devcluster"}}],
        "current-context": "devcluster",
    }
    return json.dumps(document, indent=1) + "\n"


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)

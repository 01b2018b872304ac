"""From the scheduler's sentence about volumes to one that names the claims, which it leaves out. Pure; called by pods.py."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

_PENDING = re.compile("unbound immediate PersistentVolumeClaims|find available persistent volumes to bind|binding volumes: ")
"""Of claims that are there and have no volume: before a node is chosen, and once one was (WaitForFirstConsumer)."""


def claims_of(spec: Mapping[str, Any]) -> list[str]:
    """Of a pod, in its order, each once."""
    volumes = spec.get("volumes") or ()
    return list(dict.fromkeys(each["persistentVolumeClaim"]["claimName"] for each in volumes if "persistentVolumeClaim" in each))


def with_claims(sentence: str, claims: Sequence[str]) -> str:
    if not claims or not _PENDING.search(sentence):
        return sentence
    which = f"the claim {claims[0]}" if len(claims) == 1 else f"one of the claims {', '.join(claims)}"
    return f"{which} is Pending: {sentence}"

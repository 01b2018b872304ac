"""The secrets that the operator can compute, so that it need never read one: of each namespace, from the installation's master key.

A Secret's name carries a fingerprint of its token: after a change of the master key pods refer to new Secrets, and are replaced.
"""

import hashlib
import hmac
from typing import Literal

Purpose = Literal["session", "internal"]
"""session: shown by routers to workers. internal: shown by the operator to routers."""


def token(master_key: bytes, purpose: Purpose, namespace: str) -> str:
    return hmac.new(master_key, f"{purpose}/{namespace}".encode(), hashlib.sha256).hexdigest()


def plain_name(purpose: Purpose) -> str:
    """Where no master key is: one machine's supervisor keeps random tokens under these names."""
    return f"pagoda-{purpose}"


def secret_name(purpose: Purpose, token: str) -> str:
    return f"{plain_name(purpose)}-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

"""The user's API key, out of the environment. Its value goes into no message: what a terminal shows is copied into tickets."""

import re
from collections.abc import Mapping

from pagoda_operator.terminal.errors import CommandError

SENDABLE = re.compile("[!-~]+")
"""What a header can carry. HTTP clients quote a value that they cannot send."""


def api_key_of(environment: Mapping[str, str]) -> str | None:
    """None: there is none. Raises CommandError for what no key can be."""
    key = environment.get("PAGODA_API_KEY", "").strip()  # a file's last line break comes along
    if key and not SENDABLE.fullmatch(key):
        raise CommandError("PAGODA_API_KEY has a space, a line break or a character outside ASCII in it, as no key does: set it anew")
    return key or None

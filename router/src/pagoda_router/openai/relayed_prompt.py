"""What can be known of a prompt that nobody here tokenizes: about how long it is, where it is like another, how many it is. Pure.

relay.py prices and places by it; the backend's usage settles the price.
"""

import re
from array import array
from hashlib import blake2b
from typing import Any

import msgspec

MEDIA_TOKENS = 1024
"""Of an image, a sound or a film; models make a few hundred to some thousands of tokens of one, whatever its bytes."""
_MEDIA = re.compile(rb"[A-Za-z0-9+/=_\\-]{%d,}" % (4 * MEDIA_TOKENS))
"""Base64 in JSON, which may write / as \\/. What is shorter counts as text, which is less still."""
_MARKS = (b"base64,", b'"input_audio"')


def pieces_of(prompt: bytes) -> "array[Any]":
    """`prompt`: its JSON. Four bytes each: nearly as many as tokens, and equal where prompts begin alike, which is all that placement asks
    of ids. Media are MEDIA_TOKENS pieces of their hash."""
    if any(mark in prompt for mark in _MARKS):
        prompt = _MEDIA.sub(_stand_in, prompt)
    return array("I", prompt + bytes(-len(prompt) % 4))


def _stand_in(media: re.Match[bytes]) -> bytes:
    digest = blake2b(media[0], digest_size=32).digest()
    return digest * (4 * MEDIA_TOKENS // len(digest))


def prompts_in(prompt: bytes) -> int:
    """Of a completion: how many its list holds. What is no list, or one of token ids, is a single one."""
    inner = prompt[1:].lstrip()
    if not prompt.startswith(b"[") or not inner.startswith((b"[", b'"')):
        return 1
    return len(msgspec.json.decode(prompt, type=list[msgspec.Raw]))

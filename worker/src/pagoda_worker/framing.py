"""Messages between processes of one machine: a 4-byte length and msgpack, over a unix socket pair. Knows neither messages nor torch.

Called by channel.py (front and engine) and by execution/rank_messages.py (ranks of one engine).
"""

import struct
from pathlib import Path, PurePath
from typing import Any

import msgspec

LENGTH = struct.Struct("<I")


def _encode_path(value: object) -> str:
    if isinstance(value, PurePath):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} does not cross the process line")


def decode_path(kind: type, value: Any) -> Any:
    """msgspec's dec_hook."""
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} does not cross the process line")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_path)


def frame(message: msgspec.Struct) -> bytes:
    """Length and payload."""
    payload = _encoder.encode(message)
    return LENGTH.pack(len(payload)) + payload

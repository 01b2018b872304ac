"""/tokenize and /detokenize in the words of other people's servers, and their answers in ours, which are vLLM's. Pure.

One function per server, by its source: vLLM's tokenize/protocol.py and TGI's router/src/server.rs have both or one, TensorRT-LLM none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from pagoda_router.errors import BadRequest, UpstreamFailed

TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
TGI_CHANGES_NOTHING: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "prompt": {"add_special_tokens": (None, True)},
    "messages": {
        "add_special_tokens": (None, False),
        "add_generation_prompt": (None, True),
        "continue_final_message": (None, False),
        "chat_template": (None,),
        "chat_template_kwargs": (None, {}),
    },
}
"""Values of fields that TGI does not read, for which it does what it does anyway."""


class Tokenized(msgspec.Struct):
    count: int
    max_model_len: int | None
    """None: the server does not tell."""
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct):
    prompt: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a server is asked."""

    path: str
    fields: Mapping[str, bytes]
    read: Callable[[bytes], Tokenized | Detokenized]
    """Its answer's body in our words. Raises UpstreamFailed."""


def conversion_of(backend: str, path: str, fields: Mapping[str, bytes], max_model_len: int | None) -> Conversion:
    """`path`: the client's; `fields`: name → JSON of its body. Raises BadRequest for what this server has not."""
    said = {name: value for name, value in fields.items() if value != b"null"}
    if path == TOKENIZE and ("prompt" in said) == ("messages" in said):
        raise BadRequest("tokenize takes either prompt or messages: send one", param="prompt")
    if path == DETOKENIZE and "tokens" not in said:
        raise BadRequest("tokens is required", param="tokens")
    if backend == "vllm":
        return _vllms(path, said)
    if backend == "tgi" and path == TOKENIZE:
        return _tgis(said, max_model_len)
    raise BadRequest(f"a {backend} worker has no {path}: use the model's tokenizer where you send this from", param="model")


def _vllms(path: str, said: Mapping[str, bytes]) -> Conversion:
    kind: type[Tokenized] | type[Detokenized] = Tokenized if path == TOKENIZE else Detokenized
    return Conversion(path, said, lambda body: _decoded(body, kind))


class _Token(msgspec.Struct):
    id: int
    text: str


class _Chat(msgspec.Struct):
    tokenize_response: list[_Token]


def _tgis(said: Mapping[str, bytes], max_model_len: int | None) -> Conversion:
    given = "prompt" if "prompt" in said else "messages"
    for name, nothing in TGI_CHANGES_NOTHING[given].items():
        if msgspec.json.decode(said.get(name, b"null")) not in nothing:
            raise BadRequest(f"{name}: a tgi worker decides that itself for {given}: leave it out", param=name)
    shows_text = said.get("return_token_strs") not in (None, b"false")

    def tokenized(tokens: list[_Token]) -> Tokenized:
        strings = [token.text for token in tokens] if shows_text else None
        return Tokenized(len(tokens), max_model_len, [token.id for token in tokens], strings)

    if given == "prompt":
        return Conversion("/tokenize", {"inputs": said["prompt"]}, lambda body: tokenized(_decoded(body, list[_Token])))
    fields = {name: said[name] for name in ("messages", "tools") if name in said}
    return Conversion("/chat_tokenize", fields, lambda body: tokenized(_decoded(body, _Chat).tokenize_response))


def _decoded(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed(f"the worker's answer was not understood: {error}") from None

"""What a worker says of one model, and the artifacts it names brought into the cache. Called by a worker's link in each new session."""

import asyncio
import json
from typing import Any

import grpc.aio

from pagoda_router.backends.session_call import MAX_MESSAGE_BYTES
from pagoda_router.backends.translate import features_of
from pagoda_router.generation import ModelName
from pagoda_router.text.artifacts import MAX_ARTIFACT_BYTES, ArtifactCache, BadArtifact, StoredDescription
from pagoda_router.wire import worker_pb2 as wire
from pagoda_router.wire.worker_pb2_grpc import WorkerStub

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a new channel connects anew, without another one's backoff
]


async def describe_at(target: str, model: ModelName, artifacts: ArtifactCache, timeout_s: float) -> Any:
    """The ModelDescription, by a connection of its own. Raises as `describe`."""
    async with grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS) as channel:
        return await describe(WorkerStub(channel), model, artifacts, timeout_s)


async def describe(stub: Any, model: ModelName, artifacts: ArtifactCache, timeout_s: float) -> Any:
    """The ModelDescription, artifacts cached. Raises ValueError when the worker serves something else, BadArtifact, AioRpcError."""
    response = await stub.Describe(wire.DescribeRequest(), timeout=timeout_s)
    mine = [description for description in response.models if description.model == model and not description.adapter]
    if not mine:
        raise ValueError(f"it serves {', '.join(description.model for description in response.models) or 'nothing'}, not {model}")
    (description,) = mine[:1]
    await _fetch(stub, description.tokenizer, artifacts, timeout_s)
    if description.HasField("chat_template"):
        await _fetch(stub, description.chat_template, artifacts, timeout_s)
    return description


def stored_description(description: Any, source: str) -> StoredDescription:
    """The part that outlives its worker. Raises ValueError for one that must not be used."""
    return StoredDescription(
        source=source,
        tokenizer_sha256=description.tokenizer.sha256,
        chat_template_sha256=description.chat_template.sha256 if description.HasField("chat_template") else None,
        special_tokens=_special_tokens(description.special_tokens_json),
        eos_token_ids=tuple(description.eos_token_ids),
        bos_token_id=description.bos_token_id if description.HasField("bos_token_id") else None,
        vocab_size=description.vocab_size,
        max_model_len=description.max_model_len,
        max_sequences_per_request=description.max_sequences_per_request,
        max_top_logprobs=description.max_top_logprobs,
        features=features_of(description),
    )


def _special_tokens(text: str) -> dict[str, str]:
    document = json.loads(text) if text else {}
    if not isinstance(document, dict):
        raise ValueError(f"special_tokens_json is an object, not {type(document).__name__}")
    return {str(key): value for key, value in document.items() if isinstance(value, str)}


async def _fetch(stub: Any, artifact: Any, artifacts: ArtifactCache, timeout_s: float) -> None:
    if await asyncio.to_thread(artifacts.has, artifact.sha256):
        return
    content = bytearray()
    async for chunk in stub.FetchArtifact(wire.FetchArtifactRequest(sha256=artifact.sha256), timeout=timeout_s):
        content += chunk.data
        if len(content) > MAX_ARTIFACT_BYTES:
            raise BadArtifact(f"{artifact.name} is larger than {MAX_ARTIFACT_BYTES} bytes")
    await asyncio.to_thread(artifacts.store, artifact.sha256, bytes(content))

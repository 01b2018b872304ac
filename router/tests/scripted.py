"""A dispatcher and a catalog that do what a test says, and a router listening on a real socket."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from pagoda_router.catalog import CatalogEntry, ModelState, ServedName, TextAssets
from pagoda_router.errors import ModelNotFound, RouterError
from pagoda_router.generation import (
    NOBODY,
    Arrival,
    Embedded,
    Ended,
    EndReason,
    Event,
    Generation,
    ModelName,
    PromptLogprobs,
    Sender,
    Started,
    Take,
    TokenLogprobs,
    Tokens,
    Usage,
    WorkerId,
)
from pagoda_router.http.asgi import ASGIApp, Message
from pagoda_router.http.cohort import Cohort
from pagoda_router.http.direct import protocol_of

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SCRIPTED_WORKER = WorkerId("scripted")
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog", "hello world", "größer 🎉 你好"] * 5, trainer)
    return tokenizer


def sentencepiece_tokenizer() -> Tokenizer:
    """Metaspace words and byte fallback, as Llama 2's."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
        "▁h",
        "he",
        "ll",
        "▁w",
    ]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[("▁", "h"), ("h", "e"), ("l", "l"), ("▁", "w")], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>")])
    return tokenizer


@dataclass
class Script:
    """What one generation does. `batches` are per sequence: each inner list of ids is one Tokens event; the same for every sequence."""

    batches: Sequence[Sequence[int]] = ()
    reason: EndReason = EndReason.STOP
    detail: str = ""
    refusal: RouterError | None = None
    cached_tokens: int = 0
    drafts: tuple[int, int] = (0, 0)
    """Tokens guessed for each sequence, and those accepted."""
    guesses: int = 0
    accepted_by_place: tuple[int, ...] = ()
    ends: bool = True
    queued: asyncio.Event | None = None
    """When given, admission waits for it."""
    pause_before: dict[int, asyncio.Event] = field(default_factory=dict)
    """Batch number → an event waited for before that batch."""
    stop_token_id: int | None = None
    embedding: Sequence[float] = ()
    together: bool = False
    """Everything in one list of events."""


@dataclass
class ScriptedStream:
    generation: Generation
    script: Script
    worker: WorkerId = SCRIPTED_WORKER
    stopped: list[int] = field(default_factory=list)

    def stop(self, sequence: int) -> None:
        self.stopped.append(sequence)

    def tap(self, take: Take) -> None:
        """Its events are never offered."""

    async def __aiter__(self) -> AsyncIterator[list[Event]]:
        if not self.script.together:
            async for events in self._steps():
                yield events
        else:
            yield [event async for events in self._steps() for event in events]

    async def _steps(self) -> AsyncIterator[list[Event]]:
        sequences = range(self.generation.n)
        yield [Started(i, self.script.cached_tokens, 10) for i in sequences]
        if self.generation.prompt_logprobs is not None:
            yield [PromptLogprobs(self._known_of_prompt(self.generation.prompt_logprobs))]
        if self.generation.embedding and self.script.embedding:
            yield [Embedded(self.script.embedding)]
        for number, ids in enumerate(self.script.batches):
            if number in self.script.pause_before:
                await self.script.pause_before[number].wait()
            yield [Tokens(i, ids, self._logprobs(ids)) for i in sequences if i not in self.stopped]
        if len(self.script.batches) in self.script.pause_before:
            await self.script.pause_before[len(self.script.batches)].wait()
        produced = sum(map(len, self.script.batches))
        drafted, accepted = self.script.drafts
        prompt = len(self.generation.prompt_ids)
        usage = Usage(
            prompt,
            self.script.cached_tokens,
            produced,
            draft_tokens=drafted,
            accepted_draft_tokens=accepted,
            drafts=self.script.guesses,
            accepted_by_place=self.script.accepted_by_place,
        )
        if self.script.ends:
            yield [
                Ended(i, self.script.reason, usage, self.script.stop_token_id, self.script.detail)
                for i in sequences
                if i not in self.stopped
            ]

    def _known_of_prompt(self, k: int) -> list[TokenLogprobs]:
        """Each own token is the second most likely one, when so many are asked for."""
        own = self.generation.prompt_ids[1:]
        return [TokenLogprobs(-2.0, ((9, -0.25), (i, -2.0), (8, -3.0))[:k]) for i in own]

    def _logprobs(self, ids: Sequence[int]) -> list[TokenLogprobs] | None:
        k = self.generation.top_logprobs
        if k is None:
            return None
        return [TokenLogprobs(-0.5, tuple(((i + j) % 256, -1.0 - j) for j in range(k))) for i in ids]


@dataclass
class ScriptedDispatcher:
    """Every generation runs `script` (or what `script_of` says for it); `running` are the contexts now open."""

    script: Script = field(default_factory=Script)
    script_of: Callable[[Generation], Script] | None = None
    generations: list[Generation] = field(default_factory=list)
    streams: list[ScriptedStream] = field(default_factory=list)
    running: int = 0
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    def expected_output_tokens(self, generation: Generation) -> int:
        return generation.n * generation.max_tokens

    def worker_in_s(self, model: ModelName) -> float | None:
        return None

    async def hold(self, model: ModelName, variant: str | None, cost_tokens: int, sender: Sender = NOBODY) -> Arrival:
        raise NotImplementedError("every scripted model is described")

    @asynccontextmanager
    async def generate(self, generation: Generation) -> AsyncIterator[ScriptedStream]:
        script = self.script if self.script_of is None else self.script_of(generation)
        self.generations.append(generation)
        self.running += 1
        self.entered.set()
        try:
            if script.queued is not None:
                await script.queued.wait()
            if script.refusal is not None:
                raise script.refusal
            stream = ScriptedStream(generation, script)
            self.streams.append(stream)
            yield stream
        finally:
            self.running -= 1
            self.left.set()


@dataclass
class ScriptedCatalog:
    assets: TextAssets
    relays: bool = False
    falls_back: bool = False
    entries: list[CatalogEntry] = field(
        default_factory=lambda: [
            CatalogEntry(
                served_name=ServedName("tiny"),
                model=ModelName("tiny-object"),
                created=1_700_000_000,
                ready=True,
                reason="",
                max_model_len=512,
            ),
            CatalogEntry(
                served_name=ServedName("org/asleep"),
                model=ModelName("asleep"),
                created=1_700_000_001,
                ready=False,
                reason="no worker yet",
                max_model_len=None,
                state=ModelState.ASLEEP,
            ),
        ]
    )

    def list(self) -> Sequence[CatalogEntry]:
        return self.entries

    def get(self, served_name: str) -> CatalogEntry:
        for entry in self.entries:
            if entry.served_name == served_name:
                return entry
        raise ModelNotFound(f"there is no model {served_name!r}; there are: tiny", param="model")

    def can_answer(self, model: ModelName, variant: str | None = None) -> bool:
        return any(entry.ready for entry in self.entries if entry.model == model)

    def text(self, model: ModelName, variant: str | None = None) -> TextAssets | None:
        return self.assets


def assets_of(tokenizer: Tokenizer, folder: Path, template: str | None = TEMPLATE) -> TextAssets:
    file = folder / "tokenizer.json"
    tokenizer.save(str(file))
    return TextAssets(
        tokenizer_file=str(file),
        chat_template=template,
        special_tokens={"eos_token": "<|end|>"},
        eos_token_ids=(0,),
        bos_token_id=None,
        vocab_size=tokenizer.get_vocab_size(),
        max_model_len=512,
        max_sequences_per_request=8,
        max_top_logprobs=5,
        features=frozenset(),
    )


class Address(str):
    """A base URL, and the server behind it."""

    server: uvicorn.Server

    @property
    def clients(self) -> set[tuple[str, int]]:
        return {connection.client for connection in self.server.server_state.connections}  # type: ignore[union-attr,misc]


@contextmanager
def served(app: object) -> Iterator[Address]:
    """The app behind uvicorn on a free loopback port, in a thread with its own loop; yields the base address."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        loop="uvloop",
        http=protocol_of(Cohort()),
        lifespan="off",
        access_log=False,
        log_config=None,
        ws="none",
    )  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    started = threading.Event()
    original = server.startup

    async def startup(sockets: object = None) -> None:
        await original(sockets)  # type: ignore[arg-type]
        started.set()

    server.startup = startup  # type: ignore[method-assign,assignment]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(30)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        address = Address(f"http://127.0.0.1:{port}")
        address.server = server
        yield address
    finally:
        server.should_exit = True
        thread.join(30)


@dataclass
class Caller:
    """An ASGI client without a socket: sees every message the app sends, may leave, may stop reading."""

    app: ASGIApp
    sent: list[Message] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    got: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at each message sent."""

    def __post_init__(self) -> None:
        self.reads.set()

    async def __call__(
        self, method: str, path: str, body: bytes | Sequence[bytes] | object = b"", headers: dict[str, str] | None = None
    ) -> "Caller":
        if not isinstance(body, (bytes, list)):
            body = msgspec.json.encode(body)
        chunks: list[bytes] = list(body) if isinstance(body, list) else [body]
        messages: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": i < len(chunks) - 1} for i, chunk in enumerate(chunks)
        ]

        async def receive() -> Message:
            if messages:
                return messages.pop(0)
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            await self.reads.wait()
            self.sent.append(message)
            self.got.set()

        raw_headers = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        await self.app({"type": "http", "method": method, "path": path, "headers": raw_headers}, receive, send)
        return self

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of each event; "[DONE]" as itself."""
        lines = self.body.decode().split("\n\n")
        assert lines.pop() == ""
        assert all(line.startswith("data: ") and "\n" not in line for line in lines)
        datas = [line.removeprefix("data: ") for line in lines]
        return [data if data == "[DONE]" else msgspec.json.decode(data) for data in datas]


def chat(**fields: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}

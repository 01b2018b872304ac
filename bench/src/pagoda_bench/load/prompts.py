"""Turns planned conversations into the bodies of requests, with exact token counts where the server's API allows them.

Knows what the handshake found out about the server (Dialect) and no sockets. Called by the loops, one Dialogue per user.
"""

import random
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from pagoda_bench.load.filler import Filler
from pagoda_bench.load.scenarios import Conversation, Turn

Endpoint = Literal["completions", "chat"]
PLAIN_IDS = (10, 200)
"""Ids that are ordinary text in every vocabulary we know: bytes and their likes, behind the special tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How this server is spoken to."""

    endpoint: Endpoint
    token_ids: bool
    """Prompts are ids; the lengths are exact by construction."""
    forced_length: bool
    """ignore_eos and min_tokens are accepted: answers have exactly the tokens asked for."""
    special_text: bool = True
    """skip_special_tokens=false is accepted: tokens like the end of text, which forced lengths go past, come as chunks with text too."""
    usage: bool = True
    """stream_options.include_usage is accepted: the server counts."""
    overhead_tokens: int = 0
    """What the chat template, or a BOS, adds to the text of one message, by the server's own count."""


@dataclass(frozen=True, slots=True)
class Request:
    body: bytes
    prompt_tokens: int | None
    """Asked for; None: not known before the server says (later turns of a chat)."""
    output_tokens: int


class Prompts:
    """One per run. `prompt_seed` should differ from run to run, or a server that still lives has every prompt in its prefix cache."""

    def __init__(self, model: str, dialect: Dialect, filler: Filler, *, prompt_seed: str, temperature: float = 0.0) -> None:
        self.model = model
        self.dialect = dialect
        self.filler = filler
        self._seed = prompt_seed
        self._temperature = temperature

    @property
    def path(self) -> str:
        return "/chat/completions" if self.dialect.endpoint == "chat" else "/completions"

    def dialogue(self, plan: Conversation, name: str) -> "Dialogue":
        """`name` is unique in the run; the shared part of all dialogues is one and the same."""
        return Dialogue(self, plan, random.Random(f"{self._seed} {name}"), random.Random(f"{self._seed} shared"))

    def encode(self, content: dict[str, Any], output_tokens: int) -> bytes:
        body = {"model": self.model, **content, "max_tokens": output_tokens, "temperature": self._temperature, "stream": True}
        if self.dialect.usage:
            body["stream_options"] = {"include_usage": True}
        if self.dialect.forced_length:
            body |= {"ignore_eos": True, "min_tokens": output_tokens}
        if self.dialect.special_text:
            body["skip_special_tokens"] = False
        return msgspec.json.encode(body)


class Dialogue:
    """One user's conversation as it grows. Of a dialogue of ids the answers are not known as ids, so others of the same number stand for
    them: lengths stay exact, and a server's prefix cache finds the prompt of the turn before, not its answer."""

    def __init__(self, prompts: Prompts, plan: Conversation, own: random.Random, shared: random.Random) -> None:
        self.plan = plan
        self._prompts = prompts
        self._own = own
        self._shared = shared
        self._turn = 0
        self._ids: list[int] = []
        self._text = ""
        self._messages: list[dict[str, str]] = []

    @property
    def is_over(self) -> bool:
        return self._turn == len(self.plan.turns)

    @property
    def pause_s(self) -> float:
        """Before the next turn."""
        return self.plan.turns[self._turn].pause_s

    def next(self, answer: str = "") -> Request:
        """`answer`: what the server said last; empty on the first turn."""
        turn = self.plan.turns[self._turn]
        if self._prompts.dialect.endpoint == "chat":
            request = self._chat(turn, answer)
        elif self._prompts.dialect.token_ids:
            request = self._completion_ids(turn)
        else:
            request = self._completion_text(turn, answer)
        self._turn += 1
        return request

    def _completion_ids(self, turn: Turn) -> Request:
        if self._turn == 0:
            self._ids += self._shared.choices(range(*PLAIN_IDS), k=self.plan.shared_tokens)
        else:
            self._ids += self._own.choices(range(*PLAIN_IDS), k=self.plan.turns[self._turn - 1].output_tokens)
        self._ids += self._own.choices(range(*PLAIN_IDS), k=turn.new_tokens)
        return Request(self._prompts.encode({"prompt": self._ids}, turn.output_tokens), len(self._ids), turn.output_tokens)

    def _completion_text(self, turn: Turn, answer: str) -> Request:
        self._text = self._grown(turn, self._text + answer)
        expected = self._expected(self._text)
        return Request(self._prompts.encode({"prompt": self._text}, turn.output_tokens), expected, turn.output_tokens)

    def _chat(self, turn: Turn, answer: str) -> Request:
        """The shared part is in front of the first user's text, not a system message: not every template takes one. Tools' results come
        as the user, since without declared tools servers refuse the role."""
        content = self._grown(turn, "")
        expected = self._expected(content) if self._turn == 0 else None
        if self._turn > 0:
            self._messages.append({"role": "assistant", "content": answer})
        self._messages.append({"role": "user", "content": content})
        return Request(self._prompts.encode({"messages": self._messages}, turn.output_tokens), expected, turn.output_tokens)

    def _grown(self, turn: Turn, text: str) -> str:
        filler = self._prompts.filler
        if self._turn > 0:
            return filler.extend(text, turn.new_tokens, self._own)
        own_tokens = max(1, turn.new_tokens - self._prompts.dialect.overhead_tokens)
        return filler.extend(filler.extend("", self.plan.shared_tokens, self._shared), own_tokens, self._own)

    def _expected(self, text: str) -> int:
        count = self._prompts.filler.count(text)
        return self.plan.prompt_tokens(self._turn) if count is None else count + self._prompts.dialect.overhead_tokens

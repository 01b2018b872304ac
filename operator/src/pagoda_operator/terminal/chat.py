"""`pagoda chat`: turns of a conversation against the local endpoint, streamed. Called by commands.py.

Ctrl-C stops the present answer (closing the stream cancels it on the worker), Ctrl-D ends the conversation.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console

from pagoda_operator.terminal.errors import CommandError

CONNECT_S = 5.0
SILENCE_S = 300.0
"""Longest wait for the next token: a queue may be long, a dead server is noticed by its closed connection."""


@dataclass
class Answer:
    text: str = ""
    tokens: int = 0
    """As the server counts them; until it has said so, pieces."""
    first_s: float = 0.0
    last_s: float = 0.0
    trouble: str = ""
    finish: str = ""

    def figures(self) -> str:
        """Speed is over the whole wait: several tokens may come in one piece, and between two such pieces no time need pass."""
        took_s = max(self.last_s, 0.001)
        cut = "; ended by max_tokens or the context" if self.finish == "length" else ""
        return f"{self.tokens} tokens in {took_s:.2f} s, {self.tokens / took_s:.0f} tokens/s; first after {self.first_s * 1000:.0f} ms{cut}"


@dataclass
class Conversation:
    client: httpx.Client
    """With the endpoint as its base and the key in its headers."""
    model: str
    max_tokens: int | None
    console: Console
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, text: str) -> Answer:
        """Streams the answer to the terminal. A turn that failed leaves no trace in the conversation."""
        self.turns.append({"role": "user", "content": text})
        answer = Answer()
        began = time.monotonic()
        try:
            for piece in self._stream(answer):
                answer.last_s = time.monotonic() - began
                answer.first_s = answer.first_s or answer.last_s
                answer.text += piece
                self.console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
        except KeyboardInterrupt:
            answer.trouble = "stopped"
        except httpx.HTTPError as error:
            answer.trouble = f"the connection was lost: {error}"
        self.console.print()
        if answer.text:
            self.turns.append({"role": "assistant", "content": answer.text})
        else:
            self.turns.pop()
        return answer

    def _stream(self, answer: Answer) -> Iterator[str]:
        body: dict[str, Any] = {"model": self.model, "messages": self.turns, "stream": True, "stream_options": {"include_usage": True}}
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        with self.client.stream("POST", "chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                answer.trouble = error_of(response)
                return
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                yield from _pieces(json.loads(line.removeprefix("data: ")), answer)


def converse(conversation: Conversation) -> None:
    """Until the input ends."""
    console = conversation.console
    console.print(f"[dim]{conversation.model}; Ctrl-C stops an answer, Ctrl-D ends[/dim]")
    while True:
        try:
            text = console.input("[bold]> [/bold]").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:  # often meant for an answer that had just ended
            console.print("\n[dim]Ctrl-D ends[/dim]")
            continue
        if text:
            answer = conversation.ask(text)
            console.print(answer.trouble or answer.figures(), style="dim", markup=False)


def connect(endpoint: str, api_key: str | None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    return httpx.Client(base_url=f"{endpoint}/", headers=headers, timeout=timeout, trust_env=False)


def choose_model(client: httpx.Client, asked: str | None) -> str:
    """The one asked for, or the only one there is."""
    try:
        response = client.get("models")
    except httpx.HTTPError as error:
        raise CommandError(f"the router at {client.base_url} does not answer ({error}): see `pagoda logs --router`") from None
    if response.status_code != 200:
        raise CommandError(error_of(response))
    names = [item["id"] for item in response.json()["data"]]
    if asked is not None and asked in names:
        return asked
    if asked is not None or len(names) != 1:
        asking = f"there is no model {asked}" if asked is not None else "say which model"
        raise CommandError(f"{asking}: `pagoda chat NAME` with one of {', '.join(names) or '(none is served)'}")
    return str(names[0])


def error_of(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the router answered {response.status_code}"


def _pieces(event: dict[str, Any], answer: Answer) -> Iterator[str]:
    if "error" in event:
        answer.trouble = str(event["error"].get("message", "the stream ended with an error"))
        return
    for choice in event.get("choices", ()):
        answer.finish = choice.get("finish_reason") or answer.finish
        if piece := choice["delta"].get("content"):
            answer.tokens += 1
            yield piece
    if usage := event.get("usage"):
        answer.tokens = usage["completion_tokens"]
    if usage := event.get("usage"):
        answer.tokens = usage["completion_tokens"]

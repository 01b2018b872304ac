"""A little traffic with every kind of end: answered, streamed, refused for room, unknown model, bad field, left by its client."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx

PROMPTS = ("What is 27 + 46?", "What is 31 + 12?", "Sort: 5 3 9 1")
CLIENTS = 24
"""At once: more than the KV cache has room for, and the one that may wait."""


def ask(client: httpx.Client, prompt: str, *, stream: bool = False, max_tokens: int = 24, model: str = "tiny") -> int:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "stream": stream}
    return client.post("/v1/chat/completions", json=body).status_code


def leave(client: httpx.Client) -> None:
    """Reads one event of a long answer and goes."""
    body = {"model": "tiny", "prompt": "1 2 3", "max_tokens": 600, "stream": True, "ignore_eos": True}
    with client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_bytes())


def once(client: httpx.Client) -> set[int]:
    """Statuses seen."""
    long = {"model": "tiny", "prompt": "1 2 3", "max_tokens": 150, "ignore_eos": True}
    with ThreadPoolExecutor(CLIENTS) as pool:
        crowd = [pool.submit(lambda: client.post("/v1/completions", json=long).status_code) for _ in range(CLIENTS)]
        seen = {each.result() for each in crowd}
    leave(client)
    seen |= {ask(client, "hello", model="nobody"), ask(client, "hello", max_tokens=-1)}
    return seen | {ask(client, prompt, stream=stream) for prompt in PROMPTS for stream in (False, True)}


@contextmanager
def going_on(client: httpx.Client) -> Iterator[None]:
    """Requests one after another while the block runs, and the crowd again now and then: rates need counters that move."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            once(client)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

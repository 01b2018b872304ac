"""What the fuzzer plays: settings of an engine and what is asked of it step by step, all drawn from one seed. Pure; knows no engine.

Draws favour what is crowded: few blocks, few rows, small steps, prompts that share their beginnings and repeat themselves.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from pagoda_worker.request import Request, Sampling, StructuredOutput

VOCAB = 1024
MODELS = ("tiny", "tiny", "llama", "odd", "gpt2", "mistral", "qwen2", "qwen3")
"""Names that models.py has folders for; tiny is the shipped one, the others are random."""
ADAPTERS = {"a": 4, "b": 8, "c": 3, "d": 16}
"""Name → rank. Each has two versions, 0 and 1."""
MOST_STEPS = 4000
"""Of one act; whoever has work then waits for ever."""


@dataclass(frozen=True, slots=True)
class Event:
    """Before step `at` of an act."""

    at: int
    submit: Request | None = None
    cancel: tuple[str, int | None] | None = None
    load: tuple[str, int] | None = None
    """An adapter's name and version."""
    unload: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    seed: int
    model: str
    settings: dict[str, Any]
    """Of EngineConfig; draft_dir, kv_cache_bytes and model_dir follow from the model."""
    blocks: int | None
    """Of the KV cache. None: as many as the engine takes."""
    host_blocks: tuple[int, int] = (0, 0)
    """To swap to, and for evicted prefixes."""
    adapting: bool = True
    """False: guesses are made always, whether they pay or not."""
    most_parts: int | None = None
    """The device has no memory for a step of more rows and chunks."""
    culprit: str = ""
    """A request that the model cannot compute."""
    acts: list[list[Event]] = field(default_factory=list)
    """Each begins when the one before has nothing left to do."""
    sleeps: list[int] = field(default_factory=list)
    """After each act, at which level. 0: none."""

    @property
    def requests(self) -> list[Request]:
        return [event.submit for act in self.acts for event in act if event.submit]

    @property
    def exact(self) -> bool:
        """Its answers are promised to the bit, whatever runs beside them."""
        return bool(self.settings.get("batch_invariant"))


def draw(seed: int, *, ranks: bool = True) -> Case:
    """`ranks`: some cases run on two."""
    r = random.Random(seed)
    model = r.choice(MODELS)
    settings = _settings(r, ranks=ranks)
    longest = r.choice([17, 24, 24, 40, 40, 64, 96, 200])
    settings["max_model_len"] = longest
    size = settings["block_size"]
    least = -(-longest // size)
    blocks = None if r.random() < 0.25 else least + r.randint(0, 2 * least + 4)
    adapters = settings.get("adapter_slots") != 0 and not settings.get("batch_invariant") and r.random() < 0.5
    if adapters:
        settings["adapter_slots"] = r.choice([1, 2, 3, 16])
    prompts = _prompts(r, longest)
    acts, names = [], []
    for act in range(r.choice([1, 1, 2, 3])):
        acts.append(_act(r, f"{act}", prompts, longest, adapters=adapters))
        names.append(0 if r.random() < 0.6 else r.choice([1, 2]))
    one_rank = settings.get("tensor_parallel", 1) == 1
    fault = r.random() if one_rank else 1.0
    ids = [event.submit.request_id for act in acts for event in act if event.submit]
    return Case(
        seed=seed,
        model=model,
        settings=settings,
        blocks=blocks,
        host_blocks=(r.choice([0, 0, 4, 30]), r.choice([0, 0, 4, 30])) if one_rank else (0, 0),
        adapting=r.random() < 0.3,
        most_parts=r.choice([1, 2, 5]) if fault < 0.08 else None,
        culprit=r.choice(ids) if 0.08 <= fault < 0.16 else "",
        acts=acts,
        sleeps=names,
    )


def _settings(r: random.Random, *, ranks: bool) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "dtype": r.choice(["fp32", "bf16", "bf16"]),
        "quantization": r.choice(["none", "none", "none", "int8", "int4", "fp8"]),
        "kv_dtype": r.choice(["auto", "auto", "int8", "fp8"]),
        "attention": r.choice(["auto"] * 8 + ["sdpa", "eager"]),
        "block_size": r.choice([1, 2, 4, 8, 16, 16, 16, 32]),
        "max_running": r.choice([1, 2, 3, 5, 8, 16]),
        "max_batch_tokens": r.choice([1, 3, 8, 17, 32, 64, 256, 1024]),
        "prefix_caching": r.random() < 0.75,
        "async_scheduling": r.random() < 0.4,
        "speculative": r.choice(["none", "ngram", "suffix", "draft", "draft", "remote"]),
        "draft_tokens": r.choice([1, 2, 4, 7]),
        "batch_invariant": r.random() < 0.35,
        "long_prefill_tokens": r.choice([None, None, 0, 5]),
        "load": r.choice(["eager"] * 9 + ["lazy"]),
    }
    settings["max_running"] = min(settings["max_running"], max(settings["max_batch_tokens"], 1))
    shape = r.random()
    if shape < 0.06:
        settings |= {"chunked_prefill": False, "max_batch_tokens": 1024}
    elif shape < 0.08:
        settings |= {"batching": r.choice(["static", "dynamic"])}
    elif shape < 0.1:
        settings |= {"paged_kv": False, "prefix_caching": False}
    elif shape < 0.13:
        settings |= {"kv_cache": False, "prefix_caching": False, "speculative": "none", "async_scheduling": False, "max_batch_tokens": 1024}
        settings |= {"max_running": min(settings["max_running"], 5)}
    if ranks and shape > 0.98:
        settings |= {"tensor_parallel": 2, "batch_invariant": False, "dtype": "fp32", "quantization": "none", "kv_dtype": "auto"}
    return settings


def _prompts(r: random.Random, longest: int) -> list[list[int]]:
    """Beginnings of three texts, with ends of their own; some copy a part of themselves."""
    texts = [[r.randrange(3, VOCAB) for _ in range(longest)] for _ in range(3)]
    prompts = []
    for _ in range(12):
        length = min(r.choice([1, 2, r.randint(1, longest - 1), r.randint(1, longest // 2), longest - 1]), longest - 1)
        shared = r.choice([0, length, length // 2, length - 1])
        prompt = [*r.choice(texts)[:shared], *(r.randrange(3, VOCAB) for _ in range(length - shared))]
        if r.random() < 0.4 and length > 3:
            part = prompt[: r.randint(1, length // 2)]
            prompt = (part * length)[:length]
        prompts.append(prompt)
    return prompts


def _act(r: random.Random, label: str, prompts: list[list[int]], longest: int, *, adapters: bool) -> list[Event]:
    events: list[Event] = []
    loaded: set[str] = set()
    names = r.sample(sorted(ADAPTERS), r.randint(1, len(ADAPTERS))) if adapters else []
    for name in names:
        events.append(Event(0, load=(name, r.randint(0, 1))))
        loaded.add(name)
    at = 0
    for number in range(r.choice([1, 2, 3, 5, 9])):
        at += r.choice([0, 0, 0, 1, 2, 7])
        if names and r.random() < 0.2:
            name = r.choice(names)
            if name in loaded and r.random() < 0.5:
                events.append(Event(at, unload=name))
                loaded.discard(name)
            else:
                events.append(Event(at, load=(name, r.randint(0, 1))))
                loaded.add(name)
        adapter = r.choice([*sorted(loaded), ""]) if adapters else ""
        request = _request(r, f"{label}.{number}", r.choice(prompts), longest, adapter)
        events.append(Event(at, submit=request))
        if r.random() < 0.15:
            events.append(Event(at + r.choice([0, 1, 2, 5, 20]), cancel=(request.request_id, r.choice([None, 0, request.n - 1]))))
    return sorted(events, key=lambda event: event.at)


def _request(r: random.Random, request_id: str, prompt: list[int], longest: int, adapter: str) -> Request:
    room = longest - len(prompt)
    max_tokens = max(1, r.choice([1, 2, min(room, 50), room + 5 if room < 40 else 7, r.randint(1, 20), r.randint(1, 40)]))
    structured = _structured(r) if r.random() < 0.2 else None
    sampling = _sampling(r, structured=structured is not None)
    resume: list[int] = []
    if structured is None and not sampling.bad_words and not sampling.allowed_token_ids and r.random() < 0.08:
        resume = [r.randrange(3, VOCAB) for _ in range(min(r.randint(1, 9), max_tokens - 1, room - 1))]
    if r.random() < 0.04 and not resume:
        return Request(request_id=request_id, prompt_ids=prompt, max_tokens=1, embedding=True, adapter=adapter)
    n = 1 if resume else r.choice([1, 1, 1, 1, 2, 3, 5])
    return Request(
        request_id=request_id,
        prompt_ids=prompt,
        sampling=sampling,
        n=n,
        max_tokens=max_tokens,
        min_tokens=r.choice([0, 0, 0, max_tokens, r.randint(0, max_tokens)]),
        stop_token_ids=r.choice([[], [], [], sorted(r.sample(range(3, VOCAB), 40))]),
        ignore_eos=r.random() < 0.5,
        top_logprobs=r.choice([None, None, None, 0, 1, 5, 20]),
        adapter=adapter,
        cache_salt=r.choice([b"", b"", b"", b"x"]),
        use_prefix_cache=r.random() < 0.9,
        priority=r.choice([0, 0, 0, 0, 1, -1, 5]),
        resume_ids=resume,
        deadline_s=r.choice([None] * 15 + [r.choice([0.001, 0.02, 0.1])]),
        want_timings=r.random() < 0.2,
        structured=structured,
        prompt_logprobs=r.choice([None, None, None, None, None, 0, 2]),
        runs_alone=n == 1 and r.random() < 0.06,
        max_draft_tokens=r.choice([None, None, None, 0, 1, 3]),
    )


def _sampling(r: random.Random, *, structured: bool) -> Sampling:
    """Whoever samples has a seed: without one nothing could be compared."""
    more: dict[str, Any] = {}
    if r.random() < 0.5:
        more |= {"temperature": r.choice([0.3, 0.8, 1.0, 1.7]), "seed": r.choice([0, 1, r.randrange(2**63)])}
        more |= r.choice([{}, {}, {"top_p": r.choice([0.3, 0.9])}, {"top_k": r.choice([1, 3, 40])}, {"min_p": r.choice([0.02, 0.3])}])
    if r.random() < 0.3:
        more |= r.choice(
            [
                {"repetition_penalty": 1.3},
                {"frequency_penalty": 0.6},
                {"presence_penalty": -0.7},
                {"frequency_penalty": 1.1, "presence_penalty": 0.3},
            ]
        )
    if r.random() < 0.15:
        more["logit_bias"] = {r.randrange(VOCAB): r.choice([-100.0, -3.0, 2.0]) for _ in range(5)}
    if not structured and r.random() < 0.12:
        more["allowed_token_ids"] = sorted(r.sample(range(3, VOCAB), 30))
    elif not structured and r.random() < 0.12:
        more["bad_words"] = [[r.randrange(3, VOCAB) for _ in range(r.choice([1, 1, 2]))] for _ in range(60)]
    return Sampling(**more)


CHOICES = ("yes", "no", "perhaps not", "yesterday")
SCHEMA = '{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["x","yy"]}},"required":["a","b"],"additionalProperties":false}'
REGEX = "[a-c]{2,9}(-[0-9]{1,3}){0,2}"
GRAMMAR = 'start: "(" start ")" | "x"'


def _structured(r: random.Random) -> StructuredOutput:
    return r.choice(
        [
            StructuredOutput(kind="choice", choices=CHOICES),
            StructuredOutput(kind="json_schema", text=SCHEMA),
            StructuredOutput(kind="regex", text=REGEX),
            StructuredOutput(kind="grammar", text=GRAMMAR),
            StructuredOutput(kind="json_object"),
        ]
    )

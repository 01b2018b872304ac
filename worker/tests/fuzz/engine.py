"""Lets chance choose settings and requests, and compares every answer with that of a plain engine: CONTRIBUTING.md says when to run it.

`python -m fuzz.engine --hours 2` in `worker/tests/`, or `--seed 17` for one case. A case that fails prints its seed, then what is left of
it once everything was taken out that it fails without.
"""

import argparse
import itertools
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from pprint import pformat

from fuzz.cases import Case, draw
from fuzz.models import Models, engine_of
from fuzz.oracles import Plain, Wrong, check_alone, tokenizer_of
from fuzz.play import Answers, Player
from pagoda_worker.errors import ConfigError


class Fuzzer:
    def __init__(self, root: Path) -> None:
        self._models = Models(root)
        self.counts: Counter[str] = Counter()
        self.ties: Counter[tuple[str, float]] = Counter()
        self.farthest: dict[str, float] = {}

    def run(self, case: Case) -> None:
        """Twice in one engine: the second time finds what the first one left. Raises AssertionError, or whatever the engine raises."""
        try:
            engine = engine_of(self._models.config(case))
        except ConfigError as refusal:
            self.counts[f"refused: {str(refusal)[:90]}"] += 1
            return
        plain = Plain(case, self._models)
        tokenizer = tokenizer_of(self._models.folder(case.model))
        with closing(engine), closing(plain.engine):
            if not case.adapting and engine.speculation:
                engine.speculation._adapting = False
            answers: Answers = {}
            for _ in range(2):
                player = Player(case, engine, self._models, answers)
                answers = player.play()
                for key, answer in answers.items():
                    try:
                        check_alone(answer, case, tuple(engine.facts.eos_token_ids), tokenizer)
                    except Wrong as wrong:
                        raise Wrong(f"{key} of {answer}: {wrong}") from wrong
                plain.check(answers)
            state = engine.idle_state()
        self.counts["cases"] += 1
        self.counts["answers"] += len(answers)
        self.counts["refused requests"] += len(player.refused)
        self.counts["tokens"] += state.generation_tokens_total
        self.counts["preemptions"] += state.preemptions_total
        self.counts["swaps"] += state.swaps_total
        self.counts["host hits"] += state.host_prefix_hits_total
        self.counts["cached tokens"] += state.prefix_hits_total
        self.counts["accepted drafts"] += sum(state.accepted_draft_tokens)
        for answer in answers.values():
            assert answer.finish is not None
            self.counts[answer.finish.reason.name] += 1
        numerics = "/".join(str(case.settings[name]) for name in ("dtype", "quantization", "kv_dtype"))
        self.ties.update({(numerics, nudge): count for nudge, count in plain.ties.items()})
        self.farthest[numerics] = max(self.farthest.get(numerics, 0.0), plain.farthest)

    def fails(self, case: Case) -> str:
        """The error, in one line; empty: none."""
        try:
            self.run(case)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def shrink(self, case: Case, *, seconds: float) -> Case:
        """Without whatever it fails without."""
        until = time.monotonic() + seconds
        shrunk = True
        while shrunk and time.monotonic() < until:
            shrunk = False
            for smaller in smaller_ones(case):
                if time.monotonic() > until:
                    break
                if self.fails(smaller):
                    case, shrunk = smaller, True
                    break
        return case


PLAINER = {
    "speculative": "none",
    "async_scheduling": False,
    "prefix_caching": False,
    "kv_dtype": "auto",
    "quantization": "none",
    "dtype": "fp32",
    "attention": "auto",
    "block_size": 16,
    "max_running": 16,
    "max_batch_tokens": 1024,
    "long_prefill_tokens": None,
    "batch_invariant": False,
}


def smaller_ones(case: Case) -> Iterator[Case]:
    if len(case.acts) > 1:
        for i in range(len(case.acts)):
            yield replace(case, acts=case.acts[:i] + case.acts[i + 1 :], sleeps=case.sleeps[:i] + case.sleeps[i + 1 :])
    if any(case.sleeps):
        yield replace(case, sleeps=[0] * len(case.sleeps))
    for name, value in PLAINER.items():
        if case.settings[name] != value:
            yield replace(case, settings={**case.settings, name: value})
    for name, nothing in (("most_parts", None), ("culprit", ""), ("adapting", False)):
        if getattr(case, name) != nothing:
            yield replace(case, **{name: nothing})
    if case.blocks is not None:
        yield replace(case, blocks=None)
    if any(case.host_blocks):
        yield replace(case, host_blocks=(0, 0))
    for i, act in enumerate(case.acts):
        half = len(act) // 2
        for shorter in [act[:half], act[half:]] if half > 1 else []:
            yield replace(case, acts=[*case.acts[:i], shorter, *case.acts[i + 1 :]])
        for j in range(len(act)):
            yield replace(case, acts=[*case.acts[:i], act[:j] + act[j + 1 :], *case.acts[i + 1 :]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, help="this case alone")
    parser.add_argument("--hours", type=float, default=0.02)
    parser.add_argument("--first", type=int, help="the seed to begin with; else one by chance")
    parser.add_argument("--go-on", action="store_true", help="after a failure")
    parser.add_argument("--shrink-s", type=float, default=120.0)
    arguments = parser.parse_args()
    until, failed = time.monotonic() + 3600 * arguments.hours, 0
    first = random.SystemRandom().randrange(2**31) if arguments.first is None else arguments.first
    seeds = itertools.count(first) if arguments.seed is None else [arguments.seed]
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        for seed in seeds:
            if time.monotonic() > until and arguments.seed is None:
                break
            case = draw(seed)
            try:
                fuzzer.run(case)
            except Exception:
                failed += 1
                print(f"--seed {seed}\n{traceback.format_exc()}", flush=True)
                small = fuzzer.shrink(case, seconds=arguments.shrink_s)
                print(f"--seed {seed}, smaller:\n{pformat(small, width=160)}\n{fuzzer.fails(small)[:1500]}", flush=True)
                if not arguments.go_on:
                    break
        print(f"seeds {first} to {seed}, {failed} failed" if arguments.seed is None else f"{failed} failed")
        print(pformat(dict(fuzzer.counts)), pformat(dict(sorted(fuzzer.ties.items()))), pformat(fuzzer.farthest), sep="\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

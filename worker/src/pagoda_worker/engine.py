"""The engine: requests in, one StepOutput per step out. Usable alone: `Engine(EngineConfig(model_dir=…)).generate([[1, 2, 3]], …)`.

Owns scheduler and runner and the clock they are given; knows no network. Called by the engine process, by offline/ and by gpu_check/.
One thread calls everything here.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import torch

from pagoda_worker.completions import Completion, Completions
from pagoda_worker.config import EngineConfig
from pagoda_worker.engine_sizes import limits_of, plans_ahead, shape_of, speculation_for
from pagoda_worker.errors import CannotSleep
from pagoda_worker.execution.alone import EngineRanks, ranks_of
from pagoda_worker.execution.launching import Flight, launch
from pagoda_worker.execution.starting import RunnerStart
from pagoda_worker.facts import AdaptersState
from pagoda_worker.grammars import take_grammars
from pagoda_worker.layers.heap import keep_freed_memory
from pagoda_worker.loading.adapters import AdapterDirectory, open_for
from pagoda_worker.loading.loader import News, kernels_in_use
from pagoda_worker.loading.self_test import Measured, measure
from pagoda_worker.loading.sleep import Weights
from pagoda_worker.loading.warm import warm
from pagoda_worker.models.base import Model
from pagoda_worker.models.texts import read_tokenizer_json
from pagoda_worker.request import EngineState, Rejection, Request, Sampling, SequenceUpdate, StepOutput
from pagoda_worker.request_check import check_request
from pagoda_worker.sampling.constraints import Constraints
from pagoda_worker.sampling.structured import GrammarCompiler
from pagoda_worker.scheduling.blocks import BlockPool
from pagoda_worker.scheduling.sampled import judge_drafts
from pagoda_worker.scheduling.scheduler import Scheduler
from pagoda_worker.scheduling.step_meter import StepMeter
from pagoda_worker.scheduling.verification import DraftCounts

MAX_SEQUENCES_PER_REQUEST = 128
MAX_TOP_LOGPROBS = 20
Outcome = TypeVar("Outcome")
log = logging.getLogger(__name__)


class Engine:
    def __init__(
        self,
        config: EngineConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        news: News = lambda stage, done, total: None,
        ranks: EngineRanks | None = None,
    ) -> None:
        """Loads the model and allocates the KV cache. `ranks`: the others of a tensor parallel engine; None starts them.
        Raises ModelError, UnsupportedModel, ConfigError, OutOfMemory."""
        began = time.monotonic()
        self._ranks = ranks or ranks_of(config)
        loaded = self._ranks.load(config, news)
        self._config, self._news, self._clock = config, news, clock
        self._weights = Weights(loaded.model, loaded.read_model, loaded.device)
        self._dtype, self._device = loaded.dtype, loaded.device
        self._seeds = random.Random(config.seed)
        self._limits = limits_of(config, loaded)
        self.scheduler = Scheduler(BlockPool(loaded.block_count, config.block_size), self._limits)
        vocab, eos = loaded.vocab_size, loaded.eos_token_ids
        compiler = GrammarCompiler(partial(read_tokenizer_json, config.model_dir), vocab_size=vocab, eos_token_ids=eos)
        self.constraints = Constraints(compiler, vocab_size=vocab, eos_token_ids=eos, threads=config.threads or torch.get_num_threads())
        self._start_runner = RunnerStart(
            config=config,
            shape=shape_of(config, loaded),
            dtype=loaded.dtype,
            kv_dtype=loaded.kv_dtype,
            device=loaded.device,
            masks=self.constraints.masks,
            ranks=self._ranks,
            news=news,
        )
        self._flight: Flight | None = None
        """Launched and not settled; the scheduler's sequences count its tokens as pending."""
        self._rejections: list[Rejection] = []
        self.adapters = AdapterDirectory()
        """Its `load` takes one in between two steps."""
        self._async = plans_ahead(config, loaded.device)
        self.speculation = speculation_for(config, loaded, self.constraints)
        self._meter = StepMeter()
        self.facts = replace(
            loaded.facts(config),
            max_sequences_per_request=MAX_SEQUENCES_PER_REQUEST,
            max_top_logprobs=MAX_TOP_LOGPROBS,
            structured_output=not compiler.why_unusable(),
            speculative=config.speculative,
            draft_tokens=config.draft_tokens if self.speculation else 0,
        )
        if loaded.model is not None:
            self._begin_running(loaded.model, began, loaded.weights_s)

    def _begin_running(self, model: Model, began: float, weights_s: float) -> None:
        """Of weights that were just read: allocates the cache, and tells how fast that was and how fast the engine is."""
        if self._limits.adapter_slots:
            open_for(model, self.adapters, self._config, self._dtype, self._device)
        self.runner = self._start_runner(model)
        if on_cpu := self.runner.device.type == "cpu":
            keep_freed_memory()
        measured, warmed = Measured(), None
        if self._config.self_test:
            self._news("measuring", 0, 0)
            measured = self._on_trial(lambda trial: measure(trial, self.step, vocab_size=self.facts.vocab_size))
        if self._config.load == "warm":
            hear = partial(self._news, "warming: sizes of steps run")
            warmed = self._on_trial(lambda trial: warm(trial, self.step, vocab_size=self.facts.vocab_size, news=hear))
            log.info("warmed in %.1f s: %d sizes of steps, %d left out for time", warmed.seconds, warmed.sizes, warmed.left_out)
        self._meter.start_from(
            prefill_tokens_per_s=measured.prefill_tokens_per_s,
            decode_step_ms=measured.decode_step_ms,
            chunk_tokens=measured.chunk_tokens,
        )
        self.facts = replace(
            self.facts,
            prefill_tokens_per_s=measured.prefill_tokens_per_s,
            decode_tokens_per_s=measured.decode_tokens_per_s,
            load_s=time.monotonic() - began,
            weights_s=weights_s,
            warm_s=warmed.seconds if warmed else 0.0,
            kernels=kernels_in_use(model.operators.name, self._config.attention, threads=torch.get_num_threads() if on_cpu else None),
        )

    # ------------------------------------------------------------ requests

    def submit(self, request: Request) -> None:
        """Queues; never blocks. Raises RequestRefused or ContextTooLong."""
        check_request(request, self.facts)
        adapter = self.adapters.find(request.adapter)
        seed = request.sampling.seed if request.sampling.seed is not None else self._seeds.getrandbits(63)
        family = self.scheduler.submit(request, now=self._clock(), seed=seed, adapter=adapter)
        if request.constrained:
            self.constraints.begin(family)

    def cancel(self, request_id: str, sequence: int | None = None) -> None:
        """Blocks are free at once; a CANCELLED finish leaves with the next step. Unknown ids are ignored."""
        self.scheduler.cancel(request_id, sequence)

    def draft(self, request_id: str, sequence: int, position: int, token_ids: list[int]) -> None:
        """Another worker's guesses at the output from `position` on. Those that nobody can use are dropped."""
        running = self.scheduler.find(request_id, sequence)
        if running is not None and self.speculation:
            self.speculation.take(running, position, token_ids)

    def abandon(self, detail: str) -> None:
        """After a step that raised: every request ends with ENGINE_ERROR (reported by the next step), nothing computed is trusted again."""
        self._flight = None
        self.scheduler.abandon(detail)

    @property
    def has_work(self) -> bool:
        """Something to compute, or an ending to report."""
        return self.scheduler.has_work or self._flight is not None

    # ------------------------------------------------------------ the heart

    def step(self) -> StepOutput:
        """Settles one step. With asynchronous scheduling the next one is on the device by then, planned as if every sequence went on."""
        flight = self._flight or self._launch()
        following = self._launch() if self._async else None
        self._flight = following if following and following.parts else None
        results = flight.results()  # the host waits here and nowhere else
        for plan, sampled in results:
            if plan.verifications and self.speculation:
                self.speculation.learn(plan, judge_drafts(plan, sampled))
            self.constraints.advance(plan.sampling(), sampled)
        ended = self._clock()
        updates = [update for plan, sampled in results for update in self.scheduler.settle(plan, sampled, ended)]
        took_s = self._meter.measure(flight.plan, flight.began, ended)
        if self.speculation:
            whole_s = took_s + self._clock() - ended  # settling takes longer, too, the more tokens a step has
            self.speculation.timed(flight.plan, whole_s, prompts_s=self._meter.prompts_s(flight.plan), token_s=self._meter.prefill_token_s)
        if not flight.plan.empty:
            self.scheduler.residency.speeds = self._meter.speeds(self.runner.host.copy_bytes_per_s if self.runner.host else 0.0)
        rejections, self._rejections = self._rejections, []
        state, cache = self._state(ended), self.scheduler.blocks.take_changes()
        size, took_us, news = (flight.plan.sequences, flight.plan.tokens), int(took_s * 1e6), self.adapters.news(self.scheduler.adapters)
        return StepOutput(updates, state, *size, took_us, rejections, cache, news)

    def _launch(self) -> Flight:
        began = self._clock()
        self._rejections += take_grammars(self.constraints, self.scheduler)
        for adapter in self.adapters.take_retired():
            self.scheduler.adapters.forget(adapter)
        if self.speculation:
            self.speculation.propose(self.scheduler.running)
        plan = self.scheduler.schedule(began)  # which sequences, how many tokens each
        if self.speculation:
            self.speculation.planned(plan)
        return launch(self.runner.launch, self.scheduler.withdraw, plan, began)  # one forward pass, one token per sampling row

    def _on_trial(self, run: Callable[[Scheduler], Outcome]) -> Outcome:
        """With a scheduler of its own, so that the real one starts with every block, row and count untouched."""
        kept, steps, ahead, guessing = self.scheduler, self._meter.steps, self._async, self.speculation
        self._async, self.speculation = False, None  # nothing of it may be in flight when the real one is back
        self.scheduler = Scheduler(BlockPool(kept.blocks.count, kept.blocks.block_size), self._limits)
        outcome = run(self.scheduler)
        kept.inherit_scrubs(self.scheduler)
        self.scheduler, self._meter.steps, self._async, self.speculation = kept, steps, ahead, guessing
        return outcome

    # ------------------------------------------------------------ sleep

    @property
    def sleep_level(self) -> int:
        """0: awake. 1: weights in host memory. 2: in their folder only."""
        return self._weights.level

    def sleep(self, level: int) -> int:
        """Gives back the KV cache, every known prefix, and the device's weights; the bytes that this freed. Until `wake` nothing may be
        computed. An engine that sleeps that deep stays as it is. Raises CannotSleep while requests run, for a level that is none, for a
        host without room."""
        if self.has_work:
            raise CannotSleep("requests are running: an engine sleeps only when it is idle")
        freed = self._weights.sleep(level, self._forget_cache)
        self._ranks.sleep(level)
        return freed

    def wake(self) -> None:
        """Back to where `sleep` began, or for the first time with load: lazy; the same tokens as ever. Raises OutOfMemory or ModelError
        when device or folder no longer have what it takes: then it sleeps at level 2, and another try may succeed."""
        began = time.monotonic()

        def take_up(model: Model) -> None:
            if self.facts.load_s:
                self.runner = self._start_runner(model)
            else:
                self._begin_running(model, began, time.monotonic() - began)

        with self._ranks.waking():
            self._weights.wake(take_up)

    def close(self) -> None:
        """Ends the processes of other ranks, where there are any, while this one goes on."""
        self._ranks.close()

    def _forget_cache(self) -> None:
        if self.runner.adapters is not None:
            self.runner.adapters.detach()
        del self.runner
        self.scheduler.residency.forget_prefixes()
        self.scheduler.adapters.clear()

    # ------------------------------------------------------------ what is told

    def idle_state(self) -> EngineState:
        return self._state(self._clock())

    def _state(self, now: float) -> EngineState:
        drafts = self.speculation.told() if self.speculation else DraftCounts()
        return self._meter.state(self.scheduler, now, sleep_level=self.sleep_level, drafts=drafts)

    def adapters_state(self) -> AdaptersState:
        return self.adapters.state(self.scheduler.adapters)

    def check_integrity(self) -> None:
        """Asserts that blocks, rows and sequences agree, and that everything is free when nothing runs."""
        self.scheduler.check()

    # ------------------------------------------------------------ offline

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | None = None,
        max_tokens: int = 16,
        *,
        n: int = 1,
        min_tokens: int = 0,
        stop_token_ids: Sequence[int] = (),
        ignore_eos: bool = False,
        top_logprobs: int | None = None,
        adapters: Sequence[str] = (),
        on_update: Callable[[SequenceUpdate], None] | None = None,
        on_step: Callable[[EngineState], None] | None = None,
    ) -> list[Completion]:
        """Runs all prompts to their end, in one batch as far as the limits allow; in order of prompt, then sequence. `adapters`: one name
        for each prompt; none: the base model. `on_update` and `on_step`: see Completions.run."""
        self.wake()
        usual = Request(
            request_id="",
            prompt_ids=[],
            sampling=sampling or Sampling(),
            n=n,
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop_token_ids=list(stop_token_ids),
            ignore_eos=ignore_eos,
            top_logprobs=top_logprobs,
        )
        completions = Completions.run(self, usual, prompts, adapters, on_update=on_update, on_step=on_step)
        return completions.finished(with_logprobs=top_logprobs is not None)

"""The command `pagoda bench`: options in, files and tables out. Found by the `pagoda` command as an entry point of `pagoda.commands`.

Imports what measures only inside each command: `pagoda bench --help` must not wait for numpy, and nothing here may need torch.
"""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from pagoda_bench.arguments import levels, numbers, percent, told_in_one_line, typed
from pagoda_bench.lifeline import raise_on_sigterm
from pagoda_bench.load.scenarios import Scenario

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Measure an OpenAI-compatible server, or the engine alone.")


@app.callback()
def every(context: typer.Context) -> None:
    context.call_on_close(raise_on_sigterm())


@app.command()
def run(
    url: Annotated[str, typer.Option(help="The server, with or without /v1.")] = "http://127.0.0.1:8000/v1",
    model: Annotated[str | None, typer.Option(help="Needed where the server has several.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Else PAGODA_API_KEY or OPENAI_API_KEY.", show_default=False)] = None,
    endpoint: Annotated[Literal["completions", "chat"], typer.Option(help="completions sends token ids: exact lengths.")] = "completions",
    scenario: Annotated[Scenario, typer.Option(help="What users ask for.")] = Scenario.SHORT,
    concurrency: Annotated[str | None, typer.Option(help="Closed loop: users, like 1,8,32.")] = None,
    rate: Annotated[str | None, typer.Option(help="Open loop: Poisson arrivals a second, like 2,4,8.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Open loop: arrivals from a CSV or JSONL file.")] = None,
    trace_speed: Annotated[str, typer.Option(help="How many times as fast, like 1,2.")] = "1",
    max_requests: Annotated[int | None, typer.Option(help="Of the trace.", min=1)] = None,
    requests: Annotated[int | None, typer.Option(help="Closed loop: of each user after its warm-up; 6 without --duration.", min=1)] = None,
    duration: Annotated[str | None, typer.Option(help="Of each load level, like 60s; open loops 30s.")] = None,
    ramp: Annotated[str | None, typer.Option(help="Closed loop: users start over this time, like 10s; else at once.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each level is measured, in turn.", min=1)] = 1,
    prompt_tokens: Annotated[int | None, typer.Option(help="In place of the scenario's.", min=1)] = None,
    output_tokens: Annotated[int | None, typer.Option(help="In place of the scenario's.", min=1)] = None,
    slo: Annotated[str | None, typer.Option(help="For goodput, like ttft=500ms,tpot=50ms.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The model's folder or tokenizer.json: text of exact length.")] = None,
    warm_up: Annotated[bool, typer.Option(help="Leave the beginning of each level out.")] = True,
    seed: Annotated[int, typer.Option(help="Of lengths and arrivals.")] = 0,
    prompt_seed: Annotated[str | None, typer.Option(help="Of the prompts; another one each time, because of prefix caches.")] = None,
    system: Annotated[str | None, typer.Option(help="Name of the server in the results.")] = None,
    label: Annotated[str | None, typer.Option(help="Opens the name of each case; else the scenario.")] = None,
    timeout: Annotated[str, typer.Option(help="Of one request.")] = "600s",
    output: Annotated[Path, typer.Option(help="Path without suffix: .json, .md, .csv and pictures are written.")] = Path("bench-load"),
    plots: Annotated[bool, typer.Option(help="Draw pictures.")] = True,
) -> None:
    """Load a server and write what it did: CSV, JSON, Markdown, pictures."""
    with told_in_one_line():
        from pagoda_bench.load.present import measure_and_write
        from pagoda_bench.load.scenarios import Lengths
        from pagoda_bench.load.settings import RunSettings
        from pagoda_bench.load.slo import Slo, duration_s

        optional = {} if prompt_seed is None else {"prompt_seed": prompt_seed}
        settings = RunSettings(
            url=url,
            api_key=api_key or os.environ.get("PAGODA_API_KEY") or os.environ.get("OPENAI_API_KEY"),
            model=model,
            endpoint=endpoint,
            system=system,
            label=label,
            scenario=scenario,
            lengths=Lengths(prompt_tokens, output_tokens),
            levels=levels(concurrency, rate, trace, trace_speed),
            rounds=rounds,
            requests_per_user=requests if requests is not None else None if duration is not None else 6,
            duration_s=None if duration is None else duration_s(duration),
            warm_up=warm_up,
            ramp_s=0.0 if ramp is None else duration_s(ramp),
            trace=trace,
            max_requests=max_requests,
            slo=None if slo is None else Slo.parse(slo),
            tokenizer=tokenizer,
            seed=seed,
            timeout_s=duration_s(timeout),
            **optional,
        )
        measure_and_write(settings, output, command=typed(), plots=plots, packages=("pagoda-bench", "uvloop"))


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A result file (.json).")],
    b: Annotated[Path, typer.Argument(help="Another, with cases of the same names.")],
    metric: Annotated[str | None, typer.Option(help="Only metrics that contain this.")] = None,
) -> None:
    """Ratios A ÷ B with a 95 % interval, and which of them are more than noise."""
    with told_in_one_line():
        from pagoda_bench.load.compare import compare_files, table

        lines, cautions = compare_files(a, b)
        for caution in cautions:
            print(f"note: {caution}")
        print(table(line for line in lines if metric is None or metric in line.metric))


@app.command()
def engine(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder, builtin://tiny or random://0.45b.")] = "builtin://tiny",
    batch: Annotated[str, typer.Option(help="Requests given at once.")] = "1,8,32",
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    output_tokens: Annotated[int, typer.Option(min=1)] = 64,
    rounds: Annotated[int, typer.Option(help="Each in a new process, with prompts of its own.", min=1)] = 3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; else the checkpoint's.")] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    output: Annotated[Path, typer.Option(help="The result file.")] = Path("bench-engine.json"),
) -> None:
    """The engine alone, without HTTP: tokens/s, KV cache in use, bytes of memory a token."""
    with told_in_one_line():
        from pagoda_bench import results
        from pagoda_bench.load.engine import EngineJob, measure, table

        options = tuple((name, value) for name, value in (("device", device), ("dtype", dtype), ("threads", threads)) if value is not None)
        sizes = tuple(int(size) for size in numbers("--batch", batch, whole=True))
        job = EngineJob(
            model=model, batch_sizes=sizes, prompt_tokens=prompt_tokens, output_tokens=output_tokens, rounds=rounds, options=options
        )
        rows = list(measure(job))
        notes = [f"prompt {prompt_tokens}, output {output_tokens}, greedy, one batch; low and high: the extremes of {rounds} round(s)"]
        result = results.result_here("engine", rows, command=typed(), packages=("pagoda-worker", "torch"), notes=notes)
        results.write(result, output)
        print(table(rows))
        print(f"wrote {output}")


@app.command()
def tour(
    model: Annotated[str, typer.Option(help="A Hugging Face folder, builtin://tiny or random://0.45b.")] = "builtin://tiny",
    requests: Annotated[int, typer.Option(help="A multiple of 8.", min=16)] = 48,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; else what is there.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="The result file. Without it and with the builtin model: that of docs/tour/ with its tables and pictures.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """From the minimal loop to the full engine: what each idea wins, on one workload (docs/tour/)."""
    with told_in_one_line():
        from pagoda_bench.results import FOLDER
        from pagoda_bench.tour.pages import PAGES
        from pagoda_bench.tour.run import run as run_tour

        own = output is None and model == "builtin://tiny"
        run_tour(
            model,
            count=requests,
            rounds=rounds,
            device=device,
            output=FOLDER / "tour.json" if own else output or Path("bench-tour.json"),
            pages=PAGES if own else None,
            command=typed(),
        )


@app.command()
def costs(
    what: Annotated[
        list[str] | None,
        typer.Argument(help="kv-use, host-tier, batch-invariance, quantized-kv, adapters, adapter-loading, tensor-parallel; else all."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    output: Annotated[Path | None, typer.Option(help="A folder in place of bench/results; documents then stay as they are.")] = None,
) -> None:
    """What parts of the engine cost or win: KV cache in use, the host's tier, batch invariance, a quantized cache, adapters, ranks."""
    with told_in_one_line():
        from pagoda_bench.costs.run import run as run_costs

        run_costs(what or [], rounds=rounds, output=output, command=typed())


@app.command()
def sim(
    workloads: Annotated[list[str] | None, typer.Argument(help="mixed, shared-prefix, agents, burst, flood, …; without one all.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=1000)] = 8,
    duration: Annotated[str, typer.Option(help="Of simulated arrivals.")] = "60s",
    profile: Annotated[str, typer.Option(help="h100-8b, or tiny or 0.45b as measured here.")] = "h100-8b",
    processes: Annotated[int, typer.Option(help="Runs at once.", min=1)] = 2,
    output: Annotated[
        Path | None,
        typer.Option(help="The result file. Without it and with everything at its default: that of docs/routing.md.", show_default=False),
    ] = None,
) -> None:
    """Routing policies on simulated fleets that drive the router's own admission, queue and placement (docs/routing.md)."""
    with told_in_one_line():
        from pagoda_bench.errors import SettingsError

        try:
            from pagoda_bench.sim.study import study
        except ModuleNotFoundError as error:
            if error.name != "pagoda_router":
                raise
            raise SettingsError("the simulator drives the router's own code: install pagoda-router beside pagoda-bench") from None
        from pagoda_bench.load.slo import duration_s
        from pagoda_bench.results import FOLDER

        own = output is None and not workloads and (workers, duration, profile) == (8, "60s", "h100-8b")
        study(
            workloads=workloads or (),
            workers=workers,
            duration_s=duration_s(duration),
            profile=profile,
            processes=processes,
            output=FOLDER / "sim.json" if own else output or Path("bench-sim.json"),
            plots=FOLDER.parents[1] / "docs" / "routing" if own else None,
            command=typed(),
        )


@app.command()
def router(
    systems: Annotated[str | None, typer.Option(help="Of none,nginx,pagoda,sglang-router,vllm-router,litellm; else all.")] = None,
    cases: Annotated[str | None, typer.Option(help="Parts of their names, like short,paced; else all.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    window: Annotated[str, typer.Option(help="What one round of one case measures.")] = "3s",
    soak: Annotated[str, typer.Option(help="Of the soak.")] = "60s",
    before: Annotated[str | None, typer.Option(help="A commit whose router is measured beside ours.", show_default=False)] = None,
    python: Annotated[Path | None, typer.Option(help="Interpreter of our routers, else this one.", show_default=False)] = None,
    output: Annotated[Path | None, typer.Option(help="Path without suffix, in place of bench/results/router.", show_default=False)] = None,
) -> None:
    """What a router costs in front of mocks that cost nothing: ours beside none, nginx and others' (two cores, Go; 10 minutes)."""
    with told_in_one_line():
        from pagoda_bench.load.slo import duration_s
        from pagoda_bench.results import FOLDER
        from pagoda_bench.router_load.run import Options
        from pagoda_bench.router_load.run import run as run_router

        chosen = {} if systems is None else {"systems": tuple(systems.split(","))}
        run_router(
            Options(
                cases=tuple(cases.split(",")) if cases else (),
                rounds=rounds,
                window_s=duration_s(window),
                soak_s=duration_s(soak),
                before=before,
                interpreter=python,
                output=output or FOLDER / "router",
                **chosen,
            ),
            command=typed(),
        )


@app.command()
def quality(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="A Hugging Face folder or builtin://tiny, with settings of spec.engine: MODEL,quantization=int8,label=NAME.",
        ),
    ],
    corpus: Annotated[Path | None, typer.Option(help="Held-out text, or JSONL; builtin models have their own.", show_default=False)] = None,
    tokens: Annotated[int, typer.Option(help="Of the corpus, at most.", min=2)] = 20_000,
    window: Annotated[int, typer.Option(help="Tokens of context that long text is cut into.", min=2)] = 512,
    questions: Annotated[
        Path | None, typer.Option(help='JSONL of {"prompt", "answer"}; builtin models have theirs.', show_default=False)
    ] = None,
    per_task: Annotated[int, typer.Option(help="Questions of each kind.", min=0)] = 100,
    path: Annotated[Literal["both", "prefill", "decode"], typer.Option(help="How the engine computes the text.")] = "both",
    perplexity_within: Annotated[str | None, typer.Option(help="Fail when one is worse than the first model by more, like 1%.")] = None,
    streams: Annotated[str, typer.Option(help="At which speed is measured; empty: not at all.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(help="Of the speed, in turns.", min=1)] = 3,
    speed_of: Annotated[str | None, typer.Option(help="Speed of a model of another size, like random://0.45b.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    output: Annotated[Path, typer.Option(help="Path without suffix: .json, .md, .csv and .png are written.")] = Path("bench-quality"),
    plots: Annotated[bool, typer.Option(help="Draw the picture.")] = True,
) -> None:
    """What formats cost and save against the first model: exact match, perplexity, KL, top token, memory, speed (docs/quality.md)."""
    with told_in_one_line():
        from pagoda_bench.quality.candidates import parse_all
        from pagoda_bench.quality.engine import PATHS
        from pagoda_bench.quality.figures import Limits
        from pagoda_bench.quality.measure import SpeedPlan
        from pagoda_bench.quality.run import Options
        from pagoda_bench.quality.run import run as run_quality

        candidates = parse_all(models)
        limits = Limits() if perplexity_within is None else Limits(perplexity_ratio=1 + percent("--perplexity-within", perplexity_within))
        sizes = tuple(int(size) for size in numbers("--streams", streams, whole=True))
        options = Options(
            corpus=corpus,
            tokens=tokens,
            window=window,
            questions=questions,
            per_task=per_task,
            paths=PATHS if path == "both" else (path,),
            speed=SpeedPlan(streams=sizes, rounds=rounds) if sizes else None,
            speed_source=speed_of,
            device=device,
            threads=threads,
            limits={candidate.label: limits for candidate in candidates[1:]},
        )
        if run_quality(candidates, options, output=output, command=typed(), plots=plots):
            raise typer.Exit(1)

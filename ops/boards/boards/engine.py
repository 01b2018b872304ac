"""Board: inside the workers, step by step: batches, memory, caches, phases."""

from boards.grafana import Board, Panel, Query, Row, Variable
from boards.queries import NAMESPACE, WORKER, mean, quantile, quantiles, rate, ratio

BY_POD = "pod"
MODEL = Variable(name="model", label="Model", metric='pagoda_engine_up{namespace=~"$namespace"}', of_label="model_name")


def gauge(metric: str) -> str:
    return f"sum by ({BY_POD}) ({metric}{{{WORKER}}})"


STEP = Row(
    "Steps",
    (
        Panel(
            title="Duration of a step",
            description="One forward pass for the whole batch. The mean is what a decoding client feels between two tokens.",
            unit="s",
            queries=[*quantiles("pagoda_step_duration_seconds", WORKER), Query(mean("pagoda_step_duration_seconds", WORKER), "mean")],
        ),
        Panel(
            title="Sequences in a step",
            description="Small batches with a queue: maxBatchTokens or the KV cache is the limit.",
            unit="short",
            queries=[
                Query(mean("pagoda_step_sequences", WORKER, BY_POD), "{{pod}} mean"),
                Query(quantile(0.99, "pagoda_step_sequences", WORKER, BY_POD), "{{pod}} p99"),
            ],
        ),
        Panel(
            title="Tokens in a step",
            description="Prefill and decode together, against maxBatchTokens.",
            unit="suffix: tok",
            queries=[
                Query(mean("vllm:iteration_tokens_total", WORKER, BY_POD), "{{pod}} mean"),
                Query(quantile(0.99, "vllm:iteration_tokens_total", WORKER, BY_POD), "{{pod}} p99"),
            ],
        ),
        Panel(
            title="Running and waiting",
            description="Waiting above zero for long: the batch is full.",
            unit="short",
            queries=[
                Query(gauge("vllm:num_requests_running"), "{{pod}} running"),
                Query(gauge("vllm:num_requests_waiting"), "{{pod}} waiting"),
            ],
        ),
    ),
)
TOKENS = Row(
    "Tokens",
    (
        Panel(
            title="Tokens computed",
            description="prefill: prompt tokens that were not in the prefix cache. decode: output tokens.",
            unit="suffix: tok/s",
            queries=[
                Query(rate("pagoda_prefill_tokens_computed_total", WORKER, BY_POD), "{{pod}} prefill"),
                Query(rate("vllm:generation_tokens_total", WORKER, BY_POD), "{{pod}} decode"),
            ],
        ),
        Panel(
            title="Against the self-test",
            description="Decode speed beside what the worker measured after loading, with a small batch. Larger batches go above it.",
            unit="suffix: tok/s",
            queries=[
                Query(rate("vllm:generation_tokens_total", WORKER, BY_POD), "{{pod}} now"),
                Query(gauge("pagoda_measured_decode_tokens_per_second"), "{{pod}} self-test"),
            ],
        ),
        Panel(
            title="Prompt tokens not computed yet",
            description="Queued prefill work.",
            unit="suffix: tok",
            queries=[Query(gauge("pagoda_queued_prefill_tokens"), "{{pod}}")],
        ),
        Panel(
            title="Length of requests, median",
            description="Prompt and output tokens of requests that ended.",
            unit="suffix: tok",
            queries=[
                Query(quantile(0.5, "vllm:request_prompt_tokens", WORKER), "prompt"),
                Query(quantile(0.5, "vllm:request_generation_tokens", WORKER), "output"),
                Query(quantile(0.5, "vllm:request_params_max_tokens", WORKER), "max_tokens asked for"),
            ],
        ),
    ),
)
MEMORY = Row(
    "KV cache",
    (
        Panel(
            title="KV cache in use",
            description="Near 1, the last in order are preempted and computed again.",
            unit="percentunit",
            most=1,
            queries=[Query(f"max by ({BY_POD}) (vllm:kv_cache_usage_perc{{{WORKER}}})", "{{pod}}")],
        ),
        Panel(
            title="Preemptions",
            description="Each is work thrown away.",
            unit="suffix: /s",
            queries=[Query(rate("vllm:num_preemptions_total", WORKER, BY_POD), "{{pod}}")],
        ),
        Panel(
            title="Prefix cache: tokens found",
            description="Of the prompt tokens that were looked up. High with shared system prompts and chats.",
            unit="percentunit",
            most=1,
            queries=[
                Query(
                    ratio(rate("vllm:prefix_cache_hits_total", WORKER, BY_POD), rate("vllm:prefix_cache_queries_total", WORKER, BY_POD)),
                    "{{pod}}",
                )
            ],
        ),
        Panel(
            title="KV blocks",
            description="What each worker has, with the size of a block.",
            unit="short",
            queries=[
                Query(
                    f"max by (pod, block_size, num_gpu_blocks) (vllm:cache_config_info{{{WORKER}}})",
                    "{{pod}}: {{num_gpu_blocks}} of {{block_size}}",
                )
            ],
        ),
    ),
)
LATENCY = Row(
    "Phases of a request",
    (
        Panel(
            title="Time to first token",
            description="From receipt by the worker, its own queue included.",
            unit="s",
            queries=quantiles("vllm:time_to_first_token_seconds", WORKER),
        ),
        Panel(
            title="Inter-token latency",
            description="Between two output tokens of one sequence.",
            unit="s",
            queries=quantiles("vllm:inter_token_latency_seconds", WORKER),
        ),
        Panel(
            title="Whole request",
            description="From receipt to the last token.",
            unit="s",
            queries=quantiles("vllm:e2e_request_latency_seconds", WORKER),
        ),
        Panel(
            title="Phases, p95",
            description="inference is prefill and decode together.",
            unit="s",
            queries=[
                Query(quantile(0.95, f"vllm:request_{phase}_time_seconds", WORKER), phase)
                for phase in ("queue", "prefill", "decode", "inference")
            ],
        ),
    ),
)
REST = Row(
    "Speculation, adapters, health",
    (
        Panel(
            title="Speculation: draft tokens accepted",
            description="Of those drafted. Empty without speculation.",
            unit="percentunit",
            most=1,
            rare=True,
            queries=[
                Query(
                    ratio(
                        rate("vllm:spec_decode_num_accepted_tokens_total", WORKER, BY_POD),
                        rate("vllm:spec_decode_num_draft_tokens_total", WORKER, BY_POD),
                    ),
                    "{{pod}}",
                )
            ],
        ),
        Panel(
            title="Drafts",
            description="Rounds of speculation. 0 without it.",
            unit="suffix: /s",
            queries=[Query(rate("vllm:spec_decode_num_drafts_total", WORKER, BY_POD), "{{pod}}")],
        ),
        Panel(
            title="Adapters",
            description="LoRA adapters that run or wait, by name. Empty without adapters.",
            unit="short",
            rare=True,
            queries=[
                Query(f"max by (pod, running_lora_adapters) (vllm:lora_requests_info{{{WORKER}}})", "{{pod}}: {{running_lora_adapters}}")
            ],
        ),
        Panel(
            title="Engines up, and sessions",
            description="0 while an engine loads or restarts. Sessions: routers that are connected.",
            unit="short",
            queries=[Query(gauge("pagoda_engine_up"), "{{pod}} up"), Query(gauge("pagoda_sessions"), "{{pod}} sessions")],
        ),
        Panel(
            title="Engine restarts over the range shown",
            description="Engine processes that ended unasked. Any is worth a look at the logs.",
            unit="short",
            queries=[Query(f"sum by ({BY_POD}) (increase(pagoda_engine_restarts_total{{{WORKER}}}[$__range]))", "{{pod}}")],
        ),
        Panel(
            title="Submits refused by workers",
            description="By code. A steady rate: router and worker disagree about limits. Empty until there is one.",
            unit="suffix: /s",
            rare=True,
            queries=[Query(rate("pagoda_requests_refused_total", WORKER, "pod, code"), "{{pod}} {{code}}")],
        ),
    ),
)

BOARD = Board(
    uid="pagoda-engine",
    title="Pagoda / Engine internals",
    description="What limits a worker: the step, the batch, the KV cache, or its own queue?",
    variables=(NAMESPACE, MODEL),
    rows=(STEP, TOKENS, MEMORY, LATENCY, REST),
)

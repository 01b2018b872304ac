"""The engine's settings, parsed once and frozen. Knows no torch; values learned at run time (block count, eos ids) live elsewhere."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

DType = Literal["auto", "bf16", "fp16", "fp32"]
Device = Literal["auto", "cpu", "cuda"]
KvDType = Literal["auto", "int8", "fp8"]
Attention = Literal["auto", "native", "triton", "flash", "sdpa", "eager"]
Load = Literal["eager", "lazy", "warm"]
Quantization = Literal["none", "int8", "int4", "fp8"]
Speculative = Literal["none", "ngram", "suffix", "draft", "remote"]
Batching = Literal["static", "dynamic", "continuous"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What one engine is told at start. `runner` and `engine` resolve every "auto" and None."""

    model_dir: Path
    """A Hugging Face folder: config.json, *.safetensors, tokenizer.json."""
    random_weights: bool = False
    """Fill the model with seeded random numbers where it lies instead of reading tensors; config.json is then all of the folder. For
    benchmarks: a model of 16 GB to time, without a download or a file of that size."""
    device: Device = "auto"
    """auto: CUDA when there is a device, else CPU."""
    dtype: DType = "auto"
    """Of weights, activations and, with kv_dtype auto, KV cache. auto: the checkpoint's own; bf16 on CUDA for fp32 checkpoints larger than
    1 GB."""
    quantization: Quantization = "none"
    """Round the weights of the layers' products to this form while they are loaded (quantization/rounding.py), a linear at a time; a
    checkpoint that is quantized is held as it is stored. docs/quantization.md says what each costs and gains."""
    max_model_len: int | None = None
    """Prompt + output of one sequence, tokens. None: the checkpoint's max_position_embeddings."""
    max_batch_tokens: int | None = None
    """Tokens one step may compute, prefill and decode together. Larger raises throughput and the decode latency of neighbours. None: 8192
    on CUDA; 1024 on CPU, where a prompt of 1024 tokens holds up a neighbour of a 0.5B model for about two seconds on two cores."""
    long_prefill_tokens: int | None = None
    """Prompt tokens of a step in which something decodes, so that a long prompt does not hold up its neighbours' next tokens. 0: no cap but
    max_batch_tokens. None: 2048 on CUDA, some 80 ms for an 8B model on an H200 (arithmetic, not measured); 256 on CPU, a quarter of the
    time that a whole step of 1024 takes. With nothing decoding there is no cap."""
    max_running: int = 256
    """Sequences decoded together; each has a row of device state from the start."""
    block_size: int = 16
    """Tokens per KV block. Smaller wastes less at the end of a sequence and shares more; 16 is what peers use."""
    kv_dtype: KvDType = "auto"
    """How keys and values are kept. auto: in dtype. int8, fp8 (e4m3): a byte each and a scale per token and head; half of bf16's memory and
    reading, at a small error (docs/decisions/quantized-kv-cache.md)."""
    kv_cache_bytes: int | None = None
    """Memory for KV blocks. None: on CUDA 90 % of what is free after loading; on CPU what max_running full-length sequences would need,
    at most a quarter of the memory, or what one sequence of max_model_len needs where that is more and fits."""
    swap_bytes: int = 0
    """Host memory (pinned next to a GPU) for preempted sequences, which then come back by a copy where that is predicted cheaper than
    computing them again. 0: always computed again. On CPU the cache is host memory already: allowed, gains only what recomputing costs."""
    host_tier_bytes: int = 0
    """Host memory for prefix blocks that the cache evicted. 0: what is evicted is gone."""
    memory_bytes: int | None = None
    """What the worker may use of the host's memory; counts on CPU. None: the container's limit, else what is available."""
    self_test: bool = False
    """Measure prefill and decode for about a second at most after loading. The worker's settings turn it on."""
    async_scheduling: bool | None = None
    """Plan and launch the next step while the device runs the last one; an eos then costs one token more, which is dropped. None: on for
    CUDA, off for CPU, where launching is computing and every token would only be told one step later."""
    cuda_graphs: bool | None = None
    """Replay steps that only decode as captured graphs, one for each batch size of a ladder: the host then launches one thing a step.
    None: wherever they can be captured, which is on CUDA with attention triton."""
    compile: bool = False
    """Run steps that only decode through torch.compile, on CUDA inside the captured graphs. Large models then start minutes later, and on a
    CPU weights stay as torch has them, not in our kernels' layout."""
    load: Load = "eager"
    """When weights are read. eager: at start. lazy: with the first request, which waits for it. warm: at start, and then steps of the sizes
    that will come are run once, so that no request pays for what the first of its size costs."""
    prefix_caching: bool = True
    """Share full blocks between requests with the same prefix (and the same salt and adapter)."""
    chunked_prefill: bool = True
    """Cut prompts to what is left of a step's tokens. False: a prompt is computed whole in one step, beside the others' next tokens;
    max_batch_tokens must then hold the longest prompt and one token of everyone else."""
    batching: Batching = "continuous"
    """continuous: whoever waits joins the next step. static: a batch starts when max_running wait and nobody joins before all of it has
    ended. dynamic: so too, but it starts with whoever waits once the first in line has waited for batch_window_s. See docs/tour/."""
    batch_window_s: float = 0.02
    """Of dynamic batching. Longer makes larger batches and later first tokens."""
    paged_kv: bool = True
    """Give blocks as a sequence grows. False: each gets max_model_len tokens of KV cache when it begins, as contiguous caches must."""
    kv_cache: bool = True
    """Keep keys and values between steps. False: every step computes every running sequence anew from its first token."""
    adapter_slots: int | None = None
    """LoRA adapters that may run at once, each with room of its own on the device; more can be loaded and take turns. 0: none can be
    loaded. None: 16 on a CPU, where room is only taken when it is used; on CUDA 8 when adapters are declared, else 0. With compile, 0."""
    max_adapter_rank: int = 64
    """The largest rank of an adapter. Each slot on the device has room for it."""
    adapters: dict[str, Path] = field(default_factory=dict)
    """Name → PEFT folder of those that are there from the start."""
    attention: Attention = "auto"
    """auto: triton on CUDA, native on a CPU that has it, else sdpa. flash: torch's FlashAttention for prompts, on CUDA. eager is the
    readable reference."""
    speculative: Speculative = "none"
    """Guess tokens and verify them in one step (docs/speculation.md). ngram: from the prompt and output. suffix: from these and from
    earlier answers. draft: by a smaller model of the same vocabulary. remote: by one on another worker, whose guesses
    a router brings. The tokens are the same ones in any case."""
    draft_tokens: int = 4
    """Guessed for one sequence and step, at most; fewer where they do not pay."""
    draft_dir: Path | None = None
    """The smaller model's folder, with speculative: draft."""
    draft_quantization: Quantization | None = None
    """What the smaller model's weights are rounded to; None: int8 where a CPU multiplies that faster than bf16, else nothing. It costs
    guesses, never a token."""
    batch_invariant: bool = False
    """On a CPU: a request's tokens are the same bits alone and in any company, at a cost (docs/batch-invariance.md)."""
    threads: int | None = None
    """At most so many CPU threads; None: the container's CPU quota, rounded up, else torch's own choice.
    Weights below 64 MB run on one: their products are too short to share, and
    threads that meet at every product wait for whichever the rest of the machine holds up."""
    tensor_parallel: int = 1
    """Processes, each with its share of every layer: on CUDA a GPU each, on CPU a share of the threads. The memory and the threads that are
    configured here are those of all together."""
    seed: int = 0
    """Seeds requests that bring none."""

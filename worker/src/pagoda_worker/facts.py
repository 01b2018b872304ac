"""What is known of a loaded model and of the adapters beside it, as plain data. No torch, no clock, no I/O: engine process and front speak
these types as they do those of request.py."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What Describe tells of a loaded model."""

    architecture: str
    dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]
    bos_token_id: int | None
    max_batch_tokens: int
    block_size: int
    kv_capacity_tokens: int
    max_running: int
    max_sequences_per_request: int
    max_top_logprobs: int
    max_model_len_fitting: int = 0
    """The longest max_model_len that the memory found would hold, one sequence alone."""
    prefill_tokens_per_s: float = 0.0
    """Of the self-test after loading, as the next one; 0: it was off."""
    decode_tokens_per_s: float = 0.0
    """Of a small batch, all its sequences together."""
    quantization: str = "none"
    """Of the weights: none, int8, int4, fp8, or what a quantized checkpoint says of itself."""
    gpu_uuids: list[str] = field(default_factory=list)
    """Of the devices that the engine owns, as NVML knows them; none on a CPU."""
    awake_bytes: int = 0
    """Of the device, or of the host's memory on a CPU: weights and a full KV cache."""
    structured_output: bool = False
    """The model folder has a tokenizer that grammars can be compiled against."""
    load_s: float = 0.0
    """To read the model and allocate the cache, self-test and warming included; 0: not read yet."""
    warm_s: float = 0.0
    """Of that, to run each size of step once; 0: not asked for."""
    checkpoint_bytes: int = 0
    """Of the weight files; 0: random weights."""
    weights_s: float = 0.0
    """The part of load_s in which they were read and packed."""
    adapter_slots: int = 0
    """Adapters that may run at once; 0: none can be loaded."""
    max_adapter_rank: int = 0
    speculative: str = "none"
    """How tokens are guessed, as set."""
    draft_tokens: int = 0
    """Guessed for one sequence and step, at most; 0 without speculation."""
    kernels: str = ""
    """Those that the model computes with, in words: "native (amx), 2 threads". Empty: not read yet."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """Of one adapter that the engine has loaded."""

    name: str
    version: str
    """Of its content; hashes of its prefixes cover name@version."""
    source: str
    """The folder that it was read from."""
    rank: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class AdaptersState:
    """Told when it changed."""

    loaded: list[AdapterFacts]
    resident: list[str]
    """Names of those whose newest version lies in a slot of the device."""

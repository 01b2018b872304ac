"""What can be said of a request without knowing the queue. Called by the engine for every request, whoever sent it; the front's own check
(front/validation.py) speaks of the wire.
"""

from pagoda_worker.errors import NotImplementedYet, RequestRefused
from pagoda_worker.facts import ModelFacts
from pagoda_worker.request import Request

MAX_PROMPT_LOGPROB_VALUES = 1 << 20
"""Places times (k + 1): one message carries them all. With k = 20 a prompt of 49 932 tokens."""


def check_request(request: Request, facts: ModelFacts) -> None:
    """What can be said without knowing the queue. Raises RequestRefused naming the field."""
    sampling = request.sampling

    def refuse(param: str, value: object, rule: str) -> None:
        raise RequestRefused(f"{param} is {value}; {rule}", param=param)

    if not request.prompt_ids:
        refuse("prompt_ids", "empty", "a prompt needs at least one token")
    for name, ids in (
        ("prompt_ids", request.prompt_ids),
        ("resume_ids", request.resume_ids),
        ("logit_bias", list(sampling.logit_bias)),
        ("allowed_token_ids", sampling.allowed_token_ids),
        ("bad_words", [token for word in sampling.bad_words for token in word]),
    ):
        if ids and not 0 <= min(ids) <= max(ids) < facts.vocab_size:
            wrong = next(token for token in ids if not 0 <= token < facts.vocab_size)
            refuse(name, f"holding token {wrong}", f"this model has ids 0 to {facts.vocab_size - 1}")
    if any(not 0 <= token < facts.vocab_size for token in request.stop_token_ids):
        refuse("stop_token_ids", request.stop_token_ids, f"this model has ids 0 to {facts.vocab_size - 1}")
    limits: list[tuple[str, float, bool, str]] = [
        ("n", request.n, 1 <= request.n <= facts.max_sequences_per_request, f"1 to {facts.max_sequences_per_request}"),
        ("max_tokens", request.max_tokens, request.max_tokens >= 1, "at least 1"),
        ("min_tokens", request.min_tokens, 0 <= request.min_tokens <= request.max_tokens, "0 to max_tokens"),
        ("temperature", sampling.temperature, 0 <= sampling.temperature <= 100, "0 to 100"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "over 0, at most 1"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "at least 0 (0: off)"),
        ("min_p", sampling.min_p, 0 <= sampling.min_p <= 1, "0 to 1"),
        ("frequency_penalty", sampling.frequency_penalty, -2 <= sampling.frequency_penalty <= 2, "-2 to 2"),
        ("presence_penalty", sampling.presence_penalty, -2 <= sampling.presence_penalty <= 2, "-2 to 2"),
        ("repetition_penalty", sampling.repetition_penalty, 0 < sampling.repetition_penalty <= 100, "over 0, at most 100"),
    ]
    if request.top_logprobs is not None:
        top = request.top_logprobs
        limits.append(("top_logprobs", top, 0 <= top <= facts.max_top_logprobs, f"0 to {facts.max_top_logprobs}"))
    if request.prompt_logprobs is not None:
        top, longest = request.prompt_logprobs, MAX_PROMPT_LOGPROB_VALUES // (max(request.prompt_logprobs, 0) + 1)
        limits.append(("prompt_logprobs", top, 0 <= top <= facts.max_top_logprobs, f"0 to {facts.max_top_logprobs}"))
        short = len(request.prompt_ids) <= longest
        limits.append(("prompt_logprobs", top, short, f"less for so long a prompt: with {top} it may have {longest} tokens"))
    for name, value, ok, rule in limits:
        if not ok:
            refuse(name, value, f"it must be {rule}")
    if any(not word for word in sampling.bad_words):
        refuse("bad_words", "holding an empty word", "each word needs at least one token")
    if request.structured is not None and not facts.structured_output:
        raise NotImplementedYet(
            "structured output needs a tokenizer.json that can be compiled against; this model has none", param="structured"
        )
    if (request.embedding and not (request.n == request.max_tokens == 1)) or (request.embedding and request.resume_ids):
        raise RequestRefused("an embedding has no output: n and max_tokens are 1, nothing is resumed", param="embedding")
    if request.resume_ids and request.n != 1:
        refuse("resume_ids", f"given with n {request.n}", "only one sequence can resume")

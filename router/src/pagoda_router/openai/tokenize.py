"""POST /tokenize and /detokenize, GET /tokenizer_info in vLLM's shapes: what a prompt or a chat becomes before it reaches a worker.

No worker is asked, and none is woken: a model's tokenizer is known once a worker has described it. One that only foreign backends serve has
its tokenizer there: relay_once.py asks one that takes requests, and none is woken either. routes.py calls it.
"""

from random import Random
from urllib.parse import parse_qsl

import msgspec

from pagoda_router.catalog import Catalog, CatalogEntry
from pagoda_router.errors import BadRequest, NoWorker
from pagoda_router.generation import Sender
from pagoda_router.http.asgi import Headers
from pagoda_router.http.surface import SurfaceSettings
from pagoda_router.keys.key import ApiKey
from pagoda_router.openai import checks
from pagoda_router.openai.conversation import check_messages, render, template_of
from pagoda_router.openai.features import class_of, deadline_s_of, wishes_of
from pagoda_router.openai.offers import own_first
from pagoda_router.openai.relay_once import RelayingOnce
from pagoda_router.openai.relayed_tokens import DETOKENIZE, TOKENIZE
from pagoda_router.openai.schemas import ChatRequest, DetokenizeRequest, TokenizeRequest, model_named_if_any, parse_request
from pagoda_router.openai.target import Target, Targets
from pagoda_router.openai.toolset import toolset_of
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.text.chat import ChatTemplates


class Tokenizing:
    def __init__(
        self, catalog: Catalog, targets: Targets, templates: ChatTemplates, relaying: RelayingOnce, settings: SurfaceSettings
    ) -> None:
        self._catalog = catalog
        self._targets = targets
        self._templates = templates
        self._relaying = relaying
        self._settings = settings
        self._rng = Random()

    async def tokenize(self, body: bytes, key: ApiKey, asked: Headers) -> bytes:
        """`asked`: the request's headers of ours, read where another backend may be meant."""
        if (relayed := await self._relayed(TOKENIZE, body, key, asked)) is not None:
            return relayed
        request = parse_request(body, TokenizeRequest)
        target = await self._target(self._entry(request.model, key))
        if (request.prompt is None) == (request.messages is None):
            raise BadRequest("tokenize takes either prompt or messages: send one", param="prompt")
        # A chat template has written the special tokens.
        special = request.prompt is not None if request.add_special_tokens is None else request.add_special_tokens
        text = request.prompt if request.prompt is not None else self._chat(request, target)
        ids = list(await target.text.encode(text, add_special_tokens=special, scope=key.tenant))
        strings = [target.text.token_bytes(token_id).decode(errors="replace") for token_id in ids] if request.return_token_strs else None
        return msgspec.json.encode({"count": len(ids), "max_model_len": target.assets.max_model_len, "tokens": ids, "token_strs": strings})

    async def detokenize(self, body: bytes, key: ApiKey, asked: Headers) -> bytes:
        if (relayed := await self._relayed(DETOKENIZE, body, key, asked)) is not None:
            return relayed
        request = parse_request(body, DetokenizeRequest)
        target = await self._target(self._entry(request.model, key))
        checks.check_prompt_ids(request.tokens, target.assets, param="tokens")
        return msgspec.json.encode({"prompt": target.text.decode(request.tokens, skip_special_tokens=False)})

    async def info(self, query: bytes, key: ApiKey) -> bytes:
        """What evaluation harnesses ask first: special tokens by their text, and the chat template. `model` as elsewhere."""
        name = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True)).get("model")
        target = await self._target(self._entry(name, key))
        special = {f"{kind}_token": target.assets.special_tokens.get(f"{kind}_token") for kind in ("bos", "eos", "pad", "unk")}
        shown = {**special, "chat_template": target.assets.chat_template, "model_max_length": target.assets.max_model_len}
        return msgspec.json.encode({"model": target.served_name, **shown})

    async def _relayed(self, path: str, body: bytes, key: ApiKey, asked: Headers) -> bytes | None:
        """None: our own workers serve it, so its tokenizer is here."""
        if not self._catalog.relays:
            return None
        entry = self._entry(model_named_if_any(body), key)
        variant, backend = own_first(entry, wishes_of(asked), self._catalog, self._rng)
        if backend == OWN_BACKEND:
            return None
        if not self._catalog.can_answer(entry.model, variant):
            raise NoWorker(
                f"no {backend} worker of {entry.served_name} takes requests now, and they have its tokenizer: try again later",
                retry_after_s=1.0,
            )
        sender = Sender(key.tenant, class_of(asked, key.request_class), deadline_s_of(asked))
        return await self._relaying.convert(path, body, entry, variant, backend, sender)

    def _chat(self, request: TokenizeRequest, target: Target) -> str:
        chat = ChatRequest(
            model=target.served_name,
            messages=request.messages or [],
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            chat_template_kwargs=request.chat_template_kwargs,
            tools=request.tools,
        )
        check_messages(chat.messages, self._settings)
        return render(self._templates, chat, target.assets, toolset_of(chat, template_of(chat.model, target.assets)))

    def _entry(self, name: str | None, key: ApiKey) -> CatalogEntry:
        """Without a name, as vLLM has it, the only one that the key may ask. Raises BadRequest where there are several."""
        if name is None:
            entries = [entry for entry in self._catalog.list() if key.may_ask(entry.served_name)]
            if len({entry.model for entry in entries}) != 1:
                raise BadRequest(f"model is required: {len(entries)} are served", param="model")
            return entries[0]
        key.require_model(name)
        return self._catalog.get(name)

    async def _target(self, entry: CatalogEntry) -> Target:
        target = await self._targets.known(entry)
        if target is None:
            raise NoWorker(
                f"no worker has described {entry.served_name} yet, so its tokenizer is not known: try again later", retry_after_s=1.0
            )
        return target

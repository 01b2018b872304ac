"""Every public path that generates nothing: models, conversions of tokens, keys, usage, adapters, console, and what __main__ adds.

Knows which key each needs. app.py asks it for what is no generation, and answers the errors raised here.
"""

from collections.abc import Mapping

from pagoda_router.catalog import Catalog
from pagoda_router.console.pages import Console
from pagoda_router.errors import BadRequest, MethodNotAllowed, NotFound
from pagoda_router.http.adapters import PATHS as ADAPTERS
from pagoda_router.http.adapters import AdapterAdmin
from pagoda_router.http.asgi import JSON_TYPE, ASGIApp, Exchange, Headers, Receive, Scope, Send, answer, header, read_body, with_header
from pagoda_router.http.surface import Endpoint, SurfaceSettings
from pagoda_router.keys.admin import KEYS, KeyAdmin
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.keyring import Keyring
from pagoda_router.openai.features import OWN_HEADERS
from pagoda_router.openai.models import model_body, model_list_body
from pagoda_router.openai.tokenize import Tokenizing
from pagoda_router.usage.admin import USAGE, UsageAdmin
from pagoda_router.usage.ledger import UsageLedger

NO_ROUTES: Mapping[str, ASGIApp] = {}
GENERATION_ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/embeddings": "embeddings",
}
MODELS = "/v1/models"
TOKENIZER_INFO = "/tokenizer_info"
CONVERSIONS = frozenset(("/tokenize", "/detokenize"))


class OtherRoutes:
    def __init__(
        self,
        catalog: Catalog,
        settings: SurfaceSettings,
        keyring: Keyring,
        ledger: UsageLedger,
        tokenizing: Tokenizing,
        *,
        open_routes: Mapping[str, ASGIApp],
        guarded_routes: Mapping[str, ASGIApp],
        adapters: AdapterAdmin | None,
    ) -> None:
        """As app.create_app has them."""
        self._catalog = catalog
        self._settings = settings
        self._keyring = keyring
        self._open_routes = open_routes
        self._guarded_routes = guarded_routes
        self._adapter_admin = adapters
        self._tokenizer_info = tokenizing.info
        self._conversions = {"/tokenize": tokenizing.tokenize, "/detokenize": tokenizing.detokenize}
        self._console = Console()
        self._key_admin = KeyAdmin(keyring, catalog)
        self._usage_admin = UsageAdmin(ledger, keyring)

    async def answer(self, path: str, scope: Scope, receive: Receive, send: Send, common: Headers) -> None:
        """`common`: headers of every answer, the request id first."""
        if (route := self._open_routes.get(path)) is not None:
            await route(scope, receive, with_header(send, common[0]))
        elif (route := self._guarded_routes.get(path)) is not None:
            self._key_of(scope).require_admin(path)
            await route(scope, receive, with_header(send, common[0]))
        elif path == MODELS or path.startswith(MODELS + "/"):
            key = self._key_of(scope)
            check_method(scope, "GET")
            name = path.removeprefix(MODELS + "/")
            body = model_list_body(self._catalog, key) if path == MODELS else model_body(self._catalog, name, key)
            await answer(send, 200, [JSON_TYPE, *common], body)
        elif (convert := self._conversions.get(path)) is not None:
            key = self._key_of(scope)
            check_method(scope, "POST")
            check_json_type(scope)
            sent = await self._body(scope, receive)
            asked = [named for named in scope["headers"] if named[0].startswith(OWN_HEADERS)]
            async with Exchange(receive, send, stalled_reader_s=self._settings.stalled_reader_s) as exchange:
                body = await convert(sent, key, asked)
                await exchange.answer(200, [JSON_TYPE, (b"content-length", str(len(body)).encode()), *common], body)
        elif path == TOKENIZER_INFO:
            key = self._key_of(scope)
            check_method(scope, "GET")
            await answer(send, 200, [JSON_TYPE, *common], await self._tokenizer_info(scope.get("query_string", b""), key))
        elif path == KEYS or path.startswith(KEYS + "/"):
            self._key_of(scope).require_admin(KEYS)
            check_json_type(scope)
            status, body = await self._key_admin.answer(_method(scope), path, await self._body(scope, receive))
            await answer(send, status, [JSON_TYPE, *common], body)
        elif self._adapter_admin is not None and (path in ADAPTERS or path.startswith(tuple(f"{each}/" for each in ADAPTERS))):
            self._key_of(scope).require_admin(path[:200])
            check_json_type(scope)
            sent = await self._body(scope, receive)
            status, body = await self._adapter_admin.answer(_method(scope), path, scope.get("query_string", b""), sent)
            await answer(send, status, [JSON_TYPE, *common], body)
        elif path == USAGE:
            self._key_of(scope).require_admin(USAGE)
            check_method(scope, "GET")
            content_type, body = await self._usage_admin.answer(scope.get("query_string", b""))
            await answer(send, 200, [content_type, *common], body)
        elif (page := self._console.page(path)) is not None:
            check_method(scope, "GET")
            await page.answer(scope, send, common[0])
        else:
            if path.startswith("/v1/"):
                self._key_of(scope)
            if path == "/v1/responses/input_tokens":
                raise NotFound(f"there is no {path}: POST /tokenize counts what text, or messages, come to")
            if path.startswith("/v1/responses/"):
                raise NotFound("responses are not kept: each is in the answer to its own POST /v1/responses, and nowhere else")
            raise NotFound(f"there is no {path[:200]}: see {', '.join((MODELS, *GENERATION_ENDPOINTS, *sorted(CONVERSIONS)))}")

    def _key_of(self, scope: Scope) -> ApiKey:
        """Raises Unauthorized."""
        return self._keyring.check(header(scope, b"authorization"))

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        settings = self._settings
        return await read_body(scope, receive, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s)


def check_method(scope: Scope, allowed: str) -> None:
    if _method(scope) != allowed:
        allow = "GET, HEAD" if allowed == "GET" else allowed
        raise MethodNotAllowed(f"{scope['path'][:200]} takes {allowed}, not {scope['method'][:20]}", allow=allow)


def _method(scope: Scope) -> str:
    """HEAD is a GET of which uvicorn sends no body (RFC 9110, 9.3.2); load balancers ask so."""
    method: str = scope["method"]
    return "GET" if method == "HEAD" else method


def check_json_type(scope: Scope) -> None:
    # Also keeps other sites' pages from making a browser call us: a form cannot send this type.
    content_type = header(scope, b"content-type")
    if content_type is not None and not content_type.split(b";")[0].strip().lower().endswith(b"json"):
        raise BadRequest("the request body must be JSON: send the header Content-Type: application/json")

"""The public listener as one ASGI application: which path leads where, who may call it, what an error looks like.

Knows routes, the API key and request ids; what a completion is lives in openai/. `__main__` builds it with `create_app` and serves it.
"""

import logging
import time
from collections.abc import Mapping

from pagoda_router.catalog import Catalog
from pagoda_router.errors import ForeignHost, RouterError
from pagoda_router.generation import Dispatcher, Sender
from pagoda_router.http.adapters import AdapterAdmin
from pagoda_router.http.asgi import (
    ASGIApp,
    ClientGone,
    Exchange,
    Headers,
    Receive,
    Scope,
    Send,
    acknowledge_lifespan,
    answer,
    header,
    read_body,
    request_id,
    take_direct,
)
from pagoda_router.http.cohort import alone, next_stage
from pagoda_router.http.cors import Cors
from pagoda_router.http.direct import DirectResponse
from pagoda_router.http.hosts import is_local_name
from pagoda_router.http.routes import CONVERSIONS, GENERATION_ENDPOINTS, NO_ROUTES, OtherRoutes, check_json_type, check_method
from pagoda_router.http.surface import Endpoint, Observer, RequestOutcome, SilentObserver, SurfaceSettings
from pagoda_router.keys.key import ApiKey
from pagoda_router.keys.keyring import Keyring
from pagoda_router.openai.answers import Completions
from pagoda_router.openai.call import Call
from pagoda_router.openai.embeddings import Embeddings
from pagoda_router.openai.errors import error_body, error_event, error_headers, retry_after_told_s
from pagoda_router.openai.fallback import WithFallback, takes_fallback
from pagoda_router.openai.features import OWN_HEADERS, class_of, deadline_s_of, wants_trace, wishes_of
from pagoda_router.openai.prepare import Preparer
from pagoda_router.openai.relay_once import RelayingOnce
from pagoda_router.openai.target import Targets
from pagoda_router.openai.tokenize import Tokenizing
from pagoda_router.text.chat import ChatTemplates
from pagoda_router.tracing.phases import first_token_us, last_attempt, overhead_us
from pagoda_router.tracing.record import RequestTrace
from pagoda_router.tracing.ring import TraceRing
from pagoda_router.tracing.tracer import Tracer
from pagoda_router.usage.account import Account
from pagoda_router.usage.ledger import UsageLedger

log = logging.getLogger(__name__)

CLIENT_GONE_STATUS = 499


def create_app(
    *,
    dispatcher: Dispatcher,
    catalog: Catalog,
    settings: SurfaceSettings,
    keyring: Keyring | None = None,
    ledger: UsageLedger | None = None,
    observer: Observer | None = None,
    tracer: Tracer | None = None,
    open_routes: Mapping[str, ASGIApp] = NO_ROUTES,
    guarded_routes: Mapping[str, ASGIApp] = NO_ROUTES,
    adapters: AdapterAdmin | None = None,
) -> ASGIApp:
    """`open_routes` ("/health": app) answer everyone, `guarded_routes` ("/metrics": app) only admin keys when keys are needed.

    Both match the exact path and get the scope unchanged. Everything under /v1 and `GET /` is ours.
    Without `adapters` none can be loaded. Without a keyring no key is needed. Without a ledger usage is not kept. Without a tracer no
    trace is kept.
    """
    tracer = tracer or Tracer(TraceRing(0), None, clock=time.monotonic, calendar=time.time)
    keyring = keyring or Keyring(None, None, calendar=time.time)
    ledger = ledger or UsageLedger(None, None, lambda model: None, clock=time.monotonic, calendar=time.time)
    observer = observer or SilentObserver()
    return _Surface(dispatcher, catalog, settings, keyring, ledger, observer, tracer, open_routes, guarded_routes, adapters)


class _Surface:
    def __init__(
        self,
        dispatcher: Dispatcher,
        catalog: Catalog,
        settings: SurfaceSettings,
        keyring: Keyring,
        ledger: UsageLedger,
        observer: Observer,
        tracer: Tracer,
        open_routes: Mapping[str, ASGIApp],
        guarded_routes: Mapping[str, ASGIApp],
        adapters: AdapterAdmin | None,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._observer = observer
        self._tracer = tracer
        targets = Targets(catalog, dispatcher, tracer.clock)
        templates = ChatTemplates(
            timeout_s=settings.template_timeout_s, max_chars=settings.template_output_factor * settings.max_body_bytes
        )
        completions = Completions(dispatcher, catalog, Preparer(targets, templates, settings), settings, tracer.clock)
        self._completions = WithFallback(completions, catalog)
        relaying = RelayingOnce(dispatcher)
        self._embeddings = Embeddings(dispatcher, catalog, targets, relaying, settings, tracer.clock)
        self._cors = Cors(settings.cors_origins) if settings.cors_origins else None
        self._keyring = keyring
        self._ledger = ledger
        self._others = OtherRoutes(
            catalog,
            settings,
            keyring,
            ledger,
            Tokenizing(catalog, targets, templates, relaying, settings),
            open_routes=open_routes,
            guarded_routes=guarded_routes,
            adapters=adapters,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await acknowledge_lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000})
            return
        path: str = scope["path"]
        common: list[tuple[bytes, bytes]] = [(b"x-request-id", request_id(scope))]
        cors = self._cors if self._cors is not None and (path.startswith("/v1/") or path in CONVERSIONS) else None
        if cors is not None:
            common += cors.headers(scope)
        endpoint = GENERATION_ENDPOINTS.get(path)
        try:
            self._check_host(scope)
            if cors is not None and (permission := cors.preflight(scope)) is not None:
                await answer(send, 204, [common[0], *permission], b"")
            elif endpoint is not None:
                await self._generation(endpoint, scope, receive, send, common)
            else:
                await self._others.answer(path, scope, receive, send, common)
        except ClientGone:
            pass
        except RouterError as error:
            await answer(send, error.status, [*error_headers(error), *common], error_body(error))
        except Exception:
            log.exception("a request failed by our own fault: %s %s", scope["method"], path)
            await self._internal_error(send, common)

    async def _generation(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send, common: Headers) -> None:
        outcome = RequestOutcome(endpoint=endpoint, request_id=common[0][1].decode())
        trace = self._tracer.begin(outcome, header(scope, b"traceparent"), header(scope, b"tracestate"))
        headers = [*common, (b"x-trace-id", trace.context.trace_id.encode())]
        account: Account | None = None
        self._observer.request_started(endpoint)
        direct = take_direct(scope)
        try:
            key = self._key_of(scope)
            check_method(scope, "POST")
            check_json_type(scope)
            account = self._ledger.open(key, outcome, headers)
            asked = [named for named in scope["headers"] if named[0].startswith(OWN_HEADERS)]  # most requests have none
            wishes, is_traced = wishes_of(asked), wants_trace(asked)
            sender = Sender(key.tenant, class_of(asked, key.request_class), deadline_s_of(asked))
            may_fall_back = takes_fallback(asked)
            body = await self._body(scope, receive, direct)
            trace.body_s = self._tracer.clock()
            call = Call(
                body=body,
                headers=headers,
                trace=trace,
                outcome=outcome,
                account=account,
                key=key,
                wants_trace=is_traced,
                wishes=wishes,
                takes_fallback=may_fall_back,
                sender=sender,
                member=alone() if direct is None else direct.member,
            )
            if call.member.in_company:
                await next_stage()
            await self._answer(call, receive, send, direct)
        except ClientGone:
            outcome.status = CLIENT_GONE_STATUS
            raise
        except RouterError as error:
            outcome.status, outcome.error_code = error.status, error.code
            outcome.retry_after_s = retry_after_told_s(error)
            await answer(send, error.status, [*error_headers(error), *headers], error_body(error))
        except Exception:
            outcome.status, outcome.error_code = 500, "internal_error"
            raise
        finally:
            if account is not None:
                account.close()
            self._finish(trace, outcome)

    async def _answer(self, call: Call, receive: Receive, send: Send, direct: DirectResponse | None) -> None:
        """Raises what happened before the answer began; a failure after that is its last event."""
        outcome = call.outcome
        async with Exchange(receive, send, stalled_reader_s=self._settings.stalled_reader_s, direct=direct) as exchange:
            try:
                answering = self._embeddings if outcome.endpoint == "embeddings" else self._completions
                await answering.answer(call, exchange)
            except RouterError as error:
                if not exchange.started:
                    raise
                outcome.status, outcome.error_code = error.status, error.code
                await exchange.write(_last_event(exchange, error), last=True)
            except Exception:
                if not exchange.started:
                    raise
                log.exception("a stream failed by our own fault: %s", outcome.request_id)
                outcome.status, outcome.error_code = 500, "internal_error"
                await exchange.write(_last_event(exchange, _internal()), last=True)

    def _finish(self, trace: RequestTrace, outcome: RequestOutcome) -> None:
        trace.ended_s = self._tracer.clock()
        outcome.duration_s = trace.ended_s - trace.received_s
        added_us = overhead_us(trace)
        outcome.overhead_s = None if added_us is None else added_us / 1e6
        attempt = last_attempt(trace)
        outcome.predicted_cached_tokens = 0 if attempt is None else attempt.predicted_cached_tokens
        if attempt is not None and (came_us := first_token_us(attempt)) is not None:
            outcome.first_token_s = attempt.predicted_ms / 1000, came_us / 1e6
        self._observer.request_finished(outcome)
        self._tracer.finish(trace)

    def _check_host(self, scope: Scope) -> None:
        """Without a key the router listens on loopback only, but any web page can make its own name resolve there (DNS rebinding) and would
        then be of one origin with us. So only names that no page can have are answered."""
        if not self._keyring.is_open or is_local_name(header(scope, b"host")):
            return
        raise ForeignHost("this router has no API key and answers only to localhost or an IP address: use one, or set PAGODA_API_KEY")

    def _key_of(self, scope: Scope) -> ApiKey:
        """Raises Unauthorized."""
        return self._keyring.check(header(scope, b"authorization"))

    async def _body(self, scope: Scope, receive: Receive, direct: DirectResponse | None = None) -> bytes:
        settings = self._settings
        return await read_body(scope, receive, limit_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s, direct=direct)

    async def _internal_error(self, send: Send, common: Headers) -> None:
        error = _internal()
        try:
            await answer(send, error.status, [*error_headers(error), *common], error_body(error))
        except RuntimeError:
            log.warning("the failed request had begun its answer: its connection is closed")


def _last_event(exchange: Exchange, error: RouterError) -> bytes:
    """Of a stream whose headers have left."""
    return error_event(error) if exchange.failure is None else exchange.failure(error)


def _internal() -> RouterError:
    return RouterError("the router failed on this request: its log has the reason", code="internal_error")

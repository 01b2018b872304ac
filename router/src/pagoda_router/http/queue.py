"""GET /admin/v1/queue: what waits at this router, whose it is, how fast it drains, and what workers promised. Pure answers.

admin.py serves it. Counts and times only: nothing of a request's text is in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pagoda_router.admission.drain import Ahead
from pagoda_router.admission.lane import Held, Lane
from pagoda_router.admission.queue import WaitingRoom
from pagoda_router.backends.base import WorkerLink
from pagoda_router.dispatch.dispatcher import FleetDispatcher
from pagoda_router.fleet import Fleet
from pagoda_router.generation import RequestClass

MOST_TENANTS = 100
"""Of one model, those with most tokens waiting."""


def queue_report(fleet: Fleet, dispatcher: FleetDispatcher) -> dict[str, Any]:
    now_s = dispatcher.now_s()
    return {
        "models": {
            model.name: {
                "credits": _credits(fleet.links(model.name)),
                "mostWaitingWithoutWorker": model.max_waiting,
                **line_report(dispatcher.line(model.name), now_s),
            }
            for model in fleet.models()
        }
    }


def line_report(line: Lane, now_s: float) -> dict[str, Any]:
    room = line.room
    tenants = sorted(_tenants(room, now_s), key=lambda found: found.tokens, reverse=True)
    return {
        "requests": len(room),
        "tokens": room.tokens,
        "mostTokens": room.max_tokens,
        "mostRequests": room.max_requests,
        "waves": room.waves,
        "byVariant": room.group_sizes(),
        "classes": [_class(line, request_class, tenants, now_s) for request_class in RequestClass],
        "tenantCount": len(tenants),
        "tenants": [
            {
                "tenant": found.tenant,
                "class": found.request_class,
                "requests": found.requests,
                "tokens": found.tokens,
                "oldestS": round(found.oldest_s, 3),
                "servedTokens": room.served_tokens(found.tenant, found.request_class),
            }
            for found in tenants[:MOST_TENANTS]
        ],
    }


@dataclass(slots=True)
class _Tenant:
    tenant: str
    request_class: RequestClass
    requests: int = 0
    tokens: int = 0
    oldest_s: float = 0.0


def _tenants(room: WaitingRoom[Held], now_s: float) -> Iterable[_Tenant]:
    """Those that wait, of each class by itself."""
    found: dict[tuple[str, RequestClass], _Tenant] = {}
    for waiting in room:
        whose = waiting.tenant, waiting.request_class
        tenant = found.get(whose) or found.setdefault(whose, _Tenant(*whose))
        tenant.requests += 1
        tenant.tokens += waiting.cost_tokens
        tenant.oldest_s = max(tenant.oldest_s, now_s - waiting.arrived_s)
    return found.values()


def _class(line: Lane, request_class: RequestClass, tenants: Iterable[_Tenant], now_s: float) -> dict[str, Any]:
    requests, tokens = line.room.size_of(request_class)
    classes = list(RequestClass)
    before = sum(line.room.size_of(each)[1] for each in classes[: classes.index(request_class)])
    wait_s = line.drains.wait_s(request_class, Ahead(before, tokens), now_s)
    return {
        "class": request_class,
        "requests": requests,
        "tokens": tokens,
        "oldestS": round(max((found.oldest_s for found in tenants if found.request_class is request_class), default=0.0), 3),
        "drainTokensPerS": round(line.drains.tokens_per_s(request_class, now_s), 1),
        "waitS": None if wait_s is None else round(wait_s, 3),
    }


def _credits(links: Iterable[WorkerLink]) -> dict[str, int]:
    """Of the workers that take requests: KV tokens in all, what this router has reserved, and what it may still reserve."""
    capacity = available = reserved = 0
    for view in (view for link in links if (view := link.view()).routable):
        capacity += view.capacity_tokens
        available += view.available_tokens
        reserved += view.reserved_tokens
    return {"capacityTokens": capacity, "availableTokens": available, "reservedTokens": reserved}

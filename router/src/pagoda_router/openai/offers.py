"""Which of a model's variants a request with switches goes to, and what of its switches was applied. Pure.

answers.py and embeddings.py call `choose` once the model is known; models.py shows the same variants to clients.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from pagoda_router.abilities import ALL_ON, Feature
from pagoda_router.catalog import Catalog, CatalogEntry, TextAssets
from pagoda_router.errors import BadRequest
from pagoda_router.openai.call import Call
from pagoda_router.openai.features import BACKEND_PARAM, FEATURES, NO_WISHES, PARAM, Wishes
from pagoda_router.placement.policy import choose_variant
from pagoda_router.relays import OWN_BACKEND
from pagoda_router.tracing.record import RequestTrace


@dataclass(frozen=True, slots=True)
class Offer:
    """One variant of a model."""

    variant: str
    backend: str
    weight: int
    quantization: str
    """Of its weights, as declared; "none" where our own workers have nothing declared. Empty: another server knows."""


def offers_of(entry: CatalogEntry) -> list[Offer]:
    count = len(entry.variants)
    backends = entry.backends or (OWN_BACKEND,) * count
    declared = entry.quantizations or ("",) * count
    kinds = (kind or ("none" if backend == OWN_BACKEND else "") for kind, backend in zip(declared, backends, strict=True))
    return [Offer(*each) for each in zip(entry.variants, backends, entry.weights or (1,) * count, kinds, strict=True)]


def choose(call: Call, entry: CatalogEntry, catalog: Catalog, rng: Random) -> tuple[Call, str]:
    """The call with the variant that headers, or the difference of backends, make it insist on; and the backend. Raises BadRequest."""
    variant, backend = variant_and_backend(entry, call.wishes, lambda one: catalog.can_answer(entry.model, one), rng)
    return _insisting(call, entry, variant, catalog), backend


def choose_own(call: Call, entry: CatalogEntry, catalog: Catalog, rng: Random) -> tuple[Call, str]:
    """The same for what our own workers do wherever a model has any."""
    variant, backend = own_first(entry, call.wishes, catalog, rng)
    return _insisting(call, entry, variant, catalog), backend


def own_first(entry: CatalogEntry, wishes: Wishes, catalog: Catalog, rng: Random) -> tuple[str | None, str]:
    """As variant_and_backend; where the backends differ, another's only for a header that asks for it."""
    if OWN_BACKEND in entry.backends and wishes.variant is wishes.backend is None and len(set(entry.backends)) > 1:
        wishes = replace(wishes, backend=OWN_BACKEND)
    return variant_and_backend(entry, wishes, lambda one: catalog.can_answer(entry.model, one), rng)


def _insisting(call: Call, entry: CatalogEntry, variant: str | None, catalog: Catalog) -> Call:
    if variant is not None:
        call = replace(call, variant=variant)
    if call.wishes is NO_WISHES:
        return call
    wishes, trace = call.wishes, call.trace
    return replace(call, applied=lambda: applied_header(wishes, entry, variant, trace, catalog.text(entry.model, variant)))


def variant_and_backend(entry: CatalogEntry, wishes: Wishes, can_answer: Callable[[str], bool], rng: Random) -> tuple[str | None, str]:
    """The variant to insist on, and the backend that the request is written for. None: any variant, drawn when it is placed.

    Where the variants have different backends the draw is made here, before the prompt is read: one of them takes tokens, another text.
    `can_answer`: of a variant, now. Raises BadRequest for what the model does not offer.
    """
    backends = entry.backends or (OWN_BACKEND,)
    if wishes.variant is wishes.backend is wishes.quantization is None and len(set(backends)) == 1:
        return None, backends[0]
    chosen = _wished(entry, wishes)
    if wishes.variant is not None:
        return wishes.variant, chosen[0].backend
    weighed = [offer for offer in chosen if offer.weight > 0]
    ready = [offer for offer in weighed or chosen if can_answer(offer.variant)] or weighed or chosen
    drawn = choose_variant(((offer.variant, offer.weight if weighed else 1) for offer in ready), {offer.variant for offer in ready}, rng)
    return drawn, next(offer.backend for offer in ready if offer.variant == drawn)


def _wished(entry: CatalogEntry, wishes: Wishes) -> list[Offer]:
    """At least one. Raises BadRequest naming what there is."""
    offers = offers_of(entry)
    chosen = [offer for offer in offers if wishes.variant in (None, offer.variant)]
    if not chosen:
        raise BadRequest(f"{entry.served_name} has no variant {wishes.variant!r}; it has: {', '.join(entry.variants)}", param=PARAM)
    of = f" in variant {wishes.variant}" if wishes.variant is not None else ""
    if wishes.backend is not None:
        chosen = [offer for offer in chosen if offer.backend == wishes.backend]
        if not chosen:
            has = ", ".join(dict.fromkeys(offer.backend for offer in offers))
            raise BadRequest(
                f"{entry.served_name} is not offered by the backend {wishes.backend[:40]!r}{of}; it is by: {has}", param=BACKEND_PARAM
            )
    if wishes.quantization is not None:
        chosen = [offer for offer in chosen if offer.quantization == wishes.quantization]
        if not chosen:
            has = ", ".join(f"{offer.variant} ({offer.quantization or 'not told'})" for offer in offers)
            raise BadRequest(f"{entry.served_name} has no weights in {wishes.quantization}{of}; its variants are: {has}", param=PARAM)
    return chosen


def require_switches(wishes: Wishes, backend: str, n: int, assets: TextAssets | None) -> None:
    """Raises BadRequest for a switch that these workers cannot carry out. `assets`: of our own, once they are described."""
    switches = wishes.switches
    if switches is ALL_ON:
        return
    if backend != OWN_BACKEND:
        for name, is_on in (("batching", switches.batching), ("speculation", switches.speculation)):
            if not is_on:
                raise BadRequest(f"{PARAM}: {name}=off: a {backend} worker decides that itself: leave it out", param=PARAM)
    if not switches.batching and n > 1:
        raise BadRequest(f"{PARAM}: batching=off: n is {n}, and one choice runs alone: leave n out", param=PARAM)
    if not switches.batching and assets is not None and Feature.BATCHING_TOGGLE not in (assets.features or ()):
        raise BadRequest(f"{PARAM}: batching=off: these workers cannot run a request alone: leave it out", param=PARAM)


def applied_header(
    wishes: Wishes, entry: CatalogEntry, variant: str | None, trace: RequestTrace, assets: TextAssets | None
) -> tuple[bytes, bytes]:
    """What the answer says of the switches, as far as it is known when its headers leave."""
    switches, told = wishes.switches, list[str]()
    offers = {offer.variant: offer for offer in offers_of(entry)}
    served = offers.get(variant or _served(trace) or (entry.variants[0] if len(entry.variants) == 1 else ""))
    if served is not None:
        told.append(f"variant={served.variant}")
        if served.quantization:
            told.append(f"quantization={served.quantization}")
    told.append(f"prefix-cache={_shown(switches.prefix_cache)}")
    told.append(f"batching={_shown(switches.batching)}")
    if served is None or served.backend == OWN_BACKEND:
        drafts = assets is not None and Feature.SPECULATION in (assets.features or ())
        told.append(f"speculation={_shown(switches.speculation and drafts)}")
    return FEATURES, ", ".join(told).encode()


def _served(trace: RequestTrace) -> str:
    """The variant that answers; empty: not known yet, or several may."""
    attempts = trace.generations[0].attempts if len(trace.generations) == 1 else []
    return attempts[-1].variant if attempts else ""


def _shown(is_on: bool) -> str:
    return "on" if is_on else "off"

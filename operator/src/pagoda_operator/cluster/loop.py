"""The loop of the cluster: any event marks keys, a worker takes a key, and the one path runs: observe → plan → apply → status.

    kopf, informers, polls ──heard──> queue of keys ──> reconcile.carry_out(Unit) ──> status, events

Level-triggered: a reconcile looks only at what is there now. One whose model did not change reads and writes nothing.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from pagoda_operator.cluster.apply import Writer
from pagoda_operator.cluster.errors import ClusterError, LeaseLost, Refused
from pagoda_operator.cluster.events import Teller
from pagoda_operator.cluster.metrics import Metrics
from pagoda_operator.cluster.models import Models
from pagoda_operator.cluster.observe import Observer
from pagoda_operator.cluster.queue import WorkQueue
from pagoda_operator.cluster.secrets import namespace_secrets
from pagoda_operator.cluster.status_diff import same_status
from pagoda_operator.cluster.unit import Key, Unit
from pagoda_operator.cluster.world import World
from pagoda_operator.observed.world import ObjectRef, Observed
from pagoda_operator.plan.plan import Plan, plan_model, plan_namespace
from pagoda_operator.reconcile import Outcome, Scaling, carry_out, scale, scalings
from pagoda_operator.render.installation import Settings
from pagoda_operator.render.objects import ROUTER_NAME
from pagoda_operator.scaling.history import ScalingHistory
from pagoda_operator.status.model_status import model_status

log = logging.getLogger(__name__)

CONCURRENCY = 8
LOOK_AGAIN_S = 5.0
"""A namespace that seems to be without models and is not: one of them is being deleted, or an event is on its way."""
SECRETS_AGAIN_S = 600.0
"""Secrets cannot be watched; a deleted one is made again at the latest after this long."""


class Loop:
    def __init__(
        self,
        *,
        world: World,
        models: Models,
        observer: Observer,
        writer: Writer,
        teller: Teller,
        settings: Settings,
        metrics: Metrics,
        sample_s: float,
        lost: Callable[[LeaseLost], None],
    ) -> None:
        self.queue: WorkQueue[Key] = WorkQueue()
        self._world = world
        self._models = models
        self._observer = observer
        self._writer = writer
        self._teller = teller
        self._settings = settings
        self._metrics = metrics
        self._lost = lost
        self._sample_s = sample_s
        self._units: dict[Key, Unit] = {}
        self._settled: set[str] = set()
        """Namespaces whose shared objects were reconciled since the start: their models' turn has come."""
        self._secrets_made: dict[str, tuple[str, float]] = {}
        """By namespace: for which account, and when."""
        self._history = ScalingHistory()
        self._sampled: dict[str, float] = {}
        """By namespace: when the demand on its models was last looked at."""
        self.conditions: dict[Key, list[tuple[str, str, str]]] = {}

    def mark(self, namespace: str, model: str | None) -> None:
        self.queue.add(Key(namespace, model or ""))

    def mark_models(self, namespace: str) -> None:
        for name in self._models.names(namespace):
            self.queue.add(Key(namespace, name))

    def remake_secrets(self, namespace: str) -> None:
        """A pod misses one."""
        if self._secrets_made.pop(namespace, None):
            self.mark(namespace, None)

    def sample(self, namespace: str) -> None:
        """A router answered: remembers the demand on models that are scaled by it, and marks those to be scaled now."""
        now = time.monotonic()
        if now - self._sampled.get(namespace, 0.0) < self._sample_s:
            return
        self._sampled[namespace] = now
        for name in self._models.names(namespace):
            model = self._models.parsed(namespace, name)
            if model is None or all(variant.scaling.fixed is not None for variant in model.variants):
                continue
            observed = self._observer.look(namespace, name, {}, {})
            if scalings(model, observed, self._history, now):
                self.mark(namespace, name)

    async def run(self) -> None:
        await self.queue.work(self._handle, concurrency=CONCURRENCY)

    async def _handle(self, key: Key, waited_s: float) -> None:
        self._metrics.queue_wait.observe(waited_s)
        started, outcome = time.perf_counter(), "failed"
        try:
            outcome = await (self._model(key) if key.model else self._namespace(key))
            if outcome == "blocked":
                self.queue.failed(key)
            else:
                self.queue.succeeded(key)
        except LeaseLost as error:
            self._lost(error)
        except ClusterError as error:
            log.warning("%s: %s; again in %.1f s", key, error, self.queue.failed(key))
        except Exception:
            # the outermost line of the loop: a fault in one key must not stop the others
            log.exception("%s: a reconcile failed; again in %.1f s", key, self.queue.failed(key))
        finally:
            self._metrics.reconciles.labels("model" if key.model else "namespace", outcome).observe(time.perf_counter() - started)

    # ------------------------------------------------------------ what a namespace shares

    async def _namespace(self, key: Key) -> str:
        namespace = key.namespace
        wanted = self._models.names(namespace)
        if not wanted and await self._still_has_models(namespace):
            self.queue.add_later(key, LOOK_AGAIN_S)
            return "unchanged"
        unit = self._begin(key)
        claims = self._models.claims(namespace)

        def planner(observed: Observed) -> Plan:
            return plan_namespace(namespace, claims, observed, self._settings)

        outcome = await carry_out(planner, unit)
        self._log(key, outcome)
        if wanted:
            await self._make_secrets(unit)
        else:
            self._secrets_made.pop(namespace, None)
            self._settled.discard(namespace)
            self._units.pop(key, None)
        news = unit.finish()
        if wanted and (news or namespace not in self._settled):
            self._settled.add(namespace)
            self.mark_models(namespace)
        return _word(unit)

    async def _still_has_models(self, namespace: str) -> bool:
        """Before taking down routers: is the namespace really without models? What we know may be old."""
        shared = self._world.children.of(namespace, "")
        return bool(shared) and await self._world.has_models(namespace)

    async def _make_secrets(self, unit: Unit) -> None:
        namespace = unit.key.namespace
        account = self._world.children.get(ObjectRef("ServiceAccount", namespace, ROUTER_NAME))
        if account is None or self._settings.master_key is None:
            return
        uid, now = account["metadata"]["uid"], time.monotonic()
        made_for, made_at = self._secrets_made.get(namespace, ("", 0.0))
        if made_for == uid and now - made_at < SECRETS_AGAIN_S:
            return
        for secret in namespace_secrets(namespace, uid, self._settings):
            try:
                unit.writes += await self._writer.create_secret(secret)
            except Refused as error:
                unit.refused[ObjectRef("Secret", namespace, secret["metadata"]["name"])] = error.message
                return
        self._secrets_made[namespace] = (uid, now)
        self.queue.add_later(unit.key, SECRETS_AGAIN_S + 1)

    # ------------------------------------------------------------ one model

    async def _model(self, key: Key) -> str:
        document = self._models.get(key.namespace, key.model)
        if document is None:
            # its children go with it: they name it as their owner
            self._units.pop(key, None)
            self.conditions.pop(key, None)
            self._teller.forget(key)
            self._history.forget(str(key))
            self.queue.forget(key)
            return "unchanged"
        if key.namespace not in self._settled:
            self.mark(key.namespace, None)
            return "unchanged"
        unit = self._begin(key)
        claims = self._models.claims(key.namespace)

        def planner(observed: Observed) -> Plan:
            return plan_model(document, claims, observed, self._settings)

        outcome = await carry_out(planner, unit)
        self._log(key, outcome)
        outcome = await scale(outcome.present.models, outcome, unit, self._history, time.monotonic(), self._count)
        status = model_status(document, outcome.present, outcome.observed, self._history.decisions(str(key)))
        await self._write_status(key, unit, document, status)
        unit.finish()
        self._teller.tell(document, outcome.done.reasons, document.get("status") or {}, status)
        return _word(unit)

    async def _write_status(self, key: Key, unit: Unit, document: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        self.conditions[key] = [(each["type"], each["status"], each["reason"]) for each in status.get("conditions") or ()]
        if same_status(document.get("status") or {}, status):
            return
        unit.writes += 1
        written = await self._writer.status(document, status)
        if written is not None:
            self._models.remember(written)

    # ------------------------------------------------------------ helpers

    def _begin(self, key: Key) -> Unit:
        """A reconcile of this key begins."""
        unit = self._unit(key)
        unit.start()
        return unit

    def _unit(self, key: Key) -> Unit:
        """NOTE: the namespace's own may be in the middle of a reconcile while one of its models' is made."""
        unit = self._units.get(key)
        if unit is None:
            shared = self._unit(Key(key.namespace, "")) if key.model else None
            unit = Unit(key, self._observer, self._writer, self._world.children, shared)
            if not key.model:
                unit.accounts_applied = lambda: self._make_secrets(unit)
            self._units[key] = unit
        return unit

    def _count(self, step: Scaling) -> None:
        self._metrics.scalings.labels("up" if step.decision.replicas > step.before else "down").inc()

    def _log(self, key: Key, outcome: Outcome) -> None:
        for reason in outcome.done.reasons:
            log.info("%s: %s", key, reason)


def _word(unit: Unit) -> str:
    if unit.refused or unit.looked_up_foreign:
        return "blocked"
    return "changed" if unit.writes else "unchanged"

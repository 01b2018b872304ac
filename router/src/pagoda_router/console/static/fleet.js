// Fleet: every worker as this router sees it. A thousand of them are one table whose rows stay where they are.

import { drawBar, element, errorLine, make, Poll, Table } from "/console/dom.js";
import { count, percent, sum } from "/console/figures.js";
import { ask } from "/console/server.js";

const POLL_MS = 2000;

export const stateOf = ({ routable, draining, shunned, reason }) =>
  draining ? "draining" : !routable ? reason || "not ready" : shunned ? `shunned: ${shunned}` : "ready";
const isTroubled = (worker) => !worker.routable || worker.draining || worker.shunned !== null;
/** What sequences hold, all routers', or what this router reserved there if that is more: not what it may still reserve, as others have shares. */
export const usedTokens = ({ kvUsedTokens: told, kvReservedTokens: own }) => Math.max(told, own);
export const usedShare = (worker) => (worker.kvCapacityTokens ? usedTokens(worker) / worker.kvCapacityTokens : 0);

/** Of models whose requests nobody can take now: a worker that died is in no row. Pure. */
export function withoutWorker(models) {
  const without = Object.entries(models).filter(([, { routable }]) => !sum(Object.values(routable ?? {})));
  return without.map(([name, { waiting }]) => `${name} has no worker that takes requests${waiting ? `; ${count(waiting)} wait` : ""}`);
}

const COLUMNS = [
  { head: "Worker", text: ({ name }) => name, tip: ({ address }) => address },
  { head: "Model", text: ({ model, variant }) => (variant === "default" ? model : `${model} / ${variant}`) },
  { head: "Backend", text: ({ backend }) => backend },
  {
    head: "State",
    text: stateOf,
    draw: (cell, worker) => {
      const kind = isTroubled(worker) ? (worker.routable ? "wait" : "bad") : "good";
      cell.replaceChildren(make("span", { className: `pill ${kind}`, textContent: stateOf(worker) }));
    },
  },
  {
    head: "KV in use",
    kind: "wide",
    text: (worker) => `${percent(usedShare(worker))} of ${count(worker.kvCapacityTokens)}`,
    draw: (cell, worker) => drawBar(cell, usedShare(worker), `${percent(usedShare(worker))} of ${count(worker.kvCapacityTokens)}`),
  },
  { head: "Running", kind: "figure", text: ({ running, maxRunning }) => `${running} of ${maxRunning}` },
  { head: "Waiting", kind: "figure", text: ({ waiting }) => count(waiting) },
  { head: "From here", kind: "figure", text: ({ inFlight }) => count(inFlight) },
  { head: "Prefill tokens/s", kind: "figure", text: ({ prefillTokensPerS: rate }) => (rate ? count(Math.round(rate)) : "–") },
  { head: "Decode tokens/s", kind: "figure", text: ({ decodeTokensPerS: rate }) => (rate ? count(Math.round(rate)) : "–") },
];

export function fleetPanel(section) {
  const showError = errorLine(section);
  const table = new Table(element("fleet-table"), COLUMNS);
  let workers = [];
  let models = {};

  function showWorkers() {
    const text = element("fleet-filter").value.trim().toLowerCase();
    const only = element("fleet-troubled").checked;
    const found = workers.filter(
      (worker) => (!only || isTroubled(worker)) && `${worker.name} ${worker.model} ${worker.variant} ${worker.backend}`.toLowerCase().includes(text),
    );
    table.show(found, ({ name, address }) => `${name}@${address}`);
    element("fleet-none").hidden = found.length > 0;
  }

  function showSums() {
    const ready = workers.filter(({ routable }) => routable);
    const capacity = sum(ready.map(({ kvCapacityTokens }) => kvCapacityTokens));
    element("fleet-ready").textContent = `${ready.length} of ${workers.length}`;
    element("fleet-kv").textContent = capacity ? percent(sum(ready.map(usedTokens)) / capacity) : "–";
    element("fleet-running").textContent = count(sum(workers.map(({ running }) => running)));
    element("fleet-waiting").textContent = count(sum(workers.map(({ waiting }) => waiting)));
    element("fleet-shunned").textContent = workers.filter(({ shunned }) => shunned !== null).length;
  }

  const poll = new Poll(async (signal) => {
    try {
      ({ workers, models } = await ask("/admin/v1/fleet", { signal }));
      showError("");
      showSums();
      const missing = withoutWorker(models);
      element("fleet-missing").hidden = !missing.length;
      element("fleet-missing").textContent = missing.join(". ");
      showWorkers();
    } catch (error) {
      if (error.name === "AbortError") return;
      showError(error.message);
      if (error.status === 401 || error.status === 403) poll.stop();
    }
  }, POLL_MS);
  element("fleet-filter").addEventListener("input", showWorkers);
  element("fleet-troubled").addEventListener("change", showWorkers);
  return { show: () => poll.start(), hide: () => poll.stop() };
}

// Queue and lanes: what waits by class and tenant, what is reserved, how traffic was cut by length. One card per model.

import { drawBar, element, errorLine, make, Poll, Table } from "/console/dom.js";
import { age, count, milliseconds, percent } from "/console/figures.js";
import { ask } from "/console/server.js";

const POLL_MS = 2000;

const CLASSES = [
  { head: "Class", text: (line) => line.class },
  { head: "Requests", kind: "figure", text: ({ requests }) => count(requests) },
  { head: "Tokens", kind: "figure", text: ({ tokens }) => count(tokens) },
  { head: "Oldest", kind: "figure", text: ({ requests, oldestS }) => (requests ? age(oldestS) : "–") },
  { head: "Drains tokens/s", kind: "figure", text: ({ drainTokensPerS: rate }) => (rate ? count(rate) : "–") },
  { head: "A newcomer waits", kind: "figure", text: ({ waitS }) => (waitS === null ? "not known" : waitS ? milliseconds(1000 * waitS) : "not at all") },
];
const TENANTS = [
  { head: "Tenant", text: ({ tenant }) => tenant || "(none)" },
  { head: "Class", text: (tenant) => tenant.class },
  { head: "Requests", kind: "figure", text: ({ requests }) => count(requests) },
  { head: "Tokens", kind: "figure", text: ({ tokens }) => count(tokens) },
  { head: "Oldest", kind: "figure", text: ({ oldestS }) => age(oldestS) },
  { head: "Served tokens", kind: "figure", text: ({ servedTokens }) => count(servedTokens) },
];

/** {label, workers} of each lane of one variant. Pure. */
export function lanesOf({ cutsTokens, lanes }) {
  return lanes.map((workers, at) => {
    const label = at < cutsTokens.length ? `up to ${count(cutsTokens[at])} tokens` : at ? `over ${count(cutsTokens[at - 1])} tokens` : "every length";
    return { label, workers };
  });
}

class Card {
  constructor(name) {
    this.credits = make("div", { className: "credits" });
    this.bounds = make("p", { className: "quiet" });
    const [classes, tenants] = [make("table"), make("table")];
    this.classes = new Table(classes, CLASSES);
    this.tenants = new Table(tenants, TENANTS);
    this.tenantsPlace = make("div", { className: "scroll", hidden: true }, tenants);
    this.lanes = make("div", { className: "lanes" });
    this.said = "";
    this.element = make("article", { className: "card" }, make("h2", { textContent: name }), make("h3", { textContent: "KV tokens promised by workers" }),
      this.credits, make("h3", { textContent: "Waiting here" }), make("div", { className: "scroll" }, classes), this.tenantsPlace, this.bounds,
      make("h3", { textContent: "Lanes by length" }), this.lanes);
  }

  show(line, variants) {
    const { capacityTokens: all, availableTokens: free, reservedTokens: reserved } = line.credits;
    const promised = reserved + Math.max(0, free);
    const share = promised ? reserved / promised : 0;
    drawBar(this.credits, share, all ? `${count(reserved)} of ${count(promised)} reserved (${percent(share)})` : "no worker");
    this.classes.show(line.classes, (each) => each.class);
    this.tenants.show(line.tenants, ({ tenant, class: name }) => `${name} ${tenant}`);
    this.tenantsPlace.hidden = line.tenants.length === 0;
    const more = line.tenantCount > line.tenants.length ? ` ${line.tenantCount - line.tenants.length} more tenants wait.` : "";
    this.bounds.textContent =
      `Bounded to ${count(line.mostTokens)} tokens and ${count(line.mostRequests)} requests.${line.waves ? " Waves are on." : ""}${more}`;
    const said = JSON.stringify(variants);
    if (said === this.said) return;
    this.said = said;
    this.lanes.replaceChildren(...Object.entries(variants).map(([variant, cut]) => laneRow(variant, cut)));
    if (!this.lanes.firstChild) this.lanes.append(make("p", { className: "quiet", textContent: "No request has been placed yet." }));
  }
}

function laneRow(variant, cut) {
  const lanes = lanesOf(cut).map(({ label, workers }) => {
    const manned = lanesOf(cut).length > 1 ? `${workers.length} worker${workers.length === 1 ? "" : "s"}` : "all workers";
    const box = make("li", { title: workers.join("\n") }, make("b", { textContent: label }), make("span", { textContent: manned }));
    box.style.flexGrow = String(Math.max(1, workers.length));
    return box;
  });
  const shunned = Object.entries(cut.shunned).map(([worker, cause]) => `${worker.split("@")[0]}: ${cause}`);
  const row = make("div", {}, make("p", { className: "quiet", textContent: `Variant ${variant}` }), make("ol", { className: "lane" }, ...lanes));
  if (shunned.length) row.append(make("p", { className: "bad", textContent: `Left alone for a while: ${shunned.join(", ")}` }));
  return row;
}

export function queuePanel(section) {
  const showError = errorLine(section);
  const cards = new Map();

  function show({ models }, lanes) {
    for (const name of [...cards.keys()].filter((name) => !(name in models))) {
      cards.get(name).element.remove();
      cards.delete(name);
    }
    for (const [name, line] of Object.entries(models)) {
      if (!cards.has(name)) {
        cards.set(name, new Card(name));
        element("queue-cards").append(cards.get(name).element);
      }
      cards.get(name).show(line, lanes.models[name] ?? {});
    }
    element("queue-none").hidden = cards.size > 0;
  }

  const poll = new Poll(async (signal) => {
    try {
      show(...(await Promise.all([ask("/admin/v1/queue", { signal }), ask("/admin/v1/lanes", { signal })])));
      showError("");
    } catch (error) {
      if (error.name === "AbortError") return;
      showError(error.message);
      if (error.status === 401 || error.status === 403) poll.stop();
    }
  }, POLL_MS);
  return { show: () => poll.start(), hide: () => poll.stop() };
}

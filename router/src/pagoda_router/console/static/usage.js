// Usage: what each key used of each model, by hour or day, with its cost; sums, a chart, and the same as CSV.

import { element, errorLine, make, Table } from "/console/dom.js";
import { count, csv, day, sum } from "/console/figures.js";
import { ask } from "/console/server.js";

const SVG = "http://www.w3.org/2000/svg";
const DAY_S = 86_400;
const FIELDS = ["start", "key_id", "key", "tenant", "model", "requests", "prompt_tokens", "cached_tokens", "completion_tokens", "usd"];

const tokensOf = (row) => row.prompt_tokens + row.completion_tokens;
export const usd = (amount) => `$${amount.toFixed(amount && amount < 1 ? 4 : 2)}`;

/** Tokens by start, in order; starts without use between the first and the last are 0. Pure. */
export function barsOf(rows, stepS) {
  const tokens = new Map();
  for (const row of rows) tokens.set(row.start, (tokens.get(row.start) ?? 0) + tokensOf(row));
  if (!tokens.size || !stepS) return [];
  const starts = [...tokens.keys()];
  const bars = [];
  for (let start = Math.min(...starts); start <= Math.max(...starts); start += stepS) bars.push({ start, tokens: tokens.get(start) ?? 0 });
  return bars;
}

const COLUMNS = [
  { head: "From", text: ({ start }) => (start ? day(start) : "–") },
  { head: "Key", text: ({ key }) => key, tip: ({ key_id: id }) => id },
  { head: "Tenant", text: ({ tenant }) => tenant },
  { head: "Model", text: ({ model }) => model },
  { head: "Requests", kind: "figure", text: ({ requests }) => count(requests) },
  { head: "Prompt", kind: "figure", text: ({ prompt_tokens: tokens }) => count(tokens) },
  { head: "of it cached", kind: "figure", text: ({ cached_tokens: tokens }) => count(tokens) },
  { head: "Output", kind: "figure", text: ({ completion_tokens: tokens }) => count(tokens) },
  { head: "Cost", kind: "figure", text: (row) => usd(row.usd) },
];

export function usagePanel(section) {
  const showError = errorLine(section);
  const table = new Table(element("usage-table"), COLUMNS);
  let rows = [];

  async function load() {
    const unixS = (id) => Date.parse(`${element(id).value}T00:00:00Z`) / 1000;
    const by = element("usage-by").value;
    const query = new URLSearchParams({ by });
    if (element("usage-from").value) query.set("from", String(unixS("usage-from")));
    if (element("usage-until").value) query.set("until", String(unixS("usage-until") + DAY_S)); // that day is meant too
    try {
      const [{ data }, names] = await Promise.all([ask(`/admin/v1/usage?${query}`), keyNames()]);
      rows = data.map((row) => ({ ...row, key: names.get(row.key_id) ?? row.key_id }));
      showError("");
      show({ hour: 3600, day: DAY_S, total: 0 }[by]);
    } catch (error) {
      showError(error.message);
    }
  }

  async function keyNames() {
    const { data } = await ask("/admin/v1/keys");
    return new Map(data.map(({ id, name }) => [id, name]));
  }

  function show(stepS) {
    table.show([...rows].reverse(), ({ start, key_id: key, model }) => `${start} ${key} ${model}`);
    element("usage-none").hidden = rows.length > 0;
    element("usage-csv").disabled = rows.length === 0;
    const of = (field) => sum(rows.map((row) => row[field]));
    const tiles = [
      ["Requests", count(of("requests"))], ["Prompt tokens", count(of("prompt_tokens"))], ["Cached tokens", count(of("cached_tokens"))],
      ["Output tokens", count(of("completion_tokens"))], ["Cost", usd(of("usd"))],
    ];
    element("usage-tiles").replaceChildren(
      ...tiles.map(([name, said]) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: said }))),
    );
    draw(barsOf(rows, stepS));
  }

  function draw(bars) {
    const place = element("usage-chart");
    place.replaceChildren();
    if (bars.length < 2) return;
    const most = Math.max(...bars.map(({ tokens }) => tokens));
    const chart = document.createElementNS(SVG, "svg");
    const attributes = { viewBox: `0 0 ${10 * bars.length} 100`, preserveAspectRatio: "none", role: "img" };
    for (const [name, value] of Object.entries(attributes)) chart.setAttribute(name, value);
    chart.setAttribute("aria-label", `Tokens from ${day(bars[0].start)} to ${day(bars.at(-1).start)}, at most ${count(most)}`);
    bars.forEach(({ start, tokens }, at) => {
      const bar = chart.appendChild(document.createElementNS(SVG, "rect"));
      const height = most ? (98 * tokens) / most : 0;
      for (const [name, value] of Object.entries({ x: 10 * at + 1, y: 100 - height, width: 8, height })) bar.setAttribute(name, value);
      bar.appendChild(document.createElementNS(SVG, "title")).textContent = `${day(start)}: ${count(tokens)} tokens`;
    });
    place.append(chart);
  }

  function download() {
    const text = csv(FIELDS, rows.map((row) => FIELDS.map((field) => (field === "start" ? day(row.start) : row[field]))));
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: "pagoda-usage.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  element("usage-form").addEventListener("submit", (event) => {
    event.preventDefault();
    load();
  });
  element("usage-csv").addEventListener("click", download);
  const daysAgo = (days) => new Date(Date.now() - 1000 * DAY_S * days).toISOString().slice(0, 10);
  element("usage-from").value = daysAgo(6);
  element("usage-until").value = daysAgo(0);
  return { show: load };
}

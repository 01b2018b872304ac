// Usage: what each key used of each model, by hour or day, with its cost; sums, a chart, and the server's CSV.

import { element, errorLine, make, Table } from "/console/dom.js";
import { count, day } from "/console/figures.js";
import { ask, download } from "/console/server.js";

const SVG = "http://www.w3.org/2000/svg";
const DAY_S = 86_400;
const STEP_S = { hour: 3600, day: DAY_S, total: 0 };

const unixS = (text) => Date.parse(text) / 1000;
const usd = (amount) => `$${amount.toFixed(amount && amount < 1 ? 4 : 2)}`;

/** Tokens by start, in order; starts without use between the first and the last are 0. Pure. */
export function barsOf(rows, stepS) {
  const tokens = new Map();
  for (const { start, prompt_tokens: prompt, completion_tokens: output } of rows) {
    tokens.set(unixS(start), (tokens.get(unixS(start)) ?? 0) + prompt + output);
  }
  if (!tokens.size || !stepS) return [];
  const starts = [...tokens.keys()];
  const bars = [];
  for (let start = Math.min(...starts); start <= Math.max(...starts); start += stepS) bars.push({ start, tokens: tokens.get(start) ?? 0 });
  return bars;
}

const COLUMNS = [
  { head: "From", text: ({ start }) => day(unixS(start)) },
  { head: "Key", text: ({ key, name }) => name || key, tip: ({ key }) => key },
  { head: "Tenant", text: ({ tenant }) => tenant },
  { head: "Model", text: ({ model }) => model },
  { head: "Requests", kind: "figure", text: ({ requests }) => count(requests) },
  { head: "Prompt", kind: "figure", text: ({ prompt_tokens: tokens }) => count(tokens) },
  { head: "of it cached", kind: "figure", text: ({ cached_tokens: tokens }) => count(tokens) },
  { head: "Output", kind: "figure", text: ({ completion_tokens: tokens }) => count(tokens) },
  { head: "Cost", kind: "figure", text: (row) => usd(row.cost_usd) },
];

export function usagePanel(section) {
  const showError = errorLine(section);
  const table = new Table(element("usage-table"), COLUMNS);

  function question() {
    const query = new URLSearchParams({ by: element("usage-by").value });
    const [from, until] = [element("usage-from").value, element("usage-until").value];
    if (from) query.set("from", from);
    if (until) query.set("until", String(unixS(`${until}T00:00:00Z`) + DAY_S)); // that day is meant too
    return query;
  }

  async function load() {
    try {
      const { by, data, total } = await ask(`/admin/v1/usage?${question()}`);
      showError("");
      show(data, total, STEP_S[by]);
    } catch (error) {
      showError(error.message);
    }
  }

  async function save() {
    try {
      await download(`/admin/v1/usage?${question()}&format=csv`, "pagoda-usage.csv");
      showError("");
    } catch (error) {
      showError(error.message);
    }
  }

  function show(rows, total, stepS) {
    table.show([...rows].reverse(), ({ start, key, tenant, model }) => `${start} ${key} ${tenant} ${model}`);
    element("usage-none").hidden = rows.length > 0;
    element("usage-csv").disabled = rows.length === 0;
    const tiles = [
      ["Requests", count(total.requests)], ["Prompt tokens", count(total.prompt_tokens)], ["Cached tokens", count(total.cached_tokens)],
      ["Output tokens", count(total.completion_tokens)], ["Cost", usd(total.cost_usd)],
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
    const said = `Tokens from ${day(bars[0].start)} to ${day(bars.at(-1).start)}, at most ${count(most)} in a bar`;
    chart.setAttribute("aria-label", said);
    bars.forEach(({ start, tokens }, at) => {
      const bar = chart.appendChild(document.createElementNS(SVG, "rect"));
      const height = most ? (98 * tokens) / most : 0;
      for (const [name, value] of Object.entries({ x: 10 * at + 1, y: 100 - height, width: 8, height })) bar.setAttribute(name, value);
      bar.appendChild(document.createElementNS(SVG, "title")).textContent = `${day(start)}: ${count(tokens)} tokens`;
    });
    place.append(chart, make("p", { className: "quiet small", ariaHidden: "true", textContent: said }));
  }

  element("usage-form").addEventListener("submit", (event) => {
    event.preventDefault();
    load();
  });
  element("usage-csv").addEventListener("click", save);
  const daysAgo = (days) => new Date(Date.now() - 1000 * DAY_S * days).toISOString().slice(0, 10);
  element("usage-from").value = daysAgo(6);
  element("usage-until").value = daysAgo(0);
  return { show: load };
}

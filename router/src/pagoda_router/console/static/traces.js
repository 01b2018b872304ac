// Traces: the last requests, and where one's time went.

import { element, errorLine, make, Poll, Table } from "/console/dom.js";
import { count, milliseconds } from "/console/figures.js";
import { ask } from "/console/server.js";
import { barsOf, stripOf } from "/console/waterfall.js";

const POLL_MS = 3000;

const COLUMNS = [
  { head: "Request", text: ({ request_id: id }) => id, press: ({ request_id: id }) => { location.hash = `#traces/${encodeURIComponent(id)}`; } },
  { head: "At", kind: "figure", text: ({ received_at: at }) => at.slice(11, 23), tip: ({ received_at: at }) => at },
  { head: "Model", text: ({ model }) => model ?? "–" },
  { head: "Status", kind: "figure", text: ({ status }) => String(status) },
  { head: "Total", kind: "figure", text: ({ total_ms: ms }) => milliseconds(ms) },
  {
    head: "Where the time went",
    kind: "wide",
    text: ({ phases_ms: phases }) => Object.entries(phases).map(([name, ms]) => `${name} ${milliseconds(ms)}`).join(", "),
    draw: drawStrip,
    tip: ({ phases_ms: phases }) => Object.entries(phases).map(([name, ms]) => `${name} ${milliseconds(ms)}`).join("\n"),
  },
  { head: "Prompt", kind: "figure", text: ({ tokens }) => `${tokens.cached} of ${tokens.prompt} cached` },
  { head: "Output", kind: "figure", text: ({ tokens }) => count(tokens.output) },
  { head: "Worker", text: ({ worker }) => worker?.split("@")[0] ?? "–" },
  { head: "Tries", kind: "figure", text: ({ attempts }) => String(attempts) },
];

/** One element a row, coloured by a gradient: a thousand rows of nine bars would be nine thousand. */
function drawStrip(cell, trace) {
  if (!cell.firstChild) cell.append(make("span", { className: "strip", role: "img" }));
  const stops = stripOf(trace).map(({ name, from, to }) => `var(--${name.replace("_", "-")}) ${from.toFixed(2)}% ${to.toFixed(2)}%`);
  cell.firstChild.style.backgroundImage = `linear-gradient(to right, ${stops.join(", ")})`;
  cell.firstChild.ariaLabel = Object.entries(trace.phases_ms).map(([name, ms]) => `${name} ${milliseconds(ms)}`).join(", ");
}

export function tracesPanel(section) {
  const showError = errorLine(section);
  const table = new Table(element("traces-table"), COLUMNS);

  const poll = new Poll(async (signal) => {
    const query = new URLSearchParams({ limit: element("traces-limit").value });
    for (const name of ["model", "status", "min_ms"]) {
      const value = element(`traces-${name}`).value.trim();
      if (value) query.set(name, value);
    }
    try {
      const { traces } = await ask(`/admin/v1/traces?${query}`, { signal });
      showError("");
      table.show(traces, ({ request_id: id, received_at: at }) => `${id} ${at}`);
      element("traces-none").hidden = traces.length > 0;
    } catch (error) {
      if (error.name === "AbortError") return;
      showError(error.message);
      if (error.status === 401 || error.status === 403) poll.stop();
    }
  }, POLL_MS);

  async function open(id) {
    try {
      showOne(await ask(`/admin/v1/trace?${new URLSearchParams({ id })}`));
      element("trace").showModal();
    } catch (error) {
      showError(error.message);
    }
  }

  function showOne(trace) {
    element("trace-title").textContent = trace.request_id;
    element("trace-said").replaceChildren(...facts(trace).map((text) => make("p", { textContent: text })));
    element("waterfall").replaceChildren(...barsOf(trace).map(phaseRow));
    element("trace-json").textContent = JSON.stringify(trace, null, 2);
  }

  for (const id of ["traces-model", "traces-status", "traces-min_ms", "traces-limit"]) {
    element(id).addEventListener("change", () => poll.start());
  }
  element("trace-close").addEventListener("click", () => element("trace").close());
  element("trace").addEventListener("close", () => {
    if (location.hash.startsWith("#traces/")) history.replaceState(null, "", "#traces");
  });
  return {
    show: (id) => {
      poll.start();
      if (id) open(id);
      else element("trace").close();
    },
    hide: () => {
      poll.stop();
      element("trace").close();
    },
  };
}

function phaseRow({ name, ms, by, startMs, leftPercent, widthPercent }) {
  const bar = make("i", { className: `phase ${name.replace("_", "-")}` });
  bar.style.left = `${leftPercent}%`;
  bar.style.width = `max(1px, ${widthPercent}%)`;
  const track = make("td", { className: "track", title: `from ${milliseconds(startMs)}, by the clock of the ${by}` }, bar);
  return make("tr", {}, make("th", { scope: "row", textContent: name.replace("_", " ") }), make("td", { className: "figure", textContent: milliseconds(ms) }), track);
}

/** Sentences beside the bars. */
function facts({ model, status, error, total_ms: totalMs, tokens, decision, predicted, attempts, worker, finish_reasons: ends }) {
  const said = [
    `${model ?? "no model"}: ${status ?? "running"}${error ? ` ${error}` : ""} after ${milliseconds(totalMs)}; ` +
      `${tokens.prompt} prompt tokens (${tokens.cached} cached), ${tokens.output} output tokens${ends.length ? `, ended by ${ends.join(", ")}` : ""}.`,
  ];
  if (decision) {
    const other = decision.runner_up === null ? "no runner-up" : `runner-up ${decision.runner_up.split("@")[0]} at ${milliseconds(decision.runner_up_ms)}`;
    said.push(`On ${decision.worker} by ${decision.policy}: ${decision.reason.replaceAll("_", " ")}; ${other}.`);
  }
  if (predicted) {
    const { first_token_ms: first, output_tokens: output } = predicted;
    said.push(`First token ${milliseconds(first.predicted)} predicted, ${milliseconds(first.actual)} came; output ${output.predicted} tokens predicted, ${output.actual} came.`);
  }
  if (worker?.preemptions) said.push(`Preempted ${worker.preemptions} times.`);
  const failed = attempts.filter((attempt) => attempt.failed);
  if (failed.length) said.push(`Tried before: ${failed.map((attempt) => `${attempt.worker} (${attempt.failed})`).join(", ")}.`);
  return said;
}

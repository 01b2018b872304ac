// Compare: one prompt, several rows of toggles, each really run; rows take turns, so that none has the quiet minute for itself.

import { element, errorLine, fill, make } from "/console/dom.js";
import { count, milliseconds } from "/console/figures.js";
import { complete, newAnswer, ServerError } from "/console/server.js";
import { appliedOf, canTrace, headersOf, partsAt, summary, TOGGLES, togglesOf } from "/console/toggles.js";

const FIGURES = ["TTFT", "TPOT", "Longest gap", "Tokens/s", "Total", "Cached"];
const RESULTS = [...FIGURES, "Text", "What the server says"];
const MEANS = {
  TTFT: "Time to the first token",
  TPOT: "Time per output token, from the first to the last",
  "Longest gap": "Between two pieces of the answer",
  Cached: "Prompt tokens found in the prefix cache, in the last round",
};
const FIRST_ROWS = [{}, { "prefix-cache": "off" }];

export function comparePanel(section, models) {
  const showError = errorLine(section);
  const body = element("compare-rows");
  let rows = []; // {element, selects, results, runs}
  let running = null;

  function addRow(chosen = {}) {
    const row = { element: make("tr"), selects: new Map(), results: [], runs: [] };
    row.number = row.element.appendChild(make("th", { scope: "row" }));
    for (const { name, label } of TOGGLES) {
      const select = make("select", { ariaLabel: label });
      select.dataset.wanted = chosen[name] ?? "";
      row.selects.set(name, select);
      row.element.append(make("td", {}, select));
    }
    row.results = RESULTS.map((_, at) => row.element.appendChild(make("td", { className: at < FIGURES.length ? "figure" : "said" })));
    const remove = make("button", { type: "button", className: "link", textContent: "×", onclick: () => removeRow(row) });
    row.element.append(make("td", {}, remove));
    rows.push(row);
    body.append(row.element);
    number();
    offer();
  }

  function removeRow(row) {
    rows = rows.filter((other) => other !== row);
    row.element.remove();
    number();
    if (rows.length) showTexts();
  }

  function number() {
    rows.forEach((row, at) => {
      row.number.textContent = at + 1;
      row.element.querySelector("button").ariaLabel = `Remove row ${at + 1}`;
      row.element.querySelector("button").disabled = rows.length === 1 || running !== null;
    });
  }

  /** The values that the chosen model offers. */
  function offer() {
    for (const { name, values } of togglesOf(models.chosen)) {
      for (const { selects } of rows) {
        const select = selects.get(name);
        fill(select, values, values.map((value) => value || "any"));
        if (select.dataset.wanted && values.includes(select.dataset.wanted)) {
          select.value = select.dataset.wanted;
          delete select.dataset.wanted;
        }
      }
      // What there is no choice of is no column.
      const named = values.filter((value) => value);
      const at = 2 + TOGGLES.findIndex((toggle) => toggle.name === name);
      for (const cell of element("compare-table").querySelectorAll(`tr > :nth-child(${at})`)) cell.hidden = named.length < 2;
    }
  }

  const chosen = (row) => Object.fromEntries([...row.selects].map(([name, select]) => [name, select.value]));

  async function run() {
    running = new AbortController();
    showError("");
    showRunning();
    for (const row of rows) {
      row.runs = [];
      row.failed = false;
      row.results.forEach((cell) => { cell.textContent = ""; });
    }
    try {
      const rounds = element("compare-rounds").valueAsNumber || 1;
      for (let round = 1; round <= rounds; round += 1) {
        for (const row of rows) {
          if (row.failed) continue;
          element("compare-progress").textContent = `round ${round} of ${rounds}, row ${rows.indexOf(row) + 1}`;
          await runOnce(row);
        }
      }
      element("compare-progress").textContent = `median of ${rounds}`;
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      element("compare-progress").textContent = "stopped";
    } finally {
      running = null;
      showRunning();
    }
  }

  async function runOnce(row) {
    const answer = newAnswer();
    const wants = chosen(row);
    const request = {
      model: element("model").value,
      messages: [{ role: "user", content: element("compare-prompt").value }],
      temperature: 0,
      max_tokens: element("compare-tokens").valueAsNumber || 64,
      stream: true,
      stream_options: { include_usage: true },
    };
    const more = headersOf(wants);
    if (canTrace(wants, models.chosen)) more["x-pagoda-trace"] = "1";
    row.element.classList.add("running");
    try {
      await complete(request, answer, { more, signal: running.signal });
      row.runs.push(answer);
      showFigures(row);
    } catch (error) {
      if (!(error instanceof ServerError)) throw error;
      // One line in its own row: what cannot be set here is a result too.
      row.failed = true;
      row.results.at(-1).textContent = error.message;
    } finally {
      row.element.classList.remove("running");
    }
    showTexts();
  }

  function showFigures(row) {
    const found = summary(row.runs);
    const said = [
      milliseconds(found.ttftMs), milliseconds(found.tpotMs), milliseconds(found.gapMs), count(found.tokensPerS), milliseconds(found.totalMs),
      `${found.cached} of ${found.prompt}`,
    ];
    said.forEach((text, at) => { row.results[at].textContent = text; });
    const last = row.runs.at(-1);
    row.results[7].textContent = appliedOf(last);
    row.results[6].title = last.text;
  }

  function showTexts() {
    const first = rows[0].runs.at(-1);
    for (const row of rows) {
      const own = row.runs.at(-1);
      if (own === undefined) continue;
      const at = first === undefined ? null : partsAt(first.text, own.text);
      const said = row === rows[0] ? `${own.usage?.completion_tokens ?? "?"} tokens` : at === null ? "equal" : `differs at ${at}`;
      row.results[6].textContent = first === undefined && row !== rows[0] ? "row 1 failed" : said;
      row.results[6].classList.toggle("bad", at !== null);
    }
    element("compare-text").textContent = first?.text ?? "";
    element("compare-text-head").hidden = first === undefined;
  }

  function showRunning() {
    element("compare-run").hidden = running !== null;
    element("compare-stop").hidden = running === null;
    element("compare-run").disabled = models.chosen === undefined;
    number();
  }

  const heads = ["Row", ...TOGGLES.map(({ label }) => label), ...RESULTS, ""];
  element("compare-heads").append(
    ...heads.map((text) => make("th", { scope: "col", className: FIGURES.includes(text) ? "figure" : "", title: MEANS[text] ?? "", textContent: text })),
  );
  FIRST_ROWS.forEach(addRow);
  element("compare-add").addEventListener("click", () => addRow());
  element("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running === null && models.chosen !== undefined) run();
  });
  element("compare-stop").addEventListener("click", () => running?.abort());
  models.onChange(() => {
    offer();
    showRunning();
  });
  return {};
}

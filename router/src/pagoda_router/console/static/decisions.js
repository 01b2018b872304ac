// Decisions: the last placements, what was predicted and what came, and what another policy would have lost.

import { element, errorLine, fill, make, Poll, Table } from "/console/dom.js";
import { age, count, milliseconds, percent } from "/console/figures.js";
import { ask } from "/console/server.js";

const POLL_MS = 3000;
const POLICIES = ["", "predicted", "prefix", "length", "gpu-aware", "least-loaded", "round-robin"];

const workerName = (worker) => worker.split("@")[0];

export function regretLine({ decisions, meanMs, p95Ms, share }, who) {
  if (!decisions) return `${who}: no request has ended yet that could have gone elsewhere.`;
  return `${who}: ${milliseconds(meanMs)} lost in the mean, ${milliseconds(p95Ms)} at p95; ${percent(share)} of ${count(decisions)} would have been faster elsewhere.`;
}

export function decisionsPanel(section) {
  const showError = errorLine(section);
  const table = new Table(element("decisions-table"), [
    { head: "Request", press: open, text: ({ requestId }) => requestId },
    { head: "Ago", kind: "figure", text: ({ ageS }) => age(ageS) },
    { head: "Model", text: ({ model }) => model },
    { head: "Worker", text: ({ worker }) => workerName(worker), tip: ({ worker }) => worker },
    { head: "Why", text: ({ reason }) => reason.replaceAll("_", " ") },
    { head: "Of", kind: "figure", text: ({ candidateCount }) => count(candidateCount) },
    { head: "Prompt", kind: "figure", text: ({ promptTokens, candidates }) => `${candidates[0].cachedTokens} of ${promptTokens} cached` },
    { head: "Lane", kind: "figure", text: ({ lane }) => String(lane) },
    { head: "TTFT predicted", kind: "figure", text: ({ candidates }) => milliseconds(candidates[0].ttftMs) },
    { head: "came", kind: "figure", text: ({ actual }) => milliseconds(actual?.ttftMs) },
    { head: "TPOT predicted", kind: "figure", text: ({ candidates }) => milliseconds(candidates[0].tpotMs) },
    { head: "came", kind: "figure", text: ({ actual }) => milliseconds(actual?.tpotMs || null) },
  ]);
  const candidates = new Table(element("candidates-table"), [
    { head: "Worker", text: ({ worker }) => worker },
    { head: "Score", kind: "figure", text: ({ score }) => count(score) },
    { head: "TTFT predicted", kind: "figure", text: ({ ttftMs }) => milliseconds(ttftMs) },
    { head: "TPOT predicted", kind: "figure", text: ({ tpotMs }) => milliseconds(tpotMs) },
    { head: "Cached tokens", kind: "figure", text: ({ cachedTokens }) => count(cachedTokens) },
  ]);

  function open(decision) {
    const { requestId, policy, reason, runnerUp, actual, predictedOutputTokens, candidateCount } = decision;
    element("decision-title").textContent = requestId;
    const came = actual === null
      ? "It has not ended, or its worker tells no times."
      : `It took ${milliseconds(actual.ttftMs)} to its first token with ${count(actual.cachedTokens)} cached, then ${milliseconds(actual.tpotMs)} a token.`;
    const said = [
      `Policy ${policy}: ${reason.replaceAll("_", " ")}, among ${candidateCount}; runner-up ${runnerUp === null ? "none" : workerName(runnerUp)}.`,
      `${predictedOutputTokens} output tokens were predicted. ${came}`,
    ];
    element("decision-said").replaceChildren(...said.map((text) => make("p", { textContent: text })));
    element("decision-trace").href = `#traces/${encodeURIComponent(requestId)}`;
    candidates.show(decision.candidates, ({ worker }) => worker);
    element("decision").showModal();
  }

  const poll = new Poll(async (signal) => {
    const query = new URLSearchParams({ limit: element("decisions-limit").value });
    const [model, policy] = [element("decisions-model").value.trim(), element("decisions-replay").value];
    if (model) query.set("model", model);
    if (policy) query.set("replay", policy);
    try {
      const found = await ask(`/admin/v1/decisions?${query}`, { signal });
      showError("");
      table.show(found.decisions, ({ requestId, worker }) => `${requestId} ${worker}`);
      element("decisions-none").hidden = found.decisions.length > 0;
      const lines = [regretLine(found.regret, "As it was")];
      if (found.replay) lines.push(regretLine(found.replay, `By ${found.replay.policy}`));
      element("regret").replaceChildren(...lines.map((text) => make("p", { textContent: text })));
    } catch (error) {
      if (error.name === "AbortError") return;
      showError(error.message);
      if (error.status === 401 || error.status === 403) poll.stop();
    }
  }, POLL_MS);

  fill(element("decisions-replay"), POLICIES, ["as it was", ...POLICIES.slice(1)]);
  for (const id of ["decisions-model", "decisions-replay", "decisions-limit"]) element(id).addEventListener("change", () => poll.start());
  element("decision-trace").addEventListener("click", () => element("decision").close());
  element("decision-close").addEventListener("click", () => element("decision").close());
  return {
    show: () => poll.start(),
    hide: () => {
      poll.stop();
      element("decision").close();
    },
  };
}

// Chat: talks to /v1/chat/completions like any OpenAI client, and keeps the conversation in memory.

import { element, errorLine, make } from "/console/dom.js";
import { milliseconds } from "/console/figures.js";
import { complete, key, newAnswer } from "/console/server.js";

export function chatPanel(section, models) {
  const conversation = []; // {role, content} of finished turns
  const showError = errorLine(section);
  let running = null; // AbortController of the answer under way

  function request() {
    const system = element("system").value.trim();
    const body = {
      model: element("model").value,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...conversation],
      temperature: Number(element("temperature").value),
      stream: true,
      stream_options: { include_usage: true },
    };
    const maxTokens = element("max-tokens").valueAsNumber;
    if (Number.isFinite(maxTokens)) body.max_tokens = maxTokens;
    return body;
  }

  function addTurn(role, text) {
    element("empty")?.remove();
    const turn = make("div", { className: `turn ${role}` }, document.createTextNode(text));
    element("turns").append(turn);
    turn.scrollIntoView({ block: "end" });
    return turn;
  }

  async function send(text) {
    showError("");
    conversation.push({ role: "user", content: text });
    addTurn("user", text);
    const turn = addTurn("assistant", "");
    turn.classList.add("streaming");
    running = new AbortController();
    showRunning();
    const answer = newAnswer();
    const onText = (piece) => {
      turn.firstChild.appendData(piece);
      const turns = element("turns");
      // Follow the text, unless the reader has scrolled up.
      if (turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80) turns.scrollTop = turns.scrollHeight;
      showFigures(answer);
    };
    try {
      await complete(request(), answer, { signal: running.signal, onText });
    } catch (error) {
      if (error.name === "AbortError") answer.finish = "stopped";
      else showError(error.message);
    } finally {
      running = null;
      settle(answer, turn);
      showRunning();
    }
  }

  function settle(answer, turn) {
    const note = (text) => turn.append(make("span", { className: "note", textContent: text }));
    turn.classList.remove("streaming");
    if (answer.text) {
      conversation.push({ role: "assistant", content: answer.text });
      if (answer.finish === "length") note("ended at max tokens");
      if (answer.finish === "stopped") note("stopped");
    } else if (answer.finish === "stop" || answer.finish === "length") {
      note(answer.finish === "stop" ? "(an empty answer)" : "(ended at max tokens before its answer)");
      conversation.pop();
    } else {
      // Nothing came: give the question back, so that it can be sent again.
      const question = conversation.pop();
      turn.previousElementSibling?.remove();
      turn.remove();
      if (!element("message").value) element("message").value = question.content;
    }
    showFigures(answer);
  }

  function showFigures(answer) {
    element("trace-link").hidden = answer.requestId === null || answer.totalMs === null;
    element("trace-link").href = `#traces/${encodeURIComponent(answer.requestId)}`;
    if (answer.firstMs === null) {
      element("figures").textContent = "";
      return;
    }
    const parts = [`first token ${milliseconds(answer.firstMs)}`];
    if (answer.usage) {
      const { prompt_tokens: prompt, completion_tokens: output, prompt_tokens_details: details } = answer.usage;
      const seconds = (answer.lastMs - answer.firstMs) / 1000;
      if (output > 1 && seconds > 0) parts.push(`${((output - 1) / seconds).toFixed(seconds < 1 ? 0 : 1)} tokens/s`);
      const cached = details?.cached_tokens ? ` (${details.cached_tokens} cached)` : "";
      parts.push(`${prompt}${cached} + ${output} tokens`);
    }
    element("figures").textContent = parts.join(" · ");
  }

  function showRunning() {
    element("send").hidden = running !== null;
    element("stop").hidden = running === null;
    showSendable();
    if (running === null && !section.hidden) element("message").focus();
  }

  function showSendable() {
    element("send").disabled = models.chosen === undefined || running !== null;
  }

  function curl() {
    const body = request();
    const draft = element("message").value.trim();
    if (draft) body.messages.push({ role: "user", content: draft });
    if (body.messages.at(-1)?.role !== "user") {
      body.messages.push(conversation.findLast((turn) => turn.role === "user") ?? { role: "user", content: "Hello" });
    }
    const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
    const lines = [`curl -N ${location.origin}/v1/chat/completions`, `-H 'Content-Type: application/json'`];
    if (key()) lines.push(`-H "Authorization: Bearer $PAGODA_API_KEY"`);
    lines.push(`-d ${quoted(JSON.stringify(body))}`);
    return lines.join(" \\\n  ");
  }

  async function copyCurl() {
    const button = element("curl");
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(curl());
      button.textContent = "Copied";
    } catch {
      // Without HTTPS or permission there is no clipboard: show it instead.
      showError(curl());
    }
    setTimeout(() => { button.textContent = label; }, 1500);
  }

  element("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = element("message").value.trim();
    if (!text || running || element("send").disabled) return;
    element("message").value = "";
    send(text);
  });
  element("message").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      element("composer").requestSubmit();
    }
    if (event.key === "Escape") running?.abort();
  });
  element("stop").addEventListener("click", () => running?.abort());
  element("temperature").addEventListener("input", () => {
    element("temperature-value").textContent = Number(element("temperature").value).toFixed(1);
  });
  element("curl").addEventListener("click", copyCurl);
  element("clear").addEventListener("click", () => {
    running?.abort();
    conversation.length = 0;
    element("turns").replaceChildren();
    element("figures").textContent = "";
    element("trace-link").hidden = true;
    showError("");
    element("message").focus();
  });
  element("base").textContent = `${location.origin}/v1`;
  models.onChange(showSendable);
  return { show: () => element("message").focus() };
}

// The playground: one page, no build. Talks to /v1 like any OpenAI client; keeps the conversation in memory and the key in this tab.

const element = (id) => document.getElementById(id);
const POLL_MS = 3000;
const conversation = []; // {role, content} of finished turns
let models = [];
let running = null; // AbortController of the answer under way

const key = () => sessionStorage.getItem("pagoda-api-key");

function headers() {
  const all = { "content-type": "application/json" };
  if (key()) all.authorization = `Bearer ${key()}`;
  return all;
}

function showError(message) {
  element("error").textContent = message;
  element("error").hidden = !message;
}

async function errorOf(response) {
  try {
    const { error } = await response.json();
    return error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

// ---- models

async function loadModels() {
  let response;
  try {
    response = await fetch("/v1/models", { headers: headers() });
  } catch {
    models = [];
    showReadiness();
    element("readiness").textContent = "the server does not answer";
    return;
  }
  const asksForKey = response.status === 401;
  if (asksForKey && element("key-form").hidden) {
    element("key-form").hidden = false;
    element("key").focus();
  }
  if (asksForKey && key()) showError(await errorOf(response));
  if (!response.ok) {
    if (!asksForKey) showError(await errorOf(response));
    models = [];
    showReadiness();
    return;
  }
  element("key-form").hidden = true;
  models = (await response.json()).data;
  showModels();
}

function showModels() {
  const select = element("model");
  const chosen = select.value;
  select.replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  const first = models.find((model) => model.pagoda?.ready) ?? models[0];
  select.value = models.some((model) => model.id === chosen) ? chosen : first?.id ?? "";
  select.disabled = models.length === 0;
  showReadiness();
}

function showReadiness() {
  const model = models.find((candidate) => candidate.id === element("model").value);
  const ready = model !== undefined && model.pagoda?.ready !== false;
  const place = element("readiness");
  place.className = `readiness ${ready ? "ready" : "waiting"}`;
  place.textContent = ready ? "ready" : model?.pagoda?.reason || (model ? "not ready" : "no model");
  element("send").disabled = model === undefined || running !== null;
}

// ---- one answer

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
  const turn = document.createElement("div");
  turn.className = `turn ${role}`;
  turn.append(document.createTextNode(text));
  element("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

function note(turn, text) {
  const place = document.createElement("span");
  place.className = "note";
  place.textContent = text;
  turn.append(place);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function ask(text) {
  showError("");
  conversation.push({ role: "user", content: text });
  addTurn("user", text);
  const turn = addTurn("assistant", "");
  turn.classList.add("streaming");
  running = new AbortController();
  showRunning();
  const answer = { text: "", turn, started: performance.now(), first: null, last: null, usage: null, finish: null };
  try {
    await stream(answer);
  } catch (error) {
    if (error.name === "AbortError") answer.finish = "stopped";
    else showError(error instanceof TypeError ? "the connection to the server was lost" : error.message);
  } finally {
    running = null;
    settle(answer);
    showRunning();
  }
}

async function stream(answer) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(request()), signal: running.signal,
  });
  if (!response.ok) {
    if (response.status === 401) element("key-form").hidden = false;
    throw new Error(await errorOf(response));
  }
  let whole = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      whole = true;
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) answer.usage = chunk.usage;
    for (const choice of chunk.choices) take(answer, choice);
  }
  if (!whole) throw new Error("the answer ended early: send it again");
}

function take(answer, choice) {
  if (choice.finish_reason) answer.finish = choice.finish_reason;
  const piece = choice.delta.content;
  if (!piece) return;
  answer.last = performance.now();
  answer.first ??= answer.last;
  answer.text += piece;
  answer.turn.firstChild.appendData(piece);
  const turns = element("turns");
  // Follow the text, unless the reader has scrolled up.
  if (turns.scrollHeight - turns.scrollTop - turns.clientHeight < 80) turns.scrollTop = turns.scrollHeight;
  showFigures(answer);
}

function settle(answer) {
  answer.turn.classList.remove("streaming");
  if (answer.text) {
    conversation.push({ role: "assistant", content: answer.text });
    if (answer.finish === "length") note(answer.turn, "ended at max tokens");
    if (answer.finish === "stopped") note(answer.turn, "stopped");
  } else if (answer.finish === "stop") {
    note(answer.turn, "(an empty answer)");
    conversation.pop();
  } else {
    // Nothing came: give the question back, so that it can be sent again.
    const question = conversation.pop();
    answer.turn.previousElementSibling?.remove();
    answer.turn.remove();
    if (!element("message").value) element("message").value = question.content;
  }
  showFigures(answer);
}

function showFigures(answer) {
  if (answer.first === null) {
    element("figures").textContent = "";
    return;
  }
  const parts = [`first token ${Math.round(answer.first - answer.started)} ms`];
  if (answer.usage) {
    const { prompt_tokens: prompt, completion_tokens: output, prompt_tokens_details: details } = answer.usage;
    const seconds = (answer.last - answer.first) / 1000;
    if (output > 1 && seconds > 0) parts.push(`${((output - 1) / seconds).toFixed(seconds < 1 ? 0 : 1)} tokens/s`);
    const cached = details?.cached_tokens ? ` (${details.cached_tokens} cached)` : "";
    parts.push(`${prompt}${cached} + ${output} tokens`);
  }
  element("figures").textContent = parts.join(" · ");
}

function showRunning() {
  element("send").hidden = running !== null;
  element("stop").hidden = running === null;
  showReadiness();
  if (running === null) element("message").focus();
}

// ---- copy as curl

function curl() {
  const body = request();
  const draft = element("message").value.trim();
  if (draft) body.messages.push({ role: "user", content: draft });
  if (body.messages.at(-1)?.role !== "user") body.messages.push(conversation.findLast((turn) => turn.role === "user") ?? { role: "user", content: "Hello" });
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

// ---- events

element("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = element("message").value.trim();
  if (!text || running || element("send").disabled) return;
  element("message").value = "";
  ask(text);
});
element("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("composer").requestSubmit();
  }
  if (event.key === "Escape") running?.abort();
});
element("stop").addEventListener("click", () => running?.abort());
element("model").addEventListener("change", showReadiness);
element("temperature").addEventListener("input", () => {
  element("temperature-value").textContent = Number(element("temperature").value).toFixed(1);
});
element("curl").addEventListener("click", copyCurl);
element("clear").addEventListener("click", () => {
  running?.abort();
  conversation.length = 0;
  element("turns").replaceChildren();
  element("figures").textContent = "";
  showError("");
  element("message").focus();
});
element("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("pagoda-api-key", element("key").value.trim());
  showError("");
  loadModels();
});

element("base").textContent = `${location.origin}/v1`;
loadModels();
setInterval(() => {
  if (!document.hidden && running === null && element("readiness").classList.contains("waiting") && element("key-form").hidden) loadModels();
}, POLL_MS);

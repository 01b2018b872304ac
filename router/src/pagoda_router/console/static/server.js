// Speaks to this router: the key of this tab, documents, streamed completions. Knows no page; an error is one line for a person.

const KEY = "pagoda-api-key";

export const key = () => sessionStorage.getItem(KEY);
export const useKey = (text) => sessionStorage.setItem(KEY, text);

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function headers(more = {}) {
  const all = { "content-type": "application/json", ...more };
  if (key()) all.authorization = `Bearer ${key()}`;
  return all;
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("the server does not answer");
  }
  if (response.ok) return response;
  // The page asks for a key when one is missing or wrong.
  if (response.status === 401) document.dispatchEvent(new Event("pagoda-key-wanted"));
  throw new ServerError(await messageOf(response), response.status);
}

async function messageOf(response) {
  try {
    const { error } = await response.json();
    return error.message;
  } catch {
    return `the server answered ${response.status}`;
  }
}

/** A JSON document. Raises ServerError. */
export async function ask(path, { method = "GET", body, signal } = {}) {
  const response = await send(path, { method, headers: headers(), signal, body: body === undefined ? undefined : JSON.stringify(body) });
  return response.json();
}

/** As a file of this name, to wherever the browser puts them. Raises ServerError. */
export async function download(path, name) {
  const response = await send(path, { headers: headers() });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await response.blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("the connection to the server was lost");
    }
    if (read.done) return;
    const parts = (rest + read.value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

/**
 * Streams a chat into `answer`, which is as good as it got when this raises ServerError or AbortError. `onText(piece)` at each piece.
 * Times in milliseconds on this tab's clock, from the moment of asking.
 */
export async function complete(body, answer, { more = {}, signal, onText = () => {} } = {}) {
  const began = performance.now();
  const response = await send("/v1/chat/completions", { method: "POST", headers: headers(more), body: JSON.stringify(body), signal });
  answer.requestId = response.headers.get("x-request-id");
  answer.applied = response.headers.get("x-pagoda-features");
  let whole = false;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      whole = true;
      continue;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message);
    if (chunk.usage) answer.usage = chunk.usage;
    if (chunk.pagoda_trace) answer.trace = chunk.pagoda_trace;
    for (const { delta, finish_reason: finish } of chunk.choices) {
      if (finish) answer.finish = finish;
      const piece = delta.content ?? delta.reasoning_content;
      if (!piece) continue;
      const nowMs = performance.now() - began;
      answer.gapsMs.push(answer.lastMs === null ? 0 : nowMs - answer.lastMs);
      answer.lastMs = nowMs;
      answer.firstMs ??= nowMs;
      if (delta.content) answer.text += piece;
      onText(delta.content ?? "");
    }
  }
  answer.totalMs = performance.now() - began;
  if (!whole) throw new ServerError("the answer ended early: send it again");
}

export const newAnswer = () => ({
  text: "", firstMs: null, lastMs: null, totalMs: null, gapsMs: [], usage: null, finish: null, trace: null, requestId: null, applied: null,
});

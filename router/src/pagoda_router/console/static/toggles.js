// One row of the comparison: which toggles it sets, what headers that makes, and what its runs come to. Pure.

import { median } from "/console/figures.js";

export const ANY = "";
/**
 * As X-Pagoda-Features reads them; backend is X-Backend. The first value is the server's own default. isOwn: other backends' workers decide
 * that themselves, and refuse a request that does.
 */
export const TOGGLES = [
  { name: "prefix-cache", label: "Prefix cache", values: ["on", "off"] },
  { name: "batching", label: "Batching", values: ["on", "off"], isOwn: true },
  { name: "speculation", label: "Speculation", values: ["on", "off"], isOwn: true },
  { name: "variant", label: "Variant", values: [ANY] },
  { name: "quantization", label: "Quantization", values: [ANY] },
  { name: "backend", label: "Backend", values: [ANY] },
];

/** The toggles that a model has, with the values that it offers. */
export function togglesOf(model) {
  const variants = model?.pagoda?.variants ?? [];
  const named = (field) => [...new Set(variants.map((variant) => variant[field]).filter((value) => value))];
  const offered = { variant: named("name"), quantization: named("quantization"), backend: named("backend") };
  const hasOwn = !variants.length || offered.backend.includes("pagoda");
  return TOGGLES.map((toggle) => {
    const values = toggle.isOwn && !hasOwn ? toggle.values.slice(0, 1) : toggle.values;
    return { ...toggle, values: [...values, ...(offered[toggle.name] ?? [])] };
  });
}

/**
 * `row`: {toggle: value}. Defaults are left out, so that a worker that has no such toggle is not asked for it; the prefix cache, which all
 * have, is always named, because a server says what it applied only to requests that ask for something.
 */
export function headersOf(row) {
  const named = TOGGLES.filter(({ name, values }) => name !== "backend" && row[name] && row[name] !== values[0]).map(({ name }) => name);
  const features = named.map((name) => `${name}=${row[name]}`);
  if (!named.includes("prefix-cache")) features.unshift("prefix-cache=on");
  return { "x-pagoda-features": features.join(", "), ...(row.backend ? { "x-backend": row.backend } : {}) };
}

/** Other backends' workers tell no times of their own, and a request that insists on them is refused. */
export function canTrace(row, model) {
  const variants = (model?.pagoda?.variants ?? []).filter(
    ({ name, backend, quantization }) =>
      [[row.variant, name], [row.backend, backend], [row.quantization, quantization]].every(([wanted, has]) => !wanted || wanted === has),
  );
  return variants.length > 0 && variants.every(({ backend }) => backend === "pagoda");
}

/** Of one answer. Per token where there are two or more; the longest gap is between pieces as they arrived here. */
export function figuresOf({ firstMs, lastMs, totalMs, gapsMs, usage }) {
  const output = usage?.completion_tokens ?? 0;
  const decodeMs = lastMs - firstMs;
  return {
    ttftMs: firstMs,
    tpotMs: output > 1 && decodeMs > 0 ? decodeMs / (output - 1) : null,
    gapMs: gapsMs.length > 1 ? Math.max(...gapsMs.slice(1)) : null,
    tokensPerS: output && totalMs ? (1000 * output) / totalMs : null,
    totalMs,
    cached: usage?.prompt_tokens_details?.cached_tokens ?? 0,
    prompt: usage?.prompt_tokens ?? 0,
    output,
  };
}

/** Medians over a row's runs; tokens are those of the last. */
export function summary(runs) {
  const figures = runs.map(figuresOf);
  const last = figures.at(-1);
  const of = (name) => median(figures.map((each) => each[name]));
  return {
    ...last, ttftMs: of("ttftMs"), tpotMs: of("tpotMs"), gapMs: of("gapMs"), tokensPerS: of("tokensPerS"), totalMs: of("totalMs"),
  };
}

/** Where two texts part, counted in characters; null where they do not. */
export function partsAt(one, other) {
  if (one === other) return null;
  let at = 0;
  while (at < one.length && one[at] === other[at]) at += 1;
  return at;
}

/** What the server says about the run: its own word on the toggles first, else what its trace shows. */
export function appliedOf({ applied, trace, requestId }) {
  const said = applied ? [applied] : [];
  if (trace?.decision) said.push(`${trace.decision.worker.split("@")[0]}, ${trace.decision.policy}`);
  if (trace?.worker?.steps) {
    const sizes = trace.worker.batch_sizes.map(([size]) => size).filter((size) => size > 0);
    said.push(`${trace.worker.steps} steps, batch ${range(sizes)}`);
  }
  return said.join(" · ") || (requestId ? "answered; tells no more" : "");
}

function range(sizes) {
  if (!sizes.length) return "–";
  const [least, most] = [Math.min(...sizes), Math.max(...sizes)];
  return least === most ? String(least) : `${least}–${most}`;
}

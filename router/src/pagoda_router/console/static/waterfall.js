// Where the bars of a trace lie, and the strip that stands for it in a list. Pure.

export const PHASES = ["receive", "prepare", "queue_wait", "route", "upstream", "worker_queue", "prefill", "decode", "stream"];

/** {name, ms, leftPercent, widthPercent, by} in the order of time; of a request that took no time at all, bars without width. */
export function barsOf({ phases, total_ms: totalMs }) {
  const share = (ms) => (totalMs > 0 ? (100 * ms) / totalMs : 0);
  return phases.map(({ name, start_ms: startMs, ms, opened_by: by }) => ({
    name, ms, by, startMs, leftPercent: share(startMs), widthPercent: Math.min(share(ms), 100 - share(startMs)),
  }));
}

/** {name, from, to} in percent of the whole, of a list's {phase: ms}. */
export function stripOf({ phases_ms: phasesMs, total_ms: totalMs }) {
  let doneMs = 0;
  return Object.entries(phasesMs).map(([name, ms]) => {
    const from = totalMs > 0 ? (100 * doneMs) / totalMs : 0;
    doneMs += ms;
    return { name, from, to: totalMs > 0 ? (100 * doneMs) / totalMs : 0 };
  });
}

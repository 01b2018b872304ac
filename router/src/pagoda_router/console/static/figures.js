// Figures as people read them, and the few sums that the panels share. Pure.

/** 0.42 ms, 12.3 ms, 840 ms, 1.24 s, 95 s; a dash when there is none. */
export function milliseconds(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return "–";
  if (ms >= 99_950) return `${Math.round(ms / 1000)} s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(ms < 9995 ? 2 : 1)} s`;
  return `${ms.toFixed(ms < 1 ? 2 : ms < 99.95 ? 1 : 0)} ms`;
}

/** 950, 12.3 k, 4.56 M: at most three digits. */
export function count(number) {
  if (number === null || number === undefined) return "–";
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e4, " k"]]) {
    if (Math.abs(number) >= size) {
      const scaled = number / (unit === " k" ? 1000 : size);
      return `${scaled.toFixed(scaled < 10 ? 2 : scaled < 100 ? 1 : 0)}${unit}`;
    }
  }
  return Number.isInteger(number) ? String(number) : number.toFixed(number < 10 ? 2 : 1);
}

export const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %` : "–");

/** 3 s, 4 min, 2 h, 5 d. */
export function age(seconds) {
  if (seconds < 100) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} d`;
}

export const day = (unixS) => (unixS ? new Date(1000 * unixS).toISOString().slice(0, 16).replace("T", " ") : "–");

export const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

/** Of none: null. */
export function median(numbers) {
  const sorted = numbers.filter((number) => number !== null && Number.isFinite(number)).sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  if (!sorted.length) return null;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

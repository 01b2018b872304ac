// What this router serves, asked again: soon while the chosen model is not ready, else now and then, since workers die and adapters come. Owns the model list in the page's head.

import { element, fill, Poll } from "/console/dom.js";
import { ask, key } from "/console/server.js";

const POLL_MS = 3000;
/** While the chosen model is ready. */
const READY_MS = 9000;

export class Models {
  list = [];
  #listeners = [];
  #loadedMs = -Infinity;
  #shown = null;
  #poll = new Poll(async () => {
    if (!this.chosen?.pagoda?.ready || performance.now() - this.#loadedMs >= READY_MS) await this.load();
  }, POLL_MS);

  /** `showError`: of the page. */
  constructor(showError) {
    this.showError = showError;
    element("model").addEventListener("change", () => this.#changed());
  }

  /** undefined: there is none. */
  get chosen() {
    return this.list.find((model) => model.id === element("model").value);
  }

  onChange(listener) {
    this.#listeners.push(listener);
    listener();
  }

  start() {
    this.#poll.start();
  }

  async load() {
    try {
      const list = (await ask("/v1/models")).data;
      this.#loadedMs = performance.now();
      element("key-form").hidden = true;
      this.showError("");
      if (this.#shown === JSON.stringify(list)) return; // an open list of choices stays open
      this.#shown = JSON.stringify(list);
      this.list = list;
      const select = element("model");
      const first = this.list.find((model) => model.pagoda?.ready) ?? this.list[0];
      const chosen = this.list.some((model) => model.id === select.value) ? select.value : first?.id ?? "";
      fill(select, this.list.map((model) => model.id));
      select.value = chosen;
      this.#changed();
    } catch (error) {
      this.list = [];
      this.#shown = null;
      this.#changed();
      if (error.status === 0) element("readiness").textContent = error.message;
      else if (error.status !== 401 || key()) this.showError(error.message);
      if (error.status === 401) this.#poll.stop(); // until there is another key
    }
  }

  #changed() {
    const model = this.chosen;
    const ready = model !== undefined && model.pagoda?.ready !== false;
    const place = element("readiness");
    place.className = `readiness ${ready ? "ready" : "waiting"}`;
    place.textContent = ready ? "ready" : model?.pagoda?.reason || (model ? "not ready" : "no model");
    element("model").disabled = this.list.length === 0;
    for (const listener of this.#listeners) listener();
  }
}

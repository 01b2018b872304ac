// Elements, tables whose rows stay where they are, polling that rests while nobody looks. Text goes in as text, never as markup.
// Knows no server and no panel.

export const element = (id) => document.getElementById(id);

/** `properties`: of the element, such as className or onclick. Children: elements and texts. */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A function that shows one line of error in a section, or takes it away. */
export function errorLine(section) {
  const place = section.querySelector("[role=alert]");
  return (message) => {
    place.textContent = message ?? "";
    place.hidden = !message;
  };
}

export function fill(select, values, labels = values) {
  const chosen = select.value;
  select.replaceChildren(...values.map((value, at) => new Option(labels[at], value)));
  select.value = values.includes(chosen) ? chosen : values[0] ?? "";
}

/**
 * A table's body. Rows are kept by key, so that a refresh writes only what changed: a thousand rows cost little, focus and selection stay.
 * A column: {head, text(item)} and, where it is more than text, draw(cell, item), press(item) for a button, kind for a class, tip(item).
 */
export class Table {
  constructor(table, columns) {
    this.columns = columns;
    this.rows = new Map();
    this.body = make("tbody");
    const heads = columns.map(({ head, kind = "" }) => make("th", { scope: "col", className: kind, textContent: head }));
    table.replaceChildren(make("thead", {}, make("tr", {}, ...heads)), this.body);
  }

  show(items, keyOf) {
    const gone = new Set(this.rows.keys());
    const seen = new Map();
    const order = items.map((item) => {
      // Clients choose request ids, and the prompts of one request share theirs: equal keys are told apart by their place.
      const times = (seen.get(keyOf(item)) ?? 0) + 1;
      seen.set(keyOf(item), times);
      const key = `${times} ${keyOf(item)}`;
      gone.delete(key);
      const row = this.rows.get(key) ?? this.#add(key);
      row.item = item;
      this.columns.forEach((column, at) => this.#write(row, column, at));
      return row.element;
    });
    for (const key of gone) {
      this.rows.get(key).element.remove();
      this.rows.delete(key);
    }
    order.forEach((row, at) => {
      if (this.body.children[at] !== row) this.body.insertBefore(row, this.body.children[at] ?? null);
    });
  }

  #add(key) {
    const row = { element: make("tr"), cells: [], texts: [], item: null };
    for (const { kind = "", press } of this.columns) {
      const cell = row.element.appendChild(make("td", { className: kind }));
      const place = press ? make("button", { type: "button", className: "link", onclick: () => press(row.item) }) : cell;
      if (press) cell.append(place);
      row.cells.push(place);
      row.texts.push(null);
    }
    this.rows.set(key, row);
    return row;
  }

  #write(row, { text, draw, tip }, at) {
    const said = text(row.item);
    if (row.texts[at] === said) return;
    row.texts[at] = said;
    if (draw) draw(row.cells[at], row.item);
    else row.cells[at].textContent = said;
    if (tip) row.cells[at].title = tip(row.item);
  }
}

/** A bar from 0 to 1 with its figure beside it. */
export function drawBar(cell, share, said) {
  if (!cell.firstElementChild) cell.append(make("span", { className: "bar" }, make("i")), make("span", { className: "beside" }));
  const [bar, text] = cell.children;
  bar.firstElementChild.style.width = `${Math.round(100 * Math.min(1, Math.max(0, share)))}%`;
  bar.classList.toggle("full", share >= 0.9);
  text.textContent = said;
}

/** Calls `load(signal)` again and again while the tab is looked at, no more often than a server that answers slowly can bear. */
export class Poll {
  #running = null;
  #timer = null;

  constructor(load, everyMs) {
    this.load = load;
    this.everyMs = everyMs;
    document.addEventListener("visibilitychange", () => {
      if (this.#running === null) return;
      if (document.hidden) clearTimeout(this.#timer);
      else this.now();
    });
  }

  start() {
    this.stop();
    this.#running = new AbortController();
    this.now();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#running?.abort();
    this.#running = null;
  }

  /** At once, and then as usual. */
  async now() {
    const running = this.#running;
    if (running === null) return;
    clearTimeout(this.#timer);
    const began = performance.now();
    await this.load(running.signal);
    if (running !== this.#running) return;
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.now(), Math.max(this.everyMs, 5 * (performance.now() - began)));
  }
}

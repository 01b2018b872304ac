// Keys: what there is, a new one whose secret is shown once, and revoking.

import { element, errorLine, make, Poll, Table } from "/console/dom.js";
import { count, day } from "/console/figures.js";
import { ask } from "/console/server.js";

const KEYS = "/admin/v1/keys";
const POLL_MS = 10_000;
const REALLY_MS = 4000;
/** Numbers of the form, as the API names them; an empty one is left out, which means no limit. */
const LIMITS = ["requests_per_minute", "tokens_per_minute", "monthly_tokens", "monthly_usd"];

export function stateOf({ revoked_at: revoked, expires_at: expires }, nowS) {
  if (revoked) return `revoked ${day(revoked)}`;
  if (expires && expires <= nowS) return `expired ${day(expires)}`;
  return expires ? `until ${day(expires)}` : "for good";
}

export function limitsOf(key) {
  const units = { requests_per_minute: "requests/min", tokens_per_minute: "tokens/min", monthly_tokens: "tokens/month", monthly_usd: "$/month" };
  const shown = (name) => (name === "monthly_usd" ? String(key[name]) : count(key[name]));
  const said = LIMITS.filter((name) => key[name] !== null && key[name] !== undefined).map((name) => `${shown(name)} ${units[name]}`);
  return said.join(", ") || "none";
}

/** The body of POST /admin/v1/keys. `fields`: the form's, as texts. Pure. */
export function wantedKey(fields, nowS) {
  const wanted = { name: fields.name.trim(), class: fields.class, admin: fields.admin === "on" };
  if (fields.tenant.trim()) wanted.tenant = fields.tenant.trim();
  const models = fields.models.split(",").map((name) => name.trim()).filter((name) => name);
  if (models.length) wanted.models = models;
  for (const name of LIMITS) if (fields[name]) wanted[name] = Number(fields[name]);
  if (fields.days) wanted.expires_at = Math.round(nowS + 86_400 * Number(fields.days));
  return wanted;
}

export function keysPanel(section) {
  const showError = errorLine(section);
  const nowS = () => Date.now() / 1000;
  const table = new Table(element("keys-table"), [
    { head: "Name", text: ({ name }) => name, tip: ({ id }) => id },
    { head: "Key", text: ({ prefix }) => `${prefix}…` },
    { head: "Tenant", text: ({ tenant }) => tenant },
    { head: "Class", text: (key) => key.class },
    { head: "Models", text: ({ models }) => (models === null ? "all" : models.join(", ")) },
    { head: "Limits", text: limitsOf },
    { head: "Admin", text: ({ admin }) => (admin ? "yes" : "no") },
    { head: "Made", text: ({ created_at: at }) => day(at) },
    { head: "Valid", text: (key) => stateOf(key, nowS()) },
    { head: "", text: ({ id, revoked_at: revoked }) => `${id} ${revoked}`, draw: drawRevoke },
  ]);

  function drawRevoke(cell, key) {
    if (key.revoked_at) {
      cell.replaceChildren();
      return;
    }
    const button = make("button", { type: "button", textContent: "Revoke", ariaLabel: `Revoke ${key.name}` });
    button.addEventListener("click", () => {
      if (button.textContent !== "Revoke") {
        revoke(key);
        return;
      }
      button.textContent = "Really?";
      setTimeout(() => { button.textContent = "Revoke"; }, REALLY_MS);
    });
    cell.replaceChildren(button);
  }

  async function revoke({ id }) {
    try {
      await ask(`${KEYS}/${encodeURIComponent(id)}`, { method: "DELETE" });
      showError("");
    } catch (error) {
      showError(error.message);
    }
    poll.now();
  }

  async function create() {
    const form = element("new-key");
    try {
      const made = await ask(KEYS, { method: "POST", body: wantedKey(Object.fromEntries(new FormData(form)), nowS()) });
      showError("");
      element("secret").textContent = made.key;
      element("secret-place").hidden = false;
      element("secret-copy").focus();
      form.reset();
      element("new-key-place").open = false;
    } catch (error) {
      showError(error.message);
    }
    poll.now();
  }

  const poll = new Poll(async (signal) => {
    try {
      const { data } = await ask(KEYS, { signal });
      table.show(data, ({ id }) => id);
      element("keys-none").hidden = data.length > 0;
    } catch (error) {
      if (error.name === "AbortError") return;
      showError(error.message);
      if (error.status === 401 || error.status === 403) poll.stop();
    }
  }, POLL_MS);

  function forgetSecret() {
    element("secret").textContent = "";
    element("secret-place").hidden = true;
  }

  element("new-key").addEventListener("submit", (event) => {
    event.preventDefault();
    create();
  });
  element("secret-copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(element("secret").textContent);
      element("secret-copy").textContent = "Copied";
      setTimeout(() => { element("secret-copy").textContent = "Copy"; }, 1500);
    } catch {
      getSelection().selectAllChildren(element("secret")); // no clipboard without HTTPS: Ctrl+C does it
    }
  });
  element("secret-done").addEventListener("click", forgetSecret);
  return {
    show: () => {
      showError("");
      poll.start();
    },
    hide: () => {
      poll.stop();
      forgetSecret();
    },
  };
}

// The console: one page, no build. Shows one panel at a time, by the address's #name, and asks for a key when the server wants one.

import { chatPanel } from "/console/chat.js";
import { comparePanel } from "/console/compare.js";
import { decisionsPanel } from "/console/decisions.js";
import { element, errorLine } from "/console/dom.js";
import { fleetPanel } from "/console/fleet.js";
import { keysPanel } from "/console/keys.js";
import { Models } from "/console/models.js";
import { queuePanel } from "/console/queue.js";
import { useKey } from "/console/server.js";
import { tracesPanel } from "/console/traces.js";
import { usagePanel } from "/console/usage.js";

const NEED_A_MODEL = new Set(["chat", "compare"]);
const showError = errorLine(element("page-error"));
const models = new Models(showError);
const makers = {
  chat: chatPanel,
  compare: comparePanel,
  fleet: fleetPanel,
  queue: queuePanel,
  decisions: decisionsPanel,
  traces: tracesPanel,
  keys: keysPanel,
  usage: usagePanel,
};
const panels = Object.fromEntries(Object.entries(makers).map(([name, make]) => [name, make(element(name), models)]));
let shown = null;

/** #traces/req-1 shows the panel `traces`, and tells it "req-1". */
function show() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const wanted = name in panels ? name : "chat";
  if (shown !== wanted) {
    if (shown !== null) panels[shown].hide?.();
    for (const each of Object.keys(panels)) element(each).hidden = each !== wanted;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${wanted}`) {
        link.setAttribute("aria-current", "page");
        link.scrollIntoView({ block: "nearest", inline: "nearest" });
      } else link.removeAttribute("aria-current");
    }
    element("model-choice").hidden = !NEED_A_MODEL.has(wanted);
    document.title = `Pagoda ${element(wanted).getAttribute("aria-label")}`;
    shown = wanted;
  }
  panels[wanted].show?.(decodeURIComponent(rest.join("/")));
}

document.addEventListener("pagoda-key-wanted", () => {
  if (!element("key-form").hidden) return;
  element("key-form").hidden = false;
  element("key").focus();
});
element("key-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  useKey(element("key").value.trim());
  showError("");
  element("key-form").hidden = true;
  models.start();
  panels[shown].show?.("");
});
addEventListener("hashchange", show);
show();
models.start();

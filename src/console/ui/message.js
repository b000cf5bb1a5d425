// Short messages of what has just happened.
//
//   say("ok" | "info" | "warning" | "error", text)
//
// Each clears after five seconds, and can be dismissed. The time stands still while the pointer or the focus is on any of them:
// one that goes would move the others away from under the pointer. Screen readers hear them: warnings and errors at once
// (role=alert), the rest when they are done (role=status).

import { h } from "./dom.js";
import { icon } from "./icons.js";

const SHOWN_MS = 5000;
const TICK_MS = 100;
const MOST = 4;
const ICONS = { ok: "check", info: "info", warning: "warning", error: "warning" };

/** What is left of each message's time. */
const left = new Map();
let timer = 0;

export function say(kind, text) {
  const urgent = kind === "warning" || kind === "error";
  const region = document.getElementById(urgent ? "warned" : "said");
  const close = h("button", { class: "button bare", "aria-label": "Dismiss", on: { click: () => remove(message) } }, icon("close"));
  const message = h("div", { class: ["message", kind] }, icon(ICONS[kind]), h("p", null, text), close);
  region.append(message);
  left.set(message, SHOWN_MS);
  while (region.children.length > MOST) remove(region.firstElementChild);
  start();
}

function remove(message) {
  left.delete(message);
  message.remove();
}

function start() {
  if (timer) return;
  let last = performance.now();
  timer = setInterval(() => {
    const now = performance.now();
    const passed = now - last;
    last = now;
    const place = document.getElementById("messages");
    if (place.matches(":hover") || place.contains(document.activeElement)) return;
    for (const [message, before] of left) {
      if (before > passed) left.set(message, before - passed);
      else remove(message);
    }
    if (left.size > 0) return;
    clearInterval(timer);
    timer = 0;
  }, TICK_MS);
}

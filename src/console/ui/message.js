// Short messages of what has just happened.
//
//   say("ok" | "info" | "warning" | "error", text)
//
// Each clears after five seconds; the time stands still while the pointer or the focus is on it. Screen readers hear them:
// warnings and errors at once (role=alert), the rest when they are done (role=status).

import { h } from "./dom.js";
import { icon } from "./icons.js";

const SHOWN_MS = 5000;
const MOST = 4;
const ICONS = { ok: "check", info: "info", warning: "warning", error: "warning" };

export function say(kind, text) {
  const urgent = kind === "warning" || kind === "error";
  const region = document.getElementById(urgent ? "warned" : "said");
  const close = h("button", { class: "button bare", "aria-label": "Dismiss", on: { click: () => remove() } }, icon("close"));
  const message = h("div", { class: ["message", kind] }, icon(ICONS[kind]), h("p", null, text), close);
  const remove = timed(message, () => message.remove());
  region.append(message);
  while (region.children.length > MOST) region.firstElementChild.remove();
  return remove;
}

/** Calls `end` once, after the time is over that nobody looked at `node`. */
function timed(node, end) {
  let left = SHOWN_MS;
  let since = 0;
  let timer = 0;
  let over = false;
  const finish = () => {
    if (over) return;
    over = true;
    clearTimeout(timer);
    end();
  };
  const run = () => {
    if (over || node.matches(":hover") || node.contains(document.activeElement)) return;
    clearTimeout(timer);
    since = performance.now();
    timer = setTimeout(finish, left);
  };
  const hold = () => {
    if (!timer) return;
    clearTimeout(timer);
    timer = 0;
    left = Math.max(left - (performance.now() - since), 0);
  };
  node.addEventListener("pointerenter", hold);
  node.addEventListener("focusin", hold);
  // The focus has left only after the event.
  node.addEventListener("pointerleave", () => setTimeout(run));
  node.addEventListener("focusout", () => setTimeout(run));
  since = performance.now();
  timer = setTimeout(finish, left);
  return finish;
}

// Dialogs, over the page, on the browser's own <dialog>: Escape closes, the focus stays within and comes back.
//
//   const box = dialog({ title, body, actions, wide });     shown at once; box.close(value), await box.closed
//   if (await confirm({ title, text, action: "Revoke", danger: true })) …
//
// `body` and `actions` are nodes, or functions that are given `close`. With `stay`, only its buttons close it: for what is
// shown once.

import { h, unique } from "./dom.js";
import { icon } from "./icons.js";

export function dialog({ title, body, actions, wide = false, stay = false }) {
  const id = unique("dialog");
  let answer = null;
  const close = (value = null) => {
    answer = value;
    node.close();
  };
  const made = (part) => (typeof part === "function" ? part(close) : part);
  const node = h(
    "dialog",
    { class: wide ? "wide" : null, "aria-labelledby": id },
    h(
      "header",
      null,
      h("h2", { id }, title),
      !stay && h("button", { class: "button bare", "aria-label": "Close", on: { click: () => close() } }, icon("close")),
    ),
    h("div", { class: "dialog-body" }, made(body)),
    actions && h("footer", { class: "buttons" }, made(actions)),
  );
  if (stay) node.addEventListener("cancel", (event) => event.preventDefault());
  const leave = () => node.close();
  const closed = new Promise((resolve) => {
    node.addEventListener("close", () => {
      removeEventListener("hashchange", leave);
      // Out of this one, before it goes.
      reach();
      node.remove();
      resolve(answer);
    });
  });
  // It belongs to the page it was opened on.
  addEventListener("hashchange", leave);
  document.body.append(node);
  node.showModal();
  reach();
  // A form begins with its first field, not with the way out.
  if (!node.querySelector("[autofocus]")) node.querySelector(".dialog-body :is(input, select, textarea)")?.focus();
  return { node, close, closed };
}

/** Messages stand in the dialog on top: what is outside of it can be neither pressed nor heard. */
function reach() {
  const top = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  top.append(document.getElementById("messages"));
}

export function confirm({ title, text, action = "Continue", danger = false }) {
  return dialog({
    title,
    body: h("p", null, text),
    actions: (close) => [
      h("button", { class: "button", autofocus: true, on: { click: () => close(false) } }, "Cancel"),
      h("button", { class: ["button", danger ? "danger" : "primary"], on: { click: () => close(true) } }, action),
    ],
  }).closed.then((yes) => yes === true);
}

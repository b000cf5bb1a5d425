// A text to be taken along.
//
//   copyable(text, { label })                 the text with a button that copies it
//   await showOnce({ title, text, note })     a secret that is shown this one time; resolves when it is put away

import { dialog } from "./dialog.js";
import { h, replace } from "./dom.js";
import { icon } from "./icons.js";
import { say } from "./message.js";

export function copyable(text, { label = "Copy" } = {}) {
  const shown = h("code", { class: "copied-text", tabindex: "0" }, text);
  const face = () => [icon("copy"), label];
  const button = h("button", { class: "button" }, face());
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // No clipboard without https or permission: what is selected is copied by hand.
      getSelection().selectAllChildren(shown);
      return say("warning", "The browser does not let us copy: the text is selected, press Ctrl+C.");
    }
    replace(button, icon("check"), "Copied");
    say("ok", "Copied.");
    setTimeout(() => replace(button, face()), 2000);
  });
  return h("div", { class: "copyable" }, shown, button);
}

export function showOnce({ title, text, note, more, label = "Copy" }) {
  return dialog({
    title,
    stay: true,
    body: [h("p", null, note ?? "It is shown this once: only a digest of it is kept."), copyable(text, { label }), more],
    actions: (close) => h("button", { class: "button primary", on: { click: () => close() } }, "I have put it away"),
  }).closed;
}

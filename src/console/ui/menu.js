// What else can be done with a thing, behind a button.
//
//   menu({ label: "More for main" }, [["Rotate", () => …], ["Delete", () => …, { danger: true }]])
//
// A disclosure, not a menu of an application: the buttons in it are reached with Tab. Escape, a click elsewhere and the focus
// going elsewhere close it.

import { h, unique } from "./dom.js";
import { icon } from "./icons.js";

export function menu({ label }, items) {
  const id = unique("menu");
  const list = h("div", { class: "menu-list", id, hidden: true });
  const opener = h("button", { class: "button bare", "aria-label": label, "aria-expanded": "false", "aria-controls": id }, icon("more"));
  const node = h("div", { class: "menu-place" }, opener, list);
  const turn = (open) => {
    list.hidden = !open;
    opener.setAttribute("aria-expanded", String(open));
    // It opens to where there is room.
    node.classList.toggle("from-start", open && opener.getBoundingClientRect().right < list.offsetWidth + 8);
  };
  for (const [text, act, { danger = false } = {}] of items.filter(Boolean)) {
    const choose = () => {
      // The focus goes back first, so that a dialog knows where to give it.
      turn(false);
      opener.focus();
      act();
    };
    list.append(h("button", { class: ["button bare", danger && "danger-text"], on: { click: choose } }, text));
  }
  opener.addEventListener("click", () => turn(list.hidden));
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || list.hidden) return;
    event.stopPropagation();
    turn(false);
    opener.focus();
  });
  node.addEventListener("focusout", (event) => {
    if (event.relatedTarget === null || !node.contains(event.relatedTarget)) turn(false);
  });
  // Some browsers do not focus a button that is clicked: pressing inside must not lose the focus to nothing.
  list.addEventListener("mousedown", (event) => event.preventDefault());
  return node;
}

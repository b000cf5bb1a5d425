// Long lists, a piece at a time.
//
//   paged(items, { size: 6, draw, label, page, turned })     numbered pages of items that are all here
//   growing({ load, draw, label })                           by cursor: "Load more" at the foot
//
// `draw(items)` makes the node of a piece. paged() gives a node; `page` is where it begins, `turned(n)` is told. The `load`
// of growing() is given the cursor (null at first) and gives { items, next }; `add(piece)` puts a piece into what is there.

import { h, replace } from "./dom.js";
import { failure } from "./failure.js";
import { number } from "./format.js";
import { icon } from "./icons.js";

export function paged(items, { size, draw, label = "Pages", page = 1, turned }) {
  const last = Math.max(Math.ceil(items.length / size), 1);
  const body = h("div");
  const nav = h("nav", { class: "pages", "aria-label": label });
  const place = h("div", { class: "paged" }, body, nav);
  let at = Math.min(Math.max(page, 1), last);

  const turn = (to, focus) => {
    at = to;
    const first = (at - 1) * size;
    replace(body, draw(items.slice(first, first + size)));
    if (last === 1) return replace(nav);
    const button = (to, face, name) =>
      h("button", { class: "button", "aria-label": name, disabled: to < 1 || to > last, "aria-current": to === at && face === String(to) ? "page" : null, on: { click: () => go(to, name) } }, face);
    replace(
      nav,
      button(at - 1, icon("left"), "Previous page"),
      numbers(at, last).map((n) => (n === null ? h("span", { class: "quiet", "aria-hidden": "true" }, "…") : button(n, String(n), `Page ${n}`))),
      button(at + 1, icon("right"), "Next page"),
      h("span", { class: "quiet pages-of" }, `${number(first + 1)}–${number(Math.min(first + size, items.length))} of ${number(items.length)}`),
    );
    if (!focus) return;
    // The button that was pressed is a new one now; at an end, the page's number is the next best.
    const same = [...nav.querySelectorAll("button")].find((one) => one.getAttribute("aria-label") === focus && !one.disabled);
    (same ?? nav.querySelector("[aria-current]"))?.focus();
  };
  const go = (to, name) => {
    turn(to, name);
    turned?.(to);
  };
  turn(at, null);
  return place;
}

/** The first, the last, and those around: null stands for what is left out. */
export function numbers(at, last) {
  const wanted = [...Array(last).keys()].map((n) => n + 1).filter((n) => n === 1 || n === last || Math.abs(n - at) <= 1 || last <= 7);
  return wanted.flatMap((n, i) => (i > 0 && n - wanted[i - 1] > 1 ? [null, n] : [n]));
}

export function growing({ load, draw, add, empty, label = "Load more" }) {
  const body = h("div");
  const foot = h("div", { class: "more" });
  const place = h("div", { class: "growing" }, body, foot);
  let shown = null;
  let next = null;

  const grow = async () => {
    const button = foot.querySelector("button");
    if (button) button.disabled = true;
    let piece;
    try {
      piece = await load(next);
    } catch (error) {
      if (error?.name !== "AbortError") replace(foot, failure(error, { retry: grow }));
      return;
    }
    next = piece.next ?? null;
    if (shown === null) {
      shown = piece.items.length > 0 || !empty ? draw(piece.items) : empty;
      replace(body, shown);
    } else add(shown, piece.items);
    replace(foot, next !== null && h("button", { class: "button", on: { click: grow } }, label));
  };
  return { node: place, first: grow() };
}

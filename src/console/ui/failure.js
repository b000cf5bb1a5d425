// An error, in the place of what it is about.
//
//   failure(error, { retry })     a card: what is wrong, what to do about it, and a button to try again

import { ApiError } from "./api.js";
import { h } from "./dom.js";

export function failure(error, { retry } = {}) {
  const known = error instanceof ApiError;
  if (!known) console.error(error);
  const title = known ? error.title : "This cannot be shown";
  const detail = known ? [error.field && h("code", null, error.field), error.field && " ", error.detail] : String(error?.message ?? error);
  return h(
    "div",
    { class: "card failure", role: "alert" },
    h("h2", null, title),
    h("p", null, detail),
    known && error.fix && h("p", { class: "quiet" }, error.fix),
    retry && h("button", { class: "button", on: { click: retry } }, "Try again"),
  );
}

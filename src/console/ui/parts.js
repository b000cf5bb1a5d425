// Small pieces that pages are put together of.
//
//   card({ title, actions, class }, ...children)      a piece of a page with a heading of its own
//   figure({ label, value, note, tone })              one figure that matters, large; figures(...) is a row of them
//   badge("ok" | "warn" | "bad" | "quiet", text)      a word with a colour, which says nothing by the colour alone
//   status(word)                                      the badge of a status of the API
//   empty(text, action)                               nothing there, and what to do about it
//   facts([[label, value], …])                        a list of properties
//   every(ms, work, signal)                           again and again while the page is looked at; the first time at once

import { h } from "./dom.js";

export function card({ title, actions, note, class: more, level = 2 } = {}, ...children) {
  const head = (title || actions) && h("div", { class: "card-head" }, title && h(`h${level}`, null, title), actions && h("div", { class: "actions" }, actions));
  return h("section", { class: ["card", more] }, head, note && h("p", { class: "quiet" }, note), children);
}

export const figure = ({ label, value, note, tone }) =>
  h("div", { class: ["stat", tone] }, h("dt", null, label), h("dd", null, h("span", { class: "value" }, value), note && h("span", { class: "note" }, note)));

export const figures = (...stats) => h("dl", { class: "stats" }, stats);

export const badge = (tone, text, title) => h("span", { class: ["badge", tone], title }, text);

const TONES = {
  active: "ok",
  ready: "ok",
  ok: "ok",
  cooling: "warn",
  warning: "warn",
  exhausted: "bad",
  error: "bad",
  revoked: "quiet",
  expired: "quiet",
  disabled: "quiet",
  info: "quiet",
};

export const status = (word, title) => badge(TONES[word] ?? "quiet", word, title);

export const empty = (text, action) => h("div", { class: "empty" }, h("p", null, text), action);

export const facts = (pairs) => h("dl", { class: "facts" }, pairs.filter(Boolean).map(([label, value]) => h("div", null, h("dt", null, label), h("dd", null, value))));

/** Pauses while the page is hidden; an error is the work's own business. */
export async function every(ms, work, signal) {
  let running = false;
  const tick = async () => {
    if (running || document.hidden || signal.aborted) return;
    running = true;
    try {
      await work();
    } finally {
      running = false;
    }
  };
  const timer = setInterval(tick, ms);
  signal.addEventListener("abort", () => clearInterval(timer));
  document.addEventListener("visibilitychange", tick, { signal });
  await tick();
}

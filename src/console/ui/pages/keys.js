// Virtual keys as cards: a page of them at a time, by cursor, so that ten thousand are no more work than ten.

import { request } from "../api.js";
import { h, outside, replace } from "../dom.js";
import { failure } from "../failure.js";
import { keepFocus } from "../focus.js";
import { compact, counted, usd, when } from "../format.js";
import { icon } from "../icons.js";
import { empty, status } from "../parts.js";
import { standing } from "../policy.js";
import { go, link } from "../router.js";
import { may } from "../session.js";
import { createKey } from "./key-forms.js";
import { keyButtons } from "./key-actions.js";

export const title = "API keys";

const SIZE = 24;
const STATUSES = ["active", "disabled", "expired", "revoked"];
/** Typing is over when nothing came for so long. */
const PAUSE_MS = 200;

export async function render(root, { query, keep, signal, actions }) {
  // The cursors of the pages so far: the first page has none.
  const narrow = Object.fromEntries(["user", "team", "plan"].filter((name) => query[name]).map((name) => [name, query[name]]));
  const state = { q: query.q ?? "", status: query.status ?? "", narrow, trail: [null], asked: 0 };
  const list = h("div", { class: "paged" });

  const load = async () => {
    const asked = ++state.asked;
    list.setAttribute("aria-busy", "true");
    const cursor = state.trail.at(-1);
    try {
      const { data } = await request("GET", "/api/keys", { query: { ...state.narrow, limit: SIZE, cursor, q: state.q, status: state.status }, signal });
      // An answer to what was typed before is of no use.
      if (asked === state.asked) await keepFocus(root, () => replace(list, drawn(data, state, { turn, load })));
    } catch (error) {
      if (!signal.aborted && asked === state.asked) replace(list, failure(error, { retry: load }));
    }
    if (asked === state.asked) list.removeAttribute("aria-busy");
  };
  const turn = async (next) => {
    if (next === null) state.trail.pop();
    else state.trail.push(next);
    await load();
    scrollTo(0, 0);
  };
  const filtered = () => {
    state.trail = [null];
    keep({ ...state.narrow, q: state.q, status: state.status });
    return load();
  };

  if (may("operator", { own: true })) {
    // The list begins with the oldest: the new one is looked at by itself.
    const create = () => createKey({ done: ({ id }) => go(`/keys/${id}`) });
    actions.append(h("button", { class: "button primary", "data-act": "create", on: { click: create } }, icon("plus"), "Create a key"));
  }
  const only = Object.entries(narrow).map(([name, value]) => h("p", null, `Only keys of the ${name} `, h("b", null, outside(value, { max: 80 })), ". ", h("a", { href: link("/keys") }, "Show all")));
  root.append(filters(state, filtered, signal), ...only, list);
  await load();
}

function filters(state, filtered, signal) {
  const search = h("input", { type: "search", id: "key-search", value: state.q, placeholder: "Part of a name", autocomplete: "off", spellcheck: "false", maxlength: 128 });
  let timer = 0;
  search.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      state.q = search.value.trim();
      filtered();
    }, PAUSE_MS);
  });
  signal.addEventListener("abort", () => clearTimeout(timer));
  const statuses = h("select", { id: "key-status", value: state.status }, h("option", { value: "" }, "Any"), STATUSES.map((word) => h("option", { value: word }, word)));
  statuses.addEventListener("change", () => {
    state.status = statuses.value;
    filtered();
  });
  return h(
    "div",
    { class: "filters", role: "search" },
    h("div", { class: "field" }, h("label", { for: "key-search" }, "Search"), search),
    h("div", { class: "field" }, h("label", { for: "key-status" }, "Status"), statuses),
  );
}

function drawn({ keys, next_cursor: next }, state, { turn, load }) {
  if (keys.length === 0) {
    const narrowed = state.q !== "" || state.status !== "" || Object.keys(state.narrow).length > 0;
    return empty(narrowed ? "No key is like that." : "No keys yet. A virtual key is what an app is given in place of a real one.");
  }
  const at = state.trail.length;
  const page = (to, act, label, face) => h("button", { class: "button", "data-act": act, "aria-label": label, disabled: to === undefined, on: { click: () => turn(to) } }, face);
  const first = (at - 1) * SIZE;
  return [
    h("div", { class: "grid keys" }, keys.map((key) => keyCard(key, load))),
    (at > 1 || next) &&
      h(
        "nav",
        { class: "pages", "aria-label": "Pages of keys" },
        page(at > 1 ? null : undefined, "previous", "Previous page", [icon("left"), "Previous"]),
        page(next ?? undefined, "next", "Next page", ["Next", icon("right")]),
        h("span", { class: "quiet pages-of", role: "status" }, `Keys ${first + 1} to ${first + keys.length}`),
      ),
  ];
}

const whose = (key) => [
  key.user && ["user ", outside(key.user, { max: 40 })],
  key.team && ["team ", outside(key.team, { max: 40 })],
  key.plan && ["plan ", outside(key.plan, { max: 40 })],
  key.pool && ["pool ", outside(key.pool, { max: 40 })],
].filter(Boolean);

function keyCard(key, reload) {
  const models = key.models.slice(0, 3);
  const owners = whose(key);
  return h(
    "section",
    { class: "card key-card" },
    h(
      "div",
      { class: "card-head" },
      h("h2", null, h("a", { href: link(`/keys/${key.id}`), "data-act": `open-${key.id}` }, outside(key.name, { max: 80 }))),
      h("div", { class: "actions" }, status(key.status), keyButtons(key, { reload, compact: true })),
    ),
    h("p", { class: "quiet small" }, h("code", null, `${key.prefix}-${key.id}-…`), owners.map((owner) => [" · ", owner])),
    h(
      "div",
      { class: "tags" },
      models.length === 0 ? h("span", { class: "tag" }, "every model") : models.map((model) => h("span", { class: "tag" }, outside(model, { max: 40 }))),
      key.models.length > models.length && h("span", { class: "tag" }, `and ${key.models.length - models.length} more`),
      key.canary && h("span", { class: "tag warn" }, "canary"),
      key.ephemeral && h("span", { class: "tag" }, "ephemeral"),
    ),
    standing(key.in_force, { own: "key", most: 3 }),
    h(
      "p",
      { class: "small key-used" },
      key.total_requests > 0 ? [`${counted(key.total_requests, "request")} · ${compact(key.total_tokens)} tokens · ${usd(key.spent)} · `, when(key.last_used)] : "Never used",
    ),
  );
}

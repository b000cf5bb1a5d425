// Providers, six at a time, with their keys.

import { gather } from "../api.js";
import { h, outside, replace } from "../dom.js";
import { keepFocus } from "../focus.js";
import { number } from "../format.js";
import { icon } from "../icons.js";
import { paged } from "../paging.js";
import { badge, card, empty } from "../parts.js";
import { may } from "../session.js";
import { addKey, complain } from "./provider-forms.js";
import { keyRow, ranked } from "./provider-key.js";

export const title = "Providers";

const SIZE = 6;
const KEYS_SHOWN = 5;

export async function render(root, { query, keep, signal, actions }) {
  const state = { providers: [], keys: new Map(), more: false, page: Number(query.page) || 1, q: query.q ?? "", show: query.show, open: new Set() };
  const list = h("div");

  const load = async () => {
    const [providers, keys] = await Promise.all([
      gather("/api/providers", "providers", { signal }),
      gather("/api/provider-keys", "provider_keys", { most: 5000, signal }),
    ]);
    state.more = keys.more;
    state.keys = Map.groupBy(keys.items, (key) => key.provider);
    const count = (provider) => state.keys.get(provider.id)?.length ?? 0;
    state.providers = providers.items.toSorted((a, b) => Number(count(b) > 0) - Number(count(a) > 0));
    state.show ??= state.keys.size > 0 ? "used" : "all";
  };
  const draw = () =>
    keepFocus(root, () => {
      const shown = wanted(state);
      const none = state.q === "" ? "No provider has a key yet." : "No provider is called that.";
      const cards = (some) => h("div", { class: "cards" }, some.map((provider) => providerCard(provider, state, { reload, draw })));
      const turned = (page) => {
        state.page = page;
        remember();
      };
      replace(list, shown.length === 0 ? empty(none, addButton(state, reload)) : paged(shown, { size: SIZE, draw: cards, label: "Pages of providers", page: state.page, turned }));
    });
  const remember = () => keep({ page: state.page > 1 ? state.page : null, q: state.q, show: state.show });
  const reload = async () => {
    try {
      await load();
      await draw();
    } catch (error) {
      if (!signal.aborted) complain(error);
    }
  };
  const filtered = () => {
    state.page = 1;
    remember();
    draw();
  };

  await load();
  if (signal.aborted) return;
  if (may("operator", { own: true })) actions.append(addButton(state, reload));
  root.append(filters(state, filtered), list);
  await draw();
}

function wanted({ providers, keys, q, show }) {
  const part = q.toLowerCase();
  const fits = ({ id, aliases }) => [id, ...aliases].some((name) => name.toLowerCase().includes(part));
  return providers.filter((provider) => fits(provider) && (show === "all" || keys.has(provider.id)));
}

function addButton(state, reload) {
  if (!may("operator", { own: true })) return null;
  return h("button", { class: "button primary", "data-act": "add", on: { click: () => addKey({ providers: state.providers, keys: state.keys, reload }) } }, icon("plus"), "Add a key");
}

function filters(state, filtered) {
  const search = h("input", { type: "search", id: "provider-search", value: state.q, placeholder: "Name", autocomplete: "off", spellcheck: "false" });
  search.addEventListener("input", () => {
    state.q = search.value.trim();
    filtered();
  });
  const choice = (show, label) => {
    const button = h("button", { class: "button", "aria-pressed": String(state.show === show) }, label);
    button.addEventListener("click", () => {
      state.show = show;
      for (const other of button.parentNode.children) other.setAttribute("aria-pressed", String(other === button));
      filtered();
    });
    return button;
  };
  return h(
    "div",
    { class: "filters" },
    h("div", { class: "field" }, h("label", { for: "provider-search" }, "Search"), search),
    h("div", { class: "choice", role: "group", "aria-label": "Which providers" }, choice("used", "With keys"), choice("all", "All")),
  );
}

function providerCard(provider, state, { reload, draw }) {
  const keys = ranked(state.keys.get(provider.id) ?? []);
  const all = state.open.has(provider.id) || keys.length <= KEYS_SHOWN;
  const first = firsts(keys);
  const rows = keys.slice(0, all ? keys.length : KEYS_SHOWN).map((key) => keyRow(key, { siblings: keys, first: first.has(key.id), reload }));
  const expand = () => {
    state.open.add(provider.id);
    draw();
  };
  const add = () => addKey({ providers: state.providers, keys: state.keys, provider: provider.id, reload });
  return card(
    {
      title: outside(provider.id),
      class: "provider",
      actions: [
        standing(provider, keys),
        may("operator", { own: true }) && h("button", { class: "button bare", "data-act": `add-${provider.id}`, "aria-label": `Add a key for ${provider.id}`, on: { click: add } }, icon("plus"), "Add"),
      ],
    },
    h("p", { class: "quiet small" }, outside(provider.base_url, { max: 80 }), ` · ${provider.dialect}`, !provider.builtin && " · your own"),
    keys.length > 0 ? h("ul", { class: "provider-keys" }, rows) : h("p", { class: "quiet" }, provider.keyless ? "It needs no key." : "No key yet."),
    !all && h("button", { class: "button bare", "data-act": `all-${provider.id}`, on: { click: expand } }, `Show all ${number(keys.length)} keys`),
  );
}

function standing(provider, keys) {
  if (!provider.enabled) return badge("quiet", "switched off");
  if (keys.length === 0) return null;
  const usable = keys.filter((key) => key.status === "active").length;
  const tone = usable === keys.length ? "ok" : usable > 0 ? "warn" : "bad";
  return badge(tone, `${number(usable)} of ${number(keys.length)} usable`);
}

/** Those that go before all others of their owner, where there are others. */
function firsts(keys) {
  const found = new Set();
  for (const own of Map.groupBy(keys.filter((key) => !key.environment), (key) => key.owner).values()) {
    if (own.length > 1 && own[0].priority < own[1].priority) found.add(own[0].id);
  }
  return found;
}

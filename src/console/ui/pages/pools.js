// Pools of provider keys, and plans for virtual keys.

import { enc, gather, request } from "../api.js";
import { confirm } from "../dialog.js";
import { h, outside, replace } from "../dom.js";
import { keepFocus } from "../focus.js";
import { compact, counted, number, usd, when } from "../format.js";
import { icon } from "../icons.js";
import { menu } from "../menu.js";
import { say } from "../message.js";
import { paged } from "../paging.js";
import { badge, card, empty, status } from "../parts.js";
import { standing } from "../policy.js";
import { link } from "../router.js";
import { written } from "../routes.js";
import { may } from "../session.js";
import { POLICIES, planForm, poolForm } from "./pool-forms.js";
import { complain, tagOf } from "./provider-forms.js";

export const title = "Pools and plans";

const SIZE = 6;
const MEMBERS_SHOWN = 6;
const ROUTES_SHOWN = 4;

export async function render(root, { signal }) {
  const pools = h("div");
  const plans = h("div");
  const state = { pools: 1, plans: 1 };

  const load = async () => {
    const [foundPools, foundPlans] = await Promise.all([gather("/api/pools", "pools", { signal }), gather("/api/plans", "plans", { signal })]);
    if (signal.aborted) return;
    await keepFocus(root, () => {
      replace(pools, listed("pools", foundPools.items, (pool) => poolCard(pool, reload), state, "No pools. Without one, a virtual key may use every provider key that its owner sees."));
      replace(plans, listed("plans", foundPlans.items, (plan) => planCard(plan, reload), state, "No plans. A plan is a bundle of limits, models and routes that many keys share."));
    });
  };
  const reload = async () => {
    try {
      await load();
    } catch (error) {
      if (!signal.aborted) complain(error);
    }
  };
  await load();
  root.append(section("Pools", "Create a pool", () => poolForm(null, { reload }), pools), section("Plans", "Create a plan", () => planForm(null, { reload }), plans));
}

function section(title, label, create, body) {
  return h(
    "section",
    { class: "page" },
    h("div", { class: "card-head" }, h("h2", null, title), may("operator") && h("button", { class: "button primary", "data-act": title, on: { click: create } }, icon("plus"), label)),
    body,
  );
}

function listed(what, items, draw, state, none) {
  if (items.length === 0) return empty(none);
  const turned = (page) => {
    state[what] = page;
  };
  return paged(items, { size: SIZE, draw: (some) => h("div", { class: "cards" }, some.map(draw)), label: `Pages of ${what}`, page: state[what], turned });
}

/** Change and deletion, for those who may. */
function actions(what, item, edit, reload, warning) {
  if (!may("operator")) return null;
  const remove = async () => {
    if (!(await confirm({ title: `Delete this ${what}?`, text: [h("b", null, outside(item.name, { max: 80 })), ` ${warning}`], action: "Delete", danger: true }))) return;
    try {
      await request("DELETE", `/api/${what}s/${enc(item.name)}`, { etag: tagOf(item) });
      say("ok", `The ${what} ${item.name} is deleted.`);
    } catch (error) {
      complain(error);
    }
    await reload();
  };
  const act = (word) => `${what}-${word}-${item.name}`;
  return h(
    "div",
    { class: "actions" },
    h("button", { class: "button bare", "data-act": act("edit"), "aria-label": `Edit the ${what} ${item.name}`, on: { click: () => edit(item, { reload }) } }, "Edit"),
    h("div", { "data-act": act("more") }, menu({ label: `More for the ${what} ${item.name}` }, [["Delete", remove, { danger: true }]])),
  );
}

function poolCard(pool, reload) {
  const members = pool.keys.slice(0, MEMBERS_SHOWN);
  const left = pool.keys.length - members.length;
  return card(
    { title: outside(pool.name, { max: 80 }), level: 3, actions: actions("pool", pool, poolForm, reload, "goes; its keys stay.") },
    h("p", { class: "quiet small" }, POLICIES[pool.policy] ?? pool.policy, pool.sticky && " · requests that begin alike stay with one key", ` · ${counted(pool.virtual_keys, "virtual key")}`),
    members.length === 0 ? h("p", { class: "quiet" }, "No keys yet.") : h("ul", { class: "plain" }, members.map((key) => h("li", null, outside(`${key.provider}/${key.name}`, { max: 64 }), status(key.status), h("span", { class: "quiet small" }, outside(key.owner, { max: 40 }))))),
    left > 0 && h("p", { class: "quiet small" }, `and ${number(left)} more`),
  );
}

function planCard(plan, reload) {
  const lines = written(plan.routes).split("\n").filter(Boolean);
  const own = limitsOf(plan);
  return card(
    { title: outside(plan.name, { max: 80 }), level: 3, actions: actions("plan", plan, planForm, reload, "goes.") },
    plan.description && h("p", null, outside(plan.description, { max: 400 })),
    h("p", { class: "quiet small" }, h("a", { href: link("/keys", { plan: plan.name }) }, counted(plan.keys, "key")), plan.total_requests > 0 && [` · ${compact(plan.total_requests)} requests · ${usd(plan.spent)} · `, when(plan.last_used)]),
    h("div", { class: "tags" }, plan.models.length === 0 ? h("span", { class: "tag" }, "every model") : plan.models.slice(0, 8).map((model) => h("span", { class: "tag" }, outside(model, { max: 48 })))),
    own.length > 0 && h("p", { class: "small" }, h("b", null, "Each key: "), own.join(", ")),
    plan.in_force.length > 0 && [h("h4", { class: "small" }, "All keys together"), standing(plan.in_force, { own: "plan", most: 6 })],
    lines.length > 0 && h("ul", { class: "plain small" }, lines.slice(0, ROUTES_SHOWN).map((text) => h("li", null, h("code", null, outside(text, { max: 120 }))))),
    lines.length > ROUTES_SHOWN && h("p", { class: "quiet small" }, `and ${number(lines.length - ROUTES_SHOWN)} more routes`),
    plan.shadow?.length > 0 && badge("quiet", "counts only"),
  );
}

const PER = { day: "a day", week: "a week", month: "a month", total: "in total" };

/** What each key of a plan gets, in words. */
function limitsOf({ limits, budgets = [], quotas = [] }) {
  return [
    limits.rpm && `${compact(limits.rpm)} requests a minute`,
    limits.tpm && `${compact(limits.tpm)} tokens a minute`,
    limits.max_in_flight && `${compact(limits.max_in_flight)} at a time`,
    ...budgets.map((budget) => `${usd(budget.usd)} ${PER[budget.per]}`),
    ...quotas.map((quota) => `${compact(quota.tokens)} tokens ${PER[quota.per]}`),
  ].filter(Boolean);
}

// Limits, budgets and quotas: how they stand, and how they are said.
//
//   standing(in_force, { own })       bars of what is used of each; those of another scope than `own` say whose they are
//   policyFields(policy)              fields of a form for them
//   policyOf(values, policy, fields)  what the form says, as a body for the API: only what is new to `policy`
//
// A form says what most people mean: one budget and one quota a window. What else a policy has (time zones, other counts,
// shadows) stays as it is.

import { bar } from "./chart.js";
import { h } from "./dom.js";
import { group, number as numeral, row } from "./form.js";
import { compact, number, usd, usdNumber, when } from "./format.js";

const WINDOWS = [
  ["day", "a day"],
  ["week", "a week"],
  ["month", "a month"],
  ["total", "in total"],
];
const RATES = [
  ["rpm", "Requests a minute"],
  ["tpm", "Tokens a minute"],
  ["max_in_flight", "Requests at a time"],
];
const words = Object.fromEntries([...RATES, ...WINDOWS]);
const COUNTED = { input: "input tokens", output: "output tokens", uncached: "uncached tokens", uncached_input: "uncached input tokens" };

function name(limit) {
  if (limit.limit === "budget") return `Dollars ${words[limit.per]}`;
  if (limit.limit !== "quota") return words[limit.limit];
  const counted = COUNTED[limit.counts] ?? "tokens";
  return `${counted[0].toUpperCase()}${counted.slice(1)} ${words[limit.per]}`;
}

const figure = (limit, value) => (limit.limit === "budget" ? usd(value) : compact(value));

/** A bar of one limit. */
function one(limit, own) {
  const amount = (value) => (limit.limit === "budget" ? (usdNumber(value) ?? 0) : value);
  const gone = amount(limit.used) + amount(limit.reserved);
  const whose = limit.scope === own ? null : limit.scope === "provider_key" ? "provider key" : limit.scope;
  const anew = limit.resets && [", anew ", when(limit.resets)];
  const label = [name(limit), whose && ` of the ${whose}`, anew, limit.shadow && " (only counted)"];
  const shown = limit.limit === "budget" && gone > amount(limit.used) ? `${usd(limit.used)} + ${usd(limit.reserved)} open` : figure(limit, gone);
  const text = [shown, ` of ${figure(limit, limit.value)}`];
  return bar(gone, amount(limit.value), { label, text });
}

export function standing(limits, { own, most = Infinity } = {}) {
  if (limits.length === 0) return null;
  const left = limits.length - most;
  return h("div", { class: "limits" }, limits.slice(0, most).map((limit) => one(limit, own)), left > 0 && h("p", { class: "quiet small" }, `and ${number(left)} more`));
}

const budgetOf = (policy, per) => (policy?.budgets ?? []).find((budget) => budget.per === per);
const quotaOf = (policy, per) => (policy?.quotas ?? []).find((quota) => quota.per === per && quota.counts === "total");

/** `prefix` is for a policy within another record: `shared`. */
export function policyFields(policy, { prefix = "", open = false, title = "Limits and budgets", help } = {}) {
  const dot = prefix ? `${prefix}.` : "";
  const rate = ([key, label]) => numeral({ name: `${dot}limits.${key}`, label, min: 1, value: policy?.limits?.[key] ?? "", optional: false });
  const money = ([per, label]) =>
    numeral({ name: `${dot}budgets.${per}`, label: `Dollars ${label}`, min: 0, step: "any", decimal: true, value: budgetOf(policy, per)?.usd ?? "", optional: false });
  const tokens = ([per, label]) => numeral({ name: `${dot}quotas.${per}`, label: `Tokens ${label}`, min: 0, value: quotaOf(policy, per)?.tokens ?? "", optional: false });
  const said = policy && (Object.values(policy.limits ?? {}).some((value) => typeof value === "number") || policy.budgets?.length || policy.quotas?.length);
  return group(
    { title, help: help ?? "Empty is no limit.", open: open || Boolean(said) },
    row(...RATES.map(rate)),
    row(...WINDOWS.map(money)),
    row(...WINDOWS.map(tokens)),
  );
}

/** A list with the item of each window set anew, kept or taken out. */
function merged(before, values, { fits, make, amount }) {
  const list = [...(before ?? [])];
  let changed = false;
  for (const [per] of WINDOWS) {
    const at = list.findIndex((item) => fits(item, per));
    const value = values(per);
    if (at < 0 ? value === null : value !== null && String(list[at][amount]) === String(value)) continue;
    changed = true;
    if (value === null) list.splice(at, 1);
    else if (at < 0) list.push(make(per, value));
    else list[at] = { ...list[at], [amount]: value };
  }
  return changed ? list : undefined;
}

export function policyOf(values, policy, { prefix = "" } = {}) {
  const dot = prefix ? `${prefix}.` : "";
  const body = {};
  const limits = {};
  for (const [key] of RATES) {
    const value = values[`${dot}limits.${key}`] ?? null;
    if (value !== (policy?.limits?.[key] ?? null)) limits[key] = value;
  }
  if (Object.keys(limits).length > 0) body.limits = limits;
  const budgets = merged(policy?.budgets, (per) => values[`${dot}budgets.${per}`] ?? null, {
    fits: (budget, per) => budget.per === per,
    make: (per, value) => ({ usd: value, per }),
    amount: "usd",
  });
  const quotas = merged(policy?.quotas, (per) => values[`${dot}quotas.${per}`] ?? null, {
    fits: (quota, per) => quota.per === per && quota.counts === "total",
    make: (per, value) => ({ tokens: value, per }),
    amount: "tokens",
  });
  if (budgets) body.budgets = budgets;
  if (quotas) body.quotas = quotas;
  return body;
}

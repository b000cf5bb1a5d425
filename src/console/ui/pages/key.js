// One virtual key: what it may do, how its limits stand, and what it used day by day.

import { enc, request } from "../api.js";
import { chart } from "../chart.js";
import { h, outside, replace } from "../dom.js";
import { failure } from "../failure.js";
import { keepFocus } from "../focus.js";
import { absolute, compact, counted, number, shortDay, usd, usdNumber, utcDays, when } from "../format.js";
import { card, facts, figure, figures, status } from "../parts.js";
import { standing } from "../policy.js";
import { go, link } from "../router.js";
import { keyButtons } from "./key-actions.js";
import { complain } from "./provider-forms.js";

export const title = "API key";

const DAYS = [7, 30, 90];

export async function render(root, { params, query, keep, signal, actions, retitle }) {
  const path = `/api/keys/${enc(params.id)}`;
  const state = { days: DAYS.includes(Number(query.days)) ? Number(query.days) : 30 };
  const about = h("div", { class: "page" });
  const used = h("div");

  const load = async () => {
    const { data: key } = await request("GET", path, { signal });
    retitle(outside(key.name, { max: 80 }));
    await keepFocus(document.body, () => {
      replace(actions, keyButtons(key, { reload, deleted: () => go("/keys") }));
      replace(about, described(key));
    });
  };
  const reload = async () => {
    try {
      await load();
    } catch (error) {
      if (!signal.aborted) complain(error);
    }
  };
  const chartOf = async () => {
    try {
      const { data } = await request("GET", `${path}/usage`, { query: { days: state.days }, signal });
      replace(used, usage(data, state.days));
    } catch (error) {
      if (!signal.aborted) replace(used, failure(error, { retry: chartOf }));
    }
  };
  await load();
  root.append(
    h("p", { class: "small" }, h("a", { href: link("/keys") }, "All keys")),
    about,
    card({ title: "Usage", actions: choice(state, () => (keep({ days: state.days }), chartOf())) }, used),
  );
  await chartOf();
}

function choice(state, changed) {
  const buttons = DAYS.map((days) => h("button", { class: "button", "aria-pressed": String(days === state.days) }, `${days} days`));
  for (const [at, button] of buttons.entries()) {
    button.addEventListener("click", () => {
      state.days = DAYS[at];
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      changed();
    });
  }
  return h("div", { class: "choice", role: "group", "aria-label": "How far back" }, buttons);
}

const listed = (values, none) => (values.length === 0 ? h("span", { class: "quiet" }, none) : h("div", { class: "tags" }, values.map((value) => h("span", { class: "tag" }, outside(value, { max: 80 })))));

function described(key) {
  const limits = standing(key.in_force, { own: "key" });
  return [
    figures(
      figure({ label: "Requests", value: compact(key.total_requests), note: key.last_used ? ["last ", when(key.last_used)] : "never used" }),
      figure({ label: "Tokens", value: compact(key.total_tokens) }),
      figure({ label: "Spent", value: usd(key.spent) }),
      key.budget_remaining !== null && figure({ label: "Left of the budget", value: usd(key.budget_remaining), note: `of ${usd(key.max_budget)}` }),
    ),
    h(
      "div",
      { class: "halves" },
      card(
        { title: "The key" },
        facts([
          ["Status", status(key.status)],
          ["Key", h("code", null, `${key.prefix}-${key.id}-…`)],
          ["User", key.user ? outside(key.user) : h("span", { class: "quiet" }, "nobody's")],
          key.team && ["Team", outside(key.team)],
          key.plan && ["Plan", outside(key.plan)],
          key.pool && ["Pool", [outside(key.pool), key.lease && " (may be given its keys)"]],
          ["Created", absolute(key.created)],
          ["Expires", key.expires ? [absolute(key.expires), " (", when(key.expires), ")"] : "never"],
          key.rotation_grace_until && ["The former secret works until", absolute(key.rotation_grace_until)],
          key.canary && ["Canary", "an alert is raised when it is used"],
          ["When own keys cannot serve", key.fallback === "none" ? "requests are refused" : "team and system pay"],
          ...Object.entries(key.metadata).map(([name, value]) => [outside(name, { max: 60 }), outside(value)]),
        ]),
      ),
      card(
        { title: "What it may do" },
        facts([
          ["Models", listed(key.models, "every one")],
          ["Providers", listed(key.providers, "every one")],
          ["Endpoints", listed(key.endpoints, "every one")],
          ["From", listed(key.sources, "anywhere")],
        ]),
        h("h3", null, "Limits"),
        limits ?? h("p", { class: "quiet" }, "Nothing limits it."),
      ),
    ),
  ];
}

function usage(report, count) {
  const days = utcDays(report.from, report.to);
  const found = new Map(report.groups.map((group) => [group.day, group]));
  // A day without a request is a day too.
  const values = (read) => days.map((day) => (found.has(day) ? (read(found.get(day)) ?? 0) : 0));
  const labels = days.map(shortDay);
  const { totals } = report;
  return [
    h("p", { class: "small" }, `${counted(totals.requests, "request")}, ${compact(totals.tokens.total ?? 0)} tokens, ${usd(totals.cost_usd ?? "0")} in ${count} days; ${number(totals.failed)} failed.`),
    h(
      "div",
      { class: "thirds" },
      chart({
        title: "Tokens by day",
        kind: "stacked",
        labels,
        format: compact,
        series: [
          { name: "Input", values: values((group) => group.tokens.input) },
          { name: "Output", values: values((group) => group.tokens.output) },
        ],
      }),
      chart({ title: "Cost by day", kind: "bar", labels, format: (value) => usd(value.toFixed(9)), series: [{ name: "Cost", values: values((group) => usdNumber(group.cost_usd)) }] }),
      chart({ title: "Requests by day", kind: "bar", labels, format: compact, series: [{ name: "Requests", values: values((group) => group.requests) }] }),
    ),
  ];
}

// Usage: what was consumed, by day and by whatever it can be told apart by.
//
// What is looked at stands in the address: by, of (which figure), days or from and to, and the filters. Days are UTC days, as
// the sums are kept. Users see their own.

import { request } from "../api.js";
import { chart } from "../chart.js";
import { download } from "../csv.js";
import { h, outside, replace, unique } from "../dom.js";
import { failure } from "../failure.js";
import { compact, number, percent, shortDay, usd, usdNumber, utcDays } from "../format.js";
import { icon } from "../icons.js";
import { names } from "../names.js";
import { card, empty, figure, figures } from "../parts.js";
import { self } from "../session.js";
import { more, table } from "../table.js";

export const title = "Usage";

const DAYS = [7, 30, 90];
/** More than this many days are shown by the month. */
const MOST_DAYS = 120;
const SERIES = 7;
const ROWS = 50;
/** What usage is told apart by: its words, and the name of the filter where there is one. */
const BY = {
  model: { label: "Model", filter: "model" },
  provider: { label: "Provider", filter: "provider" },
  key: { label: "API key", filter: "key" },
  provider_key: { label: "Provider key", filter: "provider_key" },
  user: { label: "User", filter: "user", all: true },
  team: { label: "Team", filter: "team" },
  plan: { label: "Plan", filter: "plan" },
  source: { label: "Whose key paid", filter: "source" },
  endpoint: { label: "Endpoint" },
  group: { label: "Group", filter: "group" },
};
const OF = {
  cost: { label: "Cost", read: (totals) => usdNumber(totals.cost_usd) ?? 0, format: (value) => (value === null ? "–" : usd(value.toFixed(9))) },
  tokens: { label: "Tokens", read: (totals) => totals.tokens.total ?? 0, format: compact },
  requests: { label: "Requests", read: (totals) => totals.requests, format: compact },
};

export async function render(root, { query, signal, keep, actions }) {
  const asked = read(query);
  const page = { asked, signal, report: null, named: (id) => id, filters: new Map() };
  const [bar, body] = [h("div", { class: "page" }), h("div", { class: "page" })];
  replace(root, bar, body);
  const take = h("button", { class: "button", disabled: true, on: { click: () => page.report && save(page) } }, icon("download"), "CSV");
  replace(actions, take);

  let turn = 0;
  /** Looks at something else; `act` is what has the focus then, as what had it is drawn anew. */
  const change = async (next, act) => {
    Object.assign(asked, next);
    keep(written(asked));
    replace(bar, controls(page, change));
    if (act) bar.querySelector(`[data-act="${act}"]`)?.focus();
    turn += 1;
    const mine = turn;
    body.setAttribute("aria-busy", "true");
    try {
      const drawn = await draw(page, change);
      if (mine !== turn || signal.aborted) return;
      replace(body, drawn);
      for (const [filter, named] of page.filters) bar.querySelector(`[data-act="without-${filter}"] bdi`)?.replaceWith(chipWords(filter, asked.filters[filter], named));
      take.disabled = page.report.groups.length === 0;
    } catch (error) {
      if (mine === turn && !signal.aborted) replace(body, failure(error, { retry: () => change({}) }));
    } finally {
      if (mine === turn) body.removeAttribute("aria-busy");
    }
  };
  await change({});
}

function read({ by, of, days, from, to, ...rest }) {
  const dated = /^\d{4}-\d\d-\d\d$/;
  const filters = Object.fromEntries(Object.values(BY).flatMap(({ filter }) => (filter && rest[filter] && !(filter === "user" && self()) ? [[filter, rest[filter]]] : [])));
  return {
    by: BY[by] && !(BY[by].all && self()) ? by : "model",
    of: OF[of] ? of : "cost",
    days: dated.test(from) ? null : DAYS.includes(Number(days)) ? Number(days) : 30,
    from: dated.test(from) ? from : null,
    to: dated.test(from) && dated.test(to) ? to : null,
    filters,
  };
}

const written = ({ by, of, days, from, to, filters }) => ({ by: by === "model" ? null : by, of: of === "cost" ? null : of, days: days === 30 ? null : days, from, to, ...filters });

/** The time asked for; the last day that is named counts too. */
function within({ days, from, to }) {
  if (days) return { days };
  const next = to && new Date(new Date(`${to}T00:00:00Z`).getTime() + 86_400_000).toISOString().slice(0, 10);
  return { from, to: next };
}

const ask = async (query, signal) => (await request("GET", "/api/usage", { query, signal })).data;

async function draw(page, change) {
  const { asked, signal } = page;
  const span = { ...within(asked), ...asked.filters };
  const [report, byDay] = await Promise.all([ask({ ...span, by: asked.by }, signal), ask({ ...span, by: "day" }, signal)]);
  const ids = report.groups.map((group) => group[asked.by]).filter((id) => id !== null);
  const named = await names(asked.by, { ids, signal });
  for (const filter of ["key", "provider_key"]) if (asked.filters[filter]) page.filters.set(filter, await names(filter, { ids: [asked.filters[filter]], signal }));
  Object.assign(page, { report, named });
  const of = OF[asked.of];
  const groups = [...report.groups].sort((a, b) => of.read(b) - of.read(a));
  const { filter } = BY[asked.by];
  // Those that matter have a colour each, and are asked for by the day; what is left is the rest.
  const parts = filter ? groups.filter((group) => group[asked.by] !== null && of.read(group) > 0).slice(0, SERIES) : [];
  const series = await Promise.all(parts.map((group) => ask({ ...span, [filter]: group[asked.by], by: "day" }, signal)));
  const days = utcDays(report.from ?? byDay.groups[0]?.day ?? new Date().toISOString(), report.to ?? new Date().toISOString());
  return [
    totals(report),
    card({}, dayChart(asked, days, byDay, parts.map((group, at) => ({ name: label(page, group), report: series[at] })))),
    h("div", { class: "halves" }, parts.length > 1 && card({}, shareChart(page, groups)), paid(report)),
    card({ title: `By ${lower(BY[asked.by].label)}` }, rows(page, groups, change)),
  ];
}

/** Within a sentence; "API" stays. */
const lower = (text) => (/^[A-Z]{2}/.test(text) ? text : text[0].toLowerCase() + text.slice(1));

function label({ asked, named }, group) {
  const value = group[asked.by];
  if (value === null) return asked.by === "source" ? "nobody: refused" : "none";
  return asked.by === "source" ? `${value} key` : named(value);
}

function totals({ totals: all, cost_on_user_keys_usd: own }) {
  const { tokens } = all;
  const cached = tokens.input > 0 && tokens.cached_input > 0 ? `${percent(tokens.cached_input / tokens.input)} of input from cache` : null;
  return figures(
    figure({ label: "Cost", value: usd(all.cost_usd ?? "0"), note: all.unpriced > 0 ? `${number(all.unpriced)} requests without a price` : null }),
    figure({ label: "Tokens", value: compact(tokens.total ?? 0), note: cached }),
    figure({ label: "Requests", value: number(all.requests), note: all.tokens_source.estimated > 0 ? `tokens of ${number(all.tokens_source.estimated)} estimated` : null }),
    figure({ label: "Failed", value: number(all.failed), note: all.requests > 0 ? percent(all.failed / all.requests) : null }),
    figure({ label: "Paid by users' own keys", value: usd(own ?? "0"), note: "saved to the system" }),
  );
}

function dayChart({ of: which }, days, byDay, parts) {
  const of = OF[which];
  // A bar a day is a hair when there are many.
  const monthly = days.length > MOST_DAYS;
  const span = (day) => (monthly ? day.slice(0, 7) : day);
  const spans = [...new Set(days.map(span))];
  const over = (report) => {
    const sums = new Map(spans.map((one) => [one, 0]));
    for (const group of report.groups) sums.set(span(group.day), (sums.get(span(group.day)) ?? 0) + of.read(group));
    return spans.map((one) => sums.get(one));
  };
  const whole = over(byDay);
  const series = parts.map(({ name, report }) => ({ name, values: over(report) }));
  // Sums of floats differ in their last digits.
  const rest = whole.map((value, at) => Math.max(value - series.reduce((sum, one) => sum + one.values[at], 0), 0)).map((value) => (value < 1e-9 ? 0 : value));
  if (series.length === 0) series.push({ name: of.label.toLowerCase(), values: whole });
  else if (rest.some((value) => value > 0)) series.push({ name: "the rest", values: rest, tone: "s8" });
  return chart({ title: `${of.label} by ${monthly ? "month" : "day"}`, kind: "stacked", labels: monthly ? spans : spans.map(shortDay), series, format: of.format, height: 240, level: 2 });
}

function shareChart(page, groups) {
  const of = OF[page.asked.of];
  const some = groups.filter((group) => of.read(group) > 0);
  const shown = some.slice(0, 8);
  const whole = groups.reduce((sum, group) => sum + of.read(group), 0) || 1;
  const line = (group) =>
    h("li", { class: "share" }, h("span", null, outside(label(page, group), { max: 40 })), h("progress", { value: of.read(group) / whole, max: 1, "aria-label": label(page, group).slice(0, 200) }), h("span", { class: "figure" }, of.format(of.read(group))));
  return h("div", { class: "page" }, h("h2", null, `${of.label} by ${lower(BY[page.asked.by].label)}`), h("ul", { class: "shares" }, shown.map(line)), some.length > shown.length && h("p", { class: "quiet small" }, `and ${number(some.length - shown.length)} more in the table`));
}

/** Whose keys paid, and what bringing them has saved. */
function paid({ key_sources: sources, cost_on_user_keys_usd: own }) {
  const words = { user: "Keys of users (BYOK)", team: "Keys of teams", system: "Keys of the system", none: "Nobody: refused" };
  const rows = Object.entries(words).map(([source, name]) => ({ name, ...sources[source] })).filter((row) => row.requests > 0);
  if (rows.length === 0) return null;
  const columns = [
    { label: "Whose key", head: true, cell: (row) => row.name },
    { label: "Requests", figure: true, cell: (row) => number(row.requests) },
    { label: "Tokens", figure: true, cell: (row) => compact(row.tokens) },
    { label: "Cost", figure: true, cell: (row) => usd(row.cost_usd) },
  ];
  const saved = own && own !== "0" ? h("p", { class: "notice ok" }, `Users' own keys have paid ${usd(own)} that the system did not have to.`) : null;
  return card({ title: "Who paid" }, table({ caption: "Who paid", columns, rows }), saved);
}

function rows(page, groups, change) {
  const { asked, report } = page;
  const { filter, label: name } = BY[asked.by];
  const narrow = (group) => {
    const text = outside(label(page, group), { max: 80 });
    const value = group[asked.by];
    if (!filter || value === null || asked.filters[filter] === value) return text;
    return h("button", { class: "button link", title: "Look at this alone", on: { click: () => change({ filters: { ...asked.filters, [filter]: value } }, `without-${filter}`) } }, text);
  };
  const columns = [
    { label: name, head: true, cell: narrow, foot: () => "All" },
    { label: "Requests", figure: true, cell: (row) => number(row.requests) },
    { label: "Failed", figure: true, cell: (row) => number(row.failed) },
    { label: "Input", figure: true, cell: (row) => compact(row.tokens.input) },
    { label: "From cache", figure: true, cell: (row) => compact(row.tokens.cached_input) },
    { label: "Output", figure: true, cell: (row) => compact(row.tokens.output) },
    { label: "Cost", figure: true, cell: (row) => usd(row.cost_usd) },
  ];
  const made = table({ caption: `Usage by ${lower(name)}`, columns, rows: groups.slice(0, ROWS), foot: report.totals, empty: empty("No requests in this time.") });
  if (groups.length <= ROWS) return made;
  const button = h("button", { class: "button" }, `Show all ${number(groups.length)}`);
  button.addEventListener("click", () => {
    more(made, groups.slice(ROWS));
    button.remove();
  });
  return [made, h("div", { class: "more" }, button)];
}

function controls(page, change) {
  const { asked } = page;
  const dimensions = Object.entries(BY).filter(([, { all }]) => !(all && self()));
  const pressed = (act, on, text, next) => h("button", { class: "button", "data-act": act, "aria-pressed": String(on), on: { click: () => change(next(), act) } }, text);
  const spans = DAYS.map((days) => pressed(`days-${days}`, asked.days === days, `${days} days`, () => ({ days, from: null, to: null })));
  const today = new Date().toISOString().slice(0, 10);
  const open = asked.from !== null;
  const date = (name, words, value) => {
    const id = unique(name);
    return h("div", { class: "field" }, h("label", { for: id }, words), h("input", { type: "date", id, "data-act": name, value: value ?? "", max: today, on: { change: (event) => event.target.value && change({ days: null, from: asked.from ?? today, to: asked.to, [name]: event.target.value }, name) } }));
  };
  const byId = unique("by");
  return [
    h(
      "div",
      { class: "spread controls" },
      h("div", { class: "choice", role: "group", "aria-label": "Time" }, spans, pressed("dates", open, "Dates…", () => ({ days: null, from: asked.from ?? new Date(Date.now() - 13 * 86_400_000).toISOString().slice(0, 10), to: asked.to ?? today }))),
      h("div", { class: "choice", role: "group", "aria-label": "Figure" }, Object.entries(OF).map(([of, { label: text }]) => pressed(`of-${of}`, asked.of === of, text, () => ({ of })))),
    ),
    h(
      "div",
      { class: "filters" },
      open && date("from", "From", asked.from),
      open && date("to", "To, that day included", asked.to),
      h("div", { class: "field" }, h("label", { for: byId }, "By"), h("select", { id: byId, "data-act": "by", value: asked.by, on: { change: (event) => change({ by: event.target.value }, "by") } }, dimensions.map(([value, { label: text }]) => h("option", { value }, text)))),
      narrowing(page, change, dimensions),
    ),
    chips(page, change),
  ];
}

/** Only what is of one model, one key…: its values are those that were used. */
function narrowing({ asked, signal }, change, dimensions) {
  const [whatId, valueId] = [unique("only"), unique("value")];
  const what = h("select", { id: whatId }, h("option", { value: "" }, "everything"), dimensions.filter(([, { filter }]) => filter).map(([value, { label: text }]) => h("option", { value }, text)));
  const value = h("select", { id: valueId, disabled: true }, h("option", { value: "" }, "–"));
  what.addEventListener("change", async () => {
    value.disabled = true;
    if (what.value === "") return replace(value, h("option", { value: "" }, "–"));
    const by = what.value;
    try {
      const report = await ask({ ...within(asked), by }, signal);
      const used = report.groups.map((group) => group[by]).filter((one) => one !== null).slice(0, 500);
      const named = await names(by, { ids: used, signal });
      replace(value, h("option", { value: "" }, used.length > 0 ? "choose…" : "none was used"), used.map((one) => h("option", { value: one }, named(one).slice(0, 100))));
      value.disabled = used.length === 0;
    } catch (error) {
      if (error?.name !== "AbortError") replace(value, h("option", { value: "" }, "cannot be read"));
    }
  });
  value.addEventListener("change", () => {
    const { filter } = BY[what.value];
    if (value.value !== "") change({ filters: { ...asked.filters, [filter]: value.value } }, `without-${filter}`);
  });
  return [h("div", { class: "field" }, h("label", { for: whatId }, "Only of one"), what), h("div", { class: "field" }, h("label", { for: valueId }, "Which"), value)];
}

const chipWords = (filter, value, named) => outside(`${BY[filter].label}: ${named(value)}`, { max: 60 });

function chips({ asked, filters }, change) {
  const entries = Object.entries(asked.filters);
  if (entries.length === 0) return null;
  const without = (filter) => Object.fromEntries(entries.filter(([name]) => name !== filter));
  const chip = ([filter, value]) => {
    const words = chipWords(filter, value, filters.get(filter) ?? ((id) => id));
    return h("li", null, h("button", { class: "button chip", "data-act": `without-${filter}`, on: { click: () => change({ filters: without(filter) }, "by") } }, words, icon("close"), h("span", { class: "unseen" }, ", remove this filter")));
  };
  return h("ul", { class: "chips", "aria-label": "Filters" }, entries.map(chip));
}

function save({ asked, report, named }) {
  const ids = asked.by === "key" || asked.by === "provider_key";
  const head = [asked.by, ...(ids ? ["name"] : []), "requests", "failed", "input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "total_tokens", "cost_usd", "unpriced"];
  const line = (group) => {
    const { tokens } = group;
    return [group[asked.by], ...(ids ? [named(group[asked.by])] : []), group.requests, group.failed, tokens.input, tokens.cached_input, tokens.cache_write, tokens.output, tokens.reasoning, tokens.total, group.cost_usd, group.unpriced];
  };
  const span = report.from ? `${report.from.slice(0, 10)}-to-${(report.to ?? new Date().toISOString()).slice(0, 10)}` : "all";
  download(`sidekey-usage-by-${asked.by}-${span}.csv`, [head, ...report.groups.map(line)]);
}

// Overview: what happens now, what today came to, and what wants attention.
//
// Operators and readers see the installation; users what is theirs, of which there are no live figures.

import { request } from "../api.js";
import { chart } from "../chart.js";
import { h, outside, replace } from "../dom.js";
import { failure } from "../failure.js";
import { clock, compact, ms, number, shortDay, usd, usdNumber, usdSum, utcDays, when } from "../format.js";
import { badge, card, empty, every, figure, figures, status } from "../parts.js";
import { link } from "../router.js";
import { may } from "../session.js";

export const title = "Overview";

const LIVE_MS = 10_000;
const SLOW_MS = 60_000;
/** Minutes that may be looked at, and so many seconds a place of the charts. */
const RANGES = [[15, "15 min", 10], [60, "1 h", 60], [360, "6 h", 300], [1440, "24 h", 900]];

export async function render(root, { query, signal, keep, actions }) {
  const all = may("reader");
  const today = h("div");
  const trouble = h("div", { class: "page" });
  replace(root, today, trouble);
  const slow = async () => {
    await guarded(today, async () => drawToday((await request("GET", "/api/usage", { query: { days: 1, by: "none" }, signal })).data));
    await guarded(trouble, () => drawTrouble(all, signal));
  };
  await every(SLOW_MS, slow, signal);
  if (signal.aborted) return;
  if (all) await live(root, { query, signal, keep, actions });
  else await week(root, signal);
}

/** Draws into `place`, or says there why it cannot. */
async function guarded(place, draw) {
  try {
    replace(place, await draw());
  } catch (error) {
    if (error?.name !== "AbortError") replace(place, failure(error));
  }
}

function drawToday({ totals }) {
  const { requests, failed, tokens, cost_usd: cost, unpriced } = totals;
  const inputs = (tokens.input ?? 0) + (tokens.output ?? 0);
  const cached = tokens.input > 0 && tokens.cached_input > 0 ? `${Math.round((tokens.cached_input / tokens.input) * 100)} % of input cached` : null;
  return figures(
    figure({ label: "Requests today", value: number(requests), note: "UTC day" }),
    figure({ label: "Tokens today", value: compact(inputs), note: cached }),
    figure({ label: "Cost today", value: usd(cost ?? "0"), note: unpriced > 0 ? `${number(unpriced)} without a price` : null }),
    figure({ label: "Failed today", value: number(failed), note: requests > 0 ? `${((failed / requests) * 100).toFixed(1)} %` : null, tone: failed > 0 && failed / requests > 0.05 ? "bad" : null }),
  );
}

async function drawTrouble(all, signal) {
  const ask = async (path, query) => (await request("GET", path, { query, signal })).data;
  const keys = (await ask("/api/provider-keys", { limit: 1000 })).provider_keys;
  const ill = keys.filter((key) => !["active", "disabled"].includes(key.status));
  const state = all ? await ask("/api/status") : null;
  const alerts = all ? (await ask("/api/alerts", { min_severity: "warning", limit: 50 })).alerts : [];
  return [
    state && standing(state),
    h("div", { class: "halves" }, keyCard(keys, ill), all && alertCard(alerts)),
  ];
}

function standing({ ready, failing, draining, config, store }) {
  const said = [
    draining && ["warn", "sidekey is about to end: it takes no new requests."],
    !ready && !draining && ["bad", `Not ready: ${failing.map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join("; ")}`],
    !store.up && ["bad", `The store cannot be written: ${store.last_error ?? "see the log"}. Requests go on, and wait to be recorded.`],
    store.dropped > 0 && ["bad", `${number(store.dropped)} requests could not be recorded since the start.`],
    store.recovered && ["warn", `The store was damaged and has been rebuilt: ${store.recovered}`],
    config.error && ["bad", `The changed configuration is faulty, the one before stays in force: ${config.error}`],
    config.needs_restart?.length > 0 && ["warn", `In force after a restart: ${config.needs_restart.join(", ")}`],
  ].filter(Boolean);
  return said.length > 0 && h("div", { class: "page" }, said.map(([tone, text]) => h("p", { class: ["notice", tone === "bad" && "bad"] }, outside(text, { max: 600 }))));
}

function keyCard(keys, ill) {
  const row = (key) =>
    h("li", null, status(key.status), h("a", { href: link("/providers", { q: key.provider }) }, outside(key.name, { max: 60 })), h("span", { class: "quiet" }, outside(key.provider, { max: 40 })), key.until && h("span", { class: "quiet" }, "until ", when(key.until)), key.last_error && h("span", { class: "quiet" }, outside(key.last_error, { max: 200 })));
  const count = keys.filter((key) => key.status === "active").length;
  let body = h("p", { class: "quiet" }, `${number(count)} of ${number(keys.length)} switched on, and all of them can be used.`);
  if (keys.length === 0) body = empty("No provider key yet: requests have nothing to pay with.", h("a", { class: "button", href: link("/providers") }, "Providers"));
  else if (ill.length > 0) body = h("ul", { class: "plain" }, ill.slice(0, 6).map(row));
  const note = ill.length > 6 && h("p", { class: "quiet" }, `and ${number(ill.length - 6)} more`);
  return card({ title: "Provider keys", actions: ill.length > 0 ? badge("bad", `${number(ill.length)} of ${number(keys.length)} in trouble`) : keys.length > 0 && badge("ok", "well") }, body, note);
}

function alertCard(all) {
  // What was told of one thing again and again is one line, the newest.
  const told = new Map();
  for (const alert of all) {
    const about = `${alert.kind} ${alert.subject}`;
    const first = told.get(about);
    if (first) first.times += 1;
    else told.set(about, { ...alert, times: 1 });
  }
  const alerts = [...told.values()].slice(0, 5);
  const row = (alert) => h("li", null, status(alert.severity), h("span", null, outside(alert.message, { max: 160 })), h("span", { class: "quiet small" }, outside(alert.subject, { max: 80 }), " · ", when(alert.time), alert.times > 1 && ` · ${number(alert.times)} times of late`));
  const body = alerts.length > 0 ? h("ul", { class: "plain" }, alerts.map(row)) : h("p", { class: "quiet" }, "Nothing since the start.");
  return card({ title: "Alerts", actions: alerts.length === 0 && badge("ok", "none") }, body);
}

/** Live charts: asked for again while the page is looked at. */
async function live(root, { query, signal, keep, actions }) {
  let [minutes, , step] = RANGES.find(([minutes]) => String(minutes) === query.minutes) ?? RANGES[1];
  const pulse = h("p", { class: "quiet small", role: "status" });
  const charts = h("div", { class: "halves" });
  let drawn = null;
  const fault = h("div");
  const look = async () => {
    let data;
    try {
      ({ data } = await request("GET", "/api/activity", { query: { minutes }, signal }));
    } catch (error) {
      if (error?.name !== "AbortError") replace(fault, failure(error, { retry: look }));
      return;
    }
    replace(fault);
    const figures = gathered(data, step);
    if (drawn) drawn.forEach((one) => one.node.renew(one.of(figures)));
    else {
      drawn = CHARTS.map(({ of, ...given }) => ({ of, node: chart({ ...given, ...of(figures), place: (label) => label }) }));
      replace(charts, drawn.map((one) => card({}, one.node)));
    }
    const streams = data.now.streams_in_flight;
    const words = `${number(streams)} ${streams === 1 ? "answer" : "answers"} under way`;
    // Told again only when it is another.
    if (pulse.textContent !== words) replace(pulse, words);
  };
  const choices = RANGES.map(([value, label, size]) => {
    const button = h("button", { class: "button", "aria-pressed": String(value === minutes) }, label);
    button.addEventListener("click", () => {
      [minutes, step] = [value, size];
      for (const other of choices) other.setAttribute("aria-pressed", String(other === button));
      keep({ minutes: value === 60 ? null : value });
      look();
    });
    return button;
  });
  replace(actions, pulse, h("div", { class: "choice", role: "group", "aria-label": "Time shown" }, choices));
  root.append(fault, charts);
  await every(LIVE_MS, look, signal);
}

const sum = (points, read) => points.reduce((total, point) => total + read(point), 0);

/** Points of the API put together, so many seconds each. */
function gathered({ points, step_s: size }, step) {
  const many = Math.max(Math.round(step / size), 1);
  const heaps = [];
  // From the end, so that the last heap is whole but for the step that is still open.
  for (let end = points.length; end > 0; end -= many) heaps.unshift(points.slice(Math.max(end - many, 0), end));
  return heaps.map((heap) => {
    const known = heap.filter((point) => point.ttfb_ms.p50 !== null);
    const weight = sum(known, (point) => point.requests) || 1;
    return {
      label: clock(heap[0].time, { seconds: step < 60 }),
      refusals: sum(heap, (point) => point.refusals),
      errors: sum(heap, (point) => point.errors),
      well: sum(heap, (point) => point.requests - point.refusals - point.errors),
      input: sum(heap, (point) => point.tokens.input - point.tokens.cached_input),
      cached: sum(heap, (point) => point.tokens.cached_input),
      output: sum(heap, (point) => point.tokens.output),
      cost: usdNumber(usdSum(heap.map((point) => point.cost_usd))),
      // Steps weigh by their requests; of the slow ones the slowest step is told.
      p50: known.length > 0 ? sum(known, (point) => point.ttfb_ms.p50 * point.requests) / weight : null,
      p95: known.length > 0 ? Math.max(...known.map((point) => point.ttfb_ms.p95)) : null,
    };
  });
}

const values = (figures, name, field, tone) => ({ name, values: figures.map((one) => one[field]), tone });
const drawing = (...series) => (figures) => ({ labels: figures.map((one) => one.label), series: series.map((given) => values(figures, ...given)) });
const dollars = (value) => (value === null ? "–" : usd(value.toFixed(9)));

const CHARTS = [
  { title: "Requests", kind: "stacked", format: compact, of: drawing(["ok", "well"], ["refused", "refusals", "s3"], ["errors", "errors", "bad-tone"]) },
  { title: "Tokens", kind: "stacked", format: compact, of: drawing(["input", "input"], ["input from cache", "cached", "s5"], ["output", "output", "s2"]) },
  { title: "Cost, US dollars", kind: "bar", format: dollars, of: drawing(["cost", "cost"]) },
  { title: "Time to first byte", kind: "line", format: ms, of: drawing(["half of them within", "p50"], ["95 % within", "p95", "s2"]) },
];

/** For users: their last days. */
async function week(root, signal) {
  const { data } = await request("GET", "/api/usage", { query: { days: 14, by: "day" }, signal });
  const days = utcDays(data.from, data.to);
  const known = new Map(data.groups.map((group) => [group.day, group]));
  const labels = days.map(shortDay);
  const of = (name, read, tone) => ({ name, values: days.map((day) => (known.has(day) ? read(known.get(day)) : 0)), tone });
  root.append(
    h(
      "div",
      { class: "halves" },
      card({}, chart({ title: "Requests, last 14 days", kind: "stacked", labels, format: compact, series: [of("ok", (group) => group.requests - group.failed), of("failed", (group) => group.failed, "bad-tone")] })),
      card({}, chart({ title: "Cost, US dollars", kind: "bar", labels, format: dollars, series: [of("cost", (group) => usdNumber(group.cost_usd))] })),
    ),
  );
}

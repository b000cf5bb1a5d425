// Charts, drawn as SVG at the width there is.
//
//   chart({ title, kind, labels, series: [{ name, values, tone }], format, place, described, note })
//   node.renew({ labels, series })                     the same chart with new figures
//   bar(value, max, { label, text })                   how much of a budget is gone
//
// kind: "line", "bar" or "stacked". `labels` name the places on the x axis, `values` are numbers or null, one a label.
// `format` writes a value, `place` a label in full. The pointer or the arrow keys walk over the places and read them out; the
// same figures stand in a table behind the button, the last first. Nothing moves. Series are told apart by their order in the legend too.

import { h, outside, replace, s, unique } from "./dom.js";
import { number } from "./format.js";
import { icon } from "./icons.js";
import { table } from "./table.js";

const HEIGHT = 200;
const [TOP, BOTTOM, RIGHT] = [10, 24, 8];

export function chart({ title, kind, labels, series, format = number, place = (label) => label, described, height = HEIGHT, level = 3, note }) {
  const id = unique("chart");
  let geometry = null;
  let mark = null;
  let at = Math.max(labels.length - 1, 0);

  const plot = h("div", { class: "plot" });
  const tip = h("div", { class: "tip", "aria-hidden": "true", hidden: true });
  const walk = h("div", { class: "walk", tabindex: "0", role: "slider", "aria-label": `${title}, place by place`, "aria-valuemin": 0 });
  const nothing = h("div", { class: "chart-empty" }, h("p", null, "Nothing in this time."));
  const legend = h("ul", { class: "legend", "aria-label": "Legend" });
  const figures = h("div", { class: "chart-table", hidden: true, tabindex: "0", role: "region", "aria-label": `${title}, as a table` });
  const swap = h("button", { class: "button bare", "aria-pressed": "false" }, icon("table"), "Show as table");

  const read = () => `${place(labels[at])}: ${series.map((one) => `${one.name} ${format(one.values[at] ?? null)}`).join(", ")}`;
  const asTable = () => swap.getAttribute("aria-pressed") === "true";
  const hide = () => {
    tip.hidden = true;
    mark?.setAttribute("class", "mark unseen-shape");
  };
  const show = (next) => {
    at = Math.min(Math.max(next, 0), labels.length - 1);
    walk.setAttribute("aria-valuenow", at);
    walk.setAttribute("aria-valuetext", read());
    if (!geometry) return;
    const x = geometry.middle(at);
    mark.setAttribute("class", "mark");
    mark.setAttribute("x1", x);
    mark.setAttribute("x2", x);
    const line = (one, n) => h("span", { class: "tip-line" }, h("span", { class: ["dot", tone(one, n)] }), outside(one.name, { max: 32 }), h("b", null, format(one.values[at] ?? null)));
    replace(tip, h("b", null, place(labels[at])), series.map(line));
    tip.hidden = false;
    const left = x > geometry.width / 2 ? x - tip.offsetWidth - 12 : x + 12;
    tip.style.left = `${Math.max(Math.min(left, geometry.width - tip.offsetWidth), 0)}px`;
  };
  walk.addEventListener("pointermove", (event) => geometry && show(geometry.nearest(event.offsetX)));
  walk.addEventListener("pointerleave", () => document.activeElement !== walk && hide());
  walk.addEventListener("focus", () => walk.matches(":focus-visible") && show(at));
  walk.addEventListener("blur", hide);
  walk.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowDown: at - 1, ArrowUp: at + 1, Home: 0, End: labels.length - 1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      show(to);
    } else if (event.key === "Escape") hide();
  });

  const draw = () => {
    const width = Math.floor(plot.clientWidth);
    if (width < 40) return;
    geometry = scales(width, height, kind, labels, series, format);
    mark = s("line", { class: "mark unseen-shape", y1: TOP, y2: height - BOTTOM });
    const words = described ?? `${kind === "line" ? "Lines" : "Bars"} of ${series.map((one) => one.name).join(", ")}`;
    const picture = s(
      "svg",
      { role: "img", viewBox: `0 0 ${width} ${height}`, width, height, "aria-labelledby": `${id}-t`, "aria-describedby": `${id}-d` },
      s("title", { id: `${id}-t` }, title),
      s("desc", { id: `${id}-d` }, `${words}. ${labels.length} places, from ${place(labels[0])} to ${place(labels.at(-1))}.`),
      axes(geometry, labels, format),
      kind === "line" ? lines(geometry, series) : bars(geometry, labels, series, kind),
      mark,
    );
    const walked = !tip.hidden;
    // The place that is walked over stays, so that the focus does.
    const former = plot.querySelector("svg");
    if (former) former.replaceWith(picture);
    else replace(plot, picture, walk, tip);
    if (walked) show(at);
    else hide();
  };
  const settle = () => {
    const any = labels.length > 0 && series.some((one) => one.values.some((amount) => amount !== null && amount !== 0));
    nothing.hidden = any;
    swap.hidden = !any;
    plot.hidden = !any || asTable();
    figures.hidden = !any || !asTable();
    replace(legend, series.map((one, n) => h("li", null, h("span", { class: ["dot", tone(one, n)] }), outside(one.name, { max: 32 }))));
    legend.hidden = !any || series.length < 2;
    if (!any) return;
    at = Math.min(at, labels.length - 1);
    walk.setAttribute("aria-valuemax", labels.length - 1);
    walk.setAttribute("aria-valuenow", at);
    walk.setAttribute("aria-valuetext", read());
    if (asTable()) replace(figures, listed(title, labels, series, format, place));
    else draw();
  };
  swap.addEventListener("click", () => {
    swap.setAttribute("aria-pressed", String(!asTable()));
    settle();
  });
  new ResizeObserver(() => !plot.hidden && draw()).observe(plot);

  const heading = h(`h${level}`, { id }, title);
  const node = h("figure", { class: "chart", "aria-labelledby": id }, h("figcaption", null, h("div", { class: "chart-head" }, heading, swap), note && h("p", { class: "quiet small" }, note), legend), nothing, plot, figures);
  /** New figures in the same place: what is focused, pointed at or unfolded stays so. */
  node.renew = (next) => {
    ({ labels, series } = next);
    settle();
  };
  settle();
  return node;
}

const tone = (one, n) => one.tone ?? `s${(n % 8) + 1}`;

function listed(title, labels, series, format, place) {
  const columns = [
    { label: "At", head: true, cell: (at) => place(labels[at]) },
    ...series.map((one) => ({ label: one.name, figure: true, cell: (at) => format(one.values[at] ?? null) })),
  ];
  return table({ caption: title, columns, rows: [...labels.keys()].reverse() });
}

/** Round numbers from zero to the highest value or beyond, four or five of them. */
export function ticks(most, whole = false) {
  if (!(most > 0)) return [0, 1];
  const rough = whole ? Math.max(most / 4, 1) : most / 4;
  const size = 10 ** Math.floor(Math.log10(rough));
  // Small counts have no halves; 2.5 is for what is large, or not counted.
  const step = [1, 2, 2.5, 5, 10].map((n) => n * size).find((n) => n >= rough * 0.999 && (whole ? Number.isInteger(n) : true));
  const count = Math.ceil((most / step) * 0.9999);
  // Multiples of the step carry the noise of binary fractions.
  return [...Array(count + 1).keys()].map((n) => Number((n * step).toPrecision(12)));
}

function scales(width, height, kind, labels, series, format) {
  const sum = (at) => series.reduce((total, one) => total + (one.values[at] ?? 0), 0);
  const most = kind === "stacked" ? Math.max(...labels.map((_, at) => sum(at))) : Math.max(...series.flatMap((one) => one.values.map((amount) => amount ?? 0)));
  const whole = series.every((one) => one.values.every((amount) => amount === null || Number.isInteger(amount)));
  const steps = ticks(most, whole);
  const left = Math.max(...steps.map((step) => format(step).length)) * 6.6 + 10;
  const [wide, high] = [width - left - RIGHT, height - TOP - BOTTOM];
  const slot = wide / labels.length;
  const point = kind === "line" && labels.length > 1;
  const middle = (at) => round(point ? left + (at / (labels.length - 1)) * wide : left + (at + 0.5) * slot);
  const y = (amount) => round(TOP + high - (amount / steps.at(-1)) * high);
  const nearest = (x) => Math.round(point ? ((x - left) / wide) * (labels.length - 1) : (x - left) / slot - 0.5);
  return { width, height, left, wide, high, slot, steps, middle, y, nearest };
}

const round = (n) => Math.round(n * 10) / 10;

function axes({ width, height, left, wide, steps, middle, y }, labels, format) {
  // Half as much again as the longest word: the last one may be moved in by half of it.
  const room = Math.max(...labels.map((label) => label.length)) * 6.2 * 1.5 + 8;
  const every = Math.max(Math.ceil((labels.length * room) / wide), 1);
  // Counted from the end: the last one is what people look at.
  const shown = [...labels.keys()].filter((at) => (labels.length - 1 - at) % every === 0);
  const half = (at) => labels[at].length * 3.2;
  const anchor = (at) => (middle(at) + half(at) > width ? "end" : middle(at) - half(at) < 0 ? "start" : "middle");
  return s(
    "g",
    { class: "axes" },
    steps.map((step) => [
      s("line", { class: step === 0 ? "base" : "rule", x1: left, x2: width - RIGHT, y1: y(step), y2: y(step) }),
      s("text", { x: left - 8, y: y(step), "text-anchor": "end", dy: "0.32em" }, format(step)),
    ]),
    shown.map((at) => s("text", { x: middle(at), y: height - 6, "text-anchor": anchor(at) }, labels[at])),
  );
}

function lines({ middle, y }, series) {
  return series.map((one, n) => {
    // What is not known leaves a gap.
    const runs = [];
    one.values.forEach((amount, at) => {
      if (amount === null || amount === undefined) return;
      const last = runs.at(-1);
      if (last?.at(-1) === at - 1) last.push(at);
      else runs.push([at]);
    });
    const point = (at) => `${middle(at)} ${y(one.values[at])}`;
    const path = runs.map((run) => `M${run.map(point).join("L")}`).join("");
    const alone = runs.filter((run) => run.length === 1).map(([at]) => s("circle", { cx: middle(at), cy: y(one.values[at]), r: 2.5 }));
    const below = runs.filter((run) => run.length > 1).map((run) => `M${middle(run[0])} ${y(0)}L${run.map(point).join("L")}L${middle(run.at(-1))} ${y(0)}Z`);
    return s("g", { class: ["series", tone(one, n)].join(" ") }, series.length === 1 && s("path", { class: "below", d: below.join("") }), s("path", { class: "stroke", d: path }), alone);
  });
}

function bars({ middle, y, slot }, labels, series, kind) {
  const gap = slot < 3 ? 0 : Math.min(Math.max(slot * 0.25, 1), 14);
  const full = Math.min(slot - gap, 48);
  const wide = kind === "stacked" ? full : full / series.length;
  const base = labels.map(() => 0);
  return series.map((one, n) => {
    const shapes = one.values.map((amount, at) => {
      if (!amount) return null;
      const from = kind === "stacked" ? base[at] : 0;
      base[at] = from + amount;
      const x = middle(at) - full / 2 + (kind === "stacked" ? 0 : n * wide);
      const [high, low] = [y(from + amount), y(from)];
      return s("rect", { x: round(x), y: high, width: round(Math.max(wide, 1)), height: round(Math.max(low - high, 1)), rx: Math.min(wide / 6, 2) });
    });
    return s("g", { class: ["series", tone(one, n)].join(" ") }, shapes);
  });
}

/** A bar of how much of `max` is used; the words beside it say the same. `max` null is no limit. */
export function bar(value, max, { label, text, thresholds = [0.8, 1] } = {}) {
  const part = max > 0 ? Math.min(Math.max(value / max, 0), 1) : max === 0 ? 1 : 0;
  const level = part >= thresholds[1] ? "bad" : part >= thresholds[0] ? "warn" : "fine";
  return h(
    "div",
    { class: "budget" },
    h("div", { class: "budget-words" }, label && h("span", null, label), h("span", { class: "figure" }, text)),
    s(
      "svg",
      { class: `budget-bar ${level}`, viewBox: "0 0 100 6", preserveAspectRatio: "none", "aria-hidden": "true" },
      s("rect", { class: "all", width: 100, height: 6 }),
      s("rect", { class: "used", width: round(part * 100), height: 6 }),
    ),
  );
}

// Figures and times, for people.
//
//   number(56300) "56,300"      compact(1234567) "1.2 M"       percent(0.173) "17 %"
//   usd("0.0123") "$0.0123"     ms(1234) "1.23 s"              duration(93784) "1 d 2 h"     (seconds)
//   when(iso)                   <time>3 min ago</time>, the whole time as its title
//   absolute(iso)               "2026-11-26 10:41:07", of this machine's zone; day(iso) without the time
//
// Dollars come as decimal strings and stay digits: usd, usdSum and usdCompare never make a float of them; usdNumber does,
// for the height of a bar. What is not known (null) is NONE.

import { h } from "./dom.js";

export const NONE = "–";
const GAP = "\u00a0";
const DIGITS = 12;
const ONE = 10n ** BigInt(DIGITS);
const grouped = new Intl.NumberFormat("en");

const missing = (value) => value === null || value === undefined || Number.isNaN(value);

export const number = (value) => (missing(value) ? NONE : grouped.format(value));

export function compact(value) {
  if (missing(value)) return NONE;
  const size = Math.abs(value);
  for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    // 999,500 and more would be rounded to 1,000 k.
    if (size >= unit * 0.9995 && size >= 1000) {
      const part = value / unit;
      return `${Math.abs(part) < 99.95 ? trim(part.toFixed(1)) : grouped.format(Math.round(part))}${GAP}${name}`;
    }
  }
  return Number.isInteger(value) ? String(value) : trim(value.toFixed(size < 10 ? 2 : 1));
}

/** counted(1, "key") "1 key", counted(56300, "key") "56.3 k keys" */
export const counted = (value, thing) => `${compact(value)} ${thing}${value === 1 ? "" : "s"}`;

const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);

export const percent = (part) => (missing(part) ? NONE : `${trim((part * 100).toFixed(part < 0.1 ? 1 : 0))}${GAP}%`);

export function ms(value) {
  if (missing(value)) return NONE;
  if (value > 0 && value < 1) return `${Math.round(value * 1000)}${GAP}µs`;
  if (value < 1000) return `${trim(value.toFixed(value < 10 ? 1 : 0))}${GAP}ms`;
  if (value < 60_000) return `${trim((value / 1000).toFixed(value < 10_000 ? 2 : 1))}${GAP}s`;
  return duration(value / 1000);
}

export function duration(seconds) {
  if (missing(seconds)) return NONE;
  const units = [[86_400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  let left = Math.round(seconds);
  const said = [];
  for (const [size, name] of units) {
    const whole = Math.floor(left / size);
    left -= whole * size;
    if (whole > 0) said.push(`${whole}${GAP}${name}`);
    // Two units are exact enough.
    if (said.length === 2 || (said.length === 1 && whole === 0)) break;
  }
  return said.join(" ") || `0${GAP}s`;
}

/** A decimal string as so many parts of 10^-12. */
function parts(text) {
  const found = /^(-?)(\d*)(?:\.(\d*))?$/.exec(String(text).trim());
  if (!found || (found[2] === "" && !found[3])) return null;
  const fraction = (found[3] ?? "").slice(0, DIGITS).padEnd(DIGITS, "0");
  const value = BigInt(found[2] || "0") * ONE + BigInt(fraction);
  return found[1] ? -value : value;
}

function decimal(value) {
  const size = value < 0n ? -value : value;
  const fraction = String(size % ONE).padStart(DIGITS, "0").replace(/0+$/, "");
  return `${value < 0n ? "-" : ""}${size / ONE}${fraction && `.${fraction}`}`;
}

/** So many digits after the point that something is seen of it: two at least, and of less than ten cents three that count. */
export function usd(text, { exact = false } = {}) {
  const value = missing(text) ? null : parts(text);
  if (value === null) return NONE;
  const size = value < 0n ? -value : value;
  let places = 2;
  if (exact) places = Math.max(2, decimal(size).split(".")[1]?.length ?? 0);
  else if (size > 0n && size < ONE / 10n) {
    const zeros = /^0*/.exec(String(size).padStart(DIGITS, "0"))[0].length;
    places = Math.min(Math.max(zeros + 3, 2), DIGITS);
  }
  const step = 10n ** BigInt(DIGITS - places);
  const rounded = ((size + step / 2n) / step) * step;
  const [whole, fraction = ""] = decimal(rounded).split(".");
  return `${value < 0n ? "−" : ""}$${grouped.format(BigInt(whole))}.${fraction.padEnd(2, "0")}`;
}

export const usdSum = (texts) => decimal(texts.reduce((sum, text) => sum + (missing(text) ? 0n : (parts(text) ?? 0n)), 0n));

export function usdCompare(a, b) {
  const [x, y] = [parts(a ?? "0") ?? 0n, parts(b ?? "0") ?? 0n];
  return x < y ? -1 : x > y ? 1 : 0;
}

export const usdNumber = (text) => (missing(text) ? null : Number(text));

const pad = (value, size = 2) => String(value).padStart(size, "0");

export function day(iso) {
  const date = new Date(iso);
  return Number.isNaN(date.getTime()) ? NONE : `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
}

export function clock(iso, { seconds = false } = {}) {
  const date = new Date(iso);
  if (Number.isNaN(date.getTime())) return NONE;
  return `${pad(date.getHours())}:${pad(date.getMinutes())}${seconds ? `:${pad(date.getSeconds())}` : ""}`;
}

export const absolute = (iso) => (missing(iso) ? NONE : `${day(iso)} ${clock(iso, { seconds: true })}`);

const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });

export function ago(iso, now = Date.now()) {
  const seconds = (new Date(iso).getTime() - now) / 1000;
  if (Math.abs(seconds) < 5) return "now";
  for (const [size, name] of [[31_557_600, "year"], [2_629_800, "month"], [86_400, "day"], [3600, "hour"], [60, "minute"]]) {
    if (Math.abs(seconds) >= size) return relative.format(Math.trunc(seconds / size), name);
  }
  return relative.format(Math.trunc(seconds), "second");
}

export function when(iso) {
  if (missing(iso)) return h("span", { class: "quiet" }, NONE);
  return h("time", { datetime: iso, title: `${absolute(iso)} (${iso})` }, ago(iso));
}

/** The UTC days from one time to before another, "2026-11-26" each: what usage is kept by. */
export function utcDays(from, to) {
  const days = [];
  const end = new Date(to).getTime();
  for (let at = new Date(`${String(from).slice(0, 10)}T00:00:00Z`).getTime(); at < end && days.length < 3700; at += 86_400_000) days.push(new Date(at).toISOString().slice(0, 10));
  return days;
}

/** "26 Nov", of a day as usage is kept by. */
export function shortDay(text) {
  const date = new Date(`${text}T00:00:00Z`);
  return Number.isNaN(date.getTime()) ? String(text) : date.toLocaleDateString("en-GB", { day: "numeric", month: "short", timeZone: "UTC" });
}

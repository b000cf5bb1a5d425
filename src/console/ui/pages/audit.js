// Audit: who did what, newest first, and whether the log is whole.
//
// What a record was before and after is shown as text. The filters stand in the address.

import { request } from "../api.js";
import { copyable } from "../copy.js";
import { dialog } from "../dialog.js";
import { h, outside, replace } from "../dom.js";
import { failure } from "../failure.js";
import { select, text } from "../form.js";
import { absolute, number, when } from "../format.js";
import { growing } from "../paging.js";
import { badge, card, empty, facts } from "../parts.js";
import { more, table } from "../table.js";

export const title = "Audit";

const PAGE = 50;
const SINCE = [["", "the beginning"], ["1", "the last day"], ["7", "the last 7 days"], ["30", "the last 30 days"]];

export async function render(root, { query, signal, keep, actions }) {
  const list = h("div");
  const verdict = h("div");
  const asked = { ...query };
  const show = async () => {
    const grown = growing({
      load: async (cursor) => {
        const since = Number(asked.since) > 0 ? new Date(Date.now() - asked.since * 86_400_000).toISOString() : null;
        const { actor, object, action, order } = asked;
        const { data } = await request("GET", "/api/audit", { query: { actor, object, action, order, since, limit: PAGE, cursor }, signal });
        return { items: data.records, next: data.next_cursor };
      },
      draw: (records) => table({ caption: "Records", columns: COLUMNS, rows: records }),
      add: more,
      empty: empty("No record is like that."),
    });
    replace(list, card({}, grown.node));
    await grown.first;
  };
  replace(root, verdict, filters(asked, () => (keep(asked), show())), list);
  replace(actions, h("button", { class: "button", on: { click: (event) => verify(event.currentTarget, verdict, signal) } }, "Verify the log"));
  await show();
}

function filters(asked, changed) {
  const fields = [
    text({ name: "actor", label: "Who", value: asked.actor, optional: false, placeholder: "uid:1000, token:…, sidekey" }),
    text({ name: "action", label: "What", value: asked.action, optional: false, placeholder: "key, key.rotate…" }),
    text({ name: "object", label: "To what", value: asked.object, optional: false, placeholder: "an id, a name" }),
    select({ name: "since", label: "Since", value: asked.since ?? "", options: SINCE }),
    select({ name: "order", label: "Order", value: asked.order ?? "", options: [["", "newest first"], ["oldest", "oldest first"]] }),
  ];
  const apply = () => {
    for (const field of fields) asked[field.name] = field.value;
    changed();
  };
  for (const field of fields) field.input.addEventListener("change", apply);
  const form = h("form", { class: "filters", role: "search", "aria-label": "Records" }, fields.map((field) => field.node));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  return form;
}

function result(record) {
  const { result: said } = record;
  if (said === "ok") return badge("ok", "ok");
  if (said === "started" || said === "undone") return badge("warn", said);
  const [word, why] = Object.entries(said ?? {})[0] ?? ["unknown", ""];
  return badge(word === "refused" ? "bad" : "warn", why ? `${word}: ${why}` : word);
}

const COLUMNS = [
  { label: "When", cell: (record) => when(record.time) },
  { label: "Who", head: true, cell: (record) => [outside(record.actor, { max: 60 }), " ", h("span", { class: "quiet small" }, outside(record.from, { max: 60 }))] },
  { label: "What", cell: (record) => [h("code", null, outside(record.action, { max: 60 })), record.count > 1 && h("span", { class: "quiet" }, ` ×${number(record.count)}`)] },
  { label: "To what", cell: (record) => outside(record.object, { max: 80 }) },
  { label: "Result", cell: result },
  { label: "Record", cell: (record) => h("button", { class: "button bare", "aria-label": `Record ${record.seq}`, on: { click: () => open(record) } }, `#${record.seq}`) },
];

function open(record) {
  const { seq, time, actor, from, action, object, before, after, prev, hash, mac, ...rest } = record;
  const others = Object.entries(rest).filter(([name]) => name !== "result");
  dialog({
    title: `Record ${seq}`,
    wide: true,
    body: [
      facts([
        ["When", h("time", { datetime: time }, absolute(time))],
        ["Who", outside(actor)],
        ["From where", outside(from)],
        ["What", h("code", null, outside(action))],
        ["To what", outside(object)],
        ["Result", result(record)],
        ...others.map(([name, value]) => [name, outside(typeof value === "string" ? value : JSON.stringify(value), { max: 500 })]),
      ]),
      changes(before, after),
      h("details", null, h("summary", null, "Its place in the chain"), facts([["Hash of the one before", h("code", null, prev)], ["Hash", h("code", null, hash)], ["Keyed hash", h("code", null, mac)]])),
    ],
    actions: (close) => h("button", { class: "button", autofocus: true, on: { click: () => close() } }, "Close"),
  });
}

/** The fields that are not the same; of what is new or gone, all of them. */
function changes(before, after) {
  if (before === undefined && after === undefined) return null;
  const [was, is] = [before ?? {}, after ?? {}];
  if (typeof was !== "object" || typeof is !== "object") return h("pre", { class: "sunken" }, `${pretty(before)}\n→\n${pretty(after)}`);
  const names = [...new Set([...Object.keys(was), ...Object.keys(is)])];
  const rows = names.filter((name) => JSON.stringify(was[name]) !== JSON.stringify(is[name])).map((name) => ({ name, was: was[name], is: is[name] }));
  const value = (one) => (one === undefined ? h("span", { class: "quiet" }, "–") : h("pre", null, outside(pretty(one), { max: 4000 })));
  const columns = [
    { label: "Field", head: true, cell: (row) => h("code", null, outside(row.name, { max: 80 })) },
    { label: "Before", cell: (row) => value(row.was) },
    { label: "After", cell: (row) => value(row.is) },
  ];
  return table({ caption: "What was changed", columns, rows, empty: h("p", { class: "quiet" }, "Nothing of it was changed.") });
}

const pretty = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 1)) ?? "–";

async function verify(button, place, signal) {
  button.disabled = true;
  try {
    const { data } = await request("GET", "/api/audit/verify", { signal });
    replace(place, told(data));
  } catch (error) {
    if (error?.name !== "AbortError") replace(place, failure(error));
  } finally {
    button.disabled = false;
  }
}

function told(verdict) {
  const { whole, records, first, last, head, ...rest } = verdict;
  if (whole) {
    return h(
      "div",
      { class: "notice ok", role: "status" },
      h("p", null, h("b", null, "The log is whole. "), `${number(records)} records, #${first} to #${last}: none was changed, removed, moved or put in.`),
      h("details", null, h("summary", null, "To prove it later"), h("p", null, "Note this somewhere else; the command below then says whether the log still holds it."), copyable(`sidekey audit verify --head ${last}:${head}`)),
    );
  }
  const where = Object.entries(rest).filter(([, value]) => value !== null && value !== undefined);
  return h("div", { class: "notice bad", role: "alert" }, h("p", null, h("b", null, "The log is not as it was left.")), where.map(([name, value]) => h("p", null, `${name}: `, outside(typeof value === "string" ? value : JSON.stringify(value), { max: 400 }))));
}

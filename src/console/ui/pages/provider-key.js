// One provider key: how it stands, and what can be done with it.
//
//   keyRow(key, { siblings, first, reload })     an item of a list
//   ranked(keys)                                 in the order in which they are served

import { enc, request } from "../api.js";
import { confirm } from "../dialog.js";
import { h, outside, replace } from "../dom.js";
import { compact, counted, ms, usd, when } from "../format.js";
import { menu } from "../menu.js";
import { say } from "../message.js";
import { badge, status } from "../parts.js";
import { standing } from "../policy.js";
import { link } from "../router.js";
import { may } from "../session.js";
import { complain, editKey, rotateKey, tagOf } from "./provider-forms.js";

const VERDICTS = {
  accepted: ["ok", "The provider takes the key"],
  rejected: ["bad", "The provider refuses the key"],
  unreachable: ["warn", "The provider did not answer"],
  unreadable: ["bad", "The reference gives no key"],
  untestable: ["quiet", "It cannot be tested without spending"],
};
/** The last test of each key, as long as the console is open. */
const tested = new Map();

export function ranked(keys) {
  const rank = (key) => [Number(key.environment), key.owner, key.priority, key.created];
  return keys.toSorted((a, b) => {
    const [x, y] = [rank(a), rank(b)];
    const at = x.findIndex((part, i) => part !== y[i]);
    return at < 0 ? 0 : x[at] < y[at] ? -1 : 1;
  });
}

export function keyRow(key, { siblings, first, reload }) {
  const act = (word) => `${word}-${key.id}`;
  const outcome = h("div", { role: "status", class: "outcome" }, tested.has(key.id) && verdict(tested.get(key.id)));
  const path = `/api/provider-keys/${enc(key.id)}`;
  const change = async (what, done) => {
    try {
      await request("POST", `${path}/${what}`, { etag: tagOf(key) });
      say("ok", done);
    } catch (error) {
      complain(error);
    }
    await reload();
  };
  const test = async (event) => {
    const button = event.currentTarget;
    button.disabled = true;
    replace(outcome, h("span", { class: "quiet" }, "Asking the provider…"));
    try {
      const { data } = await request("POST", `${path}/test`);
      tested.set(key.id, { ...data.test, at: new Date().toISOString() });
      await reload();
    } catch (error) {
      replace(outcome);
      complain(error);
    }
    button.disabled = false;
  };
  const remove = async () => {
    const text = ["Requests that need it fail from then on. ", h("b", null, outside(`${key.provider}/${key.name}`)), " cannot be had back: sidekey forgets its secret."];
    if (!(await confirm({ title: "Delete this key?", text, action: "Delete", danger: true }))) return;
    try {
      await request("DELETE", path, { etag: tagOf(key) });
      say("ok", `${key.provider}/${key.name} is deleted.`);
    } catch (error) {
      complain(error);
    }
    await reload();
  };
  const name = `${key.provider}/${key.name}`;
  const off = key.status === "disabled";
  const buttons = may("operator", { own: true }) && [
    h("button", { class: "button bare", "data-act": act("test"), "aria-label": `Test ${name}`, on: { click: test } }, "Test"),
    // What rests or was refused is forgiven by the same word.
    (!key.environment || key.status !== "active") &&
      h(
        "button",
        {
          class: "button bare",
          "data-act": act("turn"),
          "aria-label": `${key.status === "active" ? "Disable" : "Enable"} ${name}`,
          on: { click: () => (key.status === "active" ? change("disable", `${name} is disabled.`) : change("enable", `${name} is enabled.`)) },
        },
        key.status === "active" ? "Disable" : "Enable",
      ),
    !key.environment &&
      h("div", { "data-act": act("more") }, menu({ label: `More for ${name}` }, [
        ["Edit", () => editKey(key, { reload })],
        ["Rotate", () => rotateKey(key, { reload })],
        siblings.some((other) => other.id !== key.id && other.owner === key.owner && !other.environment) && !first && ["Make default", () => makeDefault(key, siblings, reload)],
        key.status !== "active" && !off && ["Disable", () => change("disable", `${name} is disabled.`)],
        ["Delete", remove, { danger: true }],
      ])),
  ];
  const used = key.total_requests > 0;
  return h(
    "li",
    { class: "provider-key" },
    h(
      "div",
      { class: "spread" },
      h("div", { class: "key-name" }, h("h3", null, outside(key.name, { max: 64 })), status(key.status), first && badge("quiet", "default", "Served before the other keys of its owner")),
      buttons && h("div", { class: "actions" }, buttons),
    ),
    h(
      "p",
      { class: "quiet small" },
      key.masked && h("code", null, key.masked),
      key.origin !== "sealed" && [key.masked && " ", h("code", null, outside(key.origin, { max: 80 }))],
      " · ",
      outside(key.owner, { max: 64 }),
      key.priority > 0 && ` · priority ${key.priority}`,
      key.weight !== 1 && ` · weight ${key.weight}`,
      " · since ",
      when(key.since ?? key.created),
      key.until && [" · until ", when(key.until)],
    ),
    key.last_error && key.status !== "active" && h("p", { class: "reason" }, "Reason: ", outside(key.last_error, { max: 300 })),
    key.models.length > 0 && h("div", { class: "tags" }, key.models.slice(0, 6).map((model) => h("span", { class: "tag" }, outside(model, { max: 48 }))), key.models.length > 6 && h("span", { class: "tag" }, `and ${key.models.length - 6} more`)),
    standing(key.in_force, { own: "provider_key", most: 4 }),
    h(
      "p",
      { class: "small" },
      used ? [`${counted(key.total_requests, "request")} · ${compact(key.total_tokens)} tokens · ${usd(key.spent)} · `, when(key.last_used), " · "] : "Never used · ",
      h("a", { href: link("/usage", { provider_key: key.id }), "aria-label": `Usage of ${name}` }, "Usage"),
    ),
    outcome,
  );
}

function verdict({ verdict: word, status: code, latency_ms: latency, detail, at }) {
  const [tone, text] = VERDICTS[word] ?? ["quiet", word];
  return [badge(tone, word), ` ${text}${word === "untestable" ? "" : ` (${code ? `${code}, ` : ""}${ms(latency)})`}. `, word !== "accepted" && outside(detail, { max: 300 }), " ", h("span", { class: "quiet" }, when(at))];
}

/** Before all others of its owner: they move up by one when there is no room below. */
async function makeDefault(key, siblings, reload) {
  const others = siblings.filter((other) => other.id !== key.id && other.owner === key.owner && !other.environment);
  const lowest = Math.min(...others.map((other) => other.priority));
  const set = (one, priority) => request("PATCH", `/api/provider-keys/${enc(one.id)}`, { etag: tagOf(one), body: { priority } });
  try {
    // The highest first, so that none passes another on the way.
    if (lowest === 0) for (const other of others.toSorted((a, b) => b.priority - a.priority)) await set(other, other.priority + 1);
    await set(key, Math.max(lowest - 1, 0));
    say("ok", `${key.provider}/${key.name} is served before the other keys of ${key.owner}.`);
  } catch (error) {
    complain(error);
  }
  await reload();
}

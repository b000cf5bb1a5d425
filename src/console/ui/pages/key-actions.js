// What can be done with a virtual key.
//
//   keyButtons(key, { reload, compact, deleted })     buttons, or with `compact` one that opens them

import { enc, request } from "../api.js";
import { confirm } from "../dialog.js";
import { h, outside } from "../dom.js";
import { menu } from "../menu.js";
import { say } from "../message.js";
import { may, self } from "../session.js";
import { editKey, rotateKey } from "./key-forms.js";
import { complain, tagOf } from "./provider-forms.js";

export function keyButtons(key, { reload, compact = false, deleted = reload }) {
  const items = choices(key, { reload, deleted });
  if (items.length === 0) return null;
  if (compact) return h("div", { "data-act": `more-${key.id}` }, menu({ label: `Actions for ${key.name.slice(0, 80)}` }, items));
  return items.map(([label, act, { danger = false } = {}]) => h("button", { class: ["button", danger && "danger-text"], "data-act": label, on: { click: act } }, label));
}

function choices(key, { reload, deleted }) {
  if (!may("operator", { own: true })) return [];
  const live = key.status !== "revoked";
  const path = `/api/keys/${enc(key.id)}`;
  const name = () => h("b", null, outside(key.name, { max: 80 }));
  const change = async (word, done, question) => {
    if (question && !(await confirm(question))) return;
    try {
      await request("POST", `${path}/${word}`, { etag: tagOf(key) });
      say("ok", `${key.name.slice(0, 80)} is ${done}.`);
    } catch (error) {
      complain(error);
    }
    await reload();
  };
  const disable = () =>
    change("disable", "disabled", { title: "Disable this key?", text: ["Requests with ", name(), " are refused until it is enabled again."], action: "Disable" });
  const revoke = () =>
    change("revoke", "revoked", { title: "Revoke this key?", text: ["Requests with ", name(), " are refused from now on. This cannot be undone."], action: "Revoke", danger: true });
  const remove = async () => {
    const text = ["", name(), " goes for good, and with it what is known of it. Its usage stays in the ledger."];
    if (!(await confirm({ title: "Delete this key?", text, action: "Delete", danger: true }))) return;
    try {
      await request("DELETE", path, { etag: tagOf(key) });
    } catch (error) {
      complain(error);
      return reload();
    }
    say("ok", `${key.name.slice(0, 80)} is deleted.`);
    return deleted();
  };
  return [
    live && ["Edit", () => editKey(key, { reload })],
    live && ["Rotate", () => rotateKey(key, { reload })],
    live && key.status === "active" && ["Disable", disable],
    // A user who has lost a key switches it off; switching it on again is for operators.
    key.status === "disabled" && self() === null && ["Enable", () => change("enable", "enabled")],
    live && ["Revoke", revoke, { danger: true }],
    ["Delete", remove, { danger: true }],
  ].filter(Boolean);
}

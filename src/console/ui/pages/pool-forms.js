// Dialogs about pools and plans.

import { ApiError, enc, gather, request } from "../api.js";
import { dialog } from "../dialog.js";
import { h, outside, unique } from "../dom.js";
import { area, checkbox, form, list, select, text } from "../form.js";
import { say } from "../message.js";
import { policyFields, policyOf } from "../policy.js";
import { routesOf, written } from "../routes.js";
import { complain, tagOf } from "./provider-forms.js";

export const POLICIES = {
  "least-used": "the least used key first",
  weighted: "in proportion to weights",
  "round-robin": "the longest unused key first",
  random: "any key",
};

/** Makes `item` anew, or changes it; the dialog is gone when that is done. */
async function save(what, item, name, body) {
  if (item) await request("PATCH", `/api/${what}s/${enc(item.name)}`, { etag: tagOf(item), body });
  else await request("POST", `/api/${what}s`, { body: { name, ...body } });
  say("ok", `The ${what} ${item?.name ?? name} is ${item ? "changed" : "made"}.`);
}

async function shown(what, item, fields, bodyOf, { reload }) {
  const submit = async (values) => {
    await save(what, item, values.name, bodyOf(values));
    box.close();
  };
  const box = dialog({
    title: item ? [`Edit the ${what} `, outside(item.name, { max: 64 })] : `Create a ${what}`,
    wide: true,
    body: (close) => form({ fields, action: item ? "Save" : "Create", submit, cancel: () => close() }),
  });
  await box.closed;
  // Also after a conflict: whoever gives up sees how things are.
  await reload();
}

const nameField = (help) => text({ name: "name", label: "Name", required: true, maxlength: 128, help });

export async function poolForm(pool, { reload }) {
  let keys;
  try {
    keys = (await gather("/api/provider-keys", "provider_keys", { most: 1000 })).items;
  } catch (error) {
    return complain(error);
  }
  const fields = [
    !pool && nameField("What virtual keys name it by; it cannot change."),
    select({ name: "policy", label: "Who goes first among equals", options: Object.entries(POLICIES).map(([word, says]) => [word, `${word}: ${says}`]), value: pool?.policy ?? "least-used" }),
    checkbox({ name: "sticky", label: "Requests that begin alike go to one key", help: "So that the provider's prompt cache serves them again.", value: pool?.sticky ?? false }),
    members(keys, pool?.keys ?? []),
  ].filter(Boolean);
  const bodyOf = ({ policy, sticky, keys: chosen }) => ({ policy, sticky, keys: chosen });
  await shown("pool", pool, fields, bodyOf, { reload });
}

/** A field of boxes, one for each provider key. */
function members(keys, chosen) {
  const held = new Set(chosen.map(({ id }) => id));
  const complaint = h("p", { class: "complaint", hidden: true });
  const boxes = keys.map((key) => {
    const id = unique("member");
    const input = h("input", { type: "checkbox", id, checked: held.has(key.id) });
    return { key, input, node: h("div", { class: "field check" }, input, h("label", { for: id }, outside(`${key.provider}/${key.name}`, { max: 64 }), h("span", { class: "quiet" }, " ", outside(key.owner, { max: 40 })))) };
  });
  const node = h("fieldset", { class: "field members" }, h("legend", null, "Keys"), boxes.length === 0 && h("p", { class: "help" }, "There are no provider keys yet."), h("div", { class: "member-list" }, boxes.map((box) => box.node)), complaint);
  const error = (words) => {
    complaint.hidden = !words;
    complaint.textContent = words ?? "";
  };
  return {
    name: "keys",
    node,
    input: boxes[0]?.input ?? h("input", { type: "hidden" }),
    error,
    get value() {
      return boxes.filter((box) => box.input.checked).map((box) => box.key.id);
    },
  };
}

export async function planForm(plan, { reload }) {
  const fields = [
    !plan && nameField("What virtual keys name it by; it cannot change."),
    text({ name: "description", label: "Description", value: plan?.description }),
    list({ name: "models", label: "Models", value: plan?.models, placeholder: "gpt-4o*", help: "Names or globs, one a line. Empty is every model." }),
    policyFields(plan, { title: "Limits of each key", open: true }),
    policyFields(plan?.shared, { title: "Limits of all its keys together", prefix: "shared" }),
    area({ name: "routes", label: "Routes", value: written(plan?.routes), rows: 3, help: "What a model's name means to its keys, one a line: smart=3*openai/gpt-4o,groq/llama-3.3-70b. The next target stands in; a number is its share." }),
  ].filter(Boolean);
  const bodyOf = (values) => {
    const body = { description: values.description, models: values.models, ...policyOf(values, plan) };
    const shared = policyOf(values, plan?.shared, { prefix: "shared" });
    if (Object.keys(shared).length > 0) body.shared = shared;
    if ((values.routes ?? "") !== written(plan?.routes)) {
      try {
        body.routes = routesOf(values.routes, plan?.routes);
      } catch (error) {
        throw new ApiError({ status: 422, field: "routes", detail: error.message });
      }
    }
    return body;
  };
  await shown("plan", plan, fields, bodyOf, { reload });
}

// Dialogs about virtual keys: making, changing and rotating one.

import { enc, gather, request } from "../api.js";
import { showOnce } from "../copy.js";
import { dialog } from "../dialog.js";
import { h, outside } from "../dom.js";
import { checkbox, form, group, list, number, row, select, text } from "../form.js";
import { say } from "../message.js";
import { policyFields, policyOf } from "../policy.js";
import { self } from "../session.js";
import { complain, tagOf } from "./provider-forms.js";

const GRACES = [
  ["0s", "none: the former secret is refused at once"],
  ["10m", "10 minutes"],
  ["1h", "an hour"],
  ["24h", "a day"],
  ["168h", "a week"],
];

/** The plans and pools there are, for those who may see them. */
async function offered() {
  if (self() !== null) return { plans: [], pools: [] };
  const names = async (what) => (await gather(`/api/${what}`, what, { most: 1000 })).items.map(({ name }) => name);
  const [plans, pools] = await Promise.all([names("plans"), names("pools")]);
  return { plans, pools };
}

const chosen = (names, value) => [["", "none"], ...[...new Set([...names, value].filter(Boolean))].map((name) => [name, name])];

function fieldsOf(key, { plans, pools }) {
  const mine = self() !== null;
  return [
    text({ name: "name", label: "Name", required: true, maxlength: 128, value: key?.name, help: "What the key is for, such as the app that gets it." }),
    !mine && row(text({ name: "user", label: "User", maxlength: 128, value: key?.user }), text({ name: "team", label: "Team", maxlength: 128, value: key?.team })),
    list({ name: "models", label: "Models", value: key?.models, placeholder: "gpt-4o*", help: "Names or globs, one a line. Empty is every model that its plan allows." }),
    !mine && row(select({ name: "plan", label: "Plan", options: chosen(plans, key?.plan), value: key?.plan ?? "" }), select({ name: "pool", label: "Pool", options: chosen(pools, key?.pool), value: key?.pool ?? "" })),
    policyFields(key, { help: "Empty is what the plan says, or else no limit.", open: !mine }),
    group(
      { title: "Where and how it may be used" },
      list({ name: "providers", label: "Providers", value: key?.providers, placeholder: "openai", help: "Empty is every provider." }),
      !mine && list({ name: "endpoints", label: "Endpoints", value: key?.endpoints, placeholder: "chat", help: "Empty is every endpoint." }),
      list({ name: "sources", label: "Source networks", value: key?.sources, placeholder: "10.0.0.0/8", help: "Where requests may come from. Empty is anywhere." }),
      select({ name: "fallback", label: "When the user's own provider keys cannot serve", options: [["system", "the team's and the system's keys pay"], ["none", "the request is refused"]], value: key?.fallback ?? "system" }),
      !mine && checkbox({ name: "canary", label: "A canary", help: "Nobody should ever use it: an alert is raised when somebody does.", value: key?.canary ?? false }),
    ),
  ].filter(Boolean);
}

/** What differs from what is there: lists and choices of a form as a body for the API. */
function bodyOf(values, key) {
  const body = policyOf(values, key);
  const put = (name, value, before) => {
    if (value !== undefined && JSON.stringify(value) !== JSON.stringify(before)) body[name] = value;
  };
  put("name", values.name, key?.name);
  for (const name of ["user", "team", "plan", "pool"]) put(name, values[name], key?.[name] ?? null);
  for (const name of ["models", "providers", "endpoints", "sources"]) put(name, values[name], key?.[name] ?? []);
  put("fallback", values.fallback ?? undefined, key?.fallback ?? "system");
  put("canary", values.canary, key?.canary ?? false);
  return body;
}

export async function createKey({ done }) {
  let names;
  try {
    names = await offered();
  } catch (error) {
    return complain(error);
  }
  const days = number({ name: "expires_days", label: "Good for so many days", min: 1, help: "Empty is what the configuration says (365 days, unless set).", optional: false });
  const submit = async (values) => {
    const body = bodyOf(values, null);
    if (values.expires_days !== null) body.expires_days = values.expires_days;
    const { data } = await request("POST", "/api/keys", { body });
    box.close({ made: data });
  };
  const box = dialog({ title: "Create a key", wide: true, body: (close) => form({ fields: [...fieldsOf(null, names), days], action: "Create", submit, cancel: () => close() }) });
  const answer = await box.closed;
  if (!answer?.made) return;
  await shown("The key is made", answer.made);
  await done(answer.made.key_data);
}

const shown = (title, { key, key_data: data }) =>
  showOnce({
    title,
    text: key,
    label: "Copy the key",
    note: ["This is the key of ", h("b", null, outside(data.name, { max: 80 })), ". It is shown this once: sidekey keeps only a digest of it."],
  });

export async function editKey(key, { reload }) {
  const mine = self() !== null;
  let names;
  try {
    names = await offered();
  } catch (error) {
    return complain(error);
  }
  // A user may change what a key is called, and no more.
  const fields = mine
    ? fieldsOf(key, names).filter((field) => field.name === "name")
    : [...fieldsOf(key, names), text({ name: "expires", label: "Expires", value: key.expires ?? "", help: "A time as 2027-01-31T00:00:00Z. Empty is never." })];
  const submit = async (values) => {
    const body = bodyOf(values, key);
    if (values.expires !== undefined && values.expires !== key.expires) body.expires = values.expires;
    await request("PATCH", `/api/keys/${enc(key.id)}`, { etag: tagOf(key), body });
    say("ok", `${values.name.slice(0, 80)} is changed.`);
    box.close();
  };
  const box = dialog({ title: ["Edit ", outside(key.name, { max: 64 })], wide: !mine, body: (close) => form({ fields, action: "Save", submit, cancel: () => close() }) });
  await box.closed;
  // Also after a conflict: whoever gives up sees how things are.
  await reload();
}

export async function rotateKey(key, { reload }) {
  const grace = select({ name: "grace", label: "How long the former secret works too", options: GRACES, value: "0s" });
  const submit = async (values) => {
    const { data } = await request("POST", `/api/keys/${enc(key.id)}/rotate`, { etag: tagOf(key), body: { grace: values.grace } });
    box.close({ made: data });
  };
  const box = dialog({
    title: ["Rotate ", outside(key.name, { max: 64 })],
    body: (close) => [h("p", null, "The key gets a new secret, and keeps all else."), form({ fields: [grace], action: "Rotate", submit, cancel: () => close() })],
  });
  const answer = await box.closed;
  if (answer?.made) await shown("The new secret", answer.made);
  await reload();
}

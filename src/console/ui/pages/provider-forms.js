// Dialogs about provider keys: adding, changing and rotating one.

import { ApiError, enc, request } from "../api.js";
import { dialog } from "../dialog.js";
import { outside } from "../dom.js";
import { checkbox, form, group, list, number, row, secret, select, text } from "../form.js";
import { ms } from "../format.js";
import { say } from "../message.js";
import { policyFields, policyOf } from "../policy.js";
import { may, self } from "../session.js";

/** The tag of the version that somebody looks at. */
export const tagOf = ({ version }) => `"${version}"`;

/** Tells an error that belongs to no field. */
export function complain(error) {
  if (error?.name === "AbortError") return;
  const known = error instanceof ApiError;
  if (!known) console.error(error);
  say("error", known ? [error.detail ?? error.title, error.fix].filter(Boolean).join(" – ") : String(error?.message ?? error));
}

const MODELS = { name: "models", label: "Models", help: "Names or globs such as gpt-4o*, one a line. Empty is every model.", placeholder: "gpt-4o*" };
const owner = (value) => text({ name: "owner", label: "Owner", value, help: "system, team:NAME or user:NAME: whose requests it serves.", optional: false });
const order = (key) =>
  row(
    number({ name: "priority", label: "Priority", min: 0, value: key?.priority ?? 0, help: "The lower goes first.", optional: false }),
    number({ name: "weight", label: "Weight", min: 1, max: 1000, value: key?.weight ?? 1, help: "Its share, where a pool is weighted.", optional: false }),
  );

export function addKey({ providers, keys, provider, reload }) {
  const known = providers.filter((one) => one.enabled);
  const shown = known.some((one) => one.id === provider) ? provider : known[0]?.id;
  const hidden = secret({ name: "secret", label: "Key", help: "Sealed at once, and never shown again.", optional: false });
  const admin = may("admin");
  const fields = [
    row(
      select({ name: "provider", label: "Provider", options: known.map(({ id }) => [id, id]), value: shown }),
      text({ name: "name", label: "Name", required: true, maxlength: 128, value: (keys.get(shown) ?? []).length === 0 ? "main" : "" }),
    ),
    hidden,
    admin && group({ title: "Where the key is kept elsewhere" }, text({ name: "reference", label: "Reference", help: "Instead of the key: env:NAME, file:/path or exec:command.", placeholder: "file:/run/secrets/openai" })),
    list(MODELS),
    self() === null && owner("system"),
    group({ title: "Order among keys" }, order(null)),
    policyFields(null, { title: "Its own limits", help: "What the provider sold with this key, so that another one is taken in time. Empty is no limit." }),
    checkbox({ name: "test", label: "Ask the provider whether it takes the key", value: true }),
  ].filter(Boolean);
  const submit = async (values) => {
    if (!values.secret && !values.reference) throw new ApiError({ status: 422, field: "secret", detail: "This is needed." });
    const body = { provider: values.provider, name: values.name, models: values.models, priority: values.priority ?? 0, weight: values.weight ?? 1, ...policyOf(values, null) };
    if (values.secret) body.secret = values.secret;
    if (values.reference) body.reference = values.reference;
    if (values.owner) body.owner = values.owner;
    const { data } = await request("POST", "/api/provider-keys", { body });
    hidden.input.value = "";
    box.close();
    say("ok", `${data.provider}/${data.name} is added.`);
    await reload();
    if (!values.test) return;
    await told(data);
    await reload();
  };
  const box = dialog({ title: "Add a provider key", body: (close) => form({ fields, action: "Add", submit, cancel: () => close() }) });
}

/** Tests a new key, and says what came of it. */
async function told(key) {
  try {
    const { test } = (await request("POST", `/api/provider-keys/${enc(key.id)}/test`)).data;
    const name = `${key.provider}/${key.name}`;
    if (test.verdict === "accepted") say("ok", `The provider takes ${name} (${ms(test.latency_ms)}).`);
    else if (test.verdict === "rejected") say("error", `The provider refuses ${name}: ${test.detail}`);
    else say("warning", `${name} could not be tested: ${test.detail}`);
  } catch (error) {
    complain(error);
  }
}

export function editKey(key, { reload }) {
  const fields = [
    text({ name: "name", label: "Name", required: true, maxlength: 128, value: key.name }),
    list({ ...MODELS, value: key.models }),
    self() === null && owner(key.owner),
    order(key),
    policyFields(key, { title: "Its own limits", open: true }),
  ].filter(Boolean);
  const submit = async (values) => {
    const body = { name: values.name, models: values.models, priority: values.priority ?? 0, weight: values.weight ?? 1, ...policyOf(values, key) };
    if (values.owner) body.owner = values.owner;
    await request("PATCH", `/api/provider-keys/${enc(key.id)}`, { etag: tagOf(key), body });
    box.close();
    say("ok", `${key.provider}/${values.name} is changed.`);
  };
  const box = dialog({ title: ["Edit ", outside(`${key.provider}/${key.name}`, { max: 64 })], body: (close) => form({ fields, action: "Save", submit, cancel: () => close() }) });
  // Who closes it after a conflict sees how things are.
  box.closed.then(reload);
}

export function rotateKey(key, { reload }) {
  const hidden = secret({ name: "secret", label: "New key", help: "It takes the place of the present one at once.", optional: false });
  const fields = [
    hidden,
    may("admin") && group({ title: "Where the key is kept elsewhere" }, text({ name: "reference", label: "Reference", help: "Instead of the key: env:NAME, file:/path or exec:command." })),
    text({ name: "grace", label: "How long the former key may come back", placeholder: "10m", help: "Should the provider refuse the new one: 30m, 24h, 0s. Empty is ten minutes." }),
    checkbox({ name: "test", label: "Ask the provider first", help: "A key that it refuses changes nothing.", value: true }),
  ].filter(Boolean);
  const submit = async (values) => {
    if (!values.secret && !values.reference) throw new ApiError({ status: 422, field: "secret", detail: "This is needed." });
    const body = { test: values.test };
    for (const name of ["secret", "reference", "grace"]) if (values[name]) body[name] = values[name];
    await request("POST", `/api/provider-keys/${enc(key.id)}/rotate`, { etag: tagOf(key), body });
    hidden.input.value = "";
    box.close();
    say("ok", `${key.provider}/${key.name} has a new secret.`);
    await reload();
  };
  const box = dialog({ title: ["Rotate ", outside(`${key.provider}/${key.name}`, { max: 64 })], body: (close) => form({ fields, action: "Rotate", submit, cancel: () => close() }) });
}

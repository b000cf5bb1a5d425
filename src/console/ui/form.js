// Forms: labelled fields, and what the API says against one of them beside it.
//
//   const name = text({ name: "name", label: "Name", required: true, help: "…" });
//   secret(…)  number(…)  area(…)  select({ options: [[value, label]] })  checkbox(…)  list(…)
//   row(a, b)  group({ title, help, open }, a, row(b, c))     side by side; folded away
//   form({ fields: [name, …], action: "Create", submit: async (values) => …, cancel })
//
// A field is { name, node, input, value, error(text) }; `value` reads it, and null is "nothing said". A list is written one
// a line or with commas, and is an array. `submit` is given { [name]: value }; an ApiError it throws goes to the field it
// names (also of a name within: "limits.rpm"), or else to the foot of the form. The form is disabled while it is sent.

import { ApiError } from "./api.js";
import { h, replace, unique } from "./dom.js";

function field(given, make, read) {
  const { name, label, help, required = false } = given;
  const id = unique(name);
  const [helpId, errorId] = [`${id}-help`, `${id}-error`];
  const input = make({ id, name, required, "aria-describedby": help ? helpId : null });
  const complaint = h("p", { class: "complaint", id: errorId, hidden: true });
  const named = h("label", { for: id }, label, !required && given.optional !== false && h("span", { class: "quiet" }, " (optional)"));
  const node = h("div", { class: "field" }, named, help && h("p", { class: "help", id: helpId }, help), input, complaint);
  const error = (text) => {
    complaint.hidden = !text;
    replace(complaint, text ?? "");
    const told = [help && helpId, text && errorId].filter(Boolean).join(" ");
    if (told) input.setAttribute("aria-describedby", told);
    else input.removeAttribute("aria-describedby");
    if (text) input.setAttribute("aria-invalid", "true");
    else input.removeAttribute("aria-invalid");
  };
  input.addEventListener("input", () => error(null));
  return {
    name,
    node,
    input,
    error,
    get value() {
      return read(input);
    },
  };
}

const said = (input) => (input.value.trim() === "" ? null : input.value.trim());

export const text = (given) =>
  field(
    given,
    (props) =>
      h("input", {
        ...props,
        type: given.type ?? "text",
        value: given.value ?? "",
        placeholder: given.placeholder,
        maxlength: given.maxlength,
        list: given.list,
        autocomplete: given.autocomplete ?? "off",
        autocapitalize: "none",
        spellcheck: "false",
      }),
    said,
  );

/** Not shown while it is typed, and not offered to be remembered. */
export const secret = (given) => text({ ...given, type: "password", autocomplete: given.autocomplete ?? "new-password" });

export const number = (given) =>
  field(
    given,
    (props) =>
      h("input", { ...props, type: "number", value: given.value ?? "", min: given.min, max: given.max, step: given.step ?? 1, inputmode: "decimal" }),
    // Dollars stay the digits that were typed.
    (input) => (said(input) === null ? null : given.decimal ? said(input) : Number(said(input))),
  );

export const area = (given) =>
  field(given, (props) => h("textarea", { ...props, rows: given.rows ?? 4, spellcheck: "false", value: given.value ?? "" }), said);

export const list = (given) =>
  field(
    given,
    (props) =>
      h("textarea", { ...props, rows: given.rows ?? 2, spellcheck: "false", autocapitalize: "none", placeholder: given.placeholder, value: (given.value ?? []).join("\n") }),
    (input) => input.value.split(/[\n,]/).map((one) => one.trim()).filter(Boolean),
  );

export const select = (given) =>
  field(
    { optional: false, ...given },
    (props) => h("select", { ...props, value: given.value ?? given.options[0]?.[0] ?? "" }, given.options.map(([value, label]) => h("option", { value }, label))),
    (input) => (input.value === "" ? null : input.value),
  );

export function checkbox({ name, label, help, value = false }) {
  const id = unique(name);
  const input = h("input", { type: "checkbox", id, name, checked: value, "aria-describedby": help ? `${id}-help` : null });
  const complaint = h("p", { class: "complaint", hidden: true });
  const node = h("div", { class: "field check" }, input, h("label", { for: id }, label), help && h("p", { class: "help", id: `${id}-help` }, help), complaint);
  const error = (text) => {
    complaint.hidden = !text;
    replace(complaint, text ?? "");
  };
  return {
    name,
    node,
    input,
    error,
    get value() {
      return input.checked;
    },
  };
}

/** Fields side by side, where there is room. */
export const row = (...fields) => ({ row: fields });

/** Fields that are folded away unless `open`. */
export const group = ({ title, help, open = false }, ...fields) => ({ group: { title, help, open }, fields: fields.filter(Boolean) });

const flatten = (one) => one.row ?? one.fields?.flatMap(flatten) ?? [one];

function laid(one) {
  if (one.row) return h("div", { class: "row" }, one.row.map((field) => field.node));
  if (!one.group) return one.node;
  const { title, help, open } = one.group;
  return h("details", { class: "group", open }, h("summary", null, title), h("div", { class: "fields" }, help && h("p", { class: "help" }, help), one.fields.map(laid)));
}

/** Says what is wrong with a field, wherever it is folded away. */
function blame(field, words) {
  const folded = field.input.closest("details");
  if (folded) folded.open = true;
  field.error(words);
}

export function form({ fields, action, submit, cancel, danger = false, before }) {
  const flat = fields.flatMap(flatten);
  const foot = h("div", { class: "form-error", role: "alert" });
  const send = h("button", { class: ["button", danger ? "danger" : "primary"], type: "submit" }, action);
  const body = h(
    "fieldset",
    { class: "bare" },
    before,
    fields.map(laid),
    foot,
    h("div", { class: "buttons" }, cancel && h("button", { class: "button", on: { click: cancel } }, "Cancel"), send),
  );
  const node = h("form", { novalidate: true }, body);
  node.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (body.disabled) return;
    replace(foot);
    for (const field of flat) field.error(null);
    const missing = flat.filter((field) => field.input.required && !said(field.input));
    const wrong = flat.filter((field) => !missing.includes(field) && field.input.validity && !field.input.validity.valid);
    for (const field of missing) blame(field, "This is needed.");
    for (const field of wrong) blame(field, field.input.validationMessage);
    if (missing.length + wrong.length > 0) return [...missing, ...wrong][0].input.focus();
    body.disabled = true;
    node.setAttribute("aria-busy", "true");
    let fault = null;
    try {
      await submit(Object.fromEntries(flat.map((field) => [field.name, field.value])));
    } catch (error) {
      fault = error;
    }
    body.disabled = false;
    node.removeAttribute("aria-busy");
    if (fault) tell(fault, flat, foot);
  });
  return node;
}

function tell(error, fields, foot) {
  const known = error instanceof ApiError;
  if (!known) console.error(error);
  const words = known ? [error.detail ?? error.title, error.fix].filter(Boolean).join(" – ") : String(error?.message ?? error);
  const name = known ? error.field : null;
  const fits = (one) => name === one.name || name.startsWith(`${one.name}.`) || name.startsWith(`${one.name}[`);
  // Or one within what was named: a budget of several.
  const field = name && (fields.find(fits) ?? fields.find((one) => one.name.startsWith(`${name}.`)));
  if (field) {
    blame(field, words);
    field.input.focus();
  } else replace(foot, h("p", null, name && [h("code", null, name), " "], words));
}

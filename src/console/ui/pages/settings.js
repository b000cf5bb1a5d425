// Settings: what is in force and who said it, where sidekey listens, and who may come in. Read-only but for tokens.

import { enc, gather, request } from "../api.js";
import { showOnce } from "../copy.js";
import { confirm, dialog } from "../dialog.js";
import { h, outside, replace } from "../dom.js";
import { failure } from "../failure.js";
import { form, number as numberField, select, text } from "../form.js";
import { absolute, duration, number, when } from "../format.js";
import { say } from "../message.js";
import { badge, card, empty, facts, status } from "../parts.js";
import { may } from "../session.js";
import { table } from "../table.js";

export const title = "Settings";

export async function render(root, { query, signal, keep }) {
  const ask = async (path) => (await request("GET", path, { signal })).data;
  const [config, state, session] = await Promise.all([ask("/api/config"), ask("/api/status"), ask("/api/session")]);
  const tokens = h("div");
  replace(root, notices(config, state), h("div", { class: "halves" }, process(state), store(state)), settings(config, query, keep), may("admin") && tokens, sessionCard(session));
  if (may("admin")) await tokenCard(tokens, session, signal);
}

function notices({ error }, { config }) {
  return [
    error && h("div", { class: "notice bad", role: "alert" }, h("p", null, h("b", null, "The file is faulty; the settings before it stay in force.")), h("p", null, outside(error, { max: 1000 }))),
    config.needs_restart?.length > 0 && h("div", { class: "notice" }, h("p", null, h("b", null, "In force after a restart: "), config.needs_restart.join(", "))),
  ];
}

function process({ version, pid, started, uptime_s: uptime, ready, draining, failing, listen }) {
  const tone = ready ? "ok" : "bad";
  const address = (one, more) => (one ? h("code", null, one, more) : h("span", { class: "quiet" }, "off"));
  return card(
    { title: "This sidekey", actions: draining ? badge("warn", "ending") : badge(tone, ready ? "ready" : "not ready") },
    !ready && failing.length > 0 && h("p", { class: "notice bad" }, outside(failing.map((one) => (typeof one === "string" ? one : JSON.stringify(one))).join("; "), { max: 500 })),
    facts([
      ["Version", version],
      ["Up for", h("span", { title: absolute(started) }, duration(uptime))],
      ["Process", String(pid)],
      ["Proxy", address(listen?.proxy)],
      ["Admin API", address(listen?.admin, listen?.admin_tls && " (TLS)")],
      ["Telemetry", address(listen?.telemetry)],
      ["Redirected connections", address(listen?.transparent)],
      ["Admin socket", address(listen?.admin_socket)],
    ]),
  );
}

function store({ data_dir: folder, config_file: file, config, master_key: master, store: health, keys, provider_keys: providerKeys }) {
  return card(
    { title: "Store", actions: health.up ? badge("ok", "writable") : badge("bad", "cannot be written") },
    health.last_error && h("p", { class: "notice bad" }, outside(health.last_error, { max: 500 })),
    facts([
      ["API keys", `${number(keys.active)} active of ${number(keys.total)}`],
      ["Provider keys", `${number(providerKeys.active)} active of ${number(providerKeys.total)}`],
      ["Waiting to be recorded", number(health.queued)],
      ["Not recorded", number(health.dropped)],
      ["Data directory", h("code", null, folder)],
      ["Master key", h("code", null, master)],
      ["Configuration", h("code", null, file)],
      ["Read", h("span", null, when(config.loaded), ` (${number(config.generation)}×)`)],
    ]),
  );
}

const shown = (value) => (value === null ? h("span", { class: "quiet" }, "unset") : h("code", null, outside(typeof value === "string" ? value : JSON.stringify(value), { max: 400 })));

const COLUMNS = [
  { label: "Setting", head: true, cell: ({ key }) => h("code", null, outside(key, { max: 120 })) },
  {
    label: "Value",
    cell: (setting) => [
      shown(setting.value),
      setting.needs_restart && h("div", { class: "small" }, badge("warn", "after a restart"), " in force now: ", shown(setting.in_force ?? null)),
    ],
  },
  { label: "Said by", cell: ({ origin, where }) => (origin === "default" ? h("span", { class: "quiet" }, "default") : [h("span", { class: "tag" }, origin), " ", h("code", { class: "small" }, outside(where ?? "", { max: 200 }))]) },
  { label: "Changes", cell: ({ at_start: atStart }) => h("span", { class: "quiet" }, atStart ? "at a restart" : "at once") },
];

function settings({ settings: all, file }, query, keep) {
  const place = h("div", { class: "page" });
  const find = text({ name: "search", label: "Search", value: query.search, optional: false, placeholder: "a name, a value, a file" });
  const which = select({ name: "said", label: "Show", value: query.said ?? "", options: [["", "all settings"], ["set", "those that somebody set"], ["restart", "those that wait for a restart"]] });
  const draw = () => {
    const wanted = (find.value ?? "").toLowerCase();
    const fits = (setting) => {
      if (which.value === "set" && setting.origin === "default") return false;
      if (which.value === "restart" && !setting.needs_restart) return false;
      return `${setting.key} ${JSON.stringify(setting.value)} ${setting.origin} ${setting.where ?? ""}`.toLowerCase().includes(wanted);
    };
    const sections = Map.groupBy(all.filter(fits), ({ key }) => key.split(".")[0]);
    const parts = [...sections].map(([name, rows]) => h("section", { class: "section" }, h("h3", null, h("code", null, `[${name}]`)), table({ caption: `Settings of ${name}`, columns: COLUMNS, rows })));
    replace(place, parts.length > 0 ? parts : empty("No setting is like that."));
  };
  for (const field of [find, which]) {
    field.input.addEventListener("input", () => {
      keep({ search: find.value, said: which.value });
      draw();
    });
  }
  draw();
  return card({ title: "Configuration", note: ["Changed in ", h("code", null, file), ", in variables and flags; nothing here changes it."] }, h("div", { class: "filters", role: "search", "aria-label": "Settings" }, find.node, which.node), place);
}

function sessionCard({ role, by, token_data: token }) {
  return card(
    { title: "Your session" },
    facts([
      ["Role", h("b", null, outside(role))],
      ["By", token ? outside(`${token.session ? "a login of sidekey ui" : "the token"} ${token.session ? "" : token.name}`) : by],
      token && ["Ends", token.expires ? when(token.expires) : "never"],
      token && ["Token", h("code", null, token.id)],
    ]),
  );
}

async function tokenCard(place, session, signal) {
  const again = () => tokenCard(place, session, signal);
  let items;
  try {
    ({ items } = await gather("/api/tokens", "tokens", { signal }));
  } catch (error) {
    if (error?.name !== "AbortError") replace(place, failure(error, { retry: again }));
    return;
  }
  const own = session.token_data?.id;
  const columns = [
    { label: "Name", head: true, cell: (token) => [outside(token.name, { max: 60 }), token.id === own && h("span", { class: "quiet" }, " (you)")] },
    { label: "Role", cell: (token) => outside(token.role, { max: 60 }) },
    { label: "Status", cell: (token) => status(token.status) },
    { label: "Made", cell: (token) => when(token.created) },
    { label: "Ends", cell: (token) => (token.expires ? when(token.expires) : "never") },
    { label: "Last used", cell: (token) => when(token.last_used) },
    { label: "Revoke", cell: (token) => h("button", { class: "button bare", "aria-label": `Revoke ${token.name}`.slice(0, 200), on: { click: () => revoke(token, again) } }, "Revoke") },
  ];
  const add = h("button", { class: "button", on: { click: () => create(again) } }, "Create a token");
  replace(place, card({ title: "Admin tokens", actions: add, note: "For programs and people at the admin API's address, and for this console." }, table({ caption: "Admin tokens", columns, rows: items, empty: empty("There is none.") })));
}

function create(done) {
  const role = select({ name: "role", label: "Role", value: "reader", options: [["reader", "reader: sees"], ["operator", "operator: runs it"], ["admin", "admin: everything"], ["user", "user: what is theirs"]] });
  const user = text({ name: "user", label: "User", help: "Whose keys and usage it shows." });
  const shownFor = () => {
    user.node.hidden = role.value !== "user";
  };
  role.input.addEventListener("change", shownFor);
  shownFor();
  const box = dialog({
    title: "Create an admin token",
    body: (close) =>
      form({
        fields: [text({ name: "name", label: "Name", required: true, maxlength: 128 }), role, user, numberField({ name: "expires_days", label: "Days until it ends", value: 90, min: 1, optional: false, help: "Empty is never." })],
        action: "Create",
        cancel: () => close(),
        submit: async ({ name, role: said, user: id, expires_days: days }) => {
          const { data } = await request("POST", "/api/tokens", { body: { name, role: said === "user" ? `user:${id ?? ""}` : said, expires_days: days } });
          close();
          await showOnce({ title: `Token ${name}`, text: data.token });
          done();
        },
      }),
  });
  return box;
}

async function revoke(token, done) {
  const yes = await confirm({ title: `Revoke ${token.name.slice(0, 80)}?`, text: "It is accepted no longer, from the next request on.", action: "Revoke", danger: true });
  if (!yes) return;
  try {
    await request("DELETE", `/api/tokens/${enc(token.id)}`);
    say("ok", "Revoked.");
    done();
  } catch (error) {
    say("error", error.detail ?? error.title);
  }
}

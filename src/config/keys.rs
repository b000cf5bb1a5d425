//! Every key of `sidekey.toml` in one table: it makes the commented template, the JSON Schema, `config explain` and
//! the spelling of variables.
//!
//! Owns the table and what is printed from it; a test compares it with the sections, so that none is forgotten.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::pricing::Item;
use crate::route::{MAX_TARGETS, MAX_WEIGHT};
use crate::unit::ServiceTier;

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `"127.0.0.1:4141"`.
    Address,
    /// `true` or `false`.
    Bool,
    /// `"30s"`.
    Duration,
    /// A whole number.
    Integer,
    /// A list of whole numbers.
    Integers,
    /// `"100/month"`: dollars, and until when they have to last.
    Money,
    /// `{ input = "0.15", output = "0.6" }`, or a table of its own.
    Price,
    /// `"8MiB"`, or bytes.
    Size,
    /// A list of a route's targets.
    Targets,
    /// Free text.
    Text,
    /// A list of texts.
    Texts,
    /// `"10s"`, or seconds; above zero.
    Timeout,
    /// One of these words.
    Word(&'static [&'static str]),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its dotted name; `*` stands for a name of the operator's.
    pub path: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Its default as TOML; empty when unset.
    pub default: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// True when a change is in force only after a restart.
    pub restart: bool,
}

impl Key {
    /// True when `path` is this key, where `*` stands for any one name.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let (own, said) = (self.path.split('.'), path.split('.'));
        own.clone().count() == said.clone().count() && own.zip(said).all(|(own, said)| own == "*" || own == said)
    }
}

const fn key(path: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind, default, doc, restart: false }
}

/// One that is read at start only.
const fn fixed(path: &'static str, kind: Kind, default: &'static str, doc: &'static str) -> Key {
    Key { path, kind, default, doc, restart: true }
}

/// All of them, in the order of the template.
pub static KEYS: &[Key] = &[
    fixed("listen.proxy", Kind::Address, "\"127.0.0.1:4141\"", "Where apps send their requests."),
    fixed(
        "listen.admin",
        Kind::Address,
        "\"127.0.0.1:4142\"",
        "The admin API and the console, for who has a token; or \"off\".",
    ),
    fixed("listen.telemetry", Kind::Address, "\"127.0.0.1:4143\"", "/livez /readyz /healthz /metrics."),
    fixed(
        "listen.transparent",
        Kind::Address,
        "",
        "Connections redirected by the kernel, as \"127.0.0.1:15001\"; off unless set.",
    ),
    fixed("admin.socket", Kind::Text, "", "The admin API's Unix socket; <data_dir>/admin.sock unless set."),
    fixed(
        "admin.hosts",
        Kind::Texts,
        "[]",
        "Hosts by which listen.admin may be called, beside localhost, 127.0.0.1 and [::1].",
    ),
    fixed(
        "admin.tls.cert",
        Kind::Text,
        "",
        "PEM: the certificate shown at listen.admin; all three of admin.tls or none.",
    ),
    fixed("admin.tls.key", Kind::Text, "", "PEM: its key."),
    fixed("admin.tls.client_ca", Kind::Text, "", "PEM: the roots of the certificates that clients must show."),
    key(
        "connect.other_hosts",
        Kind::Word(&["tunnel", "deny"]),
        "\"tunnel\"",
        "What is done with HTTPS_PROXY's hosts that are no provider's: passed through unread, or 403.",
    ),
    key("connect.ports", Kind::Integers, "[443, 80]", "The ports of other hosts that may be connected to."),
    key(
        "connect.allow_private",
        Kind::Bool,
        "false",
        "Whether other hosts may be at private and loopback addresses; link-local ones never.",
    ),
    fixed(
        "connect.ca",
        Kind::Word(&["kept", "ephemeral"]),
        "\"kept\"",
        "Where the local CA's key is: sealed in the store, or in memory and new at each start.",
    ),
    fixed("connect.ca_dir", Kind::Text, "", "Where root.pem and bundle.pem are written; <data_dir>/ca unless set."),
    key("keys.prefix", Kind::Text, "\"sk-side\"", "What new virtual keys begin with."),
    key("keys.default_expires_days", Kind::Integer, "365", "Days until a new virtual key expires."),
    key(
        "keys.max_expires_days",
        Kind::Integer,
        "",
        "The longest life a virtual key may be given; no bound unless set.",
    ),
    key("keys.default_rpm", Kind::Integer, "", "Requests per minute of a new virtual key; no limit unless set."),
    key("keys.default_tpm", Kind::Integer, "", "Tokens per minute of a new virtual key; no limit unless set."),
    key(
        "keys.default_budget",
        Kind::Money,
        "",
        "Dollars of a new virtual key, as \"100\" or \"20/month,zone=Europe/Berlin\"; none unless set.",
    ),
    key(
        "keys.unknown_keys",
        Kind::Word(&["refuse", "pass"]),
        "\"refuse\"",
        "What is done with keys that are not ours.",
    ),
    key("limits.replay_limit", Kind::Size, "\"8MiB\"", "Request bytes kept so that another provider key can be tried."),
    key("limits.max_body", Kind::Size, "\"64MiB\"", "The largest request body."),
    key(
        "limits.default_provider",
        Kind::Text,
        "\"openai\"",
        "Who answers a bare /v1 path that neither path nor model decides.",
    ),
    key("limits.header_timeout", Kind::Duration, "\"75s\"", "For a client to send a request's head."),
    key("limits.connect_timeout", Kind::Duration, "\"10s\"", "To connect to an upstream, TLS included."),
    key("limits.drain_timeout", Kind::Duration, "\"30s\"", "For open requests to end when sidekey stops."),
    key(
        "shutdown.min_delay",
        Kind::Duration,
        "\"0s\"",
        "Clients are served this long after SIGTERM: until nobody is sent here any more. Part of limits.drain_timeout.",
    ),
    key(
        "prices.*",
        Kind::Price,
        "",
        "What a model costs, by provider/model, in dollars per million tokens; over the list in the program.",
    ),
    key(
        "provider_keys.retest",
        Kind::Bool,
        "true",
        "Whether provider keys in error are tested again, without spending.",
    ),
    key(
        "provider_keys.retest_first",
        Kind::Duration,
        "\"1m\"",
        "How long after its refusal a key is tested again; each test that fails doubles it.",
    ),
    key("provider_keys.retest_max", Kind::Duration, "\"1h\"", "The longest pause between two such tests."),
    fixed(
        "provider_keys.lease_max",
        Kind::Duration,
        "\"10m\"",
        "The longest time for which a real key is handed out, and the time when none is asked for.",
    ),
    key("providers.*.base_url", Kind::Text, "", "scheme://host[:port][/prefix]; the provider's own path follows."),
    key(
        "providers.*.dialect",
        Kind::Text,
        "",
        "For one of your own: openai, anthropic, gemini, bedrock, cohere or ollama.",
    ),
    key("providers.*.auth", Kind::Text, "", "How the key is presented, where it differs from the dialect."),
    key("providers.*.hosts", Kind::Texts, "", "More hosts that mean this provider when a client connects to them."),
    key("providers.*.v1", Kind::Text, "", "What stands here for /v1 of a bare request."),
    key("providers.*.env", Kind::Texts, "", "Variables that may hold a system key, best first."),
    key("providers.*.stream_usage", Kind::Word(&["observe", "request"]), "", "How the usage of a stream is learned."),
    key(
        "providers.*.accept_encoding",
        Kind::Word(&["identity"]),
        "",
        "Asks for uncompressed answers in place of what the client asked for.",
    ),
    key("providers.*.models", Kind::Texts, "", "Globs of models by which a bare request finds this provider."),
    key("providers.*.enabled", Kind::Bool, "true", "Switched on or not."),
    key("providers.*.connect_timeout", Kind::Timeout, "", "To connect, in place of limits.connect_timeout."),
    key("providers.*.head_timeout", Kind::Timeout, "", "To begin an answer; unlimited unless set."),
    key("providers.*.allow_private", Kind::Bool, "", "Whether private and loopback addresses may be dialled."),
    key("providers.*.http2", Kind::Bool, "false", "Whether to offer HTTP/2."),
    key("providers.*.keyless", Kind::Bool, "", "True when the provider can do without a key."),
    key("providers.*.test", Kind::Text, "", "Path of a GET that costs nothing and needs a good key."),
    key(
        "routes.*.targets",
        Kind::Targets,
        "",
        "Where requests for this model, or glob of models, go: in this order, and by weight where neighbours have one.",
    ),
    fixed(
        "store.durability",
        Kind::Word(&["group", "sync"]),
        "\"group\"",
        "sync: the response's last frame waits until its entry is on disk.",
    ),
    fixed("store.commit_interval_ms", Kind::Integer, "10", "How long entries gather before a commit, milliseconds."),
    fixed("store.queue_capacity", Kind::Integer, "65536", "Entries that wait for a commit at most."),
    fixed("store.retention_days", Kind::Integer, "90", "Days the ledger is kept; 0 is for ever."),
    fixed(
        "store.rollup_days",
        Kind::Integer,
        "400",
        "Days the sums of each day are kept, by which usage is answered; 0 is for ever.",
    ),
    fixed("store.audit_retention_days", Kind::Integer, "1095", "Days the audit log is kept; 0 is for ever."),
    fixed("alerts.instance", Kind::Text, "", "What this installation calls itself to receivers of alerts."),
    fixed(
        "alerts.repeat_after",
        Kind::Duration,
        "\"10m\"",
        "How long the same alert is told once only; then with how often it was said.",
    ),
    fixed(
        "alerts.unusual_factor",
        Kind::Integer,
        "10",
        "key.unusual is told when a virtual key has so many times the requests it had a minute before; 0 is never.",
    ),
    fixed("alerts.unusual_floor", Kind::Integer, "60", "And more than so many in that minute."),
    fixed("alerts.webhooks.*.url", Kind::Text, "", "Where alerts are sent: https://host[:port]/path."),
    fixed(
        "alerts.webhooks.*.secret",
        Kind::Text,
        "",
        "Where the key of their signatures is: env:NAME or file:/path; whsec_ and base64, or any text.",
    ),
    fixed(
        "alerts.webhooks.*.kinds",
        Kind::Texts,
        "",
        "Which kinds are sent, as budget.threshold or provider_key.*; all unless set.",
    ),
    fixed(
        "alerts.webhooks.*.min_severity",
        Kind::Word(&["info", "warning", "error"]),
        "\"warning\"",
        "The least that is sent.",
    ),
    fixed("alerts.webhooks.*.timeout", Kind::Duration, "\"10s\"", "How long one attempt may take."),
    fixed(
        "alerts.webhooks.*.allow_private",
        Kind::Bool,
        "false",
        "Whether it may be at a private or loopback address, and in clear text; link-local ones never.",
    ),
    fixed(
        "telemetry.otlp_endpoint",
        Kind::Text,
        "",
        "A collector of OpenTelemetry, as \"http://host:4318\": gets traces and metrics; off unless set.",
    ),
    fixed("telemetry.service_name", Kind::Text, "", "What sidekey calls itself there; \"sidekey\" unless set."),
    fixed(
        "telemetry.sample_percent",
        Kind::Integer,
        "100",
        "Of how many in a hundred requests a span is sent, where the client has not decided.",
    ),
    fixed(
        "telemetry.forward_trace_context",
        Kind::Bool,
        "false",
        "Whether traceparent, tracestate and baggage go on to providers.",
    ),
    fixed(
        "log.format",
        Kind::Word(&["auto", "pretty", "json"]),
        "\"auto\"",
        "auto is pretty on a terminal, json elsewhere.",
    ),
    key("log.level", Kind::Word(&["error", "warn", "info", "debug", "trace"]), "\"info\"", "The least level shown."),
    key("log.access", Kind::Bool, "false", "One line for each request."),
];

/// The commented `sidekey.toml` that `init` writes: every key with its default, all of them commented out.
#[must_use]
pub fn template() -> String {
    let mut out = String::from(
        "# sidekey. Values are the defaults, or examples where there is none; uncomment what you change.\n\
         # `sidekey config check` reads this file, `sidekey config explain KEY` says where a value comes from.\n",
    );
    let mut section = "";
    for key in KEYS {
        let (table, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
        if table != section {
            section = table;
            let commented = if table.contains('*') { "# " } else { "" };
            let name = if table.starts_with("routes") { "smart" } else { "my-gateway" };
            let _ = writeln!(out, "\n{commented}[{}]", table.replace('*', name));
        }
        let name = if name == "*" { "\"openai/gpt-4o-mini\"" } else { name };
        let value = if key.default.is_empty() { example(key.kind) } else { key.default.to_owned() };
        let _ = writeln!(out, "# {}\n# {name} = {value}", key.doc);
    }
    out
}

/// What an unset key's value would look like.
fn example(kind: Kind) -> String {
    let text = match kind {
        Kind::Address => "\"127.0.0.1:15001\"",
        Kind::Bool => "true",
        Kind::Duration | Kind::Timeout => "\"30s\"",
        Kind::Integer => "1000",
        Kind::Integers => "[443]",
        Kind::Money => "\"100/month\"",
        Kind::Price => "{ input = \"0.15\", cached_input = \"0.075\", output = \"0.6\" }",
        Kind::Size => "\"8MiB\"",
        Kind::Targets => {
            "[{ provider = \"openai\", model = \"gpt-4o\" }, { provider = \"groq\", model = \"llama-3.3-70b-versatile\" }]"
        }
        Kind::Text => "\"…\"",
        Kind::Texts => "[\"…\"]",
        Kind::Word(words) => return format!("\"{}\"", words.first().copied().unwrap_or_default()),
    };
    text.to_owned()
}

/// The JSON Schema of the file (draft 2020-12).
#[must_use]
pub fn schema() -> Value {
    let mut root = object();
    for key in KEYS {
        let names: Vec<&str> = key.path.split('.').collect();
        insert(&mut root, &names, property(key));
    }
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("sidekey.toml");
    root
}

fn object() -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": {}})
}

fn property(key: &Key) -> Value {
    let mut property = match key.kind {
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Integer => json!({"type": "integer", "minimum": 0}),
        Kind::Address | Kind::Money | Kind::Text => json!({"type": "string"}),
        Kind::Price => price(),
        Kind::Targets => targets(),
        Kind::Integers => json!({"type": "array", "items": {"type": "integer", "minimum": 0}}),
        Kind::Texts => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Duration => json!({"type": "string", "pattern": "^[0-9]+(ms|s|m|h|d)$"}),
        Kind::Size => {
            json!({"oneOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+ *([KMG]iB)?$"}]})
        }
        Kind::Timeout => json!({"oneOf": [
            {"type": "integer", "minimum": 1},
            {"type": "string", "pattern": "^[0-9]+ *(ms|s|m|h)?$"},
        ]}),
        Kind::Word(words) => json!({"enum": words}),
    };
    property["description"] = json!(key.doc);
    if let Some(default) = default_of(key) {
        property["default"] = default;
    }
    property
}

/// What may be said of a model's price.
fn price() -> Value {
    let rate = |item: Item| {
        let text = json!({"type": "string", "pattern": "^[0-9]+(\\.[0-9]+)?$", "description": item.unit()});
        (item.as_str().to_owned(), json!({"oneOf": [text, {"type": "integer", "minimum": 0}]}))
    };
    let mut price = object();
    price["properties"] = Item::ALL.into_iter().map(rate).collect::<Map<_, _>>().into();
    let rates = price.clone();
    let mut above = rates.clone();
    above["properties"]["over_input_tokens"] = json!({"type": "integer", "minimum": 0});
    above["required"] = json!(["over_input_tokens"]);
    let tiers = ServiceTier::ALL.into_iter().map(|tier| (tier.as_str().to_owned(), rates.clone()));
    price["properties"]["above"] = json!({"type": "array", "items": above});
    price["properties"]["tiers"] = object();
    price["properties"]["tiers"]["properties"] = tiers.collect::<Map<_, _>>().into();
    price["properties"]["same_as"] = json!({"type": "string", "pattern": "^[^/]+/.+$"});
    price
}

/// What may be said of a route's targets.
fn targets() -> Value {
    let number = |least: u32, most: u32| json!({"type": "integer", "minimum": least, "maximum": most});
    let mut target = object();
    target["properties"] = json!({
        "provider": {"type": "string", "description": "A provider, by id or alias."},
        "model": {"type": "string", "description": "The model's name there; the one asked for unless given."},
        "weight": number(1, MAX_WEIGHT),
        "order": number(0, u32::MAX),
    });
    target["required"] = json!(["provider"]);
    json!({"type": "array", "minItems": 1, "maxItems": MAX_TARGETS, "items": target})
}

/// The default as JSON.
fn default_of(key: &Key) -> Option<Value> {
    value_of(key.default)
}

/// A value in TOML as JSON; `None` when it is none.
pub(super) fn value_of(toml: &str) -> Option<Value> {
    let table: toml::Table = toml::from_str(&format!("v = {toml}")).ok()?;
    serde_json::to_value(table.get("v")?).ok()
}

fn insert(at: &mut Value, names: &[&str], property: Value) {
    let Some((name, rest)) = names.split_first() else { return };
    if *name == "*" && rest.is_empty() {
        at["additionalProperties"] = property;
        return;
    }
    if *name == "*" {
        if !at["additionalProperties"].is_object() {
            at["additionalProperties"] = object();
        }
        return insert(&mut at["additionalProperties"], rest, property);
    }
    let Some(properties) = at.get_mut("properties").and_then(Value::as_object_mut) else { return };
    if rest.is_empty() {
        properties.insert((*name).to_owned(), property);
    } else {
        insert(child(properties, name), rest, property);
    }
}

fn child<'a>(properties: &'a mut Map<String, Value>, name: &str) -> &'a mut Value {
    properties.entry(name).or_insert_with(object)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::config::Config;
    use crate::config::fault::unknown_field;

    /// serde names all fields of a section when it meets one it does not know.
    fn fields(section: &str) -> BTreeSet<String> {
        match section {
            "" => said_fields("zzz = 1"),
            "prices" => BTreeSet::from(["*".to_owned()]),
            _ => said_fields(&format!("[{}]\nzzz = 1", section.replace('*', "x"))),
        }
    }

    fn fields_of_a_price() -> BTreeSet<String> {
        let price = schema()["properties"]["prices"]["additionalProperties"]["properties"].clone();
        price.as_object().expect("an object").keys().cloned().collect()
    }

    fn said_fields(text: &str) -> BTreeSet<String> {
        let error = toml::from_str::<Config>(text).expect_err("zzz is not a field");
        let (_, known) = unknown_field(error.message()).expect("an unknown field");
        known.into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn the_table_and_the_sections_agree() {
        let mut said: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        // What models are called is the operator's.
        assert_eq!(said_fields("[prices.\"a/b\"]\nzzz = 1"), fields_of_a_price());
        for key in KEYS {
            let (section, name) = key.path.rsplit_once('.').expect("a section");
            said.entry(section).or_default().insert(name.to_owned());
            // A table in a table is a field of the outer one.
            if let Some((outer, inner)) = section.strip_suffix(".*").unwrap_or(section).rsplit_once('.') {
                said.entry(outer).or_default().insert(inner.to_owned());
            }
        }
        let top: BTreeSet<String> =
            said.keys().map(|section| section.split('.').next().unwrap_or_default().to_owned()).collect();
        assert_eq!(fields(""), top);
        for (section, names) in said {
            assert_eq!(fields(section), names, "[{section}]");
        }
    }

    #[test]
    fn the_defaults_are_the_defaults() {
        let mut text = String::new();
        for key in KEYS.iter().filter(|key| !key.default.is_empty() && !key.path.contains('*')) {
            let _ = writeln!(text, "{} = {}", key.path, key.default);
        }
        assert_eq!(toml::from_str::<Config>(&text).expect("valid"), Config::default());
    }

    #[test]
    fn the_template_is_a_valid_file_commented_or_not() {
        assert_eq!(toml::from_str::<Config>(&template()).expect("valid"), Config::default());
        // Lines of prose have no ` = `; a section's or key's line is TOML once its mark is gone.
        let toml_line = |line: &&str| line.starts_with("# [") || line.contains(" = ") || !line.starts_with('#');
        let text = template();
        let text: Vec<&str> = text.lines().filter(toml_line).map(|line| line.trim_start_matches("# ")).collect();
        let whole: Config = toml::from_str(&text.join("\n")).expect("valid when uncommented");
        assert_eq!((whole.providers.len(), whole.prices.len(), whole.routes.iter().count()), (1, 1, 1));
        assert_eq!(Config::default().registry().expect("valid").route_faults(&whole.routes), []);
        assert_eq!(whole.listen.transparent.map(|address| address.port()), Some(15001));
    }

    #[test]
    fn schema_shape() {
        let schema = schema();
        assert_eq!(schema["properties"]["listen"]["properties"]["proxy"]["default"], "127.0.0.1:4141");
        assert_eq!(schema["properties"]["keys"]["additionalProperties"], false);
    }
}

//! Layers: defaults, then the file, then variables, then flags, each value with its origin.
//!
//! Owns precedence. A fault of the file has line and column; a fault of a variable has its name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::config::env::Environment;
use crate::config::fault::{self, Fault, Origin};
use crate::config::keys::{KEYS, Kind};
use crate::config::places::Places;
use crate::config::{Config, Wrong, nearest};

/// What flags say: `--set listen.proxy=127.0.0.1:0`, as key and text.
pub type Overrides = [(String, String)];

/// The configuration as it is in force.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The sections.
    pub config: Config,
    /// Where things lie.
    pub places: Places,
    /// What to tell the operator; one line each.
    pub warnings: Vec<String>,
    origins: BTreeMap<String, Vec<Effective>>,
    flags: Vec<(String, String)>,
}

/// A value and where it was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Effective {
    /// The value, as TOML.
    pub value: String,
    /// Where it was said.
    pub origin: Origin,
}

impl Loaded {
    /// Everything said of `key`, the winner first; the default stands last. Empty when there is no such key.
    #[must_use]
    pub fn explain(&self, key: &str) -> Vec<Effective> {
        let mut said: Vec<Effective> = self.origins.get(key).cloned().unwrap_or_default();
        said.reverse();
        if let Some(row) = KEYS.iter().find(|row| row.matches(key)) {
            let value = if row.default.is_empty() { "unset".to_owned() } else { row.default.to_owned() };
            said.push(Effective { value, origin: Origin::Default });
        }
        said
    }

    /// The defaults and nothing else.
    #[must_use]
    pub fn defaults(places: Places) -> Self {
        let (warnings, flags) = (Vec::new(), Vec::new());
        Self { config: Config::default(), places, warnings, origins: BTreeMap::new(), flags }
    }

    /// Reads the file again, under the same variables and flags.
    ///
    /// # Errors
    /// As [`load`].
    pub fn again(&self, environment: &Environment) -> Result<Self, Vec<Fault>> {
        load(environment, self.places.clone(), &self.flags)
    }

    /// The keys whose values differ in `other`, and whether a change of each needs a restart.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<(String, bool)> {
        let value = |loaded: &Self, key: &str| loaded.explain(key).into_iter().next().map(|said| said.value);
        let keys: BTreeSet<String> = self.keys().into_iter().chain(other.keys()).collect();
        let differing = keys.into_iter().filter(|key| value(self, key) != value(other, key));
        let restart = |key: &str| KEYS.iter().any(|row| row.restart && row.matches(key));
        differing.map(|key| (key.clone(), restart(&key))).collect()
    }

    /// True when flags say something.
    #[must_use]
    pub fn has_flags(&self) -> bool {
        !self.flags.is_empty()
    }

    /// The Unix socket of the admin API.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.config.admin.socket.clone().unwrap_or_else(|| self.places.admin_socket())
    }

    /// Every key that was said somewhere, and every key with a default.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let listed = KEYS.iter().filter(|row| !row.path.contains('*')).map(|row| row.path.to_owned());
        let said = self.origins.keys().filter(|key| !KEYS.iter().any(|row| row.path == key.as_str())).cloned();
        listed.chain(said).collect()
    }
}

/// Reads everything.
///
/// # Errors
/// All faults found: of the file's form, of a value, or of values together. A missing file is a fault only where it
/// was named.
pub fn load(environment: &Environment, places: Places, flags: &Overrides) -> Result<Loaded, Vec<Fault>> {
    let text = read(&places).map_err(|fault| vec![fault])?;
    let mut layers = Layers::of_file(&places.config_file, &text).map_err(|fault| vec![fault])?;
    let mut warnings = Vec::new();
    layers.add_environment(environment, &mut warnings).map_err(|fault| vec![fault])?;
    for (key, value) in flags {
        layers.add_flag(key, value).map_err(|fault| vec![fault])?;
    }
    let faults: Vec<Fault> = layers.config.check().iter().map(|wrong| layers.fault(wrong)).collect();
    if faults.is_empty() {
        Ok(Loaded { config: layers.config, places, warnings, origins: layers.origins, flags: flags.to_vec() })
    } else {
        Err(faults)
    }
}

fn read(places: &Places) -> Result<String, Fault> {
    match std::fs::read_to_string(&places.config_file) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !places.config_named => Ok(String::new()),
        Err(error) => {
            let what = format!("{}: {error}; `sidekey init` writes one", places.config_file.display());
            Err(Fault::new(Origin::Flag("config file".to_owned()), what))
        }
    }
}

/// The table so far, and the sections it makes.
struct Layers {
    table: Table,
    config: Config,
    origins: BTreeMap<String, Vec<Effective>>,
}

impl Layers {
    fn of_file(path: &Path, text: &str) -> Result<Self, Fault> {
        // Straight from the text and not from the table: only so do errors have a place.
        let config: Config = toml::from_str(text).map_err(|error| Fault::of_file(path, text, &error))?;
        let table: Table = toml::from_str(text).map_err(|error| Fault::of_file(path, text, &error))?;
        let mut layers = Self { table, config, origins: BTreeMap::new() };
        for (key, value) in leaves(&layers.table) {
            let origin = fault::locate(path, text, &key).unwrap_or_else(|| Origin::File {
                path: path.to_path_buf(),
                line: 1,
                column: 1,
            });
            layers.origins.entry(key.join(".")).or_default().push(Effective { value, origin });
        }
        Ok(layers)
    }

    /// A fault of several keys together stands at the first of them that somebody said.
    fn fault(&self, wrong: &Wrong) -> Fault {
        let said = wrong.keys.iter().map(|key| self.origin(key)).find(|origin| *origin != Origin::Default);
        let key = wrong.keys.first().map_or("", String::as_str);
        Fault::new(said.unwrap_or(Origin::Default), format!("{key}: {}", wrong.what))
    }

    /// Where the value in force was said.
    fn origin(&self, key: &str) -> Origin {
        let inside = format!("{key}.");
        let section = || self.origins.iter().find(|(path, _)| path.starts_with(&inside)).map(|(_, said)| said);
        let said = self.origins.get(key).or_else(section).and_then(|said| said.last());
        said.map_or(Origin::Default, |said| said.origin.clone())
    }

    fn add_environment(&mut self, environment: &Environment, warnings: &mut Vec<String>) -> Result<(), Fault> {
        for (name, key) in ALIASES {
            if let Some(value) = environment.get(name) {
                self.add(key, value, Origin::Environment((*name).to_owned()))?;
            }
        }
        if environment.get("VIRTUAL_KEY_DEFAULT_BUDGET").is_some() {
            warnings
                .push("VIRTUAL_KEY_DEFAULT_BUDGET is not obeyed: budgets are not supported by this version".to_owned());
        }
        for (name, value) in environment.iter() {
            let Some(rest) = name.strip_prefix("SIDEKEY_") else { continue };
            if OTHER_VARIABLES.contains(&name) {
                continue;
            }
            match self.key_of_variable(rest) {
                Some(key) => self.add(&key, value, Origin::Environment(name.to_owned()))?,
                None => warnings.push(unknown_variable(name)),
            }
        }
        Ok(())
    }

    /// `LISTEN__PROXY` is `listen.proxy`; the operator's names keep the spelling the file gives them.
    fn key_of_variable(&self, rest: &str) -> Option<String> {
        let said: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
        // A variable's name cannot spell a model's.
        let row = KEYS.iter().filter(|row| !matches!(row.kind, Kind::Price | Kind::Targets)).find(|row| {
            let names: Vec<&str> = row.path.split('.').collect();
            names.len() == said.len() && names.iter().zip(&said).all(|(name, said)| *name == "*" || name == said)
        })?;
        let names = row
            .path
            .split('.')
            .zip(&said)
            .map(|(name, said)| if name == "*" { self.own_name(said) } else { name.to_owned() });
        Some(names.collect::<Vec<_>>().join("."))
    }

    /// A provider's id may hold a dash, which a variable's name cannot.
    fn own_name(&self, said: &str) -> String {
        let dashed = said.replace('_', "-");
        let in_file = self.table.get("providers").and_then(Value::as_table);
        let known = in_file.into_iter().flat_map(|table| table.keys()).find(|id| id.replace('_', "-") == dashed);
        known.cloned().unwrap_or(dashed)
    }

    fn add_flag(&mut self, key: &str, value: &str) -> Result<(), Fault> {
        let origin = Origin::Flag(format!("--set {key}"));
        if !KEYS.iter().any(|row| row.matches(key)) {
            let what = match nearest(key, KEYS.iter().map(|row| row.path)) {
                Some(right) => format!("no such key; did you mean {right}?"),
                None => "no such key; `sidekey config show` lists them".to_owned(),
            };
            return Err(Fault::new(origin, what));
        }
        self.add(key, value, origin)
    }

    /// Sets one value. Text that reads as TOML is tried as that first, then as plain text: a prefix may be `123`.
    fn add(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), Fault> {
        let mut first_error = None;
        for value in readings(text) {
            let mut table = self.table.clone();
            set(&mut table, key, value.clone());
            match table.clone().try_into::<Config>() {
                Ok(config) => {
                    self.table = table;
                    self.config = config;
                    let said = Effective { value: value.to_string(), origin };
                    self.origins.entry(key.to_owned()).or_default().push(said);
                    return Ok(());
                }
                Err(error) => {
                    first_error.get_or_insert_with(|| fault::explain(error.message()));
                }
            }
        }
        Err(Fault::new(origin, format!("{key}: {}", first_error.unwrap_or_default())))
    }
}

/// Variables with a meaning of their own; see [`Places`] and the master key.
const OTHER_VARIABLES: &[&str] =
    &["SIDEKEY_CONFIG", "SIDEKEY_DATA_DIR", "SIDEKEY_EXEC", "SIDEKEY_MASTER_KEY", "SIDEKEY_MASTER_KEY_FILE"];

/// Older names that are honoured too; `SIDEKEY_*` wins over them.
const ALIASES: &[(&str, &str)] = &[
    ("VIRTUAL_KEY_PREFIX", "keys.prefix"),
    ("VIRTUAL_KEY_DEFAULT_BUDGET", "keys.default_budget"),
    ("VIRTUAL_KEY_DEFAULT_RPM", "keys.default_rpm"),
    ("VIRTUAL_KEY_DEFAULT_TPM", "keys.default_tpm"),
];

fn unknown_variable(name: &str) -> String {
    let spelled: Vec<String> = KEYS.iter().map(|row| variable(row.path)).collect();
    let known = spelled.iter().map(String::as_str).chain(OTHER_VARIABLES.iter().copied());
    match nearest(name, known) {
        Some(right) => format!("{name} is not a variable of sidekey; did you mean {right}?"),
        None => format!("{name} is not a variable of sidekey"),
    }
}

/// `listen.proxy` is `SIDEKEY_LISTEN__PROXY`.
fn variable(path: &str) -> String {
    format!("SIDEKEY_{}", path.replace('.', "__").replace('-', "_").to_uppercase())
}

fn readings(text: &str) -> Vec<Value> {
    let plain = Value::String(text.to_owned());
    let typed = toml::from_str::<Table>(&format!("v = {text}")).ok().filter(|table| table.len() == 1);
    typed.and_then(|mut table| table.remove("v")).into_iter().chain([plain]).collect()
}

fn set(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
        }
        Some((parent, rest)) => {
            let inner = table.entry(parent).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

/// Every value that is not a table, with its path.
fn leaves(table: &Table) -> Vec<(Vec<String>, String)> {
    let mut out = Vec::new();
    for (name, value) in table {
        match value {
            Value::Table(inner) => out.extend(leaves(inner).into_iter().map(|(mut path, value)| {
                path.insert(0, name.clone());
                (path, value)
            })),
            other => out.push((vec![name.clone()], other.to_string())),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, pairs: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("sidekey.toml");
        std::fs::write(&file, text).expect("written");
        let environment = Environment::from_pairs(pairs.iter().copied());
        let places = Places::find(&environment, Some(directory.path()), Some(&file)).expect("places");
        let flags: Vec<_> = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        load(&environment, places, &flags).map_err(|faults| {
            let shown: Vec<String> = faults.iter().map(ToString::to_string).collect();
            shown.join("\n").replace(&format!("{}/", directory.path().display()), "")
        })
    }

    #[test]
    fn faults_have_place_and_spelling() {
        for (name, text, want) in [
            (
                "field",
                "[listen]\nprxy = \"127.0.0.1:1\"",
                "sidekey.toml:2:1: unknown field `prxy`; did you mean `proxy`?",
            ),
            ("section", "[lisen]\nproxy = \"x\"", "sidekey.toml:1:2: unknown field `lisen`; did you mean `listen`?"),
            ("address", "\n[listen]\nproxy = \"here\"", "sidekey.toml:3:9: invalid socket address syntax"),
            (
                "duration",
                "[limits]\ndrain_timeout = \"30\"",
                "sidekey.toml:2:17: \"30\" is not a duration: write a whole number and ms, s, m, h or d, as in \"30s\"",
            ),
            (
                "size",
                "[limits]\nmax_body = true",
                "sidekey.toml:2:12: invalid type: boolean `true`, expected a size such as \"8MiB\", or a number of bytes",
            ),
            (
                "word",
                "[log]\nformat = \"xml\"",
                "sidekey.toml:2:10: unknown variant `xml`, expected one of `auto`, `json`, `pretty`",
            ),
            (
                "together",
                "[keys]\nmax_expires_days = 30",
                "sidekey.toml:2:1: keys.default_expires_days: 365 is more than keys.max_expires_days = 30",
            ),
            (
                "prefix",
                "[keys]\nprefix = \"a b\"",
                "sidekey.toml:2:1: keys.prefix: a prefix is 1 to 32 letters, digits, `-` and `_`, and does not end in a dash",
            ),
            (
                "a price that is a float",
                "[prices]\n\"openai/gpt-4o\" = { input = 0.15 }",
                "sidekey.toml:2:29: a price is exact: write it as text, \"0.15\"",
            ),
            (
                "a rate",
                "[prices.\"openai/gpt-4o\"]\nimput = \"1\"",
                "sidekey.toml:2:1: unknown field `imput`; did you mean `input`?",
            ),
            (
                "a model without provider",
                "[prices.gpt-4o]\ninput = \"1\"",
                "sidekey.toml:1:9: \"gpt-4o\" names no model: write provider/model, as in \"openai/gpt-4o\", or \"*/model\" for every provider",
            ),
            (
                "a price of no provider",
                "[prices.\"opnai/gpt-4o\"]\ninput = \"1\"",
                "sidekey.toml:2:1: prices.opnai/gpt-4o: there is no provider \"opnai\"; did you mean \"openai\"?",
            ),
            (
                "the price of none",
                "[prices]\n\"openai/b\" = { same_as = \"a/c\" }",
                "sidekey.toml:2:16: prices.openai/b: there is no price of a/c",
            ),
            (
                "an admin API for the network",
                "[listen]\nadmin = \"0.0.0.0:4142\"",
                "sidekey.toml:2:1: listen.admin: 0.0.0.0:4142 can be reached from elsewhere: set admin.tls (cert, key and client_ca), or listen on 127.0.0.1",
            ),
            (
                "half of a TLS",
                "[admin.tls]\ncert = \"a.pem\"",
                "sidekey.toml:2:1: admin.tls.key: is missing: TLS takes cert, key and client_ca",
            ),
            (
                "a target's field",
                "[routes.smart]\ntargets = [{ provder = \"openai\" }]",
                "sidekey.toml:2:14: unknown field `provder`; did you mean `provider`?",
            ),
            (
                "a target of no provider",
                "[routes.\"gpt-4.1\"]\ntargets = [{ provider = \"openai\" }, { provider = \"opnai\" }]",
                "sidekey.toml:2:1: routes.gpt-4.1: targets[1].provider: there is no provider \"opnai\"; did you mean \"openai\"?",
            ),
            (
                "targets of two dialects",
                "[routes.smart]\ntargets = [{ provider = \"openai\" }, { provider = \"anthropic\", model = \"claude-x\" }]",
                "sidekey.toml:2:1: routes.smart: targets[1].provider: anthropic speaks the dialect anthropic and openai openai; name providers of one dialect",
            ),
            (
                "ports",
                "[listen]\nproxy = \"127.0.0.1:4143\"",
                "sidekey.toml:2:1: listen.telemetry: 127.0.0.1:4143 is also listen.proxy",
            ),
        ] {
            assert_eq!(load_text(text, &[], &[]).map(|_| ()), Err(want.to_owned()), "{name}");
        }
    }

    #[test]
    fn flags_over_variables_over_file() {
        let file = "[listen]\nproxy = \"127.0.0.1:1\"\ntelemetry = \"127.0.0.1:2\"\nadmin = \"127.0.0.1:3\"\n";
        let pairs = [("SIDEKEY_LISTEN__PROXY", "127.0.0.1:11"), ("SIDEKEY_LISTEN__TELEMETRY", "127.0.0.1:12")];
        let loaded = load_text(file, &pairs, &[("listen.proxy", "127.0.0.1:21")]).expect("valid");
        let ports =
            [Some(loaded.config.listen.proxy), Some(loaded.config.listen.telemetry), loaded.config.listen.admin];
        assert_eq!(ports.map(|address| address.map(|a| a.port())), [Some(21), Some(12), Some(3)]);
        let said: Vec<String> = loaded.explain("listen.proxy").iter().map(|said| said.value.clone()).collect();
        assert_eq!(said, ["\"127.0.0.1:21\"", "\"127.0.0.1:11\"", "\"127.0.0.1:1\"", "\"127.0.0.1:4141\""]);
    }

    #[test]
    fn variables() {
        let loaded = load_text(
            "",
            &[
                ("VIRTUAL_KEY_PREFIX", "old"),
                ("SIDEKEY_KEYS__PREFIX", "123"),
                ("VIRTUAL_KEY_DEFAULT_BUDGET", "keys.default_budget"),
                ("VIRTUAL_KEY_DEFAULT_RPM", "60"),
                ("VIRTUAL_KEY_DEFAULT_TPM", "1000"),
                ("VIRTUAL_KEY_DEFAULT_BUDGET", "5"),
                ("SIDEKEY_LOG__ACCESS", "true"),
                ("SIDEKEY_LISTEN__PRXY", "x"),
                ("SIDEKEY_DATADIR", "x"),
            ],
            &[],
        )
        .expect("valid");
        assert_eq!((loaded.config.keys.prefix.as_str(), loaded.config.keys.default_rpm), ("123", Some(60)));
        assert_eq!((loaded.config.keys.default_tpm, loaded.config.log.access), (Some(1000), true));
        assert_eq!(
            loaded.warnings,
            [
                "VIRTUAL_KEY_DEFAULT_BUDGET is not obeyed: budgets are not supported by this version",
                "SIDEKEY_DATADIR is not a variable of sidekey; did you mean SIDEKEY_DATA_DIR?",
                "SIDEKEY_LISTEN__PRXY is not a variable of sidekey; did you mean SIDEKEY_LISTEN__PROXY?",
            ]
        );
    }

    #[test]
    fn providers_may_be_said_in_variables() {
        let pairs = [
            ("SIDEKEY_PROVIDERS__OPENAI__BASE_URL", "http://127.0.0.1:9001"),
            ("SIDEKEY_PROVIDERS__MY_GATEWAY__HTTP2", "true"),
        ];
        let file = "[providers.my-gateway]\ndialect = \"openai\"\nbase_url = \"https://llm.internal.example\"\n";
        let loaded = load_text(file, &pairs, &[]).expect("valid");
        let providers = &loaded.config.providers;
        assert_eq!(providers["openai"].base_url.as_deref(), Some("http://127.0.0.1:9001"));
        assert!(providers["my-gateway"].http2);
        assert_eq!(loaded.explain("providers.my-gateway.base_url").len(), 2);
        let faults = load_text("[providers.mine]\ndialect = \"openai\"", &[], &[]).map(|_| ());
        assert!(faults.as_ref().is_err_and(|text| text.starts_with("sidekey.toml:2:1: providers.mine")), "{faults:?}");
    }

    #[test]
    fn a_bad_variable_is_a_fault_with_its_name() {
        for (name, value, want) in [
            ("SIDEKEY_LISTEN__PROXY", "here", "SIDEKEY_LISTEN__PROXY: listen.proxy: invalid socket address syntax"),
            (
                "VIRTUAL_KEY_DEFAULT_RPM",
                "0",
                "VIRTUAL_KEY_DEFAULT_RPM: keys.default_rpm: a limit of 0 would refuse everything; leave it out for no limit",
            ),
        ] {
            assert_eq!(load_text("", &[(name, value)], &[]).map(|_| ()), Err(want.to_owned()), "{name}");
        }
        let bad_flag = load_text("", &[], &[("listen.prox", "1")]).map(|_| ());
        assert_eq!(bad_flag, Err("--set listen.prox: no such key; did you mean listen.proxy?".to_owned()));
    }

    #[test]
    fn only_a_named_file_must_exist() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("none.toml");
        for (named, want) in [(false, true), (true, false)] {
            let places = Places { data_dir: directory.path().into(), config_file: file.clone(), config_named: named };
            assert_eq!(load(&Environment::default(), places, &[]).is_ok(), want);
        }
    }
}

//! The configuration as it may be shown: every setting with its origin, and nothing secret in it.
//!
//! Owns what is hidden: the values themselves are none of a reader's business where they open something.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::config::fault::Origin;
use crate::config::keys::{KEYS, value_of};
use crate::config::load::{Effective, Loaded};
use crate::control::{SaidBy, Setting};
use crate::secret::blot;

const HIDDEN: &str = "***";
/// What stands in a URL of a receiver of alerts opens it, as often as not.
const RECEIVER: &str = "alerts.webhooks.*.url";
const SIGNING: &str = "alerts.webhooks.*.secret";

impl Loaded {
    /// Every setting: those with a name of sidekey's whether said or not, those with a name of the operator's where said.
    /// `started` is what the process began with.
    #[must_use]
    pub fn settings(&self, started: &Self) -> Vec<Setting> {
        let pending: BTreeSet<String> =
            started.differences(self).into_iter().filter(|(_, restart)| *restart).map(|(key, _)| key).collect();
        let mut keys = self.keys();
        // Taken out of the file, and in force all the same.
        let gone: Vec<String> = pending.iter().filter(|key| !keys.contains(key)).cloned().collect();
        keys.extend(gone);
        let setting = |key: String| {
            let said = self.explain(&key).into_iter().next();
            let (origin, place) = said.as_ref().map_or((SaidBy::Default, None), |said| who(&said.origin));
            let needs_restart = pending.contains(&key);
            Setting {
                value: shown(&key, said.as_ref()),
                origin,
                place,
                at_start: KEYS.iter().any(|row| row.restart && row.matches(&key)),
                needs_restart,
                in_force: needs_restart.then(|| shown(&key, started.explain(&key).first())),
                key,
            }
        };
        keys.into_iter().map(setting).collect()
    }
}

fn who(origin: &Origin) -> (SaidBy, Option<String>) {
    match origin {
        Origin::Default => (SaidBy::Default, None),
        Origin::Environment(name) => (SaidBy::Environment, Some(name.clone())),
        Origin::File { path, line, .. } => (SaidBy::File, Some(format!("{}:{line}", path.display()))),
        Origin::Flag(flag) => (SaidBy::Flag, Some(flag.clone())),
    }
}

/// As JSON, without what is secret.
fn shown(key: &str, said: Option<&Effective>) -> Value {
    said.and_then(|said| value_of(&said.value)).map_or(Value::Null, |value| hide(key, value))
}

fn hide(key: &str, value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(hide_text(key, &text)),
        Value::Array(items) => items.into_iter().map(|item| hide(key, item)).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, hide(key, value))).collect(),
        other => other,
    }
}

fn hide_text(key: &str, text: &str) -> String {
    let is = |path: &str| KEYS.iter().any(|row| row.path == path && row.matches(key));
    // A reference is no secret; what is none, nobody knows.
    if is(SIGNING) && !["env:", "file:"].iter().any(|kind| text.starts_with(kind)) {
        return HIDDEN.to_owned();
    }
    let text = match text.split_once("://") {
        Some((scheme, rest)) => hide_url(scheme, rest, is(RECEIVER)),
        None => text.to_owned(),
    };
    String::from_utf8_lossy(&blot(text.as_bytes())).into_owned()
}

/// Without credentials and query; of a receiver's, host and port alone.
fn hide_url(scheme: &str, rest: &str, is_receiver: bool) -> String {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let authority =
        authority.rsplit_once('@').map_or_else(|| authority.to_owned(), |(_, host)| format!("{HIDDEN}@{host}"));
    let path = match path.find(['?', '#']) {
        _ if is_receiver && path.len() > 1 => format!("/{HIDDEN}"),
        Some(query) => format!("{}{HIDDEN}", &path[..=query]),
        None => path.to_owned(),
    };
    format!("{scheme}://{authority}{path}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{Config, Environment, Places, load};

    const CANARY: &str = "canary0of0a0secret";

    fn loaded(text: &str, pairs: &[(&str, &str)], flags: &[(&str, &str)]) -> Loaded {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("sidekey.toml");
        std::fs::write(&file, text).unwrap();
        let environment = Environment::from_pairs(pairs.iter().copied());
        let places = Places { data_dir: "/data".into(), config_file: file, config_named: true };
        let flags: Vec<_> = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        load(&environment, places, &flags).unwrap()
    }

    fn find<'a>(settings: &'a [Setting], key: &str) -> &'a Setting {
        settings.iter().find(|setting| setting.key == key).unwrap_or_else(|| panic!("no {key}"))
    }

    #[test]
    fn each_value_says_who_said_it() {
        let text = "[keys]\nprefix = \"a\"\n\n[limits]\nmax_body = \"1GiB\"\n[prices.\"openai/x.1\"]\ninput = 1\n";
        let loaded = loaded(
            text,
            &[("SIDEKEY_LOG__LEVEL", "debug"), ("VIRTUAL_KEY_DEFAULT_RPM", "7")],
            &[("listen.proxy", "127.0.0.1:0")],
        );
        let settings = loaded.settings(&loaded);
        let file = loaded.places.config_file.display();
        for (key, value, origin, place) in [
            ("keys.prefix", json!("a"), SaidBy::File, Some(format!("{file}:2"))),
            ("limits.max_body", json!("1GiB"), SaidBy::File, Some(format!("{file}:5"))),
            ("prices.openai/x.1.input", json!(1), SaidBy::File, Some(format!("{file}:7"))),
            ("log.level", json!("debug"), SaidBy::Environment, Some("SIDEKEY_LOG__LEVEL".to_owned())),
            ("keys.default_rpm", json!(7), SaidBy::Environment, Some("VIRTUAL_KEY_DEFAULT_RPM".to_owned())),
            ("listen.proxy", json!("127.0.0.1:0"), SaidBy::Flag, Some("--set listen.proxy".to_owned())),
            ("connect.ports", json!([443, 80]), SaidBy::Default, None),
            ("keys.default_tpm", Value::Null, SaidBy::Default, None),
        ] {
            let setting = find(&settings, key);
            assert_eq!((&setting.value, setting.origin, &setting.place), (&value, origin, &place), "{key}");
            assert!(!setting.needs_restart, "{key}");
        }
        assert!(find(&settings, "listen.proxy").at_start && !find(&settings, "log.level").at_start);
        let known = KEYS.iter().filter(|row| !row.path.contains('*')).count();
        assert_eq!(settings.len(), known + 1, "every setting has its line");
    }

    #[test]
    fn what_waits_for_a_restart_shows_both() {
        let hook = "[alerts.webhooks.a]\nurl = \"https://x.test/1\"\nsecret = \"env:A\"\n";
        let before = loaded(&format!("[store]\nretention_days = 7\n{hook}"), &[], &[]);
        let after = loaded("[store]\nretention_days = 8\n[log]\naccess = true\n", &[], &[]);
        let settings = after.settings(&before);
        for (key, value, waits, in_force) in [
            ("store.retention_days", json!(8), true, Some(json!(7))),
            ("log.access", json!(true), false, None),
            ("alerts.webhooks.a.secret", Value::Null, true, Some(json!("env:A"))),
            ("alerts.webhooks.a.url", Value::Null, true, Some(json!("https://x.test/***"))),
        ] {
            let setting = find(&settings, key);
            assert_eq!((&setting.value, setting.needs_restart, &setting.in_force), (&value, waits, &in_force), "{key}");
        }
    }

    #[test]
    fn what_is_hidden() {
        for (key, text, want) in [
            ("alerts.webhooks.a.url", "https://hooks.test/T0/B0/xyz", "https://hooks.test/***"),
            ("alerts.webhooks.a.url", "https://hooks.test:8443?token=xyz", "https://hooks.test:8443/***"),
            ("alerts.webhooks.a.url", "https://hooks.test/", "https://hooks.test/"),
            ("alerts.webhooks.a.secret", "file:/run/secret", "file:/run/secret"),
            ("alerts.webhooks.a.secret", "whsec_abc", "***"),
            ("telemetry.otlp_endpoint", "https://me:xyz@otel.test/v", "https://***@otel.test/v"),
            ("providers.a.base_url", "https://gw.test/v1?key=xyz", "https://gw.test/v1?***"),
            ("providers.a.base_url", "https://gw.test/v1", "https://gw.test/v1"),
            ("providers.a.test", "/v1/models?key=AIzaSyA1234567890abcdef", "/v1/models?key=AIza[redacted]"),
            ("keys.prefix", "sk-side", "sk-side"),
        ] {
            assert_eq!(hide_text(key, text), want, "{key}");
        }
    }

    /// Every text of every section, with something secret in it wherever the program takes it.
    #[test]
    fn no_secret_is_shown() {
        let key = format!("sk-{CANARY}");
        let text = format!(
            "[alerts.webhooks.a]\nurl = \"https://h.test/{CANARY}?{CANARY}\"\nsecret = \"env:{}\"\n\
             [providers.mine]\ndialect = \"openai\"\nbase_url = \"https://h.test/{key}\"\nv1 = \"/{key}\"\ntest = \"/{key}\"\n\
             hosts = [\"h2.test\"]\nmodels = [\"{key}\"]\nenv = [\"{key}\"]\n\
             [telemetry]\notlp_endpoint = \"https://{CANARY}:{CANARY}@h.test/\"\nservice_name = \"{key}\"\n\
             [routes.smart]\ntargets = [{{ provider = \"mine\", model = \"{key}\" }}]\n\
             [admin]\nhosts = [\"{key}\"]\nsocket = \"/{key}\"\ntls = {{ cert = \"/{key}\", key = \"/{key}\", client_ca = \"/{key}\" }}\n\
             [connect]\nca_dir = \"/{key}\"\n",
            "HOOK"
        );
        let loaded =
            loaded(&text, &[("HOOK", CANARY), ("OPENAI_API_KEY", CANARY), ("SIDEKEY_MASTER_KEY", CANARY)], &[]);
        let shown = serde_json::to_string(&loaded.settings(&loaded)).unwrap();
        assert!(!shown.contains(CANARY), "{shown}");
        for part in ["https://h.test/***", "env:HOOK", "https://***@h.test/", "sk-[redacted]"] {
            assert!(shown.contains(part), "no {part} in {shown}");
        }
        // The other texts of the sections cannot hold one: addresses, words, figures, and globs of what is public.
        let free = KEYS.iter().filter(|row| matches!(row.kind, crate::config::Kind::Text | crate::config::Kind::Texts));
        let said: Vec<String> =
            loaded.settings(&loaded).into_iter().filter(|s| s.origin == SaidBy::File).map(|s| s.key).collect();
        let unsaid: Vec<_> = free.filter(|row| !said.iter().any(|key| row.matches(key))).map(|row| row.path).collect();
        assert_eq!(
            unsaid,
            [
                "keys.prefix",
                "limits.default_provider",
                "providers.*.auth",
                "alerts.instance",
                "alerts.webhooks.*.kinds"
            ]
        );
        assert_ne!(loaded.config, Config::default());
    }
}

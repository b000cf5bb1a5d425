//! What the environment brings to the store: the master key's sources, and system keys in providers' variables.
//!
//! Owns which variables these are; leaves opening the store to `app` and `cli`.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::env::Environment;
use crate::config::load::Loaded;
use crate::metrics::Metrics;
use crate::provider::Registry;
use crate::secret::Secret;
use crate::storage::{EnvironmentKey, MasterKeyInputs, StoreOptions};

/// No key is longer.
const KEY_MAX: usize = 64 << 10;

impl Environment {
    /// Where the master key may come from.
    #[must_use]
    pub fn master_key_inputs(&self) -> MasterKeyInputs {
        MasterKeyInputs {
            credentials_dir: self.get("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            file: self.get("SIDEKEY_MASTER_KEY_FILE").map(PathBuf::from),
            value: self.get("SIDEKEY_MASTER_KEY").map(|value| Secret::new(value.to_owned())),
        }
    }

    /// The system keys in providers' own variables: for each provider the first that is set, or whose `<NAME>_FILE` names
    /// a file that holds it. One that is a virtual key, as inside `sidekey exec`, pays for nothing.
    #[must_use]
    pub fn system_keys(&self, registry: &Registry, prefix: &str) -> Vec<EnvironmentKey> {
        let enabled = registry.iter().filter(|upstream| upstream.enabled);
        let found = enabled.filter_map(|upstream| {
            let set = |name: &String| {
                let value = self.get(name).map(str::to_owned).or_else(|| self.key_in_file(name))?;
                Some((name.clone(), value.trim().to_owned()))
            };
            let (variable, value) = upstream.env.iter().find_map(set)?;
            let own = crate::virtual_key::has_prefix(prefix, &value);
            (!own && !value.is_empty()).then(|| EnvironmentKey {
                provider: upstream.id.to_string(),
                variable,
                secret: Secret::new(value),
            })
        });
        found.collect()
    }

    fn key_in_file(&self, name: &str) -> Option<String> {
        let path = PathBuf::from(self.get(&format!("{name}_FILE"))?);
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(text).filter(|text| text.len() <= KEY_MAX),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "{name}_FILE names a file that cannot be read");
                None
            }
        }
    }

    /// The files that `<NAME>_FILE` variables of providers name.
    #[must_use]
    pub fn key_files(&self, registry: &Registry) -> Vec<PathBuf> {
        let names = registry.iter().flat_map(|upstream| upstream.env.iter());
        names.filter_map(|name| self.get(&format!("{name}_FILE")).map(PathBuf::from)).collect()
    }

    /// Every variable, as values that `env:NAME` references may name.
    #[must_use]
    pub fn secrets(&self) -> HashMap<String, Secret> {
        self.iter().map(|(name, value)| (name.to_owned(), Secret::new(value.to_owned()))).collect()
    }
}

impl Loaded {
    /// How the store is to be opened.
    #[must_use]
    pub fn store_options(
        &self,
        environment: &Environment,
        registry: &Registry,
        clock: Clock,
        metrics: Metrics,
    ) -> StoreOptions {
        StoreOptions {
            dir: self.places.data_dir.clone(),
            create: false,
            master: environment.master_key_inputs(),
            environment_keys: environment.system_keys(registry, &self.config.keys.prefix),
            prices: Arc::new(self.config.prices(registry)),
            section: self.config.store.clone(),
            unusual: self.config.alerts.unusual(),
            clock,
            metrics,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_system_key_may_lie_in_a_file() {
        let registry = Config::default().registry().expect("the defaults are valid");
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        std::fs::write(&path, "sk-from-file\n").expect("written");
        let path = path.to_str().expect("text");
        let environment = Environment::from_pairs([("OPENAI_API_KEY_FILE", path), ("GROQ_API_KEY_FILE", "/nowhere")]);
        let keys = environment.system_keys(&registry, "sk-side");
        let keys: Vec<_> = keys.iter().map(|k| (k.variable.as_str(), k.secret.expose())).collect();
        assert_eq!(keys, [("OPENAI_API_KEY", "sk-from-file")]);
        assert_eq!(environment.key_files(&registry).len(), 2);
    }

    #[test]
    fn system_keys_are_the_first_that_are_set() {
        let registry = Config::default().registry().expect("the defaults are valid");
        let environment = Environment::from_pairs([
            ("GOOGLE_API_KEY", "AIza-google"),
            ("ANTHROPIC_API_KEY", ""),
            ("ANTHROPIC_AUTH_TOKEN", " sk-ant-token "),
            ("OPENAI_API_KEY", "sk-side-a1b2c3d4e5f67890-x"),
        ]);
        let mut keys = environment.system_keys(&registry, "sk-side");
        keys.sort_by(|a, b| a.provider.cmp(&b.provider));
        let keys: Vec<_> = keys.iter().map(|k| (k.provider.as_str(), k.variable.as_str(), k.secret.expose())).collect();
        assert_eq!(
            keys,
            [("anthropic", "ANTHROPIC_AUTH_TOKEN", "sk-ant-token"), ("gemini", "GOOGLE_API_KEY", "AIza-google")]
        );
    }
}

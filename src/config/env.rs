//! [`Environment`]: what the process was started with, read once. Nothing else in sidekey reads a variable.
//!
//! Owns the capture; leaves the meaning of `SIDEKEY_*` to `config::load` and of directories to `config::places`.

use std::collections::BTreeMap;
use std::fmt;

/// The environment variables and the user, as captured at start or as a test wrote them.
#[derive(Clone, Default)]
pub struct Environment {
    vars: BTreeMap<String, String>,
    /// True when the effective user is root.
    pub root: bool,
}

impl Environment {
    /// The process's own. Variables that are not UTF-8 are none of ours and are left out.
    #[must_use]
    pub fn capture() -> Self {
        let vars =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self { vars: vars.collect(), root: rustix::process::geteuid().is_root() }
    }

    /// One made by hand, of an ordinary user.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let vars = pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { vars, root: false }
    }

    /// The value of a variable; an empty one counts as unset.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Every variable that is set and not empty, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.vars.iter().map(|(name, value)| (name.as_str(), value.as_str())).filter(|(_, value)| !value.is_empty())
    }

    /// True when colour is wanted on a terminal: `NO_COLOR` is unset or empty, and the terminal is not dumb.
    #[must_use]
    pub fn allows_color(&self) -> bool {
        self.get("NO_COLOR").is_none() && self.get("TERM") != Some("dumb")
    }
}

/// Shows names only: values can be provider keys.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.vars.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_not_shown() {
        let environment = Environment::from_pairs([("OPENAI_API_KEY", "sk-secret"), ("EMPTY", "")]);
        assert_eq!(format!("{environment:?}"), r#"{"EMPTY", "OPENAI_API_KEY"}"#);
        assert_eq!(environment.get("EMPTY"), None);
        assert_eq!(environment.iter().count(), 1);
    }
}

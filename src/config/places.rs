//! Where things lie: the data directory and the configuration file, by flag, variable, service or XDG.
//!
//! Owns the choice; leaves creating directories to `cli::init`.

use std::path::{Path, PathBuf};

use crate::config::env::Environment;

/// The name of the configuration file.
pub const FILE_NAME: &str = "sidekey.toml";
const SERVICE_DATA: &str = "/var/lib/sidekey";
const SERVICE_CONFIG: &str = "/etc/sidekey";

/// The two places sidekey works in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Store, master key, admin socket.
    pub data_dir: PathBuf,
    /// The configuration file.
    pub config_file: PathBuf,
    /// True when the user named the file: it must then exist.
    pub config_named: bool,
}

/// No home directory and nothing said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither HOME nor the directory is known: set SIDEKEY_DATA_DIR and SIDEKEY_CONFIG")]
pub struct NoPlace;

impl Places {
    /// Flags first, then `SIDEKEY_DATA_DIR` and `SIDEKEY_CONFIG`, then systemd's directories, then those of a service
    /// run by root, then XDG's.
    ///
    /// # Errors
    /// When nothing names a place.
    pub fn find(environment: &Environment, data_dir: Option<&Path>, config: Option<&Path>) -> Result<Self, NoPlace> {
        let said_config =
            config.map(Path::to_path_buf).or_else(|| environment.get("SIDEKEY_CONFIG").map(PathBuf::from));
        let said_data =
            data_dir.map(Path::to_path_buf).or_else(|| environment.get("SIDEKEY_DATA_DIR").map(PathBuf::from));
        let config_named = said_config.is_some();
        Ok(Self {
            data_dir: said_data.or_else(|| default_data(environment)).ok_or(NoPlace)?,
            config_file: said_config.or_else(|| default_config(environment)).ok_or(NoPlace)?,
            config_named,
        })
    }

    /// The Unix socket of the admin API, unless the configuration names another.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.data_dir.join("admin.sock")
    }
}

/// True under systemd, or where an operator has made the service's directory: the commands root types must then
/// find the daemon's store and not one in /root.
fn is_service(environment: &Environment) -> bool {
    environment.root && (environment.get("INVOCATION_ID").is_some() || Path::new(SERVICE_DATA).is_dir())
}

fn default_data(environment: &Environment) -> Option<PathBuf> {
    if let Some(directory) = first_of(environment, "STATE_DIRECTORY") {
        return Some(directory);
    }
    if is_service(environment) {
        return Some(SERVICE_DATA.into());
    }
    xdg(environment, "XDG_DATA_HOME", ".local/share").map(|base| base.join("sidekey"))
}

fn default_config(environment: &Environment) -> Option<PathBuf> {
    let directory = if let Some(directory) = first_of(environment, "CONFIGURATION_DIRECTORY") {
        directory
    } else if is_service(environment) {
        SERVICE_CONFIG.into()
    } else {
        xdg(environment, "XDG_CONFIG_HOME", ".config")?.join("sidekey")
    };
    Some(directory.join(FILE_NAME))
}

/// systemd lists several directories with colons; ours is the first.
fn first_of(environment: &Environment, name: &str) -> Option<PathBuf> {
    environment.get(name)?.split(':').next().map(PathBuf::from)
}

/// The XDG specification: a relative path in these variables is to be ignored.
fn xdg(environment: &Environment, name: &str, under_home: &str) -> Option<PathBuf> {
    let said = environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    said.or_else(|| environment.get("HOME").map(|home| Path::new(home).join(under_home)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_places() {
        let home = ("HOME", "/home/a");
        for (name, pairs, flags, want) in [
            (
                "home",
                vec![home],
                (None, None),
                ("/home/a/.local/share/sidekey", "/home/a/.config/sidekey/sidekey.toml", false),
            ),
            (
                "xdg",
                vec![home, ("XDG_DATA_HOME", "/d"), ("XDG_CONFIG_HOME", "relative")],
                (None, None),
                ("/d/sidekey", "/home/a/.config/sidekey/sidekey.toml", false),
            ),
            (
                "systemd",
                vec![home, ("STATE_DIRECTORY", "/var/lib/private/sidekey:/x"), ("CONFIGURATION_DIRECTORY", "/etc/sk")],
                (None, None),
                ("/var/lib/private/sidekey", "/etc/sk/sidekey.toml", false),
            ),
            (
                "variables",
                vec![("SIDEKEY_DATA_DIR", "./data"), ("SIDEKEY_CONFIG", "./c.toml"), ("STATE_DIRECTORY", "/s")],
                (None, None),
                ("./data", "./c.toml", true),
            ),
            (
                "flags",
                vec![("SIDEKEY_DATA_DIR", "./data"), ("SIDEKEY_CONFIG", "./c.toml")],
                (Some("/f"), Some("/f.toml")),
                ("/f", "/f.toml", true),
            ),
        ] {
            let environment = Environment::from_pairs(pairs);
            let got = Places::find(&environment, flags.0.map(Path::new), flags.1.map(Path::new)).expect(name);
            let want = Places { data_dir: want.0.into(), config_file: want.1.into(), config_named: want.2 };
            assert_eq!(got, want, "{name}");
        }
        assert_eq!(Places::find(&Environment::default(), None, None), Err(NoPlace));
    }
}

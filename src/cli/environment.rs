//! `sidekey env`: the variables that point programs at sidekey, for a shell to take in.
//!
//! Owns each shell's quoting.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};

use crate::cli::args::{EnvArgs, EnvForm, Mode};
use crate::cli::client::AdminClient;
use crate::cli::failure::{Exit, Failure};
use crate::cli::proxied::{self, Changes};
use crate::cli::sdk::{Targets, hosts};
use crate::cli::trust::{self, TrustFiles};
use crate::cli::{Session, out, proxy_of, secret_input, store};
use crate::control::view::ProviderView;

/// Prints them. Address and providers are the running daemon's; the configuration's when none runs.
///
/// # Errors
/// When a provider is not known or has no variables, the key on standard input cannot be read, or the output not be
/// written.
pub async fn run(session: &Session, args: &EnvArgs) -> Result<(), Failure> {
    let key = if args.key_stdin { Some(secret_input::from_stdin()?) } else { None };
    let daemon = AdminClient::of_daemon(&session.loaded.admin_socket()).await;
    let (proxy, providers) = match &daemon {
        Some(daemon) => (proxy_of(daemon).await?, daemon.get("/api/providers?limit=1000").await?.body),
        None => (session.loaded.config.listen.proxy, configured(session)?),
    };
    let mut targets = Targets::of(proxy, &args.provider, &providers)?;
    let key = key.as_ref().map(|key| key.expose());
    let changes = match (args.mode, daemon) {
        (Mode::BaseUrl, _) => {
            if let Some(failure) = targets.by_hand.pop() {
                return Err(failure);
            }
            Changes { unset: Vec::new(), set: targets.variables(key) }
        }
        (Mode::Proxy, None) => {
            let failure = Failure::new(Exit::Failure, "whom to trust only the running daemon can say");
            return Err(failure.fix("start it: `sidekey run`"));
        }
        (Mode::Proxy, Some(daemon)) => {
            let mut changes = proxied(session, &daemon, proxy, &providers).await?;
            changes.set.extend(key.map(|key| targets.keys(key)).into_iter().flatten());
            changes
        }
    };
    session.out.text(&render(args.shell, &changes))?;
    Ok(())
}

/// Writes the files of trust into the data directory; shells come and go.
async fn proxied(
    session: &Session,
    daemon: &AdminClient,
    proxy: SocketAddr,
    providers: &Value,
) -> Result<Changes, Failure> {
    let dir = session.loaded.places.data_dir.join("trust");
    std::fs::create_dir_all(&dir)?;
    let files = TrustFiles::in_dir(&dir);
    for warning in files.write(&session.environment, &trust::roots(daemon).await?)? {
        out::say(&format!("warning: {warning}"));
    }
    Ok(proxied::proxied(&session.environment, proxy, &files, &hosts(providers)))
}

/// What `/api/providers` of a daemon with this configuration would say.
pub(super) fn configured(session: &Session) -> Result<Value, Failure> {
    let registry = store::registry(session)?;
    let views: Vec<ProviderView> = registry.iter().map(|upstream| ProviderView::new(upstream, &[], 0)).collect();
    Ok(json!({"providers": views}))
}

/// The changes in a shell's words; in JSON what is taken away is null.
fn render(form: EnvForm, changes: &Changes) -> String {
    let lines = |unset: &dyn Fn(&str) -> String, set: &dyn Fn(&str, &str) -> String| {
        let unset = changes.unset.iter().map(|name| unset(name));
        unset.chain(changes.set.iter().map(|(name, value)| set(name, value))).collect()
    };
    match form {
        EnvForm::Bash | EnvForm::Zsh => lines(&|name| format!("unset {name}\n"), &|name, value| {
            format!("export {name}='{}'\n", value.replace('\'', r"'\''"))
        }),
        EnvForm::Fish => lines(&|name| format!("set -e {name}\n"), &|name, value| {
            format!("set -gx {name} '{}'\n", value.replace('\\', r"\\").replace('\'', r"\'"))
        }),
        EnvForm::Json => {
            let unset = changes.unset.iter().map(|name| ((*name).to_owned(), Value::Null));
            let set = changes.set.iter().map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())));
            let map: Map<String, Value> = unset.chain(set).collect();
            format!("{:#}\n", Value::Object(map))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        let changes = Changes { unset: vec!["B"], set: vec![("A", r"it's \ here".to_owned())] };
        for (form, want) in [
            (EnvForm::Bash, "unset B\nexport A='it'\\''s \\ here'\n"),
            (EnvForm::Zsh, "unset B\nexport A='it'\\''s \\ here'\n"),
            (EnvForm::Fish, "set -e B\nset -gx A 'it\\'s \\\\ here'\n"),
            (EnvForm::Json, "{\n  \"B\": null,\n  \"A\": \"it's \\\\ here\"\n}\n"),
        ] {
            assert_eq!(render(form, &changes), want, "{form:?}");
        }
    }
}

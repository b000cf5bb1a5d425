//! `sidekey env`: the variables that point SDKs at sidekey, for a shell to take in.
//!
//! Owns each shell's quoting.

use serde_json::{Map, Value, json};

use crate::cli::args::{EnvArgs, EnvForm};
use crate::cli::client::AdminClient;
use crate::cli::failure::Failure;
use crate::cli::sdk::Targets;
use crate::cli::{Session, proxy_of, secret_input, store};
use crate::control::view::ProviderView;

/// Prints them. Address and providers are the running daemon's; the configuration's when none runs.
///
/// # Errors
/// When a provider is not known or has no variables, the key on standard input cannot be read, or the output not be
/// written.
pub async fn run(session: &Session, args: &EnvArgs) -> Result<(), Failure> {
    let key = if args.key_stdin { Some(secret_input::from_stdin()?) } else { None };
    let (proxy, providers) = match AdminClient::of_daemon(&session.loaded.places.admin_socket()).await {
        Some(daemon) => (proxy_of(&daemon).await?, daemon.get("/api/providers").await?.body),
        None => (session.loaded.config.listen.proxy, configured(session)?),
    };
    let mut targets = Targets::of(proxy, &args.provider, &providers)?;
    if let Some(failure) = targets.by_hand.pop() {
        return Err(failure);
    }
    let variables = targets.variables(key.as_ref().map(|key| key.expose()));
    session.out.text(&render(args.shell, &variables))?;
    Ok(())
}

/// What `/api/providers` of a daemon with this configuration would say.
fn configured(session: &Session) -> Result<Value, Failure> {
    let registry = store::registry(session)?;
    let views: Vec<ProviderView> = registry.iter().map(|upstream| ProviderView::new(upstream, &[], 0)).collect();
    Ok(json!({"providers": views}))
}

fn render(form: EnvForm, variables: &[(&'static str, String)]) -> String {
    let lines = |line: &dyn Fn(&str, &str) -> String| variables.iter().map(|(name, value)| line(name, value)).collect();
    match form {
        EnvForm::Bash | EnvForm::Zsh => {
            lines(&|name, value| format!("export {name}='{}'\n", value.replace('\'', r"'\''")))
        }
        EnvForm::Fish => {
            lines(&|name, value| format!("set -gx {name} '{}'\n", value.replace('\\', r"\\").replace('\'', r"\'")))
        }
        EnvForm::Json => {
            let map: Map<String, Value> =
                variables.iter().map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str()))).collect();
            format!("{:#}\n", Value::Object(map))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting() {
        let variables = [("A", r"it's \ here".to_owned())];
        for (form, want) in [
            (EnvForm::Bash, "export A='it'\\''s \\ here'\n"),
            (EnvForm::Zsh, "export A='it'\\''s \\ here'\n"),
            (EnvForm::Fish, "set -gx A 'it\\'s \\\\ here'\n"),
            (EnvForm::Json, "{\n  \"A\": \"it's \\\\ here\"\n}\n"),
        ] {
            assert_eq!(render(form, &variables), want, "{form:?}");
        }
    }
}

//! `sidekey env`: the variables that point SDKs at sidekey, for a shell to take in.
//!
//! Owns each shell's quoting.

use serde_json::{Map, Value};

use crate::cli::args::{EnvArgs, EnvForm};
use crate::cli::failure::Failure;
use crate::cli::{Session, sdk, secret_input};

/// Prints them. The proxy's address is the configured one; nothing is asked of the daemon.
///
/// # Errors
/// When the key on standard input cannot be read, or the output not be written.
pub fn run(session: &Session, args: &EnvArgs) -> Result<(), Failure> {
    let key = if args.key_stdin { Some(secret_input::from_stdin()?) } else { None };
    let proxy = session.loaded.config.listen.proxy;
    let variables = sdk::variables(proxy, key.as_ref().map(|key| key.expose()), &args.provider);
    session.out.text(&render(args.shell, &variables))?;
    Ok(())
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

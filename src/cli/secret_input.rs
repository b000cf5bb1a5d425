//! How a secret gets in: a prompt without echo, standard input, a file. Never a flag, which `ps` and history show.
//!
//! Owns reading it and recognising one on the command line.

use std::ffi::OsString;
use std::io::Read;
use std::path::Path;

use crate::cli::failure::{Exit, Failure};
use crate::cli::out;
use crate::secret::Secret;

/// Longer than any key or token of a provider.
const MAX_BYTES: u64 = 64 * 1024;
/// Beginnings of vendors' keys and of tokens.
const BEGINNINGS: &[&str] = &[
    "sk-", "sk_", "gsk_", "xai-", "pplx-", "fw_", "hf_", "r8_", "csk-", "tgp_v1_", "nvapi-", "AIza", "AQ.", "ya29.",
    "eyJ", "ABSK", "pa-", "dapi",
];
/// Shorter than any vendor's key.
const SHORTEST: usize = 20;

/// Reads a secret from standard input, to its end.
///
/// # Errors
/// When there is none, or it is not one line of text.
pub fn from_stdin() -> Result<Secret, Failure> {
    read(std::io::stdin().lock(), "standard input")
}

/// Reads a secret from a file.
///
/// # Errors
/// When the file cannot be read, or is not one line of text.
pub fn from_file(path: &Path) -> Result<Secret, Failure> {
    let file = std::fs::File::open(path);
    let file = file.map_err(|error| Failure::new(Exit::Failure, format!("{}: {error}", path.display())))?;
    read(file, &path.display().to_string())
}

/// Asks for a secret at the terminal, without echo.
///
/// # Errors
/// When nobody can be asked, or nothing is entered.
pub fn from_prompt(what: &str, no_input: bool) -> Result<Secret, Failure> {
    if no_input || !out::can_ask() {
        let failure = Failure::new(Exit::Usage, format!("{what} is needed and nobody can be asked for it"));
        return Err(failure.fix("pipe it in with --stdin"));
    }
    let text = rpassword::prompt_password(format!("{what}: ")).map_err(Failure::from)?;
    clean(text, "the prompt")
}

fn read(source: impl Read, name: &str) -> Result<Secret, Failure> {
    let mut text = String::new();
    let read = source.take(MAX_BYTES).read_to_string(&mut text);
    // The error of a file that is no text quotes nothing of it.
    read.map_err(|error| Failure::new(Exit::Failure, format!("{name}: {error}")))?;
    clean(text, name)
}

/// One line without white space around it; what has a line break or control character inside could never be sent.
fn clean(text: String, name: &str) -> Result<Secret, Failure> {
    let whole = Secret::new(text);
    let line = whole.expose().trim();
    if line.is_empty() {
        return Err(Failure::new(Exit::Usage, format!("{name} holds no key")));
    }
    if line.chars().any(char::is_control) {
        return Err(Failure::new(Exit::Usage, format!("{name} holds more than one line; a key is one line")));
    }
    Ok(Secret::new(line.to_owned()))
}

/// Refuses a command line that holds something like a key, before anything can echo it. What follows `--` belongs to
/// another program.
///
/// # Errors
/// When a word looks like a key.
pub fn refuse_in_words(words: &[OsString]) -> Result<(), Failure> {
    let own = words.iter().skip(1).take_while(|word| *word != "--");
    let mut texts = own.filter_map(|word| word.to_str());
    let found = texts.any(|text| key_shaped(text) || text.rsplit_once('=').is_some_and(|(_, value)| key_shaped(value)));
    if !found {
        return Ok(());
    }
    let failure = Failure::new(
        Exit::Usage,
        "a word of the command line looks like a key; other processes and the shell's history can see it",
    );
    Err(failure.fix("treat that key as leaked; pipe its successor in: `sidekey provider-key add PROVIDER --name NAME --stdin < FILE`"))
}

fn key_shaped(text: &str) -> bool {
    let begins = BEGINNINGS.iter().any(|beginning| text.starts_with(beginning));
    let plain = text.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_.=+/".contains(&c));
    begins && plain && text.len() >= SHORTEST && text.bytes().any(|c| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_among_words() {
        for (line, found) in [
            ("sidekey provider-key add openai --name main --stdin", false),
            ("sidekey provider-key add openai sk-proj-abcdefghijkl0123456789", true),
            ("sidekey provider-key add openai --key-file=sk-proj-abcdefghijkl0123456789", true),
            ("sidekey provider-key add openai --name sk-ant-api03-abcdefghijkl", true),
            ("sidekey provider-key add gemini --ref AIzaSyA0123456789abcdefghij", true),
            ("sidekey key create --name a --models gpt-4o*,claude-3-5-sonnet-20241022", false),
            ("sidekey key create --name sk-side", false),
            ("sidekey exec -- curl sk-proj-abcdefghijkl0123456789", false),
            ("sidekey key show a1b2c3d4e5f67890", false),
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let refused = refuse_in_words(&words);
            assert_eq!(refused.is_err(), found, "{line}");
            if let Err(failure) = refused {
                assert!(!failure.lines().join("").contains("abcdefghij"), "{line}");
            }
        }
    }

    #[test]
    fn one_line() {
        for (text, want) in
            [("key\n", Some("key")), (" key \r\n", Some("key")), ("", None), (" \n", None), ("a\nb", None)]
        {
            assert_eq!(
                clean(text.to_owned(), "it").ok().map(|secret| secret.expose().to_owned()).as_deref(),
                want,
                "{text:?}"
            );
        }
        assert!(read(&b"\xff\xfe"[..], "it").is_err());
    }
}

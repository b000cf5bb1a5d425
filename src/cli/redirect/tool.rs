//! Running the tools that write rules, or showing what would be run.
//!
//! Owns commands as values; leaves what they say to `nft` and `iptables`.

use std::io::{ErrorKind, Write};
use std::process::{Command, Output, Stdio};

/// One call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    program: String,
    args: Vec<String>,
    input: Option<String>,
}

/// One step towards the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Must succeed.
    Run(Call),
    /// Only when the first call fails.
    Unless(Call, Call),
    /// Only when the first call succeeds.
    When(Call, Call),
    /// Again and again, for as long as the first call succeeds.
    While(Call, Call),
}

impl Call {
    /// `words` are separated by spaces.
    pub(super) fn new(program: impl Into<String>, words: &str) -> Self {
        Self { program: program.into(), args: words.split(' ').map(str::to_owned).collect(), input: None }
    }

    /// With text on standard input.
    pub(super) fn input(mut self, text: String) -> Self {
        self.input = Some(text);
        self
    }

    /// What it printed.
    ///
    /// # Errors
    /// What it complained of, or that it is not there.
    pub(super) fn output(&self) -> Result<String, String> {
        let shown = self.program.as_str();
        let output = self.spawn().map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("{shown} is not installed"),
            _ => format!("{shown}: {error}"),
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given").to_owned();
        let hint = if said.contains("Table does not exist") {
            "; this kernel has no such table: load its module (iptable_nat, iptable_filter and their ip6 twins), or take \
             --backend nft"
        } else {
            ""
        };
        Err(format!("{shown} {}: {said}{hint}", self.args.join(" ")))
    }

    pub(super) fn succeeds(&self) -> bool {
        self.output().is_ok()
    }

    fn spawn(&self) -> std::io::Result<Output> {
        let stdin = if self.input.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut command = Command::new(&self.program);
        // What a tool says is read for errors: it is to be in English.
        command.args(&self.args).env("LC_ALL", "C").stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        if let (Some(mut stdin), Some(text)) = (child.stdin.take(), &self.input) {
            // A tool that stops reading says why in its output.
            let _ = stdin.write_all(text.as_bytes());
        }
        child.wait_with_output()
    }

    fn as_shell(&self) -> String {
        let words: Vec<String> = std::iter::once(&self.program).chain(&self.args).map(|word| quoted(word)).collect();
        match &self.input {
            None => words.join(" "),
            Some(text) => format!("{} <<'END'\n{text}END", words.join(" ")),
        }
    }
}

impl Step {
    /// Takes it.
    ///
    /// # Errors
    /// What the tool complained of.
    pub(super) fn run(&self) -> Result<(), String> {
        /// More than any sane number of copies of one rule.
        const MOST: usize = 1000;
        match self {
            Self::Run(call) => call.output().map(drop),
            Self::Unless(check, call) => {
                if check.succeeds() {
                    Ok(())
                } else {
                    call.output().map(drop)
                }
            }
            Self::When(check, call) => {
                if check.succeeds() {
                    call.output().map(drop)
                } else {
                    Ok(())
                }
            }
            Self::While(check, call) => {
                for _ in 0..MOST {
                    if !check.succeeds() {
                        break;
                    }
                    call.output()?;
                }
                Ok(())
            }
        }
    }

    /// Its line of a shell script.
    pub(super) fn as_shell(&self) -> String {
        match self {
            Self::Run(call) => format!("{}\n", call.as_shell()),
            Self::Unless(check, call) => format!("{} 2>/dev/null || {}\n", check.as_shell(), call.as_shell()),
            Self::When(check, call) => format!("! {} >/dev/null 2>&1 || {}\n", check.as_shell(), call.as_shell()),
            Self::While(check, call) => {
                format!("while {} 2>/dev/null; do {}; done\n", check.as_shell(), call.as_shell())
            }
        }
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,".contains(c);
    if word.chars().all(plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// True when the program can be started.
pub(super) fn exists(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        let sh = |script: &str| Call { program: "sh".into(), args: vec!["-c".into(), script.into()], input: None };
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let script = |text: &str| sh(&text.replace("FILE", &file.display().to_string()));
        Step::Run(Call::new("sh", "-s").input(format!("printf aaa >{}", file.display()))).run().unwrap();
        Step::Unless(script("grep -q a FILE"), script("printf b >>FILE")).run().unwrap();
        Step::Unless(script("grep -q c FILE"), script("printf c >>FILE")).run().unwrap();
        Step::When(script("grep -q z FILE"), script("printf d >>FILE")).run().unwrap();
        Step::When(script("grep -q c FILE"), script("printf e >>FILE")).run().unwrap();
        Step::While(script("grep -q a FILE"), script("sed -i s/a// FILE")).run().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "ce");
        let failed = Step::Run(sh("echo >&2; echo no such rule >&2; exit 3")).run().unwrap_err();
        assert!(failed.ends_with(": no such rule"), "{failed}");
        let missing = "echo \"can't initialize ip6tables table \\`nat': Table does not exist\" >&2; exit 3";
        let failed = Step::Run(sh(missing)).run().unwrap_err();
        assert!(failed.contains("table `nat'") && failed.ends_with("--backend nft"), "{failed}");
        assert_eq!(Step::Run(Call::new("no-such-tool", "x")).run().unwrap_err(), "no-such-tool is not installed");
    }

    #[test]
    fn as_a_script() {
        let call = Call::new("nft", "-f -").input("table inet x\n".to_owned());
        assert_eq!(Step::Run(call).as_shell(), "nft -f - <<'END'\ntable inet x\nEND\n");
        let odd = Call { program: "a".into(), args: vec!["it's".into(), "!".into()], input: None };
        assert_eq!(odd.as_shell(), r"a 'it'\''s' '!'");
    }
}

//! A small program of each runtime: it asks for one URL, with nothing but its environment to tell it how.
//!
//! Owns what is run, and what is to be done when it does not come as it should.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::cli::doctor::watch::NOBODY;

/// How long one may take: Java has to start, and names may have to be looked up in vain.
const LIMIT: Duration = Duration::from_secs(20);
/// The exit code of a probe that lacks what it needs, as a package: then there is nothing to say.
const ABSENT: i32 = 86;
/// What a probe says before it asks; without it, it did not get that far.
const BEGUN: &str = "begun";
const SOURCE: &str = "SidekeyDoctor.java";

/// A runtime.
#[derive(Debug)]
pub(super) struct Runtime {
    /// As it is told, and the first label of the host that is asked for.
    pub(super) name: &'static str,
    /// Found on PATH.
    pub(super) program: &'static str,
    /// `URL` and `DIR` stand for what is known later.
    words: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
    /// Says [`BEGUN`].
    says: bool,
    /// What to do when it goes its own way.
    pub(super) direct: &'static str,
    /// What to do when it does not trust.
    pub(super) untrusted: &'static str,
}

const REDIRECT: &str = "`sidekey exec --sandbox`, or redirected connections";
const VARIABLES: &str = "look for a setting of its own that names other roots";

impl Runtime {
    const fn new(name: &'static str, words: &'static [&'static str]) -> Self {
        Self { name, program: name, words, env: &[], says: false, direct: REDIRECT, untrusted: VARIABLES }
    }
}

const URLLIB: &str =
    "import sys, urllib.request\nprint('begun', flush=True)\nurllib.request.urlopen(sys.argv[1], timeout=10)";
const REQUESTS: &str = "import sys\ntry:\n import requests\nexcept ImportError:\n sys.exit(86)\n\
    print('begun', flush=True)\nrequests.get(sys.argv[1], timeout=10)";
const HTTPX: &str = "import sys\ntry:\n import httpx\nexcept ImportError:\n sys.exit(86)\n\
    print('begun', flush=True)\nhttpx.get(sys.argv[1], timeout=10)";
const FETCH: &str = "console.log('begun'); fetch(process.argv[1]).then(r => r.text())";
const BUN: &str = "console.log('begun'); fetch(process.argv.at(-1)).then(r => r.text())";
const DENO: &str = "console.log('begun'); await (await fetch(Deno.args[0])).text()";
const RUBY: &str = "$stdout.sync = true; puts 'begun'; Net::HTTP.get(URI(ARGV[0]))";
const JAVA: &str = r#"import java.net.URI;
import java.net.http.*;
class SidekeyDoctor {
    public static void main(String[] words) throws Exception {
        System.out.println("begun");
        var request = HttpRequest.newBuilder(URI.create(words[0])).build();
        HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.discarding());
    }
}
"#;

/// Those that are known.
pub(super) const RUNTIMES: &[Runtime] = &[
    Runtime::new("curl", &["-sS", "--max-time", "10", "URL"]),
    Runtime {
        untrusted: "it reads no variable: `sidekey ca install` for the daemon's root, --ca-certificate, or exec --sandbox",
        ..Runtime::new("wget", &["-q", "-O", "/dev/null", "-t", "1", "-T", "10", "URL"])
    },
    Runtime {
        // No helper is to be asked for credentials of a host that nobody has.
        env: &[("GIT_TERMINAL_PROMPT", "0"), ("GIT_ASKPASS", "true")],
        ..Runtime::new("git", &["-c", "credential.helper=", "ls-remote", "URL"])
    },
    Runtime { program: "python3", says: true, ..Runtime::new("python", &["-c", URLLIB, "URL"]) },
    Runtime { program: "python3", says: true, ..Runtime::new("python-requests", &["-c", REQUESTS, "URL"]) },
    Runtime { program: "python3", says: true, ..Runtime::new("python-httpx", &["-c", HTTPX, "URL"]) },
    Runtime {
        says: true,
        direct: "Node reads proxies from 22.21 and 24.5 on: take one of these, set a base URL, or exec --sandbox",
        ..Runtime::new("node", &["-e", FETCH, "URL"])
    },
    Runtime { says: true, ..Runtime::new("deno", &["eval", DENO, "URL"]) },
    Runtime { says: true, ..Runtime::new("bun", &["-e", BUN, "URL"]) },
    Runtime { says: true, ..Runtime::new("ruby", &["-rnet/http", "-e", RUBY, "URL"]) },
    Runtime {
        says: true,
        direct: "it reads JDK_JAVA_OPTIONS from Java 9 on, by the `java` launcher alone: give others its options",
        ..Runtime::new("java", &["DIR/SidekeyDoctor.java", "URL"])
    },
    Runtime {
        // The command itself is a client of net/http, and nothing has to be compiled.
        env: &[
            ("GOPROXY", "URL"),
            ("GO111MODULE", "on"),
            ("GOFLAGS", ""),
            ("GOSUMDB", "off"),
            ("GOTOOLCHAIN", "local"),
            ("GOMODCACHE", "DIR/go"),
        ],
        ..Runtime::new("go", &["list", "-m", "example.com/sidekey-doctor@latest"])
    },
];

/// How a probe went, but for what the proxy saw of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ran {
    /// It has not what it needs.
    Absent,
    /// It did not get as far as asking.
    Broken(String),
    /// It asked, or believes so; what it said last.
    Asked(String),
}

impl Runtime {
    /// The host that it asks for.
    pub(super) fn host(&self) -> String {
        format!("{}.{NOBODY}", self.name)
    }

    /// Writes what needs a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn prepare(dir: &Path) -> std::io::Result<()> {
        std::fs::write(dir.join(SOURCE), JAVA)
    }

    /// Runs it in what `surround` makes its environment.
    pub(super) async fn run(&self, dir: &Path, surround: impl Fn(&mut Command)) -> Ran {
        let url = format!("https://{}/", self.host());
        let fill = |word: &str| word.replace("URL", &url).replace("DIR", &dir.display().to_string());
        // A script has none of these words as its own.
        let words = self.words.iter().map(|word| if word.contains('(') { (*word).to_owned() } else { fill(word) });
        let mut command = Command::new(self.program);
        command.args(words).current_dir(dir).kill_on_drop(true);
        surround(&mut command);
        command.envs(self.env.iter().map(|(name, value)| (*name, fill(value))));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = match tokio::time::timeout(LIMIT, command.output()).await {
            Err(_) => return Ran::Asked(format!("no end within {} s", LIMIT.as_secs())),
            Ok(Err(error)) => return Ran::Broken(error.to_string()),
            Ok(Ok(output)) => output,
        };
        let said = last_line(&String::from_utf8_lossy(&output.stderr));
        let begun = !self.says || String::from_utf8_lossy(&output.stdout).contains(BEGUN);
        match output.status.code() {
            Some(ABSENT) => Ran::Absent,
            Some(126 | 127) => Ran::Broken(said),
            _ if begun => Ran::Asked(said),
            _ => Ran::Broken(said),
        }
    }
}

/// What stands last and says something, cut short.
fn last_line(text: &str) -> String {
    let frame =
        |line: &&str| line.is_empty() || line.starts_with("at ") || line.starts_with("Node.js v") || *line == "}";
    let line = text.lines().map(str::trim).rfind(|line| !frame(line)).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(160).collect()
}

/// True when `program` is in one of the directories of `path`.
pub(super) fn is_on(path: &str, program: &str) -> bool {
    std::env::split_paths(path).any(|dir| dir.join(program).is_file())
}

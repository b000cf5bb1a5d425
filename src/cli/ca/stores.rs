//! Where systems and programs keep the roots they trust, and how one is put there and taken out.
//!
//! Owns the kinds of stores and their steps; takes none before it is told to. All of them can be repeated.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::ca::StoreKind;
use crate::config::Environment;

/// What a store is looked for in.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    /// `/`, but for tests.
    pub(super) root: PathBuf,
    pub(super) home: Option<PathBuf>,
    pub(super) java_home: Option<PathBuf>,
}

/// A store of a system or a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Store {
    /// A directory of files, what reads it, and what reads it anew when one has gone. What it reads may be led on to a
    /// keystore of Java's.
    Directory {
        name: &'static str,
        dir: PathBuf,
        extension: &'static str,
        refresh: &'static [&'static str],
        clean: &'static [&'static str],
        led_on: Option<PathBuf>,
    },
    /// The keystore of a Java installation.
    Java { keystore: PathBuf, keytool: PathBuf },
    /// The keychain of macOS.
    Keychain(PathBuf),
    /// A database of NSS.
    Nss(PathBuf),
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Write { path: PathBuf, text: String },
    Remove(PathBuf),
    Run { words: Vec<String>, may_fail: bool },
}

/// A directory of a distribution, where it is, its files' extension, what reads them, and what does when one has gone.
type Row = (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

/// The first that is there is the one in use: Debian has an empty `/etc/pki` at times, nobody has Debian's by chance.
const DIRECTORIES: &[Row] = &[
    (
        "Debian",
        "usr/local/share/ca-certificates",
        "crt",
        &["update-ca-certificates"],
        // Links to what has gone stay otherwise.
        &["update-ca-certificates", "--fresh"],
    ),
    (
        "Fedora",
        "etc/pki/ca-trust/source/anchors",
        "pem",
        &["update-ca-trust", "extract"],
        &["update-ca-trust", "extract"],
    ),
    (
        "Arch",
        "etc/ca-certificates/trust-source/anchors",
        "crt",
        &["trust", "extract-compat"],
        &["trust", "extract-compat"],
    ),
    ("SUSE", "etc/pki/trust/anchors", "pem", &["update-ca-certificates"], &["update-ca-certificates"]),
];

impl Machine {
    /// This one.
    pub(super) fn of(environment: &Environment) -> Self {
        let path = |name| environment.get(name).map(PathBuf::from);
        Self { root: "/".into(), home: path("HOME"), java_home: path("JAVA_HOME") }
    }

    /// What is there.
    pub(super) fn stores(&self) -> Vec<Store> {
        self.system().into_iter().chain(self.nss()).chain(self.java()).collect()
    }

    fn system(&self) -> Option<Store> {
        let keychain = self.root.join("Library/Keychains/System.keychain");
        if keychain.exists() {
            return Some(Store::Keychain(keychain));
        }
        let found = DIRECTORIES.iter().find(|(_, dir, ..)| self.root.join(dir).is_dir())?;
        let (name, dir, extension, refresh, clean) = *found;
        // Debian's package for Java takes over what is added, and is not told when it goes.
        let led_on =
            Some(self.root.join("etc/ssl/certs/java/cacerts")).filter(|path| name == "Debian" && path.is_file());
        Some(Store::Directory { name, dir: self.root.join(dir), extension, refresh, clean, led_on })
    }

    /// Chromium's database, and one for each profile of Firefox.
    fn nss(&self) -> Vec<Store> {
        let Some(home) = &self.home else { return Vec::new() };
        let profiles = [
            ".mozilla/firefox",
            "snap/firefox/common/.mozilla/firefox",
            "Library/Application Support/Firefox/Profiles",
        ];
        let in_profiles = profiles.iter().filter_map(|dir| fs::read_dir(home.join(dir)).ok()).flatten().flatten();
        let mut found: Vec<PathBuf> =
            std::iter::once(home.join(".pki/nssdb")).chain(in_profiles.map(|entry| entry.path())).collect();
        found.retain(|dir| dir.join("cert9.db").is_file());
        found.sort();
        found.into_iter().map(Store::Nss).collect()
    }

    fn java(&self) -> Option<Store> {
        let home = self.java_home.as_ref()?;
        let keystore = ["lib/security/cacerts", "jre/lib/security/cacerts"].map(|path| home.join(path));
        let keystore = keystore.into_iter().find(|path| path.is_file())?;
        Some(Store::Java { keystore, keytool: home.join("bin/keytool") })
    }
}

/// What a root is called in files and stores.
fn alias(id: &str) -> String {
    format!("sidekey-{id}")
}

fn run(words: &[&str]) -> Step {
    Step::Run { words: words.iter().map(|word| (*word).to_owned()).collect(), may_fail: false }
}

impl Step {
    /// The same, where not being there is as good as being gone.
    fn or_gone(self) -> Self {
        match self {
            Self::Run { words, .. } => Self::Run { words, may_fail: true },
            other => other,
        }
    }

    /// Does it.
    pub(super) fn take(&self) -> Result<(), String> {
        match self {
            Self::Write { path, text } => fs::write(path, text).map_err(|error| format!("{}: {error}", path.display())),
            Self::Remove(path) => match fs::remove_file(path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(format!("{}: {error}", path.display()))
                }
                _ => Ok(()),
            },
            Self::Run { words, may_fail } => {
                let Some((program, arguments)) = words.split_first() else { return Ok(()) };
                let output = match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
                    // Without it nothing can have been put there.
                    Err(error) if *may_fail && error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                    output => output.map_err(|error| format!("{program}: {error}"))?,
                };
                if output.status.success() || *may_fail {
                    return Ok(());
                }
                let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned();
                Err(format!("{program}: {}: {}", output.status, said.lines().last().unwrap_or_default()))
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, .. } => write!(f, "write {}", path.display()),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::Run { words, .. } => {
                let quoted = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
                write!(f, "run {}", words.iter().map(quoted).collect::<Vec<_>>().join(" "))
            }
        }
    }
}

impl Store {
    pub(super) fn kind(&self) -> StoreKind {
        match self {
            Self::Directory { .. } | Self::Keychain(_) => StoreKind::System,
            Self::Java { .. } => StoreKind::Java,
            Self::Nss(_) => StoreKind::Nss,
        }
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Directory { name, dir, .. } => format!("the system ({name}, {})", dir.display()),
            Self::Java { keystore, .. } => format!("Java ({})", keystore.display()),
            Self::Keychain(path) => format!("the system ({})", path.display()),
            Self::Nss(dir) => format!("NSS ({})", dir.display()),
        }
    }

    /// Has it trust a root. `files` is where a file may be put for tools that read one.
    pub(super) fn install(&self, id: &str, pem: &str, files: &Path) -> Vec<Step> {
        let (alias, file) = (alias(id), files.join(format!("{}.pem", alias(id))));
        let write = || Step::Write { path: file.clone(), text: pem.to_owned() };
        let shown = file.display().to_string();
        match self {
            Self::Directory { dir, extension, refresh, .. } => {
                vec![Step::Write { path: dir.join(format!("{alias}.{extension}")), text: pem.to_owned() }, run(refresh)]
            }
            Self::Java { keystore, .. } => {
                let import = ["-importcert", "-noprompt", "-trustcacerts", "-alias", &alias, "-file", &shown];
                // Imported twice, it would be refused.
                [vec![write()], self.uninstall(id, pem, files), vec![self.keytool(&import, keystore)]].concat()
            }
            Self::Keychain(keychain) => {
                let keychain = keychain.display().to_string();
                let add = ["security", "add-trusted-cert", "-d", "-r", "trustRoot", "-k", &keychain, &shown];
                vec![write(), run(&add)]
            }
            Self::Nss(dir) => {
                let dir = format!("sql:{}", dir.display());
                vec![write(), run(&["certutil", "-A", "-d", &dir, "-t", "C,,", "-n", &alias, "-i", &shown])]
            }
        }
    }

    /// Has it trust a root no longer.
    pub(super) fn uninstall(&self, id: &str, pem: &str, files: &Path) -> Vec<Step> {
        let (alias, file) = (alias(id), files.join(format!("{}.pem", alias(id))));
        match self {
            Self::Directory { dir, extension, clean, led_on, .. } => {
                let gone = [Step::Remove(dir.join(format!("{alias}.{extension}"))), run(clean)];
                let theirs = format!("debian:{alias}.pem");
                let led_on =
                    led_on.iter().map(|keystore| self.keytool(&["-delete", "-alias", &theirs], keystore).or_gone());
                gone.into_iter().chain(led_on).collect()
            }
            Self::Java { keystore, .. } => vec![self.keytool(&["-delete", "-alias", &alias], keystore).or_gone()],
            Self::Keychain(_) => {
                let write = Step::Write { path: file.clone(), text: pem.to_owned() };
                let shown = file.display().to_string();
                vec![write, run(&["security", "remove-trusted-cert", "-d", &shown]).or_gone()]
            }
            Self::Nss(dir) => {
                let dir = format!("sql:{}", dir.display());
                vec![run(&["certutil", "-D", "-d", &dir, "-n", &alias]).or_gone()]
            }
        }
    }

    fn keytool(&self, words: &[&str], keystore: &Path) -> Step {
        let keytool =
            if let Self::Java { keytool, .. } = self { keytool.display().to_string() } else { "keytool".to_owned() };
        let keystore = keystore.display().to_string();
        // The password every Java has, which protects nothing: the file is public.
        let end = ["-keystore", keystore.as_str(), "-storepass", "changeit"];
        run(&[&[keytool.as_str()][..], words, &end].concat())
    }

    /// The steps, each command that reads a whole directory only once and last.
    pub(super) fn once(&self, steps: Vec<Step>) -> Vec<Step> {
        let Self::Directory { refresh, clean, .. } = self else { return steps };
        let (refresh, clean) = (run(refresh), run(clean));
        let last = if steps.contains(&clean) { &clean } else { &refresh };
        let others = steps.iter().filter(|step| **step != refresh && **step != clean);
        others.chain([last]).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(dir: &Path) -> Machine {
        Machine { root: dir.to_owned(), home: Some(dir.join("home")), java_home: Some(dir.join("jdk")) }
    }

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    fn shown(steps: &[Step], dir: &Path) -> Vec<String> {
        let dir = dir.display().to_string();
        steps.iter().map(|step| step.to_string().replace(&dir, "")).collect()
    }

    #[test]
    fn every_system_has_its_steps() {
        for (dir, write, refresh, clean) in [
            ("usr/local/share/ca-certificates", "sidekey-1a.crt", "run update-ca-certificates", " --fresh"),
            ("etc/pki/ca-trust/source/anchors", "sidekey-1a.pem", "run update-ca-trust extract", ""),
            ("etc/ca-certificates/trust-source/anchors", "sidekey-1a.crt", "run trust extract-compat", ""),
            ("etc/pki/trust/anchors", "sidekey-1a.pem", "run update-ca-certificates", ""),
        ] {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join(dir)).unwrap();
            let [store] = &machine(root.path()).stores()[..] else { panic!("{dir}") };
            assert_eq!(store.kind(), StoreKind::System);
            let file = format!("/{dir}/{write}");
            let both = [store.install("1a", "PEM", root.path()), store.install("1a", "PEM", root.path())].concat();
            let steps = shown(&store.once(both), root.path());
            assert_eq!(steps, [format!("write {file}"), format!("write {file}"), refresh.to_owned()]);
            let steps = store.uninstall("1a", "PEM", root.path());
            assert_eq!(shown(&steps, root.path()), [format!("remove {file}"), format!("{refresh}{clean}")]);
            assert_eq!(store.once([&steps[..], &steps].concat()).len(), 3);
            store.install("1a", "PEM", root.path())[0].take().unwrap();
            assert_eq!(fs::read_to_string(root.path().join(&file[1..])).unwrap(), "PEM");
            for _ in 0..2 {
                steps[0].take().unwrap();
            }
            assert!(!root.path().join(&file[1..]).exists());
        }
    }

    #[test]
    fn browsers_java_and_macos() {
        let root = tempfile::tempdir().unwrap();
        touch(&root.path().join("home/.pki/nssdb/cert9.db"));
        touch(&root.path().join("home/.mozilla/firefox/a.default/cert9.db"));
        touch(&root.path().join("home/.mozilla/firefox/b.empty/prefs.js"));
        touch(&root.path().join("jdk/lib/security/cacerts"));
        touch(&root.path().join("Library/Keychains/System.keychain"));
        let stores = machine(root.path()).stores();
        let kinds: Vec<StoreKind> = stores.iter().map(Store::kind).collect();
        assert_eq!(kinds, [StoreKind::System, StoreKind::Nss, StoreKind::Nss, StoreKind::Java]);
        let steps: Vec<Step> = stores.iter().flat_map(|store| store.install("1a", "PEM", root.path())).collect();
        assert_eq!(
            shown(&steps, root.path()),
            [
                "write /sidekey-1a.pem",
                "run security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain /sidekey-1a.pem",
                "write /sidekey-1a.pem",
                "run certutil -A -d sql:/home/.mozilla/firefox/a.default -t C,, -n sidekey-1a -i /sidekey-1a.pem",
                "write /sidekey-1a.pem",
                "run certutil -A -d sql:/home/.pki/nssdb -t C,, -n sidekey-1a -i /sidekey-1a.pem",
                "write /sidekey-1a.pem",
                "run /jdk/bin/keytool -delete -alias sidekey-1a -keystore /jdk/lib/security/cacerts -storepass changeit",
                "run /jdk/bin/keytool -importcert -noprompt -trustcacerts -alias sidekey-1a -file /sidekey-1a.pem \
                 -keystore /jdk/lib/security/cacerts -storepass changeit",
            ]
        );
    }

    #[test]
    fn what_debian_leads_on_to_java_is_taken_back() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("usr/local/share/ca-certificates")).unwrap();
        touch(&root.path().join("etc/ssl/certs/java/cacerts"));
        let [store] = &machine(root.path()).stores()[..] else { panic!("one") };
        let steps = shown(&store.once(store.uninstall("1a", "PEM", root.path())), root.path());
        assert_eq!(
            steps,
            [
                "remove /usr/local/share/ca-certificates/sidekey-1a.crt",
                "run keytool -delete -alias debian:sidekey-1a.pem -keystore /etc/ssl/certs/java/cacerts -storepass changeit",
                "run update-ca-certificates --fresh",
            ]
        );
    }

    #[test]
    fn a_command_that_fails_says_so() {
        assert!(run(&["false"]).take().is_err_and(|why| why.starts_with("false: ")));
        assert!(run(&["false"]).or_gone().take().is_ok());
        assert!(run(&["no-such-program-of-ours"]).take().is_err());
        assert!(run(&["no-such-program-of-ours"]).or_gone().take().is_ok());
    }
}

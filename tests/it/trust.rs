//! `sidekey ca install` and `uninstall` for real: in a mount namespace, whose stores are copies of this machine's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::netns::{Namespace, possible, said, text};
use crate::support::sidekey::binary;

/// Where Debian and its packages keep what is trusted.
const STORES: [&str; 2] = ["/etc/ssl", "/usr/local/share/ca-certificates"];
/// Where a package notes what it has still to do for Java.
const NOTES: &str = "/var/lib";

/// A machine of its own as far as trust goes, with sidekey running.
struct Scene {
    namespace: Namespace,
    folder: tempfile::TempDir,
    java_home: PathBuf,
    child: Child,
    port: u16,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Scene {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("sidekey-trust-").tempdir().expect("a temporary folder");
        let namespace = Namespace::new();
        let at = folder.path().display();
        namespace.sh(&format!("mkdir {at}/over && mount -t tmpfs none {at}/over"));
        for (number, store) in STORES.iter().chain(&[NOTES]).enumerate() {
            let (upper, work) = (format!("{at}/over/{number}"), format!("{at}/over/{number}.work"));
            let options = format!("lowerdir={store},upperdir={upper},workdir={work}");
            namespace.sh(&format!("mkdir -p {upper} {work} && mount -t overlay overlay -o {options} {store}"));
        }
        // Whatever a package would change at its next run is changed before.
        namespace.sh("update-ca-certificates");
        let nss = folder.path().join(".pki/nssdb");
        namespace.sh(&format!("mkdir -p {0} && certutil -N -d sql:{0} --empty-password", nss.display()));
        let java = std::fs::canonicalize(text(&sh("command -v java").stdout).trim()).expect("java is there");
        let java_home = java.ancestors().nth(2).expect("a home").to_owned();
        std::fs::write(
            folder.path().join("sidekey.toml"),
            "[listen]\nproxy = \"127.0.0.1:0\"\ntelemetry = \"127.0.0.1:0\"\n",
        )
        .expect("our folder");
        let init = Self::sidekey(&namespace, folder.path(), &java_home, &["init"]).output().expect("nsenter runs");
        assert!(init.status.success(), "{}", said(&init));
        let child = Self::sidekey(&namespace, folder.path(), &java_home, &["run"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("log")).expect("our folder"))
            .spawn()
            .expect("nsenter runs");
        let mut scene = Self { namespace, folder, java_home, child, port: 0 };
        scene.port = scene.wait_for_port();
        scene
    }

    fn sidekey(namespace: &Namespace, home: &Path, java_home: &Path, words: &[&str]) -> Command {
        let mut command = namespace.command(0, binary());
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
        command.env("SIDEKEY_CONFIG", home.join("sidekey.toml")).env("SIDEKEY_DATA_DIR", home.join("data"));
        command.env("JAVA_HOME", java_home).current_dir("/");
        command
    }

    fn wait_for_port(&self) -> u16 {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let run = std::fs::read(self.folder.path().join("data/run.json")).unwrap_or_default();
            let run: Value = serde_json::from_slice(&run).unwrap_or_default();
            let port = run["proxy"].as_str().and_then(|proxy| proxy.rsplit(':').next()?.parse().ok());
            if let Some(port) = port {
                return port;
            }
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "sidekey does not start: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ca(&self, words: &[&str]) -> Output {
        let words = [&["ca"][..], words].concat();
        Self::sidekey(&self.namespace, self.folder.path(), &self.java_home, &words).output().expect("nsenter runs")
    }

    /// What a client says that is told of the proxy, and of no root.
    fn client(&self, script: &str) -> Output {
        let proxy = format!("http://127.0.0.1:{}", self.port);
        let script = script
            .replace("VIA", &proxy)
            .replace("PORT", &self.port.to_string())
            .replace("SOURCE", env!("CARGO_MANIFEST_DIR"))
            .replace("NSS", &format!("sql:{}/.pki/nssdb", self.folder.path().display()));
        let mut command = self.namespace.command(0, "sh");
        command.args(["-c", &script]).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", "/tmp").current_dir("/").stdin(Stdio::null());
        command.output().expect("nsenter runs")
    }

    /// Every file of the stores with its sum, but for Java's, which has dates in it.
    fn files(&self) -> BTreeMap<String, String> {
        let list =
            format!("find {} \\( -type f -o -type l \\) ! -name cacerts -exec sha256sum {{}} +", STORES.join(" "));
        let lines = self.namespace.sh(&list);
        lines.lines().filter_map(|line| line.split_once("  ")).map(|(sum, file)| (file.into(), sum.into())).collect()
    }

    /// The certificates of Java's store, by their sums.
    fn java_store(&self) -> Vec<String> {
        let keytool = self.java_home.join("bin/keytool");
        let list = format!("{} -list -cacerts -storepass changeit 2>/dev/null", keytool.display());
        let said = self.namespace.sh(&list);
        let mut found: Vec<String> = said.lines().filter(|line| line.contains("SHA-256")).map(str::to_owned).collect();
        found.sort();
        assert!(found.len() > 50, "{said}");
        found
    }
}

fn sh(script: &str) -> Output {
    Command::new("sh").args(["-c", script]).output().expect("sh runs")
}

/// Clients that read a store, and what of the request that has no key they print when they trust.
const CLIENTS: &[(&str, &str, &str)] = &[
    ("curl", "curl -sS --max-time 30 --proxy VIA https://api.openai.com/v1/models", "no virtual key"),
    ("wget", "https_proxy=VIA wget -O- -t 1 -T 30 https://api.openai.com/v1/models", "401 Unauthorized"),
    (
        "python",
        "HTTPS_PROXY=VIA python3 -c \"import urllib.request as u\ntry: u.urlopen('https://api.openai.com/v1/models',timeout=30)\n\
         except u.HTTPError as e: print(e.read())\"",
        "no virtual key",
    ),
    (
        "git",
        "HTTPS_PROXY=VIA GIT_TERMINAL_PROMPT=0 git ls-remote https://api.openai.com/x.git",
        "Authentication failed|could not read Username",
    ),
    (
        "java",
        "java -Dhttps.proxyHost=127.0.0.1 -Dhttps.proxyPort=PORT SOURCE/tests/sdk/java/Get.java https://api.openai.com/v1/models none",
        "401 ",
    ),
    (
        "NSS",
        // Left to read, it spins at the end of its input.
        "timeout 30 tstclnt -Q -h 127.0.0.1 -p PORT -a api.openai.com -d NSS </dev/null && echo agreed",
        "agreed",
    ),
];

#[test]
fn what_is_installed_is_trusted_and_what_is_uninstalled_is_not() {
    let tools = ["update-ca-certificates", "certutil", "tstclnt", "java", "curl", "wget", "git", "python3"];
    if !possible("ca install", &tools) {
        return;
    }
    let machine = sh(&format!("find {} -type f -exec sha256sum {{}} + | sort", STORES.join(" "))).stdout;
    let scene = Scene::new();
    let (files, java) = (scene.files(), scene.java_store());
    let try_each = |trusted: bool| {
        for (name, script, want) in CLIENTS {
            let output = scene.client(script);
            let got = want.split('|').any(|want| said(&output).contains(want));
            assert_eq!(got, trusted, "{name}: {}", said(&output));
        }
    };
    try_each(false);
    // A second time is as good as the first.
    for _ in 0..2 {
        let installed = scene.ca(&["install"]);
        assert!(installed.status.success(), "{}", said(&installed));
        for store in ["the system (Debian, ", "Java (", "NSS ("] {
            assert!(text(&installed.stdout).contains(store), "{}", said(&installed));
        }
        try_each(true);
    }
    // Nothing else has changed: one file of ours, its link, and the bundle.
    let with = scene.files();
    let changed: Vec<&String> =
        with.iter().filter(|(file, sum)| files.get(*file) != Some(sum)).map(|(file, _)| file).collect();
    let ours = |file: &&&String| file.contains("/sidekey-");
    assert!(files.keys().all(|file| with.contains_key(file)), "something is gone");
    assert!(changed.iter().filter(ours).count() >= 2, "{changed:?}");
    let known = |file: &str| file.contains("sidekey") || file.ends_with("/ca-certificates.crt") || is_hash_link(file);
    assert!(changed.iter().all(|file| known(file)), "{changed:?}");

    for _ in 0..2 {
        let gone = scene.ca(&["uninstall"]);
        assert!(gone.status.success(), "{}", said(&gone));
        try_each(false);
    }
    assert_eq!(scene.files(), files);
    assert_eq!(scene.java_store(), java);
    let after = sh(&format!("find {} -type f -exec sha256sum {{}} + | sort", STORES.join(" "))).stdout;
    assert!(machine == after, "this machine itself was changed");
}

/// OpenSSL finds roots by links that have a hash for a name.
fn is_hash_link(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or_default();
    name.split_once('.').is_some_and(|(hash, number)| hash.len() == 8 && number.parse::<u32>().is_ok())
}

#[test]
fn without_leave_it_says_what_to_do() {
    if !possible("ca install as an ordinary user", &["update-ca-certificates", "certutil", "java"]) {
        return;
    }
    let scene = Scene::new();
    let before = scene.files();
    let home = scene.folder.path().join("theirs");
    scene.namespace.sh(&format!(
        "chmod 755 {} && mkdir {1} && chown 1000:1000 {1}",
        scene.folder.path().display(),
        home.display()
    ));
    let run = |words: &[&str]| {
        let mut command = scene.namespace.command(1000, binary());
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", &home).env("SIDEKEY_DATA_DIR", home.join("data")).current_dir("/");
        command.output().expect("nsenter runs")
    };
    for words in [&["init"][..], &["ca", "rotate"]] {
        let output = run(words);
        assert!(output.status.success(), "{words:?}: {}", said(&output));
    }
    let refused = run(&["ca", "install", "--store", "system"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    let told = text(&refused.stderr);
    assert!(told.contains("denied") && told.contains("sudo") && told.contains("--dry-run"), "{told}");
    assert_eq!(scene.files(), before);
}

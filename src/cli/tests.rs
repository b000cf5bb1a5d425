//! Whole commands, with a stand-in for `app`: what they leave behind and the code they end with.

use std::sync::Arc;

use std::path::Path;

use super::*;
use crate::control::{TestResult, Verdict};
use crate::metrics::Metrics;
use crate::storage::MasterKeyInputs;

const HOOKS: Hooks = Hooks {
    explainer: crate::app::explainer,
    private: |_, _| Box::pin(async { Err(Failure::new(Exit::Failure, "no proxy here")) }),
    run: |loaded, _| {
        assert_eq!(loaded.config.listen.proxy.port(), 0);
        Ok(())
    },
    tester: |_, _, _| {
        Arc::new(|_| {
            let detail = "the provider refuses the key: 401".to_owned();
            let result = TestResult { verdict: Verdict::Rejected, status: Some(401), detail, latency_ms: 1 };
            Box::pin(async move { result })
        })
    },
};

/// Runs a command line; its exit code, and the message when it failed.
fn sidekey(home: &Path, line: &str) -> (u8, String) {
    let (data, config) = (home.join("data"), home.join("sidekey.toml"));
    let environment = Environment::from_pairs([
        ("SIDEKEY_DATA_DIR", data.to_str().expect("a text")),
        ("SIDEKEY_CONFIG", config.to_str().expect("a text")),
    ]);
    let words: Vec<OsString> = std::iter::once("sidekey").chain(line.split(' ')).map(OsString::from).collect();
    match run(&words, environment, HOOKS) {
        Ok(code) if code == ExitCode::SUCCESS => (0, String::new()),
        Ok(code) if code == ExitCode::from(2) => (2, String::new()),
        Ok(code) => (u8::MAX, format!("{code:?}")),
        Err(failure) => (failure.exit as u8, failure.lines().join("\n")),
    }
}

#[test]
fn a_session_without_a_daemon() {
    let home = tempfile::tempdir().expect("a directory");
    let home = home.path();
    let secret = home.join("secret");
    std::fs::write(&secret, "sk-proj-very-real-0123456789\n").expect("written");
    let add = format!("provider-key add openai --name main --key-file {}", secret.display());
    let rotate = format!("provider-key rotate main --key-file {}", secret.display());
    for (line, code, message) in [
        ("config check", 3, "sidekey init"),
        ("init -o jsonl", 0, ""),
        ("init -o jsonl", 0, ""),
        ("run --proxy 127.0.0.1:0", 0, ""),
        ("status", 4, "no daemon answers"),
        ("key create --name app --rpm 60 -o jsonl", 0, ""),
        ("key create --name app --providers opneai", 5, "did you mean \"openai\""),
        ("key update app --tpm 1000 -o jsonl", 0, ""),
        ("key update app", 2, "nothing to change"),
        ("key show nobody", 5, "there is no virtual key \"nobody\""),
        (
            "key update app -o jsonl --user alice --providers openai --endpoints chat --models gpt-* --sources ::1/128",
            0,
            "",
        ),
        (
            "key update app -o jsonl --user  --team  --providers  --endpoints  --models  --sources  --expires-days ",
            0,
            "",
        ),
        ("key update app -o jsonl --providers * --endpoints * --models * --sources *", 0, ""),
        ("key update app --providers openai,", 5, "providers"),
        ("key update app --sources ::1/128,", 5, "sources"),
        ("plan create --name a/b% --rpm 5 --shared-budget 20/month -o jsonl", 0, ""),
        ("plan create --name a/b%", 5, "exists already"),
        ("plan create --name c --shared-rpm 0", 5, "shared.limits.rpm: 0 would refuse everything"),
        ("plan update a/b% --quota 5,counts=input --description x -o jsonl", 0, ""),
        ("plan update a/b%", 2, "nothing to change"),
        ("plan show nothing", 5, "there is no plan \"nothing\""),
        ("key update app --plan nothing", 5, "make it first: sidekey plan create"),
        ("key update app --plan a/b% -o jsonl", 0, ""),
        ("plan delete a/b%", 5, "take it off its keys first: sidekey key update"),
        ("key update app -o jsonl --plan ", 0, ""),
        ("plan list -o jsonl", 0, ""),
        ("plan delete a/b%", 0, ""),
        ("user set u/1 --budget 1/day -o jsonl", 0, ""),
        ("user set u/1", 2, "nothing to change"),
        ("user show u/1 -o jsonl", 0, ""),
        ("team show u/1", 5, "there is no team u/1"),
        ("team list -o jsonl", 0, ""),
        ("user delete u/1", 0, ""),
        ("user delete u/1", 5, "there is no policy of user u/1"),
        ("alerts", 4, "no daemon answers"),
        ("explain --key app --model gpt-4o --input-tokens 100 -o jsonl", 0, ""),
        ("explain --key app --model gpt-4o --endpoint chatter", 5, "endpoint: "),
        ("explain --key nobody --model gpt-4o", 5, "there is no virtual key \"nobody\""),
        ("explain --model gpt-4o", 2, ""),
        ("key revoke app -o jsonl", 0, ""),
        ("key enable app", 5, "revoked"),
        (add.as_str(), 5, "error: the provider refuses the key: 401\n"),
        ("provider-key add openai --name more --ref nonsense", 2, "--ref takes"),
        ("provider-key add openai --name more --no-input", 2, "nobody can be asked"),
        ("provider-key rotate main --key-file /nonexistent", 1, "/nonexistent"),
        (rotate.as_str(), 5, "error: the provider refuses the key: 401\n  fix: the key is as it was"),
        (&format!("{rotate} --no-test -o jsonl"), 0, ""),
        ("usage --by colour", 2, ""),
        ("config explain listen.prxy", 2, "did you mean listen.proxy?"),
        ("--set listen.proxy=here config check", 3, "--set listen.proxy"),
        ("exec -- true", 1, "no proxy here"),
        ("env --provider opneai", 2, "did you mean \"openai\""),
        ("env --provider cloudflare", 2, "http://127.0.0.1:4141/cloudflare"),
        ("env --provider vllm", 0, ""),
        ("key create", 2, ""),
    ] {
        let (got, said) = sidekey(home, line);
        assert_eq!(got, code, "{line}: {said}");
        assert!(said.contains(message), "{line}: {said}");
        assert!(!said.contains("very-real"), "{line}: {said}");
    }
}

#[test]
fn a_held_store_is_code_six_and_a_backup_comes_back() {
    let home = tempfile::tempdir().expect("a directory");
    let home = home.path();
    assert_eq!(sidekey(home, "init -o jsonl").0, 0);
    let backup = home.join("backup");
    assert_eq!(sidekey(home, &format!("backup {}", backup.display())), (0, String::new()));
    assert_eq!(sidekey(home, &format!("restore {}", backup.display())).0, 1);
    assert_eq!(sidekey(home, &format!("restore --force {}", backup.display())), (0, String::new()));

    // Another process holds it: flock tells open files apart, and a pid that is not ours is waited for only so long.
    let lock = home.join("data/lock");
    let held = std::fs::File::options().write(true).open(&lock).expect("a lock file");
    std::fs::write(&lock, "1\n").expect("written");
    rustix::fs::flock(&held, rustix::fs::FlockOperation::NonBlockingLockExclusive).expect("free");
    let (code, said) = sidekey(home, "key list");
    assert_eq!(code, 6, "{said}");
    drop(held);
    assert_eq!(sidekey(home, "key list -o jsonl").0, 0);
}

#[test]
fn commands_speak_to_a_daemon() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    assert_eq!(sidekey(home.path(), "init -o jsonl").0, 0);
    let clock = Clock::system();
    let registry = Live::new(config::Config::default().registry().expect("valid"));
    let store = Store::open(crate::storage::StoreOptions {
        dir: data.clone(),
        create: false,
        master: MasterKeyInputs::default(),
        environment_keys: Vec::new(),
        prices: Arc::default(),
        section: crate::storage::StoreSection::default(),
        unusual: Default::default(),
        clock: clock.clone(),
        metrics: Metrics::default(),
    })
    .expect("it opens");
    let tester = (HOOKS.tester)(&store, &registry, &Environment::from_pairs([]));
    let explainer = (HOOKS.explainer)(&store, &registry, &clock);
    let api = crate::control::router(crate::control::ControlState {
        roots: None,
        leases: None,
        activity: None,
        store: store.clone(),
        registry,
        clock,
        keys: Live::default(),
        facts: crate::control::Facts {
            listening: Some(crate::control::Listening {
                proxy: "127.0.0.1:7".parse().expect("an address"),
                telemetry: None,
                transparent: None,
                admin: None,
                admin_tls: false,
                admin_socket: None,
            }),
            ..crate::control::Facts::default()
        },
        readiness: crate::control::health::Readiness::default(),
        tester,
        alerts: crate::control::alerts::Alerts::default(),
        explainer,
        console: crate::control::Console::default(),
    });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let (ready, is_ready) = std::sync::mpsc::channel();
    let daemon = std::thread::spawn(move || {
        block_on(async {
            let socket = crate::control::socket::AdminSocket::bind(&data.join("admin.sock")).await.expect("bound");
            ready.send(()).expect("somebody waits");
            socket.serve(api.gated(), async { stopped.await.unwrap_or_default() }).await?;
            Ok(())
        })
    });
    is_ready.recv().expect("bound");
    for (line, code) in [
        ("status -o jsonl", 0),
        ("alerts -o jsonl", 0),
        ("key create --name app -o jsonl", 0),
        ("key list -o jsonl", 0),
        ("explain --key app --provider openai", 0),
        ("exec --quiet -- /bin/sh -c exit", 0),
        ("exec --quiet -- /nonexistent/program", u8::MAX),
        ("restore /nonexistent", 6),
    ] {
        let (got, said) = sidekey(home.path(), line);
        assert_eq!(got, code, "{line}: {said}");
    }
    assert_eq!(store.snapshot().virtual_keys().len(), 1, "the keys of exec are gone");
    stop.send(()).expect("it runs");
    daemon.join().expect("no panic").expect("served");
}

//! `sidekey redirect` in a network namespace: what the kernel then does with connections, by nft and by iptables.

use std::io::{ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Output;

use crate::support::netns::{Namespace, possible, said as said_by, text};
use crate::support::sidekey::binary;

/// Whose connections pass: sidekey's.
const OWN: u32 = 1337;
/// An app's.
const APP: u32 = 1000;
const BACKENDS: [&str; 3] = ["nft", "iptables", "iptables-legacy"];

/// All rules there are.
const RULES: &str = "if command -v nft >/dev/null; then nft -s list ruleset; fi
                     for i in iptables ip6tables iptables-legacy ip6tables-legacy; do if command -v $i >/dev/null; then $i -S; $i -t nat -S; fi; done";

fn redirect(namespace: &Namespace, uid: u32, words: &[&str]) -> Output {
    let mut command = namespace.command(uid, binary());
    command.env_clear().env("HOME", "/nonexistent").env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.arg("redirect").args(words).output().expect("nsenter runs")
}

fn ok(namespace: &Namespace, words: &[&str]) -> String {
    let output = redirect(namespace, 0, words);
    assert!(output.status.success(), "redirect {words:?}: {}\n{}", output.status, said_by(&output));
    said_by(&output)
}

/// The marks of `check`, one a line.
fn check(namespace: &Namespace, uid: u32, backend: &str) -> (Option<i32>, String) {
    let output = redirect(namespace, uid, &["check", "--uid", &OWN.to_string(), "--backend", backend]);
    (output.status.code(), said_by(&output))
}

#[test]
fn rules_hold_for_both_families_and_can_be_repeated() {
    let uid = OWN.to_string();
    for backend in BACKENDS {
        if !possible(&format!("rules by {backend}"), &[backend]) || !has_tables(backend) {
            continue;
        }
        let (app, far) = Namespace::pair();
        let before = app.sh(RULES);
        let (code, said) = check(&app, APP, backend);
        assert!(code == Some(1) && said.contains("passes by sidekey"), "{backend}: {code:?} {said}");

        ok(&app, &["install", "--uid", &uid, "--backend", backend]);
        let first = app.sh(RULES);
        assert_ne!(first, before, "{backend}");
        ok(&app, &["install", "--uid", &uid, "--backend", backend]);
        assert_eq!(app.sh(RULES), first, "{backend}: a second time changes nothing");

        // Other values take the place of the first; and back.
        ok(&app, &["install", "--uid", "7,8", "--ports", "443,8443", "--backend", backend]);
        let (code, said) = check(&app, 0, backend);
        assert!(code == Some(1), "{backend}: other rules were taken for these: {said}");
        ok(&app, &["install", "--uid", &uid, "--backend", backend]);
        assert_eq!(app.sh(RULES), first, "{backend}");

        let (code, said) = check(&app, 0, backend);
        assert!(code == Some(0) && said.contains("nobody listens"), "{backend}: root is redirected too: {said}");
        where_connections_go(&app, &far, backend);

        ok(&app, &["remove", "--backend", backend]);
        ok(&app, &["remove", "--backend", backend]);
        let after = app.sh(RULES);
        for left in ["SIDEKEY", "inet sidekey", "15001"] {
            assert!(!after.contains(left), "{backend}: {after}");
        }
        let (code, said) = check(&app, APP, backend);
        assert!(code == Some(1) && said.contains("passes by sidekey"), "{backend}: {said}");
    }
}

/// False, said loudly, where the kernel has none of the tables of old; then it must be told clearly.
fn has_tables(backend: &str) -> bool {
    let app = Namespace::new();
    if !backend.ends_with("legacy")
        || ["iptables-legacy", "ip6tables-legacy"].iter().all(|tool| {
            let output = app.command(0, tool).args(["-t", "nat", "-S"]).output();
            output.is_ok_and(|output| output.status.success())
        })
    {
        return true;
    }
    eprintln!("SKIPPED: this kernel has no tables for {backend}; its rules were not tried");
    let refused = redirect(&app, 0, &["install", "--uid", "7", "--backend", backend]);
    assert!(refused.status.code() == Some(1) && said_by(&refused).contains("--backend nft"), "{}", said_by(&refused));
    false
}

/// Tries what can be tried while the rules are in force.
fn where_connections_go(app: &Namespace, far: &Namespace, backend: &str) {
    const FAR: [&str; 2] = ["203.0.113.2", "2001:db8:1::2"];
    let at = |host: &str, port: u16| SocketAddr::new(host.parse().expect("an address"), port);
    let strangers = far.run(|| FAR.map(|host| listen(at(host, 443))));
    for host in FAR.iter().chain(&["192.0.2.1"]) {
        let error = app.run(|| TcpStream::connect(at(host, 443))).expect_err("nobody listens where this leads");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{backend} {host}");
    }

    let listeners = app.run(|| ["127.0.0.1", "::1"].map(|host| listen(at(host, 15001))));
    let (code, said) = check(app, APP, backend);
    assert!(said.matches("is redirected to sidekey").count() == 2, "{backend}: {code:?} {said}");
    for (listener, host) in listeners.iter().zip(FAR) {
        drop(listener.accept().expect("the connection that check made"));
        let client = app.run(|| TcpStream::connect(at(host, 443))).expect("somebody listens");
        let (_, peer) = listener.accept().expect("a connection");
        assert_eq!(peer.port(), client.local_addr().expect("connected").port(), "{backend} {host}");
    }

    // QUIC is refused at once; other datagrams pass.
    for (host, any) in FAR.iter().zip(["0.0.0.0:0", "[::]:0"]) {
        let sent = |port| {
            let to = at(host, port);
            app.run(|| UdpSocket::bind(any).and_then(|socket| socket.send_to(b"x", to)))
        };
        assert!(sent(443).is_err(), "{backend} {host}");
        sent(53).unwrap_or_else(|error| panic!("{backend} {host}: {error}"));
    }

    // sidekey's own go their way, and reach who they are for.
    for (stranger, host) in strangers.into_iter().zip(FAR) {
        let answering = std::thread::spawn(move || {
            let (mut client, _) = stranger.accept().expect("a connection");
            client.write_all(b"far").expect("a reader");
        });
        let script = format!("exec 3<>/dev/tcp/{host}/443 && cat <&3");
        let output = app.command(OWN, "bash").args(["-c", &script]).output().expect("bash runs");
        assert_eq!(text(&output.stdout), "far", "{backend} {host}: {}", said_by(&output));
        answering.join().expect("no panic");
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

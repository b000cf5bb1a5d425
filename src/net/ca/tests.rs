use std::sync::Arc;

use rustls::pki_types::{ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConnection};

use super::*;

const NOW_MS: u64 = 1_800_000_000_000;
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

fn generation(list: &[&str]) -> Generation {
    Generation::create(&names(list), NOW_MS, YEAR).unwrap()
}

#[derive(Debug)]
struct At(u64);

impl rustls::time_provider::TimeProvider for At {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0)))
    }
}

/// A whole handshake in memory, at `at_ms`, by a client that trusts `root`.
fn handshake(config: &Arc<ServerConfig>, root: &Generation, host: &str, at_ms: u64) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root.root.clone()).unwrap();
    let provider = Arc::new(crypto::default_provider());
    let builder = ClientConfig::builder_with_details(provider, Arc::new(At(at_ms)));
    let client = builder.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from(host.to_owned()).unwrap())?;
    let mut server = ServerConnection::new(Arc::clone(config))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut &bytes[..]).unwrap();
        server.process_new_packets()?;
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut &bytes[..]).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

/// The DER of this object identifier's extension, and whether it is critical, by plain search: enough for our own.
fn has_extension(certificate: &[u8], oid: &[u8], critical: bool) -> bool {
    let marked = [oid, if critical { &[0x01, 0x01, 0xff] } else { &[0x04] }].concat();
    memchr::memmem::find(certificate, &marked).is_some()
}

const BASIC_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x13];
const NAME_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x1e];
const AUTHORITY_KEY: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x23];

#[test]
fn a_client_that_trusts_the_root_is_served() {
    let generation = generation(&["api.openai.com", "api.anthropic.com"]);
    let clock = Clock::manual(NOW_MS);
    let ca = Ca::new(vec![generation.clone()], clock.clone()).unwrap();
    for host in ["api.openai.com", "eu.api.openai.com", "api.anthropic.com"] {
        let config = ca.server_config(host).unwrap();
        handshake(&config, &generation, host, NOW_MS).unwrap();
        // Clocks differ by less than an hour.
        handshake(&config, &generation, host, NOW_MS - 1_800_000).unwrap();
    }
    let one = ca.server_config("api.openai.com").unwrap();
    assert!(handshake(&one, &generation, "api.anthropic.com", NOW_MS).is_err(), "one name each");
    assert!(Arc::ptr_eq(&one, &ca.server_config("api.openai.com").unwrap()), "kept");
    clock.advance_ms(25 * 3_600_000);
    let renewed = ca.server_config("api.openai.com").unwrap();
    assert!(!Arc::ptr_eq(&one, &renewed));
    handshake(&renewed, &generation, "api.openai.com", clock.wall_ms()).unwrap();
    clock.advance_ms(400 * 86_400_000);
    assert!(ca.server_config("api.openai.com").is_err(), "expired");
}

#[test]
fn other_names_cannot_be_signed_for() {
    let honest = generation(&["api.openai.com"]);
    let ca = Ca::new(vec![honest.clone()], Clock::manual(NOW_MS)).unwrap();
    for host in ["evil.example", "api.openai.com.evil.example", "evilapi.openai.com", "openai.com", "127.0.0.1"] {
        let refused = ca.server_config(host);
        assert!(matches!(refused, Err(CaError::NotPermitted(_))), "{host}");
        // And if somebody had the key: the same intermediate, made to sign.
        let mut thief = honest.clone();
        thief.names = names(&[host]);
        let thief = Ca::new(vec![thief], Clock::manual(NOW_MS)).unwrap().server_config(host).unwrap();
        let error = handshake(&thief, &honest, host, NOW_MS).unwrap_err().to_string();
        assert!(error.contains("NameConstraintViolation"), "{host}: {error}");
    }
}

#[test]
fn certificates_have_what_verifiers_ask_for() {
    let generation = generation(&["api.openai.com"]);
    let issuing = Issuing::new(generation.clone()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = issuing.sign_leaf("api.openai.com", &key, NOW_MS, NOW_MS + 1).unwrap();
    let other = issuing.sign_leaf("api.openai.com", &key, NOW_MS, NOW_MS + 1).unwrap();
    assert_ne!(leaf, other, "numbers differ");
    for (name, certificate, oid, critical) in [
        ("root", &generation.root, BASIC_CONSTRAINTS, true),
        ("intermediate", &generation.intermediate, BASIC_CONSTRAINTS, true),
        ("intermediate", &generation.intermediate, NAME_CONSTRAINTS, true),
        ("intermediate", &generation.intermediate, AUTHORITY_KEY, false),
        ("leaf", &leaf, AUTHORITY_KEY, false),
    ] {
        assert!(has_extension(certificate, oid, critical), "{name}");
    }
    assert!(leaf.len() < 600, "{}", leaf.len());
}

#[test]
fn a_host_keeps_its_first_generation() {
    let (first, second) = (generation(&["api.openai.com"]), generation(&["api.openai.com", "llm.example"]));
    let ca = Ca::new(vec![first.clone(), second.clone()], Clock::manual(NOW_MS)).unwrap();
    handshake(&ca.server_config("api.openai.com").unwrap(), &first, "api.openai.com", NOW_MS).unwrap();
    handshake(&ca.server_config("llm.example").unwrap(), &second, "llm.example", NOW_MS).unwrap();
    assert!(ca.permits("a.llm.example") && !ca.permits("llm.example.org"));
}

#[test]
fn a_generation_is_read_back() {
    let generation = generation(&["b.example", "api.openai.com", "us.api.openai.com", "b.example"]);
    assert_eq!(generation.names, ["api.openai.com", "b.example"]);
    let bytes = generation.to_bytes();
    let read = Generation::from_bytes(&bytes).unwrap();
    assert_eq!((&read.to_bytes(), read.fingerprint()), (&bytes, generation.fingerprint()));
    let ca = Ca::new(vec![read], Clock::manual(NOW_MS)).unwrap();
    handshake(&ca.server_config("b.example").unwrap(), &generation, "b.example", NOW_MS).unwrap();
    assert!(Generation::from_bytes(&bytes[..bytes.len() - 1]).is_err());
    assert!(!format!("{generation:?}").contains("key"), "no key is shown");
}

#[test]
fn pem_is_read_by_others() {
    use rustls::pki_types::pem::PemObject;
    let generation = generation(&["api.openai.com"]);
    assert_eq!(CertificateDer::from_pem_slice(pem(&generation.root).as_bytes()).unwrap(), generation.root);
}

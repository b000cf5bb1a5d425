//! A [`Generation`]: one root, and the one intermediate it signed before its key was destroyed.
//!
//! Owns making them, their form at rest and the names they may sign for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{BACKDATE, CaError, millis};
use crate::id::NoRandomness;

/// How long a generation is good for. Nothing can be signed anew once the root's key is gone, so this is how long people
/// need not think of it.
pub const LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);

/// What the names of its certificates begin with.
pub const COMMON_NAME: &str = "sidekey local CA";

/// What is kept of a generation has at most so many bytes before it is deflated.
const MAX_AT_REST: usize = 64 * 1024;

/// One root and one intermediate. The key is the intermediate's; it is wiped when dropped.
#[derive(Clone)]
pub struct Generation {
    /// Tells generations apart: 8 hexadecimal digits, also in the names of its certificates.
    pub id: String,
    /// What clients trust.
    pub root: CertificateDer<'static>,
    /// What signs, in the name of the root.
    pub intermediate: CertificateDer<'static>,
    /// The names it may sign for; each includes all names below it.
    pub names: Vec<String>,
    /// Wall time of its making, milliseconds.
    pub created_ms: u64,
    /// Wall time of its end, milliseconds.
    pub expires_ms: u64,
    /// The intermediate's key, PKCS #8.
    key: Zeroizing<Vec<u8>>,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("id", &self.id).field("names", &self.names).finish_non_exhaustive()
    }
}

/// The form at rest.
#[derive(Deserialize, Serialize)]
struct AtRest<'a> {
    id: &'a str,
    root: &'a [u8],
    intermediate: &'a [u8],
    names: Vec<&'a str>,
    created_ms: u64,
    expires_ms: u64,
    key: &'a [u8],
}

/// What was kept cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a generation of the local CA cannot be read")]
pub struct BadGeneration;

impl Generation {
    /// Makes one that may sign for `names` and what lies below them, and for no address.
    ///
    /// # Errors
    /// When there is no randomness, or a name is none.
    pub fn create(names: &[String], now_ms: u64, lifetime: Duration) -> Result<Self, CaError> {
        let names = without_covered(names);
        let id = random_hex()?;
        let (from_ms, expires_ms) = (now_ms.saturating_sub(millis(BACKDATE)), now_ms + millis(lifetime));
        let mut root_params = params(&format!("{COMMON_NAME} {id}"));
        stamp(&mut root_params, from_ms, expires_ms)?;
        root_params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        root_params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let mut root_key = KeyPair::generate()?;
        let root = root_params.self_signed(&root_key)?;

        let mut middle = intermediate_params(&id);
        stamp(&mut middle, from_ms, expires_ms)?;
        middle.use_authority_key_identifier_extension = true;
        middle.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        middle.name_constraints = Some(NameConstraints {
            permitted_subtrees: names.iter().cloned().map(GeneralSubtree::DnsName).collect(),
            excluded_subtrees: [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)]
                .map(|address| GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, 0)))
                .to_vec(),
        });
        let key = KeyPair::generate()?;
        let intermediate = middle.signed_by(&key, &Issuer::from_params(&root_params, &root_key))?;
        root_key.zeroize();
        Ok(Self {
            id,
            root: root.der().clone(),
            intermediate: intermediate.der().clone(),
            names,
            created_ms: now_ms,
            expires_ms,
            key: Zeroizing::new(key.serialize_der()),
        })
    }

    /// True when it may sign for `host`.
    #[must_use]
    pub fn permits(&self, host: &str) -> bool {
        self.names.iter().any(|name| covers(name, host))
    }

    /// The SHA-256 of the root, as people compare it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.root);
        digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    }

    /// The form at rest, key included: to be sealed. Deflated, because names stand in it twice, and a row has little room.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let at_rest = AtRest {
            id: &self.id,
            root: &self.root,
            intermediate: &self.intermediate,
            names: self.names.iter().map(String::as_str).collect(),
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            key: &self.key,
        };
        // Room for all of it at once: a vector that grew would leave the key in what it gave back.
        let room = Vec::with_capacity(1024 + self.root.len() + 2 * self.intermediate.len() + self.key.len());
        let plain = Zeroizing::new(postcard::to_extend(&at_rest, room).unwrap_or_default());
        let mut deflated = Zeroizing::new(Vec::with_capacity(1024 + plain.len()));
        let mut compress = Compress::new(Compression::best(), false);
        // With room for more than it is given, it ends in one call.
        let _ = compress.compress_vec(&plain, &mut deflated, FlushCompress::Finish);
        deflated
    }

    /// Reads [`Generation::to_bytes`].
    ///
    /// # Errors
    /// When these are other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BadGeneration> {
        let mut plain = Zeroizing::new(Vec::with_capacity(MAX_AT_REST));
        let mut inflate = Decompress::new(false);
        match inflate.decompress_vec(bytes, &mut plain, FlushDecompress::Finish) {
            Ok(Status::StreamEnd) => {}
            _ => return Err(BadGeneration),
        }
        let at_rest: AtRest<'_> = postcard::from_bytes(&plain).map_err(|_| BadGeneration)?;
        Ok(Self {
            id: at_rest.id.to_owned(),
            root: CertificateDer::from(at_rest.root.to_vec()),
            intermediate: CertificateDer::from(at_rest.intermediate.to_vec()),
            names: at_rest.names.iter().map(|name| (*name).to_owned()).collect(),
            created_ms: at_rest.created_ms,
            expires_ms: at_rest.expires_ms,
            key: Zeroizing::new(at_rest.key.to_vec()),
        })
    }
}

/// A generation ready to sign.
pub(super) struct Issuing {
    pub(super) of: Generation,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Issuing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.of.fmt(f)
    }
}

impl Issuing {
    pub(super) fn new(of: Generation) -> Result<Self, CaError> {
        let der = PrivatePkcs8KeyDer::from(&of.key[..]);
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)?;
        // The name and the key's identifier are all that a leaf takes from its issuer.
        let issuer = Issuer::new(intermediate_params(&of.id), key);
        Ok(Self { of, issuer })
    }

    /// A leaf for one name: with two, clients would send both hosts' requests over one HTTP/2 connection.
    pub(super) fn sign_leaf(
        &self,
        host: &str,
        key: &KeyPair,
        from_ms: u64,
        to_ms: u64,
    ) -> Result<CertificateDer<'static>, CaError> {
        // The name stands in the alternative names alone; as a common name it could be too long.
        let mut leaf = params("sidekey");
        leaf.subject_alt_names = CertificateParams::new([host.to_owned()])?.subject_alt_names;
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        stamp(&mut leaf, from_ms, to_ms)?;
        Ok(leaf.signed_by(key, &self.issuer)?.der().clone())
    }
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "sidekey");
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn intermediate_params(id: &str) -> CertificateParams {
    let mut params = params(&format!("{COMMON_NAME} {id} for providers"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// As name constraints read it (RFC 5280 §4.2.1.10): the name itself, and any with labels before it.
fn covers(name: &str, host: &str) -> bool {
    host.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Names that another one of them covers say nothing more, and each is sent in every handshake.
fn without_covered(names: &[String]) -> Vec<String> {
    let mut sorted = names.to_vec();
    sorted.sort_by_key(String::len);
    let mut kept: Vec<String> = Vec::new();
    for name in sorted {
        if !kept.iter().any(|shorter| covers(shorter, &name)) {
            kept.push(name);
        }
    }
    kept.sort();
    kept
}

/// Dates, and a number of 126 random bits: some verifiers refuse two certificates of one issuer with one number, and
/// rcgen's own choice depends on the key alone, which all leaves share.
fn stamp(params: &mut CertificateParams, from_ms: u64, to_ms: u64) -> Result<(), CaError> {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_millis(from_ms);
    params.not_after = epoch + Duration::from_millis(to_ms);
    let mut number = random::<16>()?;
    // Positive, and of full length.
    number[0] = number[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&number));
    Ok(())
}

fn random<const N: usize>() -> Result<[u8; N], CaError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

fn random_hex() -> Result<String, CaError> {
    Ok(random::<4>()?.iter().map(|byte| format!("{byte:02x}")).collect())
}

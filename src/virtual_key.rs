//! Virtual keys: `<prefix>-<id>-<secret>`, what one may do, and how a presented one is checked.
//!
//! Owns the format, the keyed digest and the allow-lists. Leaves storing to `storage`, counting to `limit`, and
//! finding the key in a request to `proxy::authenticate`.

use std::net::IpAddr;

use aws_lc_rs::rand;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use wildmatch::WildMatch;

use crate::id::{KeyId, NoRandomness, Owner};
use crate::policy::{Budget, Policy};
use crate::secret::Secret;

/// The prefix of keys made here, unless `VIRTUAL_KEY_PREFIX` says otherwise.
pub const DEFAULT_PREFIX: &str = "sk-side";

/// Characters of a secret: 43 base62 digits hold 256 bits.
const SECRET_LEN: usize = 43;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A keyed blake3 digest of a whole virtual key: all of it that is stored. Its `==` is constant-time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(blake3::Hash);

/// The key of [`Digest`]s: random, one per installation, sealed in the store.
#[derive(Clone)]
pub struct DigestKey(zeroize::Zeroizing<[u8; 32]>);

impl std::fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestKey([redacted])")
    }
}

impl DigestKey {
    /// A new random one.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn random() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 32];
        rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self::from_bytes(bytes))
    }

    /// The one made of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(zeroize::Zeroizing::new(bytes))
    }

    /// Its bytes, to be sealed.
    #[must_use]
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest of a presented virtual key.
    #[must_use]
    pub fn digest(&self, key: &str) -> Digest {
        Digest(blake3::keyed_hash(&self.0, key.as_bytes()))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_hex())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        blake3::Hash::from_hex(text.as_bytes()).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Makes a new virtual key of this prefix and id.
///
/// # Errors
/// When the operating system gives no randomness.
pub fn generate(prefix: &str, id: KeyId) -> Result<Secret, NoRandomness> {
    let mut key = format!("{prefix}-{id}-");
    let mut bytes = [0; 64];
    let end = key.len() + SECRET_LEN;
    while key.len() < end {
        rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        // 248 is the largest multiple of 62 in a byte: what lies above would favour the first digits.
        let digits = bytes.iter().filter(|byte| **byte < 248).map(|byte| char::from(BASE62[usize::from(*byte % 62)]));
        key.extend(digits.take(end - key.len()));
    }
    Ok(Secret::new(key))
}

/// The id of a presented key, whatever its prefix: keys stay good when the installation's prefix changes. `None` when
/// it has not the form of a virtual key.
#[must_use]
pub fn parse_id(key: &str) -> Option<KeyId> {
    // From behind, where both have a fixed length.
    let (rest, secret) = key.split_at_checked(key.len().checked_sub(SECRET_LEN)?)?;
    let (prefix, id) = rest.strip_suffix('-')?.rsplit_once('-')?;
    // All of it in any case: many at a time.
    let formed = secret.bytes().fold(!prefix.is_empty(), |formed, c| formed & c.is_ascii_alphanumeric());
    if formed { id.parse().ok() } else { None }
}

/// The part of a presented key that must not be seen: behind the last dash.
#[must_use]
pub fn secret_part(key: &str) -> &str {
    key.rsplit_once('-').map_or(key, |(_, secret)| secret)
}

/// True when `text` claims to be a virtual key of this prefix, well formed or not.
#[must_use]
pub fn has_prefix(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('-'))
}

/// What an operator says of a virtual key. `expired` is not stored: it follows from the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// May be used.
    #[default]
    Active,
    /// Switched off by hand, until switched on.
    Disabled,
    /// Taken back for good.
    Revoked,
}

/// How usage of a stream is learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum StreamUsage {
    /// Change nothing; estimate when the provider does not say.
    #[default]
    Observe,
    /// Ask an OpenAI-dialect provider for it by splicing `stream_options.include_usage` into the request.
    Request,
}

/// Whether the next tier pays when the caller's own keys cannot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Fallback {
    /// The first tier alone pays, or nobody.
    None,
    /// The team's keys after the user's, then the system's.
    #[default]
    System,
}

/// What is done with a key that is not of our prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownKeys {
    /// Forward it as it came: the caller pays with a key of their own, outside every limit.
    Pass,
    /// Refuse it: 401.
    #[default]
    Refuse,
}

/// `[keys]` of the configuration: what new virtual keys get when their maker does not say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KeysSection {
    /// The prefix of new keys.
    pub prefix: String,
    /// Days until a new key expires.
    pub default_expires_days: u32,
    /// The longest life a key may be given, days; `None` is no bound.
    pub max_expires_days: Option<u32>,
    /// Requests per minute of a new key; `None` is no limit.
    pub default_rpm: Option<u64>,
    /// Tokens per minute of a new key; `None` is no limit.
    pub default_tpm: Option<u64>,
    /// The budget of a new key; `None` is none.
    #[serde(with = "crate::policy::written")]
    pub default_budget: Option<Budget>,
    /// What is done with keys that are not ours.
    pub unknown_keys: UnknownKeys,
}

impl Default for KeysSection {
    fn default() -> Self {
        Self {
            prefix: DEFAULT_PREFIX.to_owned(),
            default_expires_days: 365,
            max_expires_days: None,
            default_rpm: None,
            default_tpm: None,
            default_budget: None,
            unknown_keys: UnknownKeys::Refuse,
        }
    }
}

/// True for text that may stand before the id of a virtual key: 1 to 32 letters, digits, `-` and `_`, not ending in
/// a dash. It goes into headers and URLs as it is.
#[must_use]
pub fn is_prefix(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    (1..=32).contains(&text.len()) && text.bytes().all(allowed) && !text.ends_with('-')
}

/// The digest of the secret before a rotation, good until its grace ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// Its digest.
    pub digest: Digest,
    /// Wall time, milliseconds since the epoch, until which it is accepted.
    pub until_ms: u64,
}

/// The record of a virtual key. The key itself is not in it: only its digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VirtualKey {
    /// The public part.
    pub id: KeyId,
    /// What people call it.
    pub name: String,
    /// Keyed digest of the whole key.
    pub digest: Digest,
    /// The secret before the last rotation.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// The prefix it was made with; shown, and part of the key itself.
    pub prefix: String,
    /// The user it belongs to: that user's provider keys pay first.
    #[serde(default)]
    pub user: Option<String>,
    /// The team it belongs to: that team's provider keys pay next.
    #[serde(default)]
    pub team: Option<String>,
    /// Switched on or not.
    #[serde(default)]
    pub status: Status,
    /// Wall time of creation, milliseconds.
    pub created_ms: u64,
    /// Wall time of expiry, milliseconds; `None` never expires.
    #[serde(default)]
    pub expires_ms: Option<u64>,
    /// Globs of models it may call; empty is all, as is `*`.
    #[serde(default)]
    pub models: Vec<String>,
    /// Providers it may call; empty is all.
    #[serde(default)]
    pub providers: Vec<String>,
    /// Endpoints it may call by name; empty is all whose model can be checked.
    #[serde(default)]
    pub endpoints: Vec<String>,
    /// Networks it may be used from; empty is all.
    #[serde(default)]
    pub sources: Vec<IpNet>,
    /// The plan it is on: what the key does not say itself is as the plan says.
    #[serde(default)]
    pub plan: Option<String>,
    /// What it may use.
    #[serde(flatten)]
    pub policy: Policy,
    /// The pool whose provider keys alone pay.
    #[serde(default)]
    pub pool: Option<String>,
    /// Whether others pay when the first tier cannot.
    #[serde(default)]
    pub fallback: Fallback,
    /// Overrides the provider's setting.
    #[serde(default)]
    pub stream_usage: Option<StreamUsage>,
    /// Whether it may be given real keys of its pool.
    #[serde(default)]
    pub lease: bool,
    /// True for keys that die with the process they were made for.
    #[serde(default)]
    pub ephemeral: bool,
    /// True for one that nobody is to use: who does is refused like a stranger, and operators are told.
    #[serde(default)]
    pub canary: bool,
    /// The operator's own notes.
    #[serde(default)]
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Counts changes: the ETag.
    #[serde(default)]
    pub version: u64,
}

/// Why a presented key is not accepted. The words are the metric's labels; a stranger is told only what
/// `proxy::error` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rejection {
    /// One that nobody is to use.
    Canary,
    /// Switched off.
    Disabled,
    /// Past its expiry.
    Expired,
    /// Not of the form of a key.
    Malformed,
    /// No key at all.
    Missing,
    /// Taken back.
    Revoked,
    /// Used from a network it is not allowed on.
    SourceNotAllowed,
    /// No such id.
    Unknown,
    /// The id exists, the secret is another.
    WrongSecret,
}

impl Rejection {
    /// Every reason, for the metric's initial zeros.
    pub const ALL: [Self; 9] = [
        Self::Canary,
        Self::Disabled,
        Self::Expired,
        Self::Malformed,
        Self::Missing,
        Self::Revoked,
        Self::SourceNotAllowed,
        Self::Unknown,
        Self::WrongSecret,
    ];

    /// The metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Canary => "canary",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::Malformed => "malformed",
            Self::Missing => "missing",
            Self::Revoked => "revoked",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::Unknown => "unknown",
            Self::WrongSecret => "wrong_secret",
        }
    }
}

impl VirtualKey {
    /// Checks secret, status, expiry and source, in this order, so that only a holder of the secret learns the rest.
    ///
    /// # Errors
    /// The first reason that holds.
    pub fn check(&self, presented: Digest, wall_ms: u64, source: Option<IpAddr>) -> Result<(), Rejection> {
        let graced = self.previous.is_some_and(|old| old.digest == presented && wall_ms < old.until_ms);
        if self.digest != presented && !graced {
            return Err(Rejection::WrongSecret);
        }
        if self.canary {
            return Err(Rejection::Canary);
        }
        match self.status {
            Status::Active => {}
            Status::Disabled => return Err(Rejection::Disabled),
            Status::Revoked => return Err(Rejection::Revoked),
        }
        if self.is_expired(wall_ms) {
            return Err(Rejection::Expired);
        }
        if !self.sources.is_empty() && !source.is_some_and(|ip| self.allows_source(ip)) {
            return Err(Rejection::SourceNotAllowed);
        }
        Ok(())
    }

    /// True when its expiry has passed.
    #[must_use]
    pub fn is_expired(&self, wall_ms: u64) -> bool {
        self.expires_ms.is_some_and(|at| wall_ms >= at)
    }

    /// `active`, `disabled`, `revoked` or `expired`.
    #[must_use]
    pub fn status_word(&self, wall_ms: u64) -> &'static str {
        match self.status {
            Status::Disabled => "disabled",
            Status::Revoked => "revoked",
            Status::Active if self.is_expired(wall_ms) => "expired",
            Status::Active => "active",
        }
    }

    /// True when no list narrows the models.
    #[must_use]
    pub fn allows_every_model(&self) -> bool {
        self.models.is_empty() || self.models.iter().any(|glob| glob == "*")
    }

    /// True when a glob of the list matches `model`; case counts.
    #[must_use]
    pub fn allows_model(&self, model: &str) -> bool {
        self.allows_every_model() || self.models.iter().any(|glob| WildMatch::new(glob).matches(model))
    }

    /// True when the list names `provider` or is empty.
    #[must_use]
    pub fn allows_provider(&self, provider: &str) -> bool {
        self.providers.is_empty() || self.providers.iter().any(|name| name == provider)
    }

    /// True when the list is empty or names `endpoint`; see [`VirtualKey::names_endpoint`].
    #[must_use]
    pub fn allows_endpoint(&self, endpoint: &str) -> bool {
        self.endpoints.is_empty() || self.names_endpoint(endpoint)
    }

    /// True when the list names `endpoint`: what a key restricted by model needs where no model can be known.
    #[must_use]
    pub fn names_endpoint(&self, endpoint: &str) -> bool {
        self.endpoints.iter().any(|name| name == endpoint)
    }

    /// The owners whose provider keys may pay, in the order of their tiers.
    #[must_use]
    pub fn tiers(&self) -> Vec<Owner> {
        let user = self.user.clone().map(Owner::User);
        let team = self.team.clone().map(Owner::Team);
        user.into_iter().chain(team).chain([Owner::System]).collect()
    }

    fn allows_source(&self, ip: IpAddr) -> bool {
        // A dual-stack listener shows IPv4 clients as ::ffff:a.b.c.d; operators write the IPv4 network.
        let ip = ip.to_canonical();
        self.sources.iter().any(|net| net.contains(&ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(secret: &str) -> (VirtualKey, DigestKey) {
        let digests = DigestKey::from_bytes([7; 32]);
        let key = VirtualKey {
            id: KeyId::from_bytes([1; 8]),
            name: "app".into(),
            digest: digests.digest(secret),
            previous: None,
            prefix: DEFAULT_PREFIX.into(),
            user: Some("alice".into()),
            team: Some("t1".into()),
            status: Status::Active,
            created_ms: 0,
            expires_ms: Some(100),
            models: vec![],
            providers: vec![],
            endpoints: vec![],
            sources: vec![],
            plan: None,
            policy: Policy::default(),
            pool: None,
            fallback: Fallback::System,
            stream_usage: None,
            lease: false,
            ephemeral: false,
            canary: false,
            metadata: Default::default(),
            version: 0,
        };
        (key, digests)
    }

    #[test]
    fn generated_keys_parse() {
        for prefix in [DEFAULT_PREFIX, "vk", "acme-llm-key"] {
            let id = KeyId::random().expect("randomness");
            let key = generate(prefix, id).expect("randomness");
            assert_eq!(parse_id(key.expose()), Some(id));
            assert_eq!(secret_part(key.expose()).len(), SECRET_LEN);
            assert_eq!(key.expose().len(), prefix.len() + 1 + 16 + 1 + 43);
        }
    }

    #[test]
    fn malformed_keys_do_not() {
        let tail = "-a1b2c3d4e5f67890-0123456789012345678901234567890123456789012";
        assert!(parse_id(&format!("sk-side{tail}")).is_some());
        for (name, text) in [
            ("empty", String::new()),
            ("no prefix", tail.to_owned()),
            ("short", format!("sk-side{}", &tail[..tail.len() - 1])),
            ("long", format!("sk-side{tail}3")),
            ("bad id", format!("sk-side{}", tail.replace("a1b2", "A1b2"))),
            ("bad digit", format!("sk-side{}_", &tail[..tail.len() - 1])),
            ("a provider's", "sk-proj-abcdefghijklmnop-T3BlbkFJabcdefghijklmnop".to_owned()),
        ] {
            assert_eq!(parse_id(&text), None, "{name}");
        }
    }

    #[test]
    fn checks_in_order() {
        let (base, digests) = key("secret");
        let right = digests.digest("secret");
        type Case = (&'static str, fn(&mut VirtualKey), &'static str, u64, Result<(), Rejection>);
        let cases: [Case; 7] = [
            ("good", |_| {}, "secret", 99, Ok(())),
            ("expired", |_| {}, "secret", 100, Err(Rejection::Expired)),
            ("wrong before expired", |_| {}, "other", 100, Err(Rejection::WrongSecret)),
            ("disabled", |k| k.status = Status::Disabled, "secret", 1, Err(Rejection::Disabled)),
            ("revoked", |k| k.status = Status::Revoked, "secret", 1, Err(Rejection::Revoked)),
            (
                "source",
                |k| k.sources = vec!["10.0.0.0/8".parse().unwrap()],
                "secret",
                1,
                Err(Rejection::SourceNotAllowed),
            ),
            ("own source", |k| k.sources = vec!["127.0.0.0/8".parse().unwrap()], "secret", 1, Ok(())),
        ];
        for (name, change, secret, now, want) in cases {
            let mut key = base.clone();
            change(&mut key);
            let ip = "::ffff:127.0.0.1".parse().ok();
            assert_eq!(key.check(digests.digest(secret), now, ip), want, "{name}");
        }
        assert_eq!(base.check(right, 1, None), Ok(()));
    }

    #[test]
    fn the_old_secret_lives_through_its_grace() {
        let (mut key, digests) = key("new");
        key.previous = Some(Previous { digest: digests.digest("old"), until_ms: 50 });
        assert_eq!(key.check(digests.digest("old"), 49, None), Ok(()));
        assert_eq!(key.check(digests.digest("old"), 50, None), Err(Rejection::WrongSecret));
    }

    #[test]
    fn allow_lists() {
        let (mut key, _) = key("s");
        assert!(key.allows_model("anything") && key.allows_provider("x") && key.allows_endpoint("chat"));
        assert!(!key.names_endpoint("chat"));
        key.models = vec!["gpt-4o*".into(), "claude-?".into()];
        for (model, want) in [("gpt-4o-mini", true), ("gpt-4", false), ("claude-3", true), ("claude-35", false)] {
            assert_eq!(key.allows_model(model), want, "{model}");
        }
        key.endpoints = vec!["chat".into()];
        assert!(key.allows_endpoint("chat") && !key.allows_endpoint("files"));
        assert_eq!(key.tiers(), [Owner::User("alice".into()), Owner::Team("t1".into()), Owner::System]);
    }

    #[test]
    fn records_survive_json() {
        let (key, _) = key("s");
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<VirtualKey>(&text).unwrap(), key);
    }
}

//! The master key: where it is looked for, in order, and how one is made.
//!
//! Owns the order and the checks on files. Leaves reading the environment to `config::env`, and what the key opens
//! to `storage::vault`.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// The file `init` makes in the data directory.
pub(super) const FILE_NAME: &str = "master.key";
/// The systemd credential looked for.
pub(super) const CREDENTIAL_NAME: &str = "master-key";

/// Larger than any spelling of 32 bytes; what is larger is not a key.
const MAX_FILE: u64 = 1024;

/// 32 random bytes that everything else is sealed under. Wiped when dropped.
#[derive(Clone)]
pub struct MasterKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey([redacted])")
    }
}

impl MasterKey {
    /// The key made of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    pub(super) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads 64 hex characters, base64 of 32 bytes, or 32 raw bytes; surrounding white space does not count.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let spelled = std::str::from_utf8(bytes).ok().and_then(|text| parse_text(text.trim()));
        spelled.or_else(|| <[u8; 32]>::try_from(bytes).ok().map(Self::from_bytes))
    }
}

fn parse_text(text: &str) -> Option<MasterKey> {
    let bytes = if text.len() == 64 && text.bytes().all(|c| c.is_ascii_hexdigit()) {
        let pair = |at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok();
        Zeroizing::new((0..64).step_by(2).map(pair).collect::<Option<Vec<u8>>>()?)
    } else {
        let engines = [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE_NO_PAD];
        Zeroizing::new(engines.iter().find_map(|engine| engine.decode(text).ok())?)
    };
    <[u8; 32]>::try_from(&bytes[..]).ok().map(MasterKey::from_bytes)
}

/// What the environment says of the master key; all of it optional.
#[derive(Clone, Debug, Default)]
pub struct MasterKeyInputs {
    /// `CREDENTIALS_DIRECTORY`: systemd's credentials; `master-key` is looked for in it.
    pub credentials_dir: Option<PathBuf>,
    /// `SIDEKEY_MASTER_KEY_FILE`.
    pub file: Option<PathBuf>,
    /// `SIDEKEY_MASTER_KEY`.
    pub value: Option<Secret>,
}

/// Where a master key was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MasterKeySource {
    /// A systemd credential.
    Credential(PathBuf),
    /// `master.key` in the data directory.
    DataDir(PathBuf),
    /// `SIDEKEY_MASTER_KEY`.
    Environment,
    /// The file `SIDEKEY_MASTER_KEY_FILE` names.
    File(PathBuf),
}

impl fmt::Display for MasterKeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credential(path) => write!(f, "systemd credential {}", path.display()),
            Self::DataDir(path) => write!(f, "{}", path.display()),
            Self::Environment => f.write_str("SIDEKEY_MASTER_KEY"),
            Self::File(path) => write!(f, "SIDEKEY_MASTER_KEY_FILE {}", path.display()),
        }
    }
}

/// Why there is no usable master key.
#[derive(Debug, thiserror::Error)]
pub enum MasterKeyError {
    /// Not 32 bytes in a known spelling.
    #[error("the master key from {0} is not 32 bytes as hex or base64; make one with `openssl rand -base64 32`")]
    Malformed(MasterKeySource),
    /// Open to others.
    #[error(
        "{path} is open to group or others (mode {mode:03o}); run `chmod 600` on it, or `chmod 440` where it is another \
         user's and SIDEKEY_MASTER_KEY_FILE names it",
        path = path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// No randomness to make one.
    #[error("no master key was made: the operating system gives no randomness")]
    Random,
    /// A file could not be read or written.
    #[error("master key file {path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The first master key found: systemd credential, named file, value, `master.key` in `dir`. A source that is named
/// but bad is an error: falling through to the next would open the store with another key.
///
/// # Errors
/// When a source is there and cannot be used.
pub(super) fn find(
    inputs: &MasterKeyInputs,
    dir: &Path,
) -> Result<Option<(MasterKey, MasterKeySource)>, MasterKeyError> {
    let credential = inputs.credentials_dir.as_ref().map(|dir| dir.join(CREDENTIAL_NAME));
    if let Some(path) = credential.filter(|path| path.exists()) {
        // systemd grants access by ACL, which shows as group bits: the directory is what protects it.
        return read_file(&path, MasterKeySource::Credential(path.clone()), |_, _| true).map(Some);
    }
    if let Some(path) = &inputs.file {
        return read_file(path, MasterKeySource::File(path.clone()), is_private).map(Some);
    }
    if let Some(value) = &inputs.value {
        let key = MasterKey::parse(value.expose().as_bytes());
        let key = key.ok_or(MasterKeyError::Malformed(MasterKeySource::Environment))?;
        return Ok(Some((key, MasterKeySource::Environment)));
    }
    let path = dir.join(FILE_NAME);
    if path.exists() {
        return read_file(&path, MasterKeySource::DataDir(path.clone()), is_ours_alone).map(Some);
    }
    Ok(None)
}

/// Makes `master.key` in `dir`, mode 0600, durable before it is used.
///
/// # Errors
/// When the file is there already or cannot be written.
pub(super) fn create(dir: &Path) -> Result<(MasterKey, MasterKeySource), MasterKeyError> {
    let path = dir.join(FILE_NAME);
    let mut bytes = Zeroizing::new([0; 32]);
    rand::fill(&mut *bytes).map_err(|_| MasterKeyError::Random)?;
    let text = Zeroizing::new(STANDARD.encode(*bytes) + "\n");
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| MasterKeyError::Unreadable { path: path.clone(), source })?;
    Ok((MasterKey(bytes), MasterKeySource::DataDir(path)))
}

/// True when only its owner has a say over a file of this mode.
fn is_ours_alone(mode: u32, _ours: bool) -> bool {
    mode & 0o077 == 0
}

/// The same, but our group may read a file that is not `ours`, since somebody else manages it then: a Kubernetes secret
/// under `fsGroup` is root's, and a user other than root gets at it in no other way.
fn is_private(mode: u32, ours: bool) -> bool {
    is_ours_alone(mode, ours) || !ours && mode & 0o037 == 0
}

/// Reads the key from a file that is `fit`, by its mode and whether it is our own.
fn read_file(
    path: &Path,
    source: MasterKeySource,
    fit: fn(u32, bool) -> bool,
) -> Result<(MasterKey, MasterKeySource), MasterKeyError> {
    let unreadable = |source| MasterKeyError::Unreadable { path: path.to_owned(), source };
    let file = fs::File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    let (mode, ours) = (meta.mode() & 0o777, meta.uid() == rustix::process::geteuid().as_raw());
    if !fit(mode, ours) {
        return Err(MasterKeyError::Open { path: path.to_owned(), mode });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(128));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(unreadable)?;
    match MasterKey::parse(&bytes) {
        Some(key) => Ok((key, source)),
        None => Err(MasterKeyError::Malformed(source)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn put(path: &Path, text: &str, mode: u32) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn spellings() {
        let hex = "00".repeat(31) + "fF";
        let mut want = [0; 32];
        want[31] = 255;
        for (name, text, good) in [
            ("hex", hex.clone(), true),
            ("white space", format!(" {hex}\n"), true),
            ("base64", STANDARD.encode(want), true),
            ("url, no padding", URL_SAFE_NO_PAD.encode(want), true),
            ("short hex", hex[2..].to_owned(), false),
            ("passphrase", "correct horse battery staple".to_owned(), false),
            ("empty", String::new(), false),
        ] {
            let key = MasterKey::parse(text.as_bytes());
            assert_eq!(key.map(|key| *key.expose()), good.then_some(want), "{name}");
        }
        assert!(MasterKey::parse(&[0xff; 32]).is_some());
    }

    #[test]
    fn sources_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let key = |byte: u8| STANDARD.encode([byte; 32]);
        assert!(find(&MasterKeyInputs::default(), dir.path()).unwrap().is_none());
        put(&dir.path().join(FILE_NAME), &key(4), 0o600);
        put(&dir.path().join(CREDENTIAL_NAME), &key(1), 0o440);
        put(&dir.path().join("file"), &key(2), 0o400);
        let mut inputs = MasterKeyInputs {
            credentials_dir: Some(dir.path().to_owned()),
            file: Some(dir.path().join("file")),
            value: Some(Secret::new(key(3))),
        };
        let found = |inputs: &MasterKeyInputs| find(inputs, dir.path()).unwrap().unwrap().0.expose()[0];
        assert_eq!(found(&inputs), 1);
        inputs.credentials_dir = Some("/nowhere".into());
        assert_eq!(found(&inputs), 2);
        inputs.file = None;
        assert_eq!(found(&inputs), 3);
        inputs.value = None;
        assert_eq!(found(&inputs), 4);
    }

    #[test]
    fn bad_sources_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let inputs = MasterKeyInputs { file: Some(file.clone()), ..MasterKeyInputs::default() };
        assert!(matches!(find(&inputs, dir.path()), Err(MasterKeyError::Unreadable { .. })));
        put(&file, &STANDARD.encode([1; 32]), 0o640);
        assert!(matches!(find(&inputs, dir.path()), Err(MasterKeyError::Open { mode: 0o640, .. })));
        put(&file, "short", 0o600);
        let error = find(&inputs, dir.path()).unwrap_err().to_string();
        assert!(error.contains("openssl rand") && !error.contains("short"), "{error}");
    }

    #[test]
    fn modes() {
        for (mode, ours, named, in_data_dir) in [
            (0o400, true, true, true),
            (0o600, true, true, true),
            (0o440, true, false, false),
            (0o640, true, false, false),
            (0o400, false, true, true),
            (0o440, false, true, false),
            (0o640, false, true, false),
            (0o660, false, false, false),
            (0o460, false, false, false),
            (0o444, false, false, false),
            (0o404, false, false, false),
            (0o402, false, false, false),
            (0o644, false, false, false),
        ] {
            assert_eq!(is_private(mode, ours), named, "SIDEKEY_MASTER_KEY_FILE {mode:03o} {ours}");
            assert_eq!(is_ours_alone(mode, ours), in_data_dir, "master.key {mode:03o} {ours}");
        }
    }

    #[test]
    fn a_file_that_another_user_manages() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        put(&file, &STANDARD.encode([1; 32]), 0o440);
        let inputs = MasterKeyInputs { file: Some(file.clone()), ..MasterKeyInputs::default() };
        assert!(matches!(find(&inputs, dir.path()), Err(MasterKeyError::Open { mode: 0o440, .. })), "our own");
        // Only root can give a file away, and reads it then.
        if std::os::unix::fs::chown(&file, Some(65_534), None).is_ok() {
            assert!(find(&inputs, dir.path()).unwrap().is_some());
        }
    }

    #[test]
    fn made_once() {
        let dir = tempfile::tempdir().unwrap();
        let (key, _) = create(dir.path()).unwrap();
        let (again, source) = find(&MasterKeyInputs::default(), dir.path()).unwrap().unwrap();
        assert_eq!(key.expose(), again.expose());
        assert_eq!(source, MasterKeySource::DataDir(dir.path().join(FILE_NAME)));
        assert!(matches!(create(dir.path()), Err(MasterKeyError::Unreadable { .. })));
    }
}

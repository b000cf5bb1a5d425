//! Sealed envelopes: AES-256-GCM under a fresh data key per record, the data key wrapped by the master key.
//!
//! Owns the envelope's form and what it is bound to. Leaves finding the master key to `storage::master`, and where
//! envelopes are kept to the rest of `storage`.
//!
//! # Form
//! `0x01 | key-encryption-key id u32 | nonce 12, wrapped data key 32, tag 16 | nonce 12 | ciphertext | tag 16`.
//! Both parts are bound to a domain, the part, the tree, the record's id and the record's version, each with its
//! length before it, so an envelope moved to another place, or an older one put back, does not open. Changing the
//! master key rewraps the data key and leaves the ciphertext alone.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use super::master::MasterKey;

const ENVELOPE: u8 = 1;
const KEY_LEN: usize = 32;
const TAG_LEN: usize = 16;
const WRAPPED_LEN: usize = NONCE_LEN + KEY_LEN + TAG_LEN;
const HEAD_LEN: usize = 1 + 4 + WRAPPED_LEN;

/// What sealing adds to a record's length.
pub(super) const OVERHEAD: usize = HEAD_LEN + NONCE_LEN + TAG_LEN;

/// Where an envelope belongs; it opens nowhere else.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The tree.
    pub tree: &'a str,
    /// The record's key in the tree.
    pub id: &'a [u8],
    /// The record's version.
    pub version: u64,
}

/// Why an envelope does not open, or could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    /// It was changed, moved, cut, or is an older version.
    #[error("a sealed record was changed, moved or cut")]
    Broken,
    /// The cipher or the random source failed.
    #[error("sealing failed: the operating system gives no randomness")]
    Cipher,
    /// It was sealed under another master key.
    #[error("a sealed record belongs to another master key")]
    OtherMaster,
}

/// Seals and opens envelopes under one master key.
pub struct Vault {
    wrapping: LessSafeKey,
    wrapping_id: u32,
    fingerprint: [u8; 16],
    checksum_key: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("wrapping_id", &self.wrapping_id).finish_non_exhaustive()
    }
}

struct KeyLen;

impl KeyType for KeyLen {
    fn len(&self) -> usize {
        KEY_LEN
    }
}

impl Vault {
    /// The vault of this master key.
    ///
    /// # Errors
    /// When the cipher cannot be set up.
    pub fn new(master: &MasterKey) -> Result<Self, VaultError> {
        let print = blake3::derive_key("sidekey v1 master key fingerprint", master.expose());
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&print[..16]);
        let wrapping_id = u32::from_be_bytes([print[16], print[17], print[18], print[19]]);
        let secret = Salt::new(HKDF_SHA256, b"sidekey").extract(master.expose());
        let mut bytes = Zeroizing::new([0; KEY_LEN]);
        secret
            .expand(&[b"kek", &wrapping_id.to_be_bytes()], KeyLen)
            .and_then(|okm| okm.fill(&mut *bytes))
            .map_err(|_| VaultError::Cipher)?;
        let checksum_key = Zeroizing::new(blake3::derive_key("sidekey v1 tree checksums", master.expose()));
        Ok(Self { wrapping: cipher(&*bytes)?, wrapping_id, fingerprint, checksum_key })
    }

    /// Tells master keys apart without saying anything about them.
    #[must_use]
    pub fn fingerprint(&self) -> &[u8; 16] {
        &self.fingerprint
    }

    /// The key of the checksums kept over trees.
    pub(super) fn checksum_key(&self) -> &[u8; 32] {
        &self.checksum_key
    }

    /// Seals `plain` for `place`.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub fn seal(&self, place: Place<'_>, plain: &[u8]) -> Result<Vec<u8>, VaultError> {
        let mut data_key = Zeroizing::new([0; KEY_LEN]);
        rand::fill(&mut *data_key).map_err(|_| VaultError::Cipher)?;
        let mut out = Vec::with_capacity(OVERHEAD + plain.len());
        out.push(ENVELOPE);
        out.extend_from_slice(&self.wrapping_id.to_be_bytes());
        encrypt(&self.wrapping, &binding(b"key", place), &*data_key, &mut out)?;
        encrypt(&cipher(&*data_key)?, &binding(b"record", place), plain, &mut out)?;
        Ok(out)
    }

    /// Opens an envelope found at `place`.
    ///
    /// # Errors
    /// When it was not sealed for this place by this master key.
    pub fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let data_key = self.unwrap_key(place, sealed)?;
        decrypt(&cipher(&data_key)?, &binding(b"record", place), &sealed[HEAD_LEN..])
    }

    /// The same record under another master key: only the data key is wrapped anew.
    ///
    /// # Errors
    /// As [`Vault::open`] and [`Vault::seal`].
    pub fn rewrap(&self, to: &Self, place: Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, VaultError> {
        let data_key = self.unwrap_key(place, sealed)?;
        let mut out = Vec::with_capacity(sealed.len());
        out.push(ENVELOPE);
        out.extend_from_slice(&to.wrapping_id.to_be_bytes());
        encrypt(&to.wrapping, &binding(b"key", place), &data_key, &mut out)?;
        out.extend_from_slice(&sealed[HEAD_LEN..]);
        Ok(out)
    }

    fn unwrap_key(&self, place: Place<'_>, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        if sealed.len() < OVERHEAD || sealed[0] != ENVELOPE {
            return Err(VaultError::Broken);
        }
        if sealed[1..5] != self.wrapping_id.to_be_bytes() {
            return Err(VaultError::OtherMaster);
        }
        decrypt(&self.wrapping, &binding(b"key", place), &sealed[5..HEAD_LEN])
    }
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, VaultError> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| VaultError::Cipher)
}

fn binding(part: &[u8], place: Place<'_>) -> Vec<u8> {
    let version = place.version.to_be_bytes();
    let fields: [&[u8]; 5] = [b"sidekey/1", part, place.tree.as_bytes(), place.id, &version];
    let mut out = Vec::with_capacity(64 + place.id.len());
    for field in fields {
        out.extend_from_slice(&(field.len() as u64).to_be_bytes());
        out.extend_from_slice(field);
    }
    out
}

/// Appends nonce, ciphertext and tag. A random nonce is safe: each data key seals once, and the wrapping key stays
/// far below 2^32 records.
fn encrypt(key: &LessSafeKey, aad: &[u8], plain: &[u8], out: &mut Vec<u8>) -> Result<(), VaultError> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).map_err(|_| VaultError::Cipher)?;
    out.extend_from_slice(&nonce);
    let start = out.len();
    out.extend_from_slice(plain);
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag =
        key.seal_in_place_separate_tag(nonce, Aad::from(aad), &mut out[start..]).map_err(|_| VaultError::Cipher)?;
    out.extend_from_slice(tag.as_ref());
    Ok(())
}

fn decrypt(key: &LessSafeKey, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let (nonce, body) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(VaultError::Broken)?;
    let mut plain = Zeroizing::new(body.to_vec());
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let len = key.open_in_place(nonce, Aad::from(aad), &mut plain).map_err(|_| VaultError::Broken)?.len();
    plain.truncate(len);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place<'static> = Place { tree: "secrets", id: b"12345678", version: 3 };

    fn vault(byte: u8) -> Vault {
        Vault::new(&MasterKey::from_bytes([byte; 32])).unwrap()
    }

    #[test]
    fn bound_to_its_place() {
        let vault_1 = vault(1);
        let sealed = vault_1.seal(PLACE, b"sk-secret").unwrap();
        assert_eq!(sealed.len(), OVERHEAD + 9);
        assert_eq!(&**vault_1.open(PLACE, &sealed).unwrap(), b"sk-secret");
        for (name, place) in [
            ("tree", Place { tree: "secret", ..PLACE }),
            ("id", Place { id: b"12345679", ..PLACE }),
            ("older", Place { version: 2, ..PLACE }),
            ("shifted", Place { tree: "secrets1", id: b"2345678", version: 3 }),
        ] {
            assert_eq!(vault_1.open(place, &sealed), Err(VaultError::Broken), "{name}");
        }
        assert_eq!(vault(2).open(PLACE, &sealed), Err(VaultError::OtherMaster));
    }

    #[test]
    fn rewrapping_leaves_the_ciphertext() {
        let (old, new) = (vault(1), vault(2));
        let sealed = old.seal(PLACE, b"text").unwrap();
        let moved = old.rewrap(&new, PLACE, &sealed).unwrap();
        assert_eq!(moved[HEAD_LEN..], sealed[HEAD_LEN..]);
        assert_eq!(&**new.open(PLACE, &moved).unwrap(), b"text");
        assert!(old.open(PLACE, &moved).is_err());
    }

    #[test]
    fn every_flip_and_cut_is_refused() {
        let vault = vault(1);
        let sealed = vault.seal(PLACE, b"sk-proj-0123456789").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(vault.open(PLACE, &bad).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(vault.open(PLACE, &sealed[..len]).is_err(), "cut at {len}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_sealed_opens_here_alone(
            plain in proptest::collection::vec(any::<u8>(), 0..300),
            id in proptest::collection::vec(any::<u8>(), 0..20),
            other in proptest::collection::vec(any::<u8>(), 0..20),
            version in any::<u64>(),
            garbage in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let vault = vault(9);
            let place = Place { tree: "t", id: &id, version };
            let sealed = vault.seal(place, &plain).unwrap();
            prop_assert_eq!(&**vault.open(place, &sealed).unwrap(), &plain[..]);
            let later = Place { version: version.wrapping_add(1), ..place };
            let elsewhere = Place { id: &other, ..place };
            prop_assert_eq!(vault.open(later, &sealed), Err(VaultError::Broken));
            prop_assert!(other == id || vault.open(elsewhere, &sealed).is_err());
            prop_assert!(vault.open(place, &garbage).is_err());
        }
    }
}

//! Sealing what is written, with AES-256-GCM.
//!
//! GCM breaks when one key seals two messages with one nonce. Here no state has to be right for that
//! not to happen, neither after a crash, nor when a torn record is written again at the same place,
//! nor when a directory is restored from a copy and goes on from there:
//! - every file has a key of its own: from a random salt of 256 bits, or wholly random;
//! - every record has a random nonce of 96 bits, which stands beside it.
//!
//! A segment of the log holds at most a few hundred thousand records, a snapshot at most some ten
//! million; that two of n records of one file share a nonce has a chance of n²/2⁹⁷: 10⁻¹⁵ for ten
//! million.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use crate::key::{DataKey, KEY_BYTES, KEY_ID_BYTES, KeyRing, random};

pub(crate) const NONCE_BYTES: usize = NONCE_LEN;
pub(crate) const TAG_BYTES: usize = 16;
pub(crate) const SALT_BYTES: usize = 32;
pub(crate) const WRAPPED_BYTES: usize = KEY_BYTES + TAG_BYTES;

/// The seal does not fit: another key, other bytes, or another place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the seal of a record does not match")]
pub(crate) struct BadSeal;

/// Seals and opens the records of one file.
pub(crate) struct Sealer(LessSafeKey);

impl Sealer {
    pub(crate) fn new(key: &[u8; KEY_BYTES]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the length of AES-256");
        Self(LessSafeKey::new(key))
    }

    /// The key of one segment of the log.
    pub(crate) fn of_segment(key: &DataKey, salt: &[u8; SALT_BYTES]) -> Self {
        let mut derived = key.derive(salt, b"shoal log segment");
        let sealer = Self::new(&derived);
        derived.zeroize();
        sealer
    }

    /// Seals `bytes` where they are. Never called twice with one nonce.
    pub(crate) fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        place: &[u8],
        bytes: &mut [u8],
    ) -> [u8; TAG_BYTES] {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, Aad::from(place), bytes)
            .expect("a record is far smaller than the 64 GiB that GCM allows");
        tag.as_ref().try_into().expect("a tag of GCM has 16 bytes")
    }

    /// Opens bytes and tag where they are.
    pub(crate) fn open<'a>(
        &self,
        nonce: [u8; NONCE_BYTES],
        place: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a [u8], BadSeal> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let opened = self.0.open_in_place(nonce, Aad::from(place), sealed);
        opened.map(|bytes| &*bytes).map_err(|_unspecified| BadSeal)
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(..)")
    }
}

/// Random nonces, drawn many at a time: asking the generator costs more than sealing a small record.
pub(crate) struct Nonces {
    pool: [u8; Self::POOL],
    at: usize,
}

impl Nonces {
    const POOL: usize = NONCE_BYTES * 128;

    pub(crate) fn new() -> Self {
        Self {
            pool: [0; Self::POOL],
            at: Self::POOL,
        }
    }

    pub(crate) fn next(&mut self) -> [u8; NONCE_BYTES] {
        if self.at == Self::POOL {
            self.pool = random();
            self.at = 0;
        }
        let end = self.at + NONCE_BYTES;
        let nonce = self.pool[self.at..end].try_into();
        self.at = end;
        nonce.expect("the pool is a whole number of nonces")
    }
}

/// The key of one snapshot. It travels with it to other members, whose data keys are others.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileKey([u8; KEY_BYTES]);

impl FileKey {
    pub(crate) fn generate() -> Self {
        Self(random())
    }

    pub(crate) fn sealer(&self) -> Sealer {
        Sealer::new(&self.0)
    }

    /// How it stands in the head of a file: what it is wrapped under, and itself, sealed.
    pub(crate) fn wrap(&self, key: &DataKey) -> WrappedKey {
        let salt = random();
        let mut wrapped = [0; WRAPPED_BYTES];
        wrapped[..KEY_BYTES].copy_from_slice(&self.0);
        // The key that wraps is of this salt alone, and seals this once.
        let wrapper = wrapper(key, &salt);
        let tag = wrapper.seal([0; NONCE_BYTES], &[], &mut wrapped[..KEY_BYTES]);
        wrapped[KEY_BYTES..].copy_from_slice(&tag);
        WrappedKey {
            id: key.id(),
            salt,
            wrapped,
        }
    }
}

impl Drop for FileKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for FileKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileKey(..)")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrappedKey {
    pub(crate) id: [u8; KEY_ID_BYTES],
    pub(crate) salt: [u8; SALT_BYTES],
    pub(crate) wrapped: [u8; WRAPPED_BYTES],
}

impl WrappedKey {
    /// `Ok(None)` when the key it is wrapped under is not in the ring.
    pub(crate) fn unwrap(&self, keys: &KeyRing) -> Result<Option<FileKey>, BadSeal> {
        let Some(key) = keys.find(&self.id) else {
            return Ok(None);
        };
        let mut wrapped = self.wrapped;
        let opened = wrapper(key, &self.salt).open([0; NONCE_BYTES], &[], &mut wrapped)?;
        let key = FileKey(opened.try_into().map_err(|_length| BadSeal)?);
        wrapped.zeroize();
        Ok(Some(key))
    }
}

fn wrapper(key: &DataKey, salt: &[u8; SALT_BYTES]) -> Sealer {
    let mut derived = key.derive(salt, b"shoal snapshot key");
    let wrapper = Sealer::new(&derived);
    derived.zeroize();
    wrapper
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_sealed_opens_only_with_its_key_nonce_and_place() {
        let key = DataKey::from_bytes([1; 32]);
        let sealer = Sealer::of_segment(&key, &[2; 32]);
        let mut bytes = b"a secret".to_vec();
        let tag = sealer.seal([3; 12], b"place", &mut bytes);
        bytes.extend(tag);
        assert!(!bytes.windows(6).any(|part| part == b"secret"));
        let open = |sealer: &Sealer, nonce, place: &[u8]| {
            let mut bytes = bytes.clone();
            sealer
                .open([nonce; 12], place, &mut bytes)
                .map(<[u8]>::to_vec)
        };
        assert_eq!(open(&sealer, 3, b"place"), Ok(b"a secret".to_vec()));
        assert_eq!(open(&sealer, 4, b"place"), Err(BadSeal));
        assert_eq!(open(&sealer, 3, b"elsewhere"), Err(BadSeal));
        let other = Sealer::of_segment(&key, &[9; 32]);
        assert_eq!(open(&other, 3, b"place"), Err(BadSeal));
    }

    #[test]
    fn a_wrapped_key_needs_the_data_key_it_was_wrapped_under() {
        let ring = |current: u8, older: &[u8]| KeyRing {
            current: DataKey::from_bytes([current; 32]),
            older: older
                .iter()
                .map(|n| DataKey::from_bytes([*n; 32]))
                .collect(),
        };
        let key = FileKey::generate();
        let wrapped = key.wrap(&DataKey::from_bytes([1; 32]));
        assert_eq!(wrapped.unwrap(&ring(1, &[])), Ok(Some(key.clone())));
        assert_eq!(wrapped.unwrap(&ring(2, &[3, 1])), Ok(Some(key.clone())));
        assert_eq!(wrapped.unwrap(&ring(2, &[3])), Ok(None));
        let mut damaged = wrapped.clone();
        damaged.wrapped[5] ^= 1;
        assert_eq!(damaged.unwrap(&ring(1, &[])), Err(BadSeal));
        assert_ne!(
            key.wrap(&DataKey::from_bytes([1; 32])),
            wrapped,
            "each salt is new"
        );
    }

    #[test]
    fn nonces_do_not_repeat() {
        let mut nonces = Nonces::new();
        let seen: BTreeSet<_> = (0..10_000).map(|_| nonces.next()).collect();
        assert_eq!(seen.len(), 10_000);
    }
}

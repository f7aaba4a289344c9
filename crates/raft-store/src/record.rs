//! How records lie in a file: framed, numbered, checked and sealed.
//!
//! ```text
//! ┌ 4 bytes ┬ 4 bytes ┬ 8 bytes ──────────┬ length bytes ────────────────┬ 0–7 bytes ┐
//! │ length  │ CRC-32  │ batch, last (top) │ nonce 12 │ sealed │ tag 16   │ zeros     │
//! └─────────┴─────────┴───────────────────┴──────────────────────────────┴───────────┘
//! ```
//! All numbers are little-endian and frames start at multiples of eight. The CRC covers everything
//! else, and a context that is not written (which file it belongs to), so a frame in the wrong file is
//! as damaged as one with a flipped bit. What is sealed is a value as `codec` writes it, format byte
//! first; the seal holds it to its file, its batch and its place in the file.
//!
//! The CRC covers what is sealed, so damage and torn writes are told without the key, and a seal that
//! does not match under a CRC that does was made by another key, or by somebody who had none.
//!
//! Records that become durable together carry the same batch number; the last of them is marked.
//! That is what tells a torn write from damage: as long as nothing of a later batch exists, the bad
//! frame was never reported as written.

use serde::Serialize;
use shoal_transport::codec::{self, EncodeError};

use crate::seal::{BadSeal, NONCE_BYTES, Sealer, TAG_BYTES};

pub(crate) const HEADER_BYTES: usize = 16;
const ALIGN: usize = 8;
const LAST_OF_BATCH: u64 = 1 << 63;

/// A whole frame as it stands in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    /// Nonce, sealed bytes and tag.
    sealed: &'a [u8],
    pub(crate) batch: u64,
    pub(crate) last_of_batch: bool,
    /// With header and padding.
    pub(crate) size: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the file ends inside a record")]
    Short,
    #[error("the checksum of a record does not match")]
    Checksum,
}

/// Where a frame stands. In another place its seal does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Which file it belongs to.
    pub(crate) context: u64,
    /// Of its first byte, in the file.
    pub(crate) offset: u64,
}

impl Place {
    fn with(self, batch: u64) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.context.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.offset.to_le_bytes());
        bytes[16..].copy_from_slice(&batch.to_le_bytes());
        bytes
    }
}

impl Frame<'_> {
    /// What `codec` wrote.
    pub(crate) fn open(&self, sealer: &Sealer, place: Place) -> Result<Vec<u8>, BadSeal> {
        let (nonce, sealed) = self.sealed.split_first_chunk().ok_or(BadSeal)?;
        let mut bytes = sealed.to_vec();
        let opened = sealer.open(*nonce, &place.with(self.batch), &mut bytes)?;
        let length = opened.len();
        bytes.truncate(length);
        Ok(bytes)
    }
}

/// Appends `value` to `file`, and returns how many bytes it took. The nonce is used for nothing else.
pub(crate) fn append<T: Serialize>(
    file: &mut Vec<u8>,
    place: Place,
    batch: u64,
    value: &T,
    sealer: &Sealer,
    nonce: [u8; NONCE_BYTES],
) -> Result<usize, EncodeError> {
    let start = file.len();
    file.extend([0; HEADER_BYTES]);
    file.extend(nonce);
    let sealed = file.len();
    if let Err(error) = codec::encode_into(value, file) {
        file.truncate(start);
        return Err(error);
    }
    let tag = sealer.seal(nonce, &place.with(batch), &mut file[sealed..]);
    file.extend(tag);
    let length = u32::try_from(file.len() - start - HEADER_BYTES)
        .expect("the codec refuses values far smaller than 4 GiB");
    file[start..start + 4].copy_from_slice(&length.to_le_bytes());
    file[start + 8..start + 16].copy_from_slice(&batch.to_le_bytes());
    file.resize(start + frame_size(length), 0);
    write_checksum(&mut file[start..], place.context);
    Ok(file.len() - start)
}

/// Marks the frame that starts at `frame` as the last of its batch.
pub(crate) fn mark_last(frame: &mut [u8], context: u64) {
    frame[15] |= (LAST_OF_BATCH >> 56) as u8;
    write_checksum(frame, context);
}

/// The frame at the start of `bytes`; `None` when there are only zeros where its header would be.
pub(crate) fn parse(bytes: &[u8], context: u64) -> Result<Option<Frame<'_>>, FrameError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return if bytes.iter().all(|b| *b == 0) {
            Ok(None)
        } else {
            Err(FrameError::Short)
        };
    };
    if *header == [0; HEADER_BYTES] {
        return Ok(None);
    }
    let length = length_of(header);
    let size = frame_size(length);
    if (length as usize) < NONCE_BYTES + TAG_BYTES {
        return Err(FrameError::Checksum);
    }
    let frame = bytes.get(..size).ok_or(FrameError::Short)?;
    if checksum(frame, context) != u32::from_le_bytes([header[4], header[5], header[6], header[7]])
    {
        return Err(FrameError::Checksum);
    }
    let numbers = u64::from_le_bytes(header[8..].try_into().expect("eight bytes are left"));
    Ok(Some(Frame {
        sealed: &frame[HEADER_BYTES..HEADER_BYTES + length as usize],
        batch: numbers & !LAST_OF_BATCH,
        last_of_batch: numbers & LAST_OF_BATCH != 0,
        size,
    }))
}

/// The length that a header claims, for readers that do not have the whole file in memory.
pub(crate) fn claimed_size(header: &[u8; HEADER_BYTES]) -> usize {
    frame_size(length_of(header))
}

/// Where the first intact frame of batch `from` or later starts, at or after the start of `bytes`.
pub(crate) fn find_batch(bytes: &[u8], context: u64, from: u64) -> Option<usize> {
    // Batches count fsyncs, so a number far beyond is chance, not a frame.
    let plausible = from..from.saturating_add(1 << 40);
    (0..bytes.len()).step_by(ALIGN).find(|at| {
        let Some(header) = bytes[*at..].first_chunk::<HEADER_BYTES>() else {
            return false;
        };
        let numbers = u64::from_le_bytes(header[8..].try_into().expect("eight bytes are left"));
        plausible.contains(&(numbers & !LAST_OF_BATCH))
            && matches!(parse(&bytes[*at..], context), Ok(Some(_)))
    })
}

fn length_of(header: &[u8; HEADER_BYTES]) -> u32 {
    u32::from_le_bytes([header[0], header[1], header[2], header[3]])
}

fn frame_size(length: u32) -> usize {
    (HEADER_BYTES + length as usize).next_multiple_of(ALIGN)
}

fn write_checksum(frame: &mut [u8], context: u64) {
    let crc = checksum(frame, context);
    frame[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(frame: &[u8], context: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&context.to_le_bytes());
    hasher.update(&frame[..4]);
    hasher.update(&frame[8..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PLACE: Place = Place {
        context: 5,
        offset: 80,
    };

    fn sealer() -> Sealer {
        Sealer::new(&[7; 32])
    }

    #[test]
    fn golden_bytes_of_a_frame_do_not_change() {
        let mut file = Vec::new();
        append(&mut file, PLACE, 2, &"ab", &sealer(), [9; 12]).expect("encodes");
        mark_last(&mut file, 5);
        let mut golden = vec![32, 0, 0, 0, 37, 212, 155, 156, 2, 0, 0, 0, 0, 0, 0, 128];
        golden.extend([9; 12]);
        golden.extend([38, 135, 229, 246]);
        golden.extend([
            239, 225, 25, 82, 234, 82, 93, 81, 0, 84, 175, 175, 67, 89, 255, 92,
        ]);
        assert_eq!(file, golden);
        let frame = parse(&file, 5).expect("is intact").expect("is there");
        let opened = frame.open(&sealer(), PLACE).expect("it is ours");
        assert_eq!(opened, [1, 2, b'a', b'b']);
        assert!(frame.last_of_batch && frame.batch == 2 && frame.size == 48);
        let elsewhere = Place {
            offset: 88,
            ..PLACE
        };
        assert_eq!(frame.open(&sealer(), elsewhere), Err(BadSeal));
        assert_eq!(frame.open(&Sealer::new(&[8; 32]), PLACE), Err(BadSeal));
        assert_eq!(parse(&file, 6), Err(FrameError::Checksum));
        assert_eq!(find_batch(&file, 5, 3), None);
        assert_eq!(find_batch(&[&[7; 16][..], &file].concat(), 5, 2), Some(16));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(payload in ".{0,40}", bit in 0usize..2000) {
            let mut file = Vec::new();
            let place = Place { context: 1, offset: 0 };
            append(&mut file, place, 1, &payload, &sealer(), [1; 12]).expect("encodes");
            let bit = bit % (file.len() * 8);
            file[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!matches!(parse(&file, 1), Ok(Some(_) | None)));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, 1);
            let _ = find_batch(&bytes, 1, 0);
        }
    }
}

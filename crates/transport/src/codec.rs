//! The one place that knows `bincode`: a format byte, then the value.
//!
//! bincode does not describe itself, so a reader must know what a writer meant. The format byte says
//! it: a release reads its own format and the one before. Enum variants are only ever appended within
//! a format; anything else needs a new one, and the golden bytes in the tests show when that is so.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::{Serialize, de::DeserializeOwned};

/// Written before every value by this release.
const FORMAT: u8 = 1;

/// No stored or sent value is larger: a length field that claims more is damage or an attack.
/// Snapshots are streams of many values.
pub const MAX_ENCODED_BYTES: usize = 64 << 20;

type Config = Configuration<LittleEndian, Varint, Limit<MAX_ENCODED_BYTES>>;

const CONFIG: Config = bincode::config::standard().with_limit::<MAX_ENCODED_BYTES>();

#[derive(Debug, thiserror::Error)]
#[error("encode {kind}")]
pub struct EncodeError {
    kind: &'static str,
    #[source]
    source: bincode::error::EncodeError,
}

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("decode {kind}: no bytes")]
    Empty { kind: &'static str },
    #[error(
        "decode {kind}: written in format {found}, this release reads format {FORMAT}; \
         upgrade it, or go back to the release that wrote the data"
    )]
    Format { kind: &'static str, found: u8 },
    #[error("decode {kind}")]
    Value {
        kind: &'static str,
        #[source]
        source: bincode::error::DecodeError,
    },
    #[error("decode {kind}: {extra} bytes left over")]
    Trailing { kind: &'static str, extra: usize },
}

/// The bytes of `value`, format byte first.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = vec![FORMAT];
    encode_body(value, &mut bytes)?;
    Ok(bytes)
}

/// Appends what [`encode`] gives to `bytes`.
pub fn encode_into<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), EncodeError> {
    bytes.push(FORMAT);
    encode_body(value, bytes)
}

fn encode_body<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), EncodeError> {
    bincode::serde::encode_into_std_write(value, bytes, CONFIG)
        .map(|_written| ())
        .map_err(|source| EncodeError {
            kind: std::any::type_name::<T>(),
            source,
        })
}

/// The value that `bytes`, all of them, hold.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    let kind = std::any::type_name::<T>();
    let (&format, body) = bytes.split_first().ok_or(DecodeError::Empty { kind })?;
    if format != FORMAT {
        return Err(DecodeError::Format {
            kind,
            found: format,
        });
    }
    let (value, read) = bincode::serde::decode_from_slice(body, CONFIG)
        .map_err(|source| DecodeError::Value { kind, source })?;
    match body.len() - read {
        0 => Ok(value),
        extra => Err(DecodeError::Trailing { kind, extra }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shoal_types::{
        TaskId, TaskState, TaskStatus, Timestamp,
        wire::{AgentMessage, ManagerMessage},
    };

    use super::*;

    #[test]
    fn golden_bytes_of_a_status_report_do_not_change() {
        let status = TaskStatus {
            state: TaskState::Running,
            at: Timestamp(1),
            message: "started".to_owned(),
            ..TaskStatus::default()
        };
        let message = AgentMessage::Status(vec![(TaskId::from_random([0; 17]), status)]);
        let bytes = encode(&message).expect("encodes");
        let mut golden = vec![1, 2, 1, 25];
        golden.extend([b'0'; 25]);
        golden.extend([7, 2, 7]);
        golden.extend(b"started");
        golden.extend([0, 0, 0]);
        assert_eq!(bytes, golden);
        assert_eq!(decode::<AgentMessage>(&bytes).expect("decodes"), message);
    }

    #[test]
    fn another_format_is_named_in_the_error() {
        let error = decode::<u32>(&[9, 1]).expect_err("format 9 is unknown");
        assert!(
            matches!(error, DecodeError::Format { found: 9, .. }),
            "{error}"
        );
        assert!(matches!(decode::<u32>(&[]), Err(DecodeError::Empty { .. })));
        assert!(matches!(
            decode::<u8>(&[FORMAT, 1, 2]),
            Err(DecodeError::Trailing { extra: 1, .. })
        ));
    }

    #[test]
    fn a_claimed_length_beyond_the_limit_is_an_error_not_an_allocation() {
        // A string of 2^60 bytes: format, varint marker for u64, length.
        let mut bytes = vec![FORMAT, 253];
        bytes.extend((1u64 << 60).to_le_bytes());
        assert!(matches!(
            decode::<String>(&bytes),
            Err(DecodeError::Value { .. })
        ));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = vec![FORMAT];
            framed.extend(&bytes);
            let _ = decode::<AgentMessage>(&framed);
            let _ = decode::<ManagerMessage>(&framed);
        }
    }
}

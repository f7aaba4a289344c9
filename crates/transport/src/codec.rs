//! The one place that knows `bincode`: a format byte, then the value.
//!
//! bincode does not describe itself, so a reader must know what a writer meant. The format byte says
//! it: a release reads its own format and the ones before, and writes the oldest that can hold the
//! value. Enum variants are only ever appended within a format; fields come with a new one
//! (`types::format`), and the golden bytes in the tests show when that is so.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::{Serialize, de::DeserializeOwned};
use shoal_types::format::{self, Format};

/// The byte before values of [`Format::One`], and of [`Format::First`].
const ONE: u8 = 1;
/// The byte before values of [`Format::Two`].
const TWO: u8 = 2;

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
        "decode {kind}: written in format {found}, this release reads formats up to {TWO}; \
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
    let mut bytes = Vec::new();
    encode_into(value, &mut bytes)?;
    Ok(bytes)
}

/// Appends what [`encode`] gives to `bytes`.
pub fn encode_into<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = bytes.len();
    for (byte, format) in [(ONE, Format::One), (TWO, Format::Two)] {
        bytes.truncate(start);
        bytes.push(byte);
        let (written, whole) = format::writing(format, || encode_body(value, bytes));
        written?;
        if whole {
            break;
        }
    }
    Ok(())
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
    let (&byte, body) = bytes.split_first().ok_or(DecodeError::Empty { kind })?;
    let format = match byte {
        ONE => Format::One,
        TWO => Format::Two,
        found => return Err(DecodeError::Format { kind, found }),
    };
    let (value, ambiguous) = format::reading(format, || decode_body(kind, body));
    if value.is_err() && ambiguous && byte == ONE {
        let (older, _) = format::reading(Format::First, || decode_body(kind, body));
        return older.or(value);
    }
    value
}

fn decode_body<T: DeserializeOwned>(kind: &'static str, body: &[u8]) -> Result<T, DecodeError> {
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
    use std::time::Duration;

    use shoal_types::{
        ClusterId, TaskId, TaskState, TaskStatus, Timestamp,
        object::{Cluster, Meta, Trust},
        spec::{ContainerSpec, LogDriver, Placement, Resources, RestartPolicy, TaskSpec},
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

    fn task(log_driver: Option<LogDriver>) -> TaskSpec {
        TaskSpec {
            container: ContainerSpec::new("i"),
            limits: Resources::default(),
            reservations: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            networks: Vec::new(),
            force_update: 3,
            log_driver,
        }
    }

    /// A task without anything but its image, after the format byte.
    fn golden_task() -> Vec<u8> {
        let mut golden = vec![1, b'i'];
        golden.extend([0; 13]);
        // The stop signal is the last of these; the grace period is ten seconds.
        golden.extend([10, 0]);
        golden.extend([0; 18]);
        // Without limits, restarted after five seconds, anywhere, without networks, in update 3.
        golden.extend([0; 8]);
        golden.extend([2, 5, 0, 0, 0, 0]);
        golden.extend([0; 5]);
        golden.push(3);
        golden
    }

    #[test]
    fn a_task_without_what_is_new_is_written_as_the_release_before_reads_it() {
        let golden = [vec![ONE], golden_task()].concat();
        let plain = task(None);
        assert_eq!(encode(&plain).expect("encodes"), golden);
        assert_eq!(decode::<TaskSpec>(&golden).expect("decodes"), plain);
    }

    #[test]
    fn golden_bytes_of_a_log_driver_do_not_change() {
        let driver = LogDriver {
            name: "none".to_owned(),
            options: [("a".to_owned(), "b".to_owned())].into(),
        };
        let task = task(Some(driver));
        let added = [&[1, 4], &b"none"[..], &[1, 1, b'a', 1, b'b']].concat();
        let golden = [vec![TWO], golden_task(), added].concat();
        assert_eq!(encode(&task).expect("encodes"), golden);
        assert_eq!(decode::<TaskSpec>(&golden).expect("decodes"), task);
    }

    fn cluster(heartbeat_period: Duration) -> Cluster {
        Cluster {
            id: ClusterId::from_random([0; 17]),
            meta: Meta::default(),
            name: "default".to_owned(),
            labels: [].into(),
            task_history_limit: 5,
            address_pools: Vec::new(),
            subnet_prefix: 24,
            data_path_port: 4789,
            trust: Trust::default(),
            epoch: 7,
            heartbeat_period,
        }
    }

    /// Before it had a heartbeat period, after the format byte.
    fn golden_cluster() -> Vec<u8> {
        let mut golden = vec![25];
        golden.extend([b'0'; 25]);
        golden.extend([0, 0, 0, 7]);
        golden.extend(b"default");
        golden.extend([0, 10, 0, 24, 251, 0xb5, 0x12]);
        golden.extend([0; 2 + 32 + 2 + 1]);
        golden.push(7);
        golden
    }

    #[test]
    fn a_cluster_from_before_its_heartbeat_period_is_read() {
        let period = Duration::from_millis(2500);
        let golden = [vec![ONE], golden_cluster(), vec![2, 252]].concat();
        let golden = [golden, 500_000_000_u32.to_le_bytes().to_vec()].concat();
        assert_eq!(encode(&cluster(period)).expect("encodes"), golden);
        assert_eq!(
            decode::<Cluster>(&golden).expect("decodes"),
            cluster(period)
        );

        let older = [vec![ONE], golden_cluster()].concat();
        let read = decode::<Cluster>(&older).expect("decodes");
        assert_eq!(read, cluster(Cluster::HEARTBEAT_PERIOD));
        // Also where something follows.
        let many = [vec![ONE, 2], golden_cluster(), golden_cluster()].concat();
        let read = decode::<Vec<Cluster>>(&many).expect("decodes");
        assert_eq!(read, vec![cluster(Cluster::HEARTBEAT_PERIOD); 2]);
        assert!(decode::<Cluster>(&older[..older.len() - 1]).is_err());
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
            decode::<u8>(&[ONE, 1, 2]),
            Err(DecodeError::Trailing { extra: 1, .. })
        ));
    }

    #[test]
    fn a_claimed_length_beyond_the_limit_is_an_error_not_an_allocation() {
        // A string of 2^60 bytes: format, varint marker for u64, length.
        let mut bytes = vec![ONE, 253];
        bytes.extend((1u64 << 60).to_le_bytes());
        assert!(matches!(
            decode::<String>(&bytes),
            Err(DecodeError::Value { .. })
        ));
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut framed = vec![TWO];
            framed.extend(&bytes);
            let _ = decode::<AgentMessage>(&framed);
            let _ = decode::<ManagerMessage>(&framed);
        }
    }
}

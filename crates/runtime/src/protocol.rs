//! What daemon and supervisor say to each other: JSON frames over a unix stream socket, descriptors beside them.
//!
//! A frame is a length (four bytes, little-endian) and as many bytes of JSON. Requests carry a sequence number, which the
//! reply repeats; replies come in any order. Descriptors travel with the first byte of the frame that announces them.
//! Every request but one is idempotent, so a client whose connection broke just asks again.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::plan::{ExecPlan, Plan};
use crate::{ContainerState, ExitStatus, Started};

/// What both sides must agree on; raised with every change that the other side would misunderstand. [`Request::Hello`] and
/// [`Request::Upgrade`] with their replies only ever get more fields, each with a default: they are how sides that disagree
/// come to agree.
pub(crate) const PROTOCOL: u32 = 2;

/// Which build an executable is: the version of this code, and size and modification time of the file, which stay the same
/// however it is run (a copy in memory has them too).
pub(crate) fn build_of(exe: &Path) -> io::Result<String> {
    let file = fs::metadata(exe)?;
    let (seconds, nanoseconds) = (file.mtime(), file.mtime_nsec());
    let version = env!("CARGO_PKG_VERSION");
    Ok(format!(
        "{version} {} {seconds}.{nanoseconds:09}",
        file.len()
    ))
}

/// The longest frame either side accepts; a plan with thousands of mounts is far below it.
const MAX_FRAME: usize = 64 << 20;

#[derive(Serialize, Deserialize)]
pub(crate) struct Frame<T> {
    pub(crate) sequence: u64,
    /// How many descriptors belong to this frame.
    pub(crate) fds: usize,
    pub(crate) body: T,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Request {
    /// First on every connection: exit statuses the daemon saw while nobody else looked.
    Hello {
        exits: Vec<(String, i32)>,
    },
    Create(Box<Plan>),
    Start {
        id: String,
    },
    Signal {
        id: String,
        signal: i32,
    },
    Kill {
        id: String,
    },
    Freeze {
        id: String,
        frozen: bool,
    },
    List,
    /// Ids with state on disk and without a container.
    Remains,
    State {
        id: String,
    },
    Wait {
        id: String,
    },
    /// The container's pidfd and output FIFOs, for the daemon to hold.
    Hold {
        id: String,
    },
    Netns {
        id: String,
    },
    Delete {
        id: String,
    },
    /// Runs a process in a running container; the answer comes when it and all that it started has ended. The one request
    /// that is not idempotent: it is never asked again, and who asks is asked for by [`Reply::Hello`] whether it is known.
    Exec {
        id: String,
        plan: ExecPlan,
    },
    /// Go on as another executable, in the same process and with the same children.
    Upgrade {
        exe: std::path::PathBuf,
    },
    Shutdown,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Hello {
        pid: u32,
        #[serde(default)]
        protocol: u32,
        /// See [`build_of`].
        #[serde(default)]
        build: String,
        /// It knows [`Request::Exec`].
        #[serde(default)]
        exec: bool,
    },
    /// With the pidfd, the two FIFOs and the network namespace.
    Created {
        pid: u32,
    },
    Started(Started),
    States(Vec<ContainerState>),
    Ids(Vec<String>),
    State(Option<ContainerState>),
    Exited(ExitStatus),
    Executed(Executed),
    /// With the descriptors asked for.
    Descriptors,
    Failed(Failure),
}

/// How a process in a container ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Executed {
    /// Its exit code, or 128 and the number of the signal that ended it.
    pub(crate) code: i32,
    /// The first bytes of what it wrote.
    pub(crate) output: Vec<u8>,
    /// It wrote more than was to be kept.
    pub(crate) truncated: bool,
    /// It took too long and was killed.
    pub(crate) timed_out: bool,
}

/// Why the supervisor could not do what was asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    /// There is no such container.
    NotFound,
    /// The container is not in a state for this; the text says in which one it is.
    State(String),
    /// The program could not be started.
    Start { message: String, exit_code: i32 },
    /// A step of the work failed; the text names it and its cause.
    Step(String),
    /// A process in a container was killed because this supervisor goes on as another build.
    Interrupted,
}

/// Encodes a frame.
pub(crate) fn encode<T: Serialize>(sequence: u64, fds: usize, body: &T) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(
        &mut bytes,
        &Frame {
            sequence,
            fds,
            body,
        },
    )
    .expect("messages are plain data with string keys");
    let length = u32::try_from(bytes.len() - 4).expect("messages are below 4 GiB");
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes
}

/// Collects what was received until whole frames can be taken out.
#[derive(Default)]
pub(crate) struct Decoder {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: VecDeque<OwnedFd>,
}

/// The stream does not follow the protocol; the connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("a frame of {0} bytes is longer than any message")]
    TooLong(usize),
    #[error("a frame announced more descriptors than came")]
    MissingDescriptors,
    #[error("malformed message")]
    Malformed(#[from] serde_json::Error),
}

/// A whole frame, if one has arrived, with its descriptors.
pub(crate) type Received<T> = Option<(Frame<T>, Vec<OwnedFd>)>;

impl Decoder {
    /// Takes the next whole frame, with its descriptors.
    pub(crate) fn next<T: DeserializeOwned>(&mut self) -> Result<Received<T>, ProtocolError> {
        let Some((prefix, rest)) = self.bytes.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_FRAME {
            return Err(ProtocolError::TooLong(length));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let frame: Frame<T> = serde_json::from_slice(&rest[..length])?;
        self.bytes.drain(..4 + length);
        if frame.fds > self.fds.len() {
            return Err(ProtocolError::MissingDescriptors);
        }
        let fds = self.fds.drain(..frame.fds).collect();
        Ok(Some((frame, fds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_being_cut_anywhere() {
        let mut wire = encode(7, 0, &Request::List);
        wire.extend(encode(8, 0, &Request::Wait { id: "x".to_owned() }));
        for cut in 0..wire.len() {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in [&wire[..cut], &wire[cut..]] {
                decoder.bytes.extend(part);
                while let Some((frame, _)) = decoder.next::<Request>().expect("well-formed") {
                    seen.push(frame.sequence);
                }
            }
            assert_eq!(seen, [7, 8], "cut at {cut}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let mut decoder = Decoder {
            bytes: vec![0xff; 8],
            fds: VecDeque::new(),
        };
        assert!(matches!(
            decoder.next::<Request>(),
            Err(ProtocolError::TooLong(_))
        ));
        let mut decoder = Decoder {
            bytes: vec![2, 0, 0, 0, b'{', b'x'],
            fds: VecDeque::new(),
        };
        assert!(matches!(
            decoder.next::<Request>(),
            Err(ProtocolError::Malformed(_))
        ));
    }
}

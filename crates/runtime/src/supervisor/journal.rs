//! Output that survives the supervisor: from FIFO to log file exactly once, wherever SIGKILL strikes.
//!
//! Bytes leave a FIFO by splice(2) into the *spool* file, in one system call that cannot be cut in two. Before that the
//! *journal*, a shared mapping of a file, says what the spool's bytes are for: container, stream, the log's size, the
//! carried piece of a line and the first line's time. The log lines follow from these alone, so a supervisor that finds the journal
//! open writes the same bytes to the same place again. There is one journal for all containers: one batch at a time.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use jiff::Timestamp;
use rustix::pipe::{SpliceFlags, splice};
use serde::{Deserialize, Serialize};

use super::output::{self, LINE_LIMIT, LogFile, Stamp};
use crate::Stream;
use crate::paths::{ContainerPaths, Paths};
use crate::sys::shared::SharedMemory;

/// One batch: the capacity of a FIFO.
const BATCH: usize = 64 * 1024;
/// One byte says whether the journal is open, four are the head's length, then come the head and the carried bytes.
const HEAD_START: usize = 5;
const JOURNAL_SIZE: usize = 4096 + LINE_LIMIT;

/// What the spool's bytes are for.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Head {
    id: String,
    stream: Stream,
    /// Where in the log the batch goes.
    offset: u64,
    /// Of the first line; each line after it is a nanosecond later.
    at: Timestamp,
    carried: usize,
    /// The stream has ended: what has no newline is an entry too.
    end: bool,
}

/// What is left to do of a dead supervisor's last batch.
pub(super) struct Unfinished {
    head: Head,
    carry: Vec<u8>,
    data: Vec<u8>,
}

impl Unfinished {
    pub(super) fn id(&self) -> &str {
        &self.head.id
    }
}

/// A container's output as far as it is known in memory.
pub(super) struct Output {
    pub(super) log: LogFile,
    /// Pieces of lines without an end, by stream.
    carry: [Vec<u8>; 2],
    /// No line that comes may have an earlier time, however the clock is set.
    next_at: Timestamp,
    discard: bool,
    paths: ContainerPaths,
    id: String,
}

impl Output {
    /// Opens the log, and takes up the pieces of lines that were on their way.
    pub(super) fn open(
        id: &str,
        paths: &ContainerPaths,
        config: crate::LogConfig,
    ) -> io::Result<Self> {
        let mut output = Self::adopt(id, paths, config);
        if !output.discard {
            output.log.open()?;
        }
        Ok(output)
    }

    /// The same of a container that runs already, which must not suffer from a log that cannot be opened now: that is tried
    /// again with each batch.
    pub(super) fn adopt(id: &str, paths: &ContainerPaths, config: crate::LogConfig) -> Self {
        let carry =
            Stream::BOTH.map(|stream| fs::read(paths.partial_line(stream)).unwrap_or_default());
        let mut log = LogFile::new(&paths.log(), config);
        if !config.discard {
            let _ = log.open();
        }
        Self {
            log,
            carry,
            next_at: Timestamp::MIN,
            discard: config.discard,
            paths: paths.clone(),
            id: id.to_owned(),
        }
    }

    fn set_carry(&mut self, stream: Stream, carry: Vec<u8>) -> io::Result<()> {
        let slot = &mut self.carry[stream as usize];
        let written = if slot.is_empty() && carry.is_empty() {
            Ok(())
        } else {
            fs::write(self.paths.partial_line(stream), &carry)
        };
        *slot = carry;
        written
    }
}

/// What a turn of the pump brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    /// So many were taken from the FIFO.
    Bytes(usize),
    /// Nothing to read now.
    Empty,
    /// No writer is left.
    End,
}

/// What went wrong in a turn of the pump.
#[derive(Debug)]
pub(super) enum PumpError {
    /// Nothing was taken from the FIFO, and asking at once again would fail again.
    Stuck(io::Error),
    /// So many bytes were taken, but the log is not as it should be: they may be lost.
    Log(usize, io::Error),
}

pub(super) struct Journal {
    map: SharedMemory,
    spool: fs::File,
    /// `/dev/null`.
    null: fs::File,
    buffer: Vec<u8>,
    lines: Vec<u8>,
}

impl Journal {
    /// Opens the journal, and hands back the batch a dead supervisor left unfinished.
    pub(super) fn open(paths: &Paths) -> io::Result<(Self, Option<Unfinished>)> {
        let open = |path| {
            fs::OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)
        };
        let map = SharedMemory::map(&open(paths.journal())?, JOURNAL_SIZE)?;
        let spool = open(paths.spool())?;
        let journal = Self {
            map,
            spool,
            null: fs::OpenOptions::new().write(true).open("/dev/null")?,
            buffer: vec![0; BATCH],
            lines: Vec::new(),
        };
        let unfinished = journal.unfinished()?;
        Ok((journal, unfinished))
    }

    fn unfinished(&self) -> io::Result<Option<Unfinished>> {
        let bytes = self.map.bytes();
        if bytes[0] == 0 {
            return Ok(None);
        }
        let length = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]) as usize;
        let Some(head) = bytes.get(HEAD_START..HEAD_START + length) else {
            return Ok(None);
        };
        let Ok(head) = serde_json::from_slice::<Head>(head) else {
            return Ok(None);
        };
        let start = HEAD_START + length;
        let Some(carry) = bytes.get(start..start + head.carried) else {
            return Ok(None);
        };
        let mut data = vec![0; usize::try_from(self.spool.metadata()?.len()).unwrap_or(0)];
        self.spool.read_exact_at(&mut data, 0)?;
        if data.is_empty() && !head.end {
            return Ok(None);
        }
        Ok(Some(Unfinished {
            carry: carry.to_vec(),
            head,
            data,
        }))
    }

    /// Does the rest of a dead supervisor's batch.
    pub(super) fn finish(&mut self, unfinished: Unfinished, output: &mut Output) -> io::Result<()> {
        let Unfinished { head, carry, data } = unfinished;
        let result = self.write(&head, &carry, &data, output);
        self.close();
        result
    }

    /// Forgets an unfinished batch whose container is gone.
    pub(super) fn close(&mut self) {
        self.map.bytes_mut()[0] = 0;
    }

    /// Moves one batch from a FIFO into the container's log.
    ///
    /// An error of the log (a full disk) loses the batch: a container must not stand still because its log cannot grow.
    pub(super) fn pump(
        &mut self,
        fifo: BorrowedFd<'_>,
        stream: Stream,
        output: &mut Output,
    ) -> Result<Pumped, PumpError> {
        if output.discard {
            return discard(fifo, &self.null);
        }
        let prepared = output.log.prepare();
        let head = self
            .begin(stream, output, false)
            .map_err(PumpError::Stuck)?;
        let moved = splice(
            fifo,
            None,
            self.spool.as_fd(),
            Some(&mut 0),
            BATCH,
            SpliceFlags::NONBLOCK,
        );
        let result = match moved {
            Ok(0) => Ok(Pumped::End),
            Err(rustix::io::Errno::AGAIN) => Ok(Pumped::Empty),
            Err(error) => Err(PumpError::Stuck(error.into())),
            Ok(count) => {
                let mut buffer = std::mem::take(&mut self.buffer);
                let result = self
                    .spool
                    .read_exact_at(&mut buffer[..count], 0)
                    .and_then(|()| {
                        let carry = output.carry[stream as usize].clone();
                        self.write(&head, &carry, &buffer[..count], output)
                    });
                self.buffer = buffer;
                prepared
                    .and(result)
                    .map(|()| Pumped::Bytes(count))
                    .map_err(|error| PumpError::Log(count, error))
            }
        };
        self.close();
        result
    }

    /// Writes what is left of the last line: its stream has ended.
    pub(super) fn flush(&mut self, stream: Stream, output: &mut Output) -> io::Result<()> {
        if output.carry[stream as usize].is_empty() {
            return Ok(());
        }
        let head = self.begin(stream, output, true)?;
        let carry = output.carry[stream as usize].clone();
        let result = self.write(&head, &carry, b"", output);
        self.close();
        result
    }

    /// Empties the spool, then opens the journal for a batch.
    fn begin(&mut self, stream: Stream, output: &Output, end: bool) -> io::Result<Head> {
        self.spool.set_len(0)?;
        let carry = &output.carry[stream as usize];
        let head = Head {
            id: output.id.clone(),
            stream,
            offset: output.log.size(),
            at: Timestamp::now().max(output.next_at),
            carried: carry.len(),
            end,
        };
        let text = serde_json::to_vec(&head)?;
        let length = u32::try_from(text.len()).expect("a head is below a page");
        let bytes = self.map.bytes_mut();
        bytes[1..HEAD_START].copy_from_slice(&length.to_le_bytes());
        bytes[HEAD_START..HEAD_START + text.len()].copy_from_slice(&text);
        let start = HEAD_START + text.len();
        bytes[start..start + carry.len()].copy_from_slice(carry);
        bytes[0] = 1;
        Ok(head)
    }

    fn write(
        &mut self,
        head: &Head,
        carry: &[u8],
        data: &[u8],
        output: &mut Output,
    ) -> io::Result<()> {
        self.lines.clear();
        let lines = &mut self.lines;
        let mut stamp = Stamp::new(head.at);
        let rest = output::split(carry, data, head.end, |entry| {
            output::encode(entry, head.stream, stamp.text(), lines);
            stamp.advance();
        });
        output.next_at = stamp.at();
        let written = output.log.write_at(head.offset, &self.lines);
        output.set_carry(head.stream, rest)?;
        written
    }
}

/// Takes one batch from a FIFO for nobody.
fn discard(fifo: BorrowedFd<'_>, null: &fs::File) -> Result<Pumped, PumpError> {
    match splice(fifo, None, null, None, BATCH, SpliceFlags::NONBLOCK) {
        Ok(0) => Ok(Pumped::End),
        Ok(count) => Ok(Pumped::Bytes(count)),
        Err(rustix::io::Errno::AGAIN) => Ok(Pumped::Empty),
        Err(error) => Err(PumpError::Stuck(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_batch_that_cannot_be_logged_is_taken_and_one_that_cannot_be_moved_is_left() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let paths = Paths {
            exec_root: directory.path().join("e"),
            state_root: directory.path().join("s"),
        };
        let container = paths.container("c");
        fs::create_dir_all(&container.bundle).expect("bundle");
        // A directory where the log belongs: it cannot be opened.
        fs::create_dir_all(container.log()).expect("state");
        let (mut journal, _) = Journal::open(&paths).expect("opens");
        let mut output = Output::adopt("c", &container, crate::LogConfig::default());
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let mut writer = fs::File::from(writer);
        writer.write_all(b"lost\n").expect("writes");
        let pumped = journal.pump(reader.as_fd(), Stream::Stdout, &mut output);
        assert!(matches!(pumped, Err(PumpError::Log(5, _))), "{pumped:?}");

        fs::remove_dir(container.log()).expect("is removed");
        writer.write_all(b"kept\n").expect("writes");
        // What splice(2) refuses stands for a spool that is full.
        journal.spool = fs::File::open(paths.spool()).expect("opens read-only");
        let failed = journal.pump(reader.as_fd(), Stream::Stdout, &mut output);
        assert!(matches!(failed, Err(PumpError::Stuck(_))), "{failed:?}");
        (journal, _) = Journal::open(&paths).expect("opens again");
        let pumped = journal.pump(reader.as_fd(), Stream::Stdout, &mut output);
        assert_eq!(pumped.expect("pumps"), Pumped::Bytes(5));
        assert!(
            fs::read_to_string(container.log())
                .expect("a log")
                .contains("kept")
        );
    }

    #[test]
    fn an_unfinished_batch_is_written_again_to_the_same_place() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let paths = Paths {
            exec_root: directory.path().join("e"),
            state_root: directory.path().join("s"),
        };
        let container = paths.container("c");
        fs::create_dir_all(&container.bundle).expect("bundle");
        fs::create_dir_all(&container.state).expect("state");
        let (mut journal, none) = Journal::open(&paths).expect("opens");
        assert!(none.is_none());
        let mut output = Output::open("c", &container, crate::LogConfig::default()).expect("opens");

        let (reader, writer) = rustix::pipe::pipe().expect("a pipe");
        let mut writer = fs::File::from(writer);
        writer.write_all(b"one\ntwo\nthr").expect("writes");
        assert_eq!(
            journal
                .pump(reader.as_fd(), Stream::Stdout, &mut output)
                .expect("pumps"),
            Pumped::Bytes(11)
        );
        let before = fs::read(container.log()).expect("a log");

        // As if killed after the splice and in the middle of the log write.
        writer.write_all(b"ee\nfour\n").expect("writes");
        journal
            .begin(Stream::Stdout, &output, false)
            .expect("begins");
        let count = splice(
            &reader,
            None,
            &journal.spool,
            Some(&mut 0),
            BATCH,
            SpliceFlags::empty(),
        )
        .expect("splices");
        assert_eq!(count, 8);
        output
            .log
            .write_at(before.len() as u64, b"{\"log\":\"torn")
            .expect("writes");
        drop((journal, output));

        let (mut journal, unfinished) = Journal::open(&paths).expect("opens");
        let unfinished = unfinished.expect("a batch is left");
        assert_eq!(unfinished.id(), "c");
        let mut output = Output::open("c", &container, crate::LogConfig::default()).expect("opens");
        journal.finish(unfinished, &mut output).expect("finishes");
        let log = fs::read_to_string(container.log()).expect("a log");
        let texts: Vec<String> = log
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).expect("JSON")["log"]
                    .as_str()
                    .expect("text")
                    .to_owned()
            })
            .collect();
        assert_eq!(texts, ["one\n", "two\n", "three\n", "four\n"]);
        drop(journal);
        assert!(Journal::open(&paths).expect("opens").1.is_none());
    }
}

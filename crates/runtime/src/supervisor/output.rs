//! Output of a container to its log: lines, Docker's JSON, rotation.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::Stream;
use crate::paths::rotated;
use crate::plan::LogConfig;

/// A line longer than this is split, as Docker's log copier does (`defaultBufSize`).
pub(super) const LINE_LIMIT: usize = 16 * 1024;

/// Cuts `carry` and `data` into log entries: lines with their newline, and pieces of [`LINE_LIMIT`] of longer ones. Returns
/// what is left without an end; with `end`, that too is an entry.
pub(super) fn split(carry: &[u8], data: &[u8], end: bool, mut entry: impl FnMut(&[u8])) -> Vec<u8> {
    let mut pending = carry.to_vec();
    for line in data.split_inclusive(|byte| *byte == b'\n') {
        let mut line = line;
        loop {
            let room = LINE_LIMIT - pending.len();
            // The newline itself does not count: Docker splits on 16 KiB of text.
            let text = line.strip_suffix(b"\n").unwrap_or(line);
            if text.len() <= room {
                break;
            }
            pending.extend_from_slice(&line[..room]);
            entry(&pending);
            pending.clear();
            line = &line[room..];
        }
        pending.extend_from_slice(line);
        if line.ends_with(b"\n") {
            entry(&pending);
            pending.clear();
        }
    }
    if end && !pending.is_empty() {
        entry(&pending);
        pending.clear();
    }
    pending
}

/// Appends one entry as Docker's `json-file` driver writes it.
pub(super) fn encode(entry: &[u8], stream: Stream, at: &str, into: &mut Vec<u8>) {
    into.extend_from_slice(br#"{"log":"#);
    serde_json::to_writer(&mut *into, &String::from_utf8_lossy(entry))
        .expect("a string always becomes JSON, a vector always takes it");
    into.extend_from_slice(br#","stream":""#);
    into.extend_from_slice(stream.name().as_bytes());
    into.extend_from_slice(br#"","time":""#);
    into.extend_from_slice(at.as_bytes());
    into.extend_from_slice(b"\"}\n");
}

/// RFC 3339 with as many digits of a second as are needed, as Go's `RFC3339Nano`.
pub(super) fn timestamp(at: Timestamp) -> String {
    at.to_string()
}

/// A container's log file.
pub(super) struct LogFile {
    path: PathBuf,
    config: LogConfig,
    file: fs::File,
    size: u64,
}

impl LogFile {
    pub(super) fn open(path: &Path, config: LogConfig) -> io::Result<Self> {
        let file = open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_path_buf(),
            config,
            file,
            size,
        })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Writes `bytes` at `offset` and ends the file there: what a dead supervisor may have written beyond is the same again.
    pub(super) fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)?;
        let end = offset + bytes.len() as u64;
        if end < self.size {
            self.file.set_len(end)?;
        }
        self.size = end;
        Ok(())
    }

    /// Begins a new file when the current one is full: `log` becomes `log.1`, that `log.2`, and the oldest goes.
    pub(super) fn rotate_if_full(&mut self) -> io::Result<()> {
        if self.config.max_size.is_none_or(|limit| self.size < limit) {
            return Ok(());
        }
        if self.config.max_files <= 1 {
            self.file.set_len(0)?;
            self.size = 0;
            return Ok(());
        }
        for n in (1..self.config.max_files).rev() {
            match fs::rename(rotated(&self.path, n - 1), rotated(&self.path, n)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o640)
        .open(path)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(carry: &[u8], data: &[u8], end: bool) -> (Vec<Vec<u8>>, Vec<u8>) {
        let mut entries = Vec::new();
        let rest = split(carry, data, end, |entry| entries.push(entry.to_vec()));
        (entries, rest)
    }

    #[test]
    fn lines_keep_their_newline_and_the_rest_is_carried() {
        let (lines, rest) = entries(b"a", b"b\n\nc", false);
        assert_eq!(lines, [b"ab\n".to_vec(), b"\n".to_vec()]);
        assert_eq!(rest, b"c");
        assert_eq!(entries(b"c", b"", true), (vec![b"c".to_vec()], Vec::new()));
    }

    #[test]
    fn long_lines_are_split_at_16_kib() {
        let mut line = vec![b'x'; LINE_LIMIT + 10];
        line.push(b'\n');
        let (lines, rest) = entries(b"", &line, false);
        assert_eq!(
            lines.iter().map(Vec::len).collect::<Vec<_>>(),
            [LINE_LIMIT, 11]
        );
        assert!(rest.is_empty());
        let mut exact = vec![b'x'; LINE_LIMIT];
        exact.push(b'\n');
        assert_eq!(entries(b"", &exact, false).0.len(), 1);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_output_is_cut(
            parts in prop::collection::vec(prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'x')], 0..40), 0..10),
        ) {
            let (mut seen, mut carry) = (Vec::new(), Vec::new());
            for part in &parts {
                carry = split(&carry, part, false, |entry| seen.extend_from_slice(entry));
            }
            split(&carry, b"", true, |entry| seen.extend_from_slice(entry));
            prop_assert_eq!(seen, parts.concat());
        }
    }

    #[test]
    fn entries_are_dockers_json() {
        let mut line = Vec::new();
        encode(
            b"say \"hi\"\n",
            Stream::Stderr,
            "2024-01-02T03:04:05.5Z",
            &mut line,
        );
        let expected = "{\"log\":\"say \\\"hi\\\"\\n\",\"stream\":\"stderr\",\"time\":\"2024-01-02T03:04:05.5Z\"}\n";
        assert_eq!(String::from_utf8(line).expect("UTF-8"), expected);
    }

    #[test]
    fn full_logs_are_rotated_and_the_oldest_goes() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let mut log = LogFile::open(
            &path,
            LogConfig {
                max_size: Some(2),
                max_files: 3,
            },
        )
        .expect("opens");
        for text in ["aa", "bb", "cc", "dd"] {
            log.rotate_if_full().expect("rotates");
            log.write_at(log.size(), text.as_bytes()).expect("writes");
        }
        let read = |n| fs::read_to_string(rotated(&path, n)).ok();
        assert_eq!(
            [read(0), read(1), read(2), read(3)],
            [
                Some("dd".into()),
                Some("cc".into()),
                Some("bb".into()),
                None
            ]
        );
    }
}

//! Multiplexed output: a byte for the stream, three zero bytes, a big-endian length, then the payload
//! (moby `api/pkg/stdcopy`).

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Which stream a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogStream {
    Stdin,
    Stdout,
    Stderr,
    /// An error of the engine's own, after the answer had begun.
    System,
}

/// One piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFrame {
    pub stream: LogStream,
    pub payload: Bytes,
}

/// The bytes are not multiplexed output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("unknown output stream {0}")]
    UnknownStream(u8),
    #[error("output frame of {0} bytes is over the limit")]
    TooLarge(u32),
    #[error("output ends inside a frame")]
    Truncated,
}

const HEADER: usize = 8;

/// A line longer than this is cut into several frames by whoever writes it; nobody sends more.
const MAX_FRAME: u32 = 16 << 20;

impl LogFrame {
    pub fn encode(&self) -> Bytes {
        let length = u32::try_from(self.payload.len()).expect("output is read in small pieces");
        let mut out = BytesMut::with_capacity(HEADER + self.payload.len());
        out.put_u8(self.stream as u8);
        out.put_bytes(0, 3);
        out.put_u32(length);
        out.put_slice(&self.payload);
        out.freeze()
    }
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    pending: BytesMut,
}

impl FrameDecoder {
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` until more bytes are pushed.
    pub fn next_frame(&mut self) -> Result<Option<LogFrame>, FrameError> {
        let Some(header) = self.pending.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let stream = match header[0] {
            0 => LogStream::Stdin,
            1 => LogStream::Stdout,
            2 => LogStream::Stderr,
            3 => LogStream::System,
            other => return Err(FrameError::UnknownStream(other)),
        };
        let length = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        if length > MAX_FRAME {
            return Err(FrameError::TooLarge(length));
        }
        let length = length as usize;
        if self.pending.len() < HEADER + length {
            return Ok(None);
        }
        self.pending.advance(HEADER);
        let payload = self.pending.split_to(length).freeze();
        Ok(Some(LogFrame { stream, payload }))
    }

    /// Fails when the stream ended inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.pending.is_empty() {
            Ok(())
        } else {
            Err(FrameError::Truncated)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut_of_the_stream() {
        let frames = [
            LogFrame {
                stream: LogStream::Stdout,
                payload: Bytes::from_static(b"one\n"),
            },
            LogFrame {
                stream: LogStream::Stderr,
                payload: Bytes::new(),
            },
            LogFrame {
                stream: LogStream::System,
                payload: Bytes::from_static(b"three"),
            },
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(super::LogFrame::encode).collect();
        for size in 1..bytes.len() {
            let mut decoder = FrameDecoder::default();
            let mut out = Vec::new();
            for piece in bytes.chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    out.push(frame);
                }
            }
            assert_eq!(out, frames);
            assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn bytes_that_are_no_frames_are_refused() {
        let mut decoder = FrameDecoder::default();
        decoder.push(b"HTTP/1.1");
        assert_eq!(decoder.next_frame(), Err(FrameError::UnknownStream(b'H')));
        let mut decoder = FrameDecoder::default();
        decoder.push(&[1, 0, 0, 0, 0xff, 0, 0, 0]);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLarge(0xff00_0000)));
        let mut decoder = FrameDecoder::default();
        decoder.push(&[1, 0, 0]);
        assert_eq!(decoder.next_frame(), Ok(None));
        assert_eq!(decoder.finish(), Err(FrameError::Truncated));
    }
}

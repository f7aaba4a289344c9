//! Answers that arrive piece by piece.

use std::{
    collections::VecDeque,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http_body::Body;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;

use super::StreamError;
use crate::wire::{FrameDecoder, LogFrame, LogStream, json};

/// A message of a JSON stream is longer only when something is broken.
const MAX_MESSAGE: usize = 16 << 20;

/// Bytes as they arrive.
#[derive(Debug)]
pub struct ByteStream(Incoming);

impl ByteStream {
    pub(super) fn new(body: Incoming) -> Self {
        Self(body)
    }
}

impl Stream for ByteStream {
    type Item = Result<Bytes, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.0).poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                Some(Ok(frame)) => frame,
            };
            if let Ok(data) = frame.into_data() {
                return Poll::Ready(Some(Ok(data)));
            }
        }
    }
}

/// One JSON document a line: events, progress.
#[derive(Debug)]
pub struct JsonStream<T> {
    bytes: ByteStream,
    pending: BytesMut,
    ended: bool,
    item: PhantomData<fn() -> T>,
}

impl<T> JsonStream<T> {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            bytes: ByteStream::new(body),
            pending: BytesMut::new(),
            ended: false,
            item: PhantomData,
        }
    }

    /// The next whole line, the last one even without its line feed.
    fn take_line(&mut self) -> Option<BytesMut> {
        while let Some(end) = self.pending.iter().position(|&b| b == b'\n') {
            let line = self.pending.split_to(end + 1);
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
        (self.ended && !self.pending.trim_ascii().is_empty()).then(|| self.pending.split())
    }
}

impl<T: DeserializeOwned> Stream for JsonStream<T> {
    type Item = Result<T, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(line) = self.take_line() {
                return Poll::Ready(Some(json::from_slice(&line).map_err(StreamError::from)));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.bytes.poll_next_unpin(cx)) {
                None => self.ended = true,
                Some(Err(error)) => {
                    self.ended = true;
                    self.pending.clear();
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(bytes)) => self.pending.extend_from_slice(&bytes),
            }
            if self.pending.len() > MAX_MESSAGE {
                self.ended = true;
                self.pending.clear();
                let error = StreamError::TooLong { limit: MAX_MESSAGE };
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

/// Output of containers: frames, or everything as standard output when there is a terminal.
#[derive(Debug)]
pub struct LogFrames {
    bytes: ByteStream,
    /// `None` for raw output.
    decoder: Option<FrameDecoder>,
    ready: VecDeque<LogFrame>,
    ended: bool,
}

impl LogFrames {
    pub(super) fn new(response: http::Response<Incoming>) -> Self {
        let kind = response.headers().get(http::header::CONTENT_TYPE);
        let raw = kind.is_some_and(|kind| kind == "application/vnd.docker.raw-stream");
        Self {
            decoder: (!raw).then(FrameDecoder::default),
            bytes: ByteStream::new(response.into_body()),
            ready: VecDeque::new(),
            ended: false,
        }
    }
}

impl Stream for LogFrames {
    type Item = Result<LogFrame, StreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(frame)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            let result = match (ready!(this.bytes.poll_next_unpin(cx)), &mut this.decoder) {
                (None, decoder) => {
                    this.ended = true;
                    decoder
                        .as_ref()
                        .map_or(Ok(()), FrameDecoder::finish)
                        .map_err(StreamError::from)
                }
                (Some(Err(error)), _) => Err(error),
                (Some(Ok(payload)), None) => {
                    this.ready.push_back(LogFrame {
                        stream: LogStream::Stdout,
                        payload,
                    });
                    Ok(())
                }
                (Some(Ok(bytes)), Some(decoder)) => {
                    decoder.push(&bytes);
                    take_frames(decoder, &mut this.ready)
                }
            };
            if let Err(error) = result {
                this.ended = true;
                return Poll::Ready(Some(Err(error)));
            }
        }
    }
}

fn take_frames(
    decoder: &mut FrameDecoder,
    into: &mut VecDeque<LogFrame>,
) -> Result<(), StreamError> {
    while let Some(frame) = decoder.next_frame()? {
        into.push_back(frame);
    }
    Ok(())
}

//! Answers that are sent piece by piece. Dropping one, as hyper does when the client goes away, stops
//! the work behind it.

use axum::{body::Body, response::Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{FutureExt, Stream, future::BoxFuture, stream};
use http::{HeaderValue, header};
use std::convert::Infallible;

use super::error::ApiResult;
use crate::{
    engine::{self, ProgressReceiver},
    wire::{Progress, ProgressDetail, json},
};

/// A stream of bytes of a media type.
pub(crate) fn response<S>(media_type: &'static str, pieces: S) -> Response
where
    S: Stream<Item = Bytes> + Send + 'static,
{
    let pieces = futures_util::StreamExt::map(pieces, Ok::<_, Infallible>);
    let mut response = Response::new(Body::from_stream(pieces));
    let media_type = HeaderValue::from_static(media_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    response
}

/// What is left to do, and what it says meanwhile.
struct Work {
    /// `None` once it is done; its result is the last thing to be sent.
    future: Option<BoxFuture<'static, ApiResult<Vec<Progress>>>>,
    lines: ProgressReceiver,
    last: Vec<Progress>,
}

impl Work {
    /// The next thing to send; the error comes out once, as the last.
    async fn next(&mut self) -> Option<ApiResult<Bytes>> {
        loop {
            let Some(future) = &mut self.future else {
                // Not waited for: somebody may have kept a sink.
                if let Some(Some(line)) = self.lines.next().now_or_never() {
                    return Some(Ok(encode(&progress(line))));
                }
                return (!self.last.is_empty()).then(|| Ok(encode(&self.last.remove(0))));
            };
            // Cancel-safe: a line is taken only when returned, and a future may be polled again.
            let done = tokio::select! {
                biased;
                Some(line) = self.lines.next() => return Some(Ok(encode(&progress(line)))),
                done = future => done,
            };
            self.future = None;
            match done {
                Ok(last) => self.last = last,
                Err(error) => {
                    while let Some(Some(line)) = self.lines.next().now_or_never() {
                        self.last.push(progress(line));
                    }
                    if self.last.is_empty() {
                        return Some(Err(error));
                    }
                    self.last.push(Progress::failure(error.message));
                }
            }
        }
    }
}

/// Sends the progress of `work`, then what it returns. An error before the first line is an answer
/// with its own status; after that it is the last line of the stream, as Docker does it.
pub(crate) async fn with_progress<F>(lines: ProgressReceiver, work: F) -> ApiResult<Response>
where
    F: Future<Output = ApiResult<Vec<Progress>>> + Send + 'static,
{
    let mut work = Work {
        future: Some(work.boxed()),
        lines,
        last: Vec::new(),
    };
    let first = work.next().await.transpose()?;
    let rest = stream::unfold(work, |mut work| async move {
        let piece = match work.next().await? {
            Ok(piece) => piece,
            Err(error) => encode(&Progress::failure(error.message)),
        };
        Some((piece, work))
    });
    let first = stream::iter(first);
    Ok(response(
        "application/json",
        futures_util::StreamExt::chain(first, rest),
    ))
}

fn progress(line: engine::Progress) -> Progress {
    let bytes = |n: Option<u64>| n.map_or(0, |n| i64::try_from(n).unwrap_or(i64::MAX));
    Progress {
        status: line.status,
        id: line.id.unwrap_or_default(),
        progress_detail: Some(ProgressDetail {
            current: bytes(line.current),
            total: bytes(line.total),
        }),
        ..Progress::default()
    }
}

/// Docker ends each object of such a stream with CR LF.
fn encode(line: &Progress) -> Bytes {
    let text = json::to_bytes(line);
    let mut out = BytesMut::with_capacity(text.len() + 1);
    out.put_slice(text.trim_ascii_end());
    out.put_slice(b"\r\n");
    out.freeze()
}

/// One JSON document a line.
pub(crate) fn json_lines<T, S>(items: S) -> Response
where
    T: serde::Serialize,
    S: Stream<Item = T> + Send + 'static,
{
    response(
        "application/json",
        futures_util::StreamExt::map(items, |item| json::to_bytes(&item)),
    )
}

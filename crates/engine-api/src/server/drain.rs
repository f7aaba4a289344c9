//! The rest of a body that nobody reads.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::{Error, body::Body};
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Duration, timeout};

/// How much of it is read, and for how long: after that the client is cut off.
const LIMIT: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// A body of which the rest is read and forgotten when it is dropped: a client that still sends would take the end of
/// the connection for a broken one, and never see the answer.
pub(super) struct Drained(Option<Body>);

impl Drained {
    pub(super) fn new(body: Body) -> Body {
        Body::new(Self(Some(body)))
    }
}

impl http_body::Body for Drained {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.0 {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(SizeHint::default, http_body::Body::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let unread = self.0.take();
        let Some(mut body) = unread.filter(|body| !http_body::Body::is_end_stream(body)) else {
            return;
        };
        let rest = async move {
            let mut read = 0;
            while let Some(Ok(frame)) = body.frame().await {
                read += frame.data_ref().map_or(0, Buf::remaining);
                if read > LIMIT {
                    break;
                }
            }
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(timeout(PATIENCE, rest));
        }
    }
}

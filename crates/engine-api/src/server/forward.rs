//! Requests about the cluster are answered by the manager that leads, whichever manager they reach.
//!
//! A manager that does not lead passes them on, unchanged and streaming both ways. What it keeps true:
//! a request takes effect at most once. It is sent again only when it has had none for certain: nobody
//! was reached, not one byte of it was sent, the manager that got it says that it does not lead
//! ([`NOT_LEADER`]), or it asks without changing anything. Any other is answered with an error that
//! says that its outcome is unknown.

use std::{
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::{
    Router,
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    client::conn::http1,
    upgrade::{self, OnUpgrade},
};
use hyper_util::rt::TokioIo;
use rand::RngExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional},
    time::{Duration, Instant, sleep, timeout},
};
use tower::ServiceExt;

use super::{
    Engine,
    body::{BODY_LIMIT, read},
    error::{ApiError, NotLeader},
    routes,
    version::Original,
};
use crate::engine::{BoxDuplex, ControlError, EngineError, Forward, SwarmState};

/// On an answer: this manager does not lead, and the request has had no effect.
pub(crate) const NOT_LEADER: HeaderName = HeaderName::from_static("x-shoal-not-leader");

/// A request is tried again for this long. An election takes a second, unless votes are shared.
const PATIENCE: Duration = Duration::from_secs(10);
/// Before a request is tried again; doubled each time up to the second, which is what an election may be
/// over for before it is noticed.
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(150);
/// A leader that has not begun to answer by then does not: it waits for its own followers for 10
/// seconds at most.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Headers that speak of one connection (RFC 9110, 7.6.1) or of a body that is made anew.
const OF_THE_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Who sends the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// It does not care which manager it speaks to.
    Client,
    /// It passes on what a client asked, and this one must not do so again.
    Manager,
}

/// The routes, behind the choice of who answers.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) engine: Engine,
    pub(super) routes: Router,
    pub(super) caller: Caller,
}

/// What became of one attempt.
enum Attempt {
    Answered(Response),
    /// It has had no effect. This is the answer if it is the last.
    Again(ApiError),
}

impl Gate {
    pub(super) async fn answer(&self, request: http::Request<Body>) -> Response {
        let of_cluster = routes::is_of_cluster(request.uri().path());
        match self.caller {
            Caller::Client if of_cluster => self.for_client(request).await,
            Caller::Client => self.here(request).await,
            Caller::Manager => self.for_manager(request, of_cluster).await,
        }
    }

    fn manages(&self) -> bool {
        matches!(self.engine.local.swarm(), SwarmState::Active(swarm) if swarm.control.is_some())
    }

    async fn here(&self, request: http::Request<Body>) -> Response {
        let routed = self.routes.clone().oneshot(request).await;
        routed.unwrap_or_else(|never| match never {})
    }

    async fn for_manager(&self, request: http::Request<Body>, of_cluster: bool) -> Response {
        let mut response = if of_cluster && !self.manages() {
            // Demoted, or gone, since the other manager took it for the leader.
            ApiError::from(ControlError::NotLeader).into_response()
        } else {
            self.here(request).await
        };
        if response.extensions().get::<NotLeader>().is_some() {
            let yes = HeaderValue::from_static("1");
            response.headers_mut().insert(NOT_LEADER, yes);
        }
        response
    }

    async fn for_client(&self, request: http::Request<Body>) -> Response {
        let (mut parts, body) = request.into_parts();
        let upgrade = parts.extensions.remove::<OnUpgrade>();
        // Whole, for there may have to be a second attempt.
        let body = match read(body).await {
            Ok(body) => body,
            Err(error) => return error.into_response(),
        };
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let last = match self.attempt(&parts, &body, upgrade.as_ref()).await {
                Attempt::Answered(response) => return response,
                Attempt::Again(error) => error,
            };
            // Of many clients that wait for an election, not all are to ask at the same moment.
            let wait = pause.mul_f64(rand::rng().random_range(0.5..1.0));
            if started.elapsed() + wait > PATIENCE {
                return last.into_response();
            }
            tracing::debug!(reason = %last.message, path = parts.uri.path(), "the request is tried again");
            sleep(wait).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self, parts: &Parts, body: &Bytes, upgrade: Option<&OnUpgrade>) -> Attempt {
        // Without a swarm, or as a worker, the routes have Docker's words for it.
        let forward = if self.manages() {
            self.engine.local.forward().await
        } else {
            Ok(Forward::Here)
        };
        match forward {
            Ok(Forward::Here) => {
                let mut parts = parts.clone();
                if let Some(upgrade) = upgrade {
                    parts.extensions.insert(upgrade.clone());
                }
                let body = Body::from(body.clone());
                let request = http::Request::from_parts(parts, body);
                let response = self.here(request).await;
                if response.extensions().get::<NotLeader>().is_some() {
                    Attempt::Again(ControlError::NoLeader.into())
                } else {
                    Attempt::Answered(response)
                }
            }
            Ok(Forward::To(stream)) => {
                let attempt = pass_on(stream, parts, body, upgrade).await;
                self.localized(attempt, parts).await
            }
            Err(error @ EngineError::Unavailable(_)) => Attempt::Again(error.into()),
            Err(error) => Attempt::Answered(ApiError::from(error).into_response()),
        }
    }

    /// Puts this node's part into what the leader answered.
    async fn localized(&self, attempt: Attempt, parts: &Parts) -> Attempt {
        match attempt {
            Attempt::Answered(response) => {
                let response = routes::localized(&self.engine, parts, response).await;
                Attempt::Answered(response)
            }
            again @ Attempt::Again(_) => again,
        }
    }
}

/// Sends the request to the leader and gives its answer, whose body may still be on its way.
async fn pass_on(
    stream: BoxDuplex,
    parts: &Parts,
    body: &Bytes,
    upgrade: Option<&OnUpgrade>,
) -> Attempt {
    let touched = Arc::new(AtomicBool::new(false));
    let io = Watched {
        stream,
        touched: touched.clone(),
    };
    let exchanged = timeout(ANSWER_WITHIN, exchange(io, outgoing(parts, body, upgrade))).await;
    // Whatever failed, its connection is gone by now, so that nothing more is sent.
    let mut response = match exchanged {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return lost(&parts.method, &touched, &error),
        Err(elapsed) => return lost(&parts.method, &touched, &elapsed),
    };
    if response.headers().contains_key(NOT_LEADER) {
        return Attempt::Again(ControlError::NoLeader.into());
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Attempt::Answered(switched(response, upgrade));
    }
    strip(response.headers_mut(), false);
    let (head, body) = response.into_parts();
    let body = match body.size_hint().exact() {
        // Nearly every answer is short. Having it whole means that one which is cut off is no answer.
        Some(bytes) if bytes <= BODY_LIMIT as u64 => match body.collect().await {
            Ok(body) => Body::from(body.to_bytes()),
            Err(error) => return lost(&parts.method, &touched, &error),
        },
        _ => Body::new(body),
    };
    Attempt::Answered(Response::from_parts(head, body))
}

/// The answer's head. The connection is driven on for its body, and ends when that is read or dropped.
async fn exchange(
    io: Watched,
    request: http::Request<Full<Bytes>>,
) -> Result<http::Response<Incoming>, hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await?;
    let mut connection = Box::pin(connection.with_upgrades());
    let mut ended = false;
    let response = {
        let mut sending = pin!(sender.send_request(request));
        loop {
            // Cancel-safe: both go on where they were.
            tokio::select! {
                response = &mut sending => break response?,
                _end = &mut connection, if !ended => ended = true,
            }
        }
    };
    if !ended {
        tokio::spawn(connection);
    }
    Ok(response)
}

fn outgoing(
    parts: &Parts,
    body: &Bytes,
    upgrade: Option<&OnUpgrade>,
) -> http::Request<Full<Bytes>> {
    let mut request = http::Request::new(Full::new(body.clone()));
    *request.method_mut() = parts.method.clone();
    let original = parts.extensions.get::<Original>();
    *request.uri_mut() = original.map_or_else(|| parts.uri.clone(), |Original(uri)| uri.clone());
    *request.headers_mut() = parts.headers.clone();
    strip(request.headers_mut(), upgrade.is_some());
    let host = HeaderValue::from_static("api.shoal.localhost");
    request.headers_mut().insert(header::HOST, host);
    request
}

/// Takes off what is of the connection alone; `upgrade`: but for the wish to make it another one.
fn strip(headers: &mut HeaderMap, upgrade: bool) {
    let protocol = headers.remove(header::UPGRADE).filter(|_| upgrade);
    for name in OF_THE_CONNECTION {
        headers.remove(name);
    }
    if let Some(protocol) = protocol {
        let connection = HeaderValue::from_static("Upgrade");
        headers.insert(header::CONNECTION, connection);
        headers.insert(header::UPGRADE, protocol);
    }
}

fn lost(
    method: &Method,
    touched: &AtomicBool,
    error: &(dyn std::error::Error + 'static),
) -> Attempt {
    tracing::debug!(error, "the leader did not answer");
    let is_safe = matches!(*method, Method::GET | Method::HEAD);
    if is_safe || !touched.load(Ordering::Acquire) {
        return Attempt::Again(ControlError::NoLeader.into());
    }
    let error = ApiError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the leader was lost before it answered; the outcome is unknown: look before you repeat it",
    );
    Attempt::Answered(error.into_response())
}

/// From here on the two connections are one, each direction ending for itself.
fn switched(mut response: http::Response<Incoming>, client: Option<&OnUpgrade>) -> Response {
    let leader = upgrade::on(&mut response);
    if let Some(client) = client.cloned() {
        tokio::spawn(async move {
            if let Ok((leader, client)) = tokio::try_join!(leader, client) {
                let (mut leader, mut client) = (TokioIo::new(leader), TokioIo::new(client));
                if let Err(error) = copy_bidirectional(&mut leader, &mut client).await {
                    tracing::debug!(error = %error, "a forwarded stream ended early");
                }
            }
        });
    }
    strip(response.headers_mut(), true);
    let (head, _none) = response.into_parts();
    Response::from_parts(head, Body::empty())
}

/// A stream that knows whether anything was written to it.
struct Watched {
    stream: BoxDuplex,
    touched: Arc<AtomicBool>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.touched.store(true, Ordering::Release);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, pieces);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.touched.store(true, Ordering::Release);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

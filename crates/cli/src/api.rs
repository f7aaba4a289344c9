//! The Engine API as JSON that is passed on untouched.
//!
//! Commands read answers and change specs as JSON values: a field that this client does not know then survives
//! `service update`, and `inspect` shows what the daemon said, in its order. Each request has its own connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use http::{HeaderMap, HeaderValue, Method, Response, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use shoal_engine_api::client::{API_VERSION, Endpoint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use crate::{
    error::{CliError, Result},
    opts::Filters,
};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Error answers are read up to here, as Docker's client does.
const ERROR_LIMIT: usize = 1 << 20;

/// A daemon.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    endpoint: Endpoint,
}

/// One call, put together word by word.
pub(crate) struct Request {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: Body,
}

impl Request {
    /// `segments` are joined by `/`, each escaped.
    fn new(method: Method, segments: &[&str]) -> Self {
        let mut path = String::new();
        for segment in segments {
            path.push('/');
            escape(segment, b"/:@", &mut path);
        }
        Self {
            method,
            path,
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Full::default()
                .map_err(|never| match never {})
                .boxed_unsync(),
        }
    }

    pub(crate) fn get(segments: &[&str]) -> Self {
        Self::new(Method::GET, segments)
    }

    pub(crate) fn post(segments: &[&str]) -> Self {
        Self::new(Method::POST, segments)
    }

    pub(crate) fn delete(segments: &[&str]) -> Self {
        Self::new(Method::DELETE, segments)
    }

    /// Left out when empty.
    pub(crate) fn query(mut self, key: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        if !value.is_empty() {
            self.query.push((key, value));
        }
        self
    }

    /// `key=1`, or nothing.
    pub(crate) fn flag(self, key: &'static str, set: bool) -> Self {
        self.query(key, if set { "1" } else { "" })
    }

    pub(crate) fn filters(self, filters: &Filters) -> Self {
        let query = filters.query().unwrap_or_default();
        self.query("filters", query)
    }

    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.content_type("application/json");
        self.body = Full::new(Bytes::from(body.to_string()))
            .map_err(|never| match never {})
            .boxed_unsync();
        self
    }

    /// An archive, sent as it is read.
    pub(crate) fn tar(mut self, archive: impl tokio::io::AsyncRead + Send + 'static) -> Self {
        self.content_type("application/x-tar");
        let pieces = tokio_util::io::ReaderStream::with_capacity(archive, 128 << 10);
        self.body = BodyExt::boxed_unsync(StreamBody::new(pieces.map_ok(Frame::data)));
        self
    }

    /// `X-Registry-Auth` in its encoded form.
    pub(crate) fn registry_auth(mut self, auth: Option<&str>) -> Self {
        if let Some(value) = auth.and_then(|auth| HeaderValue::from_str(auth).ok()) {
            self.headers.insert("x-registry-auth", value);
        }
        self
    }

    fn content_type(&mut self, kind: &'static str) {
        self.headers
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    }

    fn uri(&self) -> String {
        let mut uri = format!("/v{API_VERSION}{}", self.path);
        for (n, (key, value)) in self.query.iter().enumerate() {
            uri.push(if n == 0 { '?' } else { '&' });
            uri.push_str(key);
            uri.push('=');
            escape(value, b"", &mut uri);
        }
        uri
    }
}

impl Api {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends `request`; the caller reads the body of the answer, which was no error.
    pub(crate) async fn send(&self, request: Request) -> Result<Response<Incoming>> {
        let uri = request.uri();
        let (method, path) = (request.method, request.path);
        let transport = |source| CliError::Transport {
            method: method.clone(),
            path: path.clone(),
            source,
        };
        let unreachable = |source: io::Error| {
            let endpoint = self.endpoint.clone();
            if source.kind() == io::ErrorKind::PermissionDenied {
                CliError::Forbidden { endpoint }
            } else {
                CliError::Unreachable { endpoint, source }
            }
        };
        let mut sender = match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                handshake(stream).await.map_err(transport)?
            }
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address.as_str())
                    .await
                    .map_err(unreachable)?;
                stream.set_nodelay(true).map_err(unreachable)?;
                handshake(stream).await.map_err(transport)?
            }
        };
        let mut message = http::Request::new(request.body);
        *message.method_mut() = method.clone();
        *message.uri_mut() = uri
            .parse()
            .expect("every part of the path and query is escaped");
        *message.headers_mut() = request.headers;
        let headers = message.headers_mut();
        headers.insert(
            header::HOST,
            HeaderValue::from_static("api.shoal.localhost"),
        );
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("shoal-cli/", env!("CARGO_PKG_VERSION"))),
        );
        let response = sender.send_request(message).await.map_err(transport)?;
        let status = response.status();
        if status.is_success() || status == http::StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        let body = http_body_util::Limited::new(response.into_body(), ERROR_LIMIT);
        let body = body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes);
        let body = body.unwrap_or_default();
        let message = serde_json::from_slice::<Value>(&body)
            .ok()
            .and_then(|body| Some(body.get("message")?.as_str()?.to_owned()))
            .unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
        let message = if message.is_empty() {
            status.to_string()
        } else {
            message
        };
        Err(CliError::Refused {
            status: status.as_u16(),
            message,
        })
    }

    pub(crate) async fn bytes(&self, request: Request) -> Result<Bytes> {
        let response = self.send(request).await?;
        let body = response.into_body().collect().await;
        Ok(body.map_err(CliError::Lost)?.to_bytes())
    }

    pub(crate) async fn json(&self, request: Request) -> Result<Value> {
        let (method, path) = (request.method.clone(), request.path.clone());
        let body = self.bytes(request).await?;
        serde_json::from_slice(&body).map_err(|source| CliError::Answer {
            method,
            path,
            source,
        })
    }

    /// The elements of a JSON array; `null` is an empty one.
    pub(crate) async fn list(&self, request: Request) -> Result<Vec<Value>> {
        match self.json(request).await? {
            Value::Array(items) => Ok(items),
            Value::Null => Ok(Vec::new()),
            other => Ok(vec![other]),
        }
    }

    pub(crate) async fn done(&self, request: Request) -> Result {
        self.bytes(request).await.map(drop)
    }

    /// An answer that arrives as one JSON document a line.
    pub(crate) async fn lines(&self, request: Request) -> Result<JsonLines> {
        let body = self.send(request).await?.into_body();
        Ok(JsonLines {
            body,
            pending: BytesMut::new(),
            ended: false,
        })
    }
}

async fn handshake<S>(
    stream: S,
) -> std::result::Result<hyper::client::conn::http1::SendRequest<Body>, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let stream = TokioIo::new(HearsOut { stream });
    let (sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    // Its errors reach whoever reads the answer.
    tokio::spawn(connection);
    Ok(sender)
}

/// A stream whose other end may answer and close before it has read all: what it cannot be told any more is
/// thrown away, and its answer, which says why, is read.
struct HearsOut<S> {
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for HearsOut<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HearsOut<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        written.map(|written| written.or_else(|error| closed(error, buf.len())))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        flushed.map(|flushed| flushed.or_else(|error| closed(error, ())))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// `done`, if all that is wrong is that the other end listens no more.
fn closed<T>(error: io::Error, done: T) -> io::Result<T> {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(done),
        _ => Err(error),
    }
}

/// A stream of JSON documents, one a line.
pub(crate) struct JsonLines {
    body: Incoming,
    pending: BytesMut,
    ended: bool,
}

impl JsonLines {
    /// The next document; `None` at the end. Lines that are not JSON are an error of the daemon's.
    pub(crate) async fn next(&mut self) -> Result<Option<Value>> {
        loop {
            let end = self.pending.iter().position(|&b| b == b'\n');
            let line = match end {
                Some(end) => self.pending.split_to(end + 1),
                None if self.ended => self.pending.split(),
                None => {
                    match self.body.frame().await {
                        Some(frame) => {
                            if let Ok(data) = frame.map_err(CliError::Lost)?.into_data() {
                                self.pending.extend_from_slice(&data);
                            }
                        }
                        None => self.ended = true,
                    }
                    continue;
                }
            };
            if line.trim_ascii().is_empty() {
                if self.ended && self.pending.is_empty() {
                    return Ok(None);
                }
                continue;
            }
            return serde_json::from_slice(&line)
                .map(Some)
                .map_err(|source| CliError::Answer {
                    method: Method::GET,
                    path: "stream".into(),
                    source,
                });
        }
    }
}

/// RFC 3986 percent encoding of all but unreserved characters and those in `keep`.
fn escape(text: &str, keep: &[u8], out: &mut String) {
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 15] {
                let digit = char::from_digit(u32::from(digit), 16).unwrap_or('0');
                out.push(digit.to_ascii_uppercase());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    #[test]
    fn names_cannot_lead_elsewhere() {
        let request = Request::get(&["services", "a b?c#d", "logs"])
            .query("x", "a&b=é")
            .flag("no", false)
            .filters(&Filters::default());
        assert_eq!(
            request.uri(),
            format!("/v{API_VERSION}/services/a%20b%3Fc%23d/logs?x=a%26b%3D%C3%A9")
        );
    }

    #[tokio::test]
    async fn what_a_daemon_says_before_it_has_heard_all_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_u8().await.unwrap();
                let body = r#"{"message":"no room"}"#;
                let answer = format!(
                    "HTTP/1.1 500 X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let api = Api::new(Endpoint::Unix(path));
        // Which end is quicker is chance.
        for _ in 0..100 {
            let archive = tokio::io::repeat(0).take(2 << 20);
            let request = Request::post(&["images", "load"]).tar(archive);
            let error = api.send(request).await.map(drop).unwrap_err();
            assert!(error.to_string().contains("no room"), "{error:?}");
        }
    }
}

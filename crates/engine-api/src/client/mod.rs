//! A client for the Engine API, over a unix socket or TCP.
//!
//! Each call opens its own connection: a call is rare beside what it does, a stream then never holds
//! up another call, and dropping a stream closes the connection, which is how the engine learns of it.

mod calls;
mod endpoint;
mod options;
mod stream;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};

pub use self::{
    endpoint::{Endpoint, ParseEndpointError},
    options::{EventOptions, Filters, LogOptions, ServiceUpdate},
    stream::{ByteStream, JsonStream, LogFrames},
};
use crate::wire::{self, json};

/// The version of the API that this client speaks; an engine that is older refuses it by name.
pub const API_VERSION: &str = "1.51";

/// An error answer is read up to here, as Docker's client does.
const ERROR_LIMIT: usize = 1 << 20;

/// What a call failed with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to the engine at {endpoint}: is `shoal daemon` running?")]
    Connect {
        endpoint: Endpoint,
        #[source]
        source: std::io::Error,
    },
    /// The engine's own words.
    #[error("{message}")]
    Refused { status: StatusCode, message: String },
    #[error("{method} {path}")]
    Transport {
        method: Method,
        path: String,
        #[source]
        source: hyper::Error,
    },
    #[error("the engine's answer to {method} {path} is not what it should be")]
    Answer {
        method: Method,
        path: String,
        #[source]
        source: json::ReadError,
    },
    #[error("the engine ended the stream in the middle")]
    Stream(#[from] StreamError),
}

/// Why a stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("connection lost")]
    Lost(#[from] hyper::Error),
    #[error(transparent)]
    Frame(#[from] wire::FrameError),
    #[error(transparent)]
    Json(#[from] json::ReadError),
    #[error("a message of the stream is longer than {limit} bytes")]
    TooLong { limit: usize },
}

impl ClientError {
    /// The status the engine answered with, when it answered.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.status() == Some(StatusCode::NOT_FOUND)
    }
}

/// Where an engine listens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    endpoint: Endpoint,
}

type RequestBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// A request being put together.
pub(crate) struct Call {
    method: Method,
    path: String,
    query: Vec<(&'static str, String)>,
    headers: HeaderMap,
    body: RequestBody,
}

impl Client {
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    /// From the form of `DOCKER_HOST`: `unix:///run/shoal.sock`, `tcp://host:port`.
    pub fn from_host(host: &str) -> Result<Self, ParseEndpointError> {
        Ok(Self::new(host.parse()?))
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Sends `call` and checks its status. The caller reads the body.
    async fn send(&self, call: Call) -> Result<http::Response<Incoming>, ClientError> {
        let Call {
            method,
            path,
            query,
            mut headers,
            body,
        } = call;
        let uri = call_uri(&path, &query);
        let transport = |source| ClientError::Transport {
            method: method.clone(),
            path: path.clone(),
            source,
        };
        let io = self
            .endpoint
            .connect()
            .await
            .map_err(|source| ClientError::Connect {
                endpoint: self.endpoint.clone(),
                source,
            })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
            .await
            .map_err(transport)?;
        // Ends with the exchange: when the body has been read or dropped.
        tokio::spawn(connection.with_upgrades());

        headers.insert(
            header::HOST,
            HeaderValue::from_static("api.shoal.localhost"),
        );
        headers.insert(header::USER_AGENT, HeaderValue::from_static("shoal-client"));
        let mut request = http::Request::new(body);
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri
            .parse()
            .expect("every part of the path and query is escaped");
        *request.headers_mut() = headers;
        let response = sender.send_request(request).await.map_err(transport)?;
        let status = response.status();
        if status.is_success()
            || status == StatusCode::NOT_MODIFIED
            || status == StatusCode::SWITCHING_PROTOCOLS
        {
            return Ok(response);
        }
        let body = http_body_util::Limited::new(response.into_body(), ERROR_LIMIT);
        let text = body
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        let message = json::from_slice::<wire::ErrorBody>(&text)
            .map(|body| body.message)
            .ok();
        let message = message.filter(|m| !m.is_empty()).unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&text);
            let text = text.trim();
            if text.is_empty() {
                status.to_string()
            } else {
                text.to_owned()
            }
        });
        Err(ClientError::Refused { status, message })
    }

    async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let (method, path) = (call.method.clone(), call.path.clone());
        let response = self.send(call).await?;
        let body =
            response
                .into_body()
                .collect()
                .await
                .map_err(|source| ClientError::Transport {
                    method: method.clone(),
                    path: path.clone(),
                    source,
                })?;
        json::from_slice(&body.to_bytes()).map_err(|source| ClientError::Answer {
            method,
            path,
            source,
        })
    }

    /// For calls whose answer says no more than that they worked.
    async fn done(&self, call: Call) -> Result<(), ClientError> {
        self.send(call).await.map(drop)
    }

    async fn stream<T>(&self, call: Call) -> Result<JsonStream<T>, ClientError> {
        Ok(JsonStream::new(self.send(call).await?.into_body()))
    }
}

impl Call {
    /// `segments` are joined by `/`; each is escaped, so that a name cannot lead elsewhere.
    pub(crate) fn new(method: Method, segments: &[&str]) -> Self {
        let path = segments.iter().fold(String::new(), |mut path, segment| {
            path.push('/');
            escape(segment, b"/:@", &mut path);
            path
        });
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
        self.query("filters", filters.to_query())
    }

    pub(crate) fn json<T: Serialize>(mut self, body: &T) -> Self {
        self.headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        self.body = Full::new(json::to_bytes(body))
            .map_err(|never| match never {})
            .boxed_unsync();
        self
    }

    /// A tar archive, sent as it is read.
    pub(crate) fn tar<R>(mut self, archive: R) -> Self
    where
        R: tokio::io::AsyncRead + Send + 'static,
    {
        self.headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/x-tar"),
        );
        let pieces = tokio_util::io::ReaderStream::with_capacity(archive, 128 << 10);
        self.body = BodyExt::boxed_unsync(StreamBody::new(pieces.map_ok(Frame::data)));
        self
    }

    /// `X-Registry-Auth`, in its encoded form.
    pub(crate) fn registry_auth(mut self, auth: Option<&str>) -> Self {
        let value = auth.and_then(|auth| HeaderValue::from_str(auth).ok());
        if let Some(value) = value {
            self.headers
                .insert(HeaderName::from_static("x-registry-auth"), value);
        }
        self
    }
}

fn call_uri(path: &str, query: &[(&'static str, String)]) -> String {
    let mut uri = format!("/v{API_VERSION}{path}");
    for (n, (key, value)) in query.iter().enumerate() {
        uri.push(if n == 0 { '?' } else { '&' });
        uri.push_str(key);
        uri.push('=');
        escape(value, b"", &mut uri);
    }
    uri
}

/// RFC 3986 percent encoding of all but unreserved characters and those in `keep`.
fn escape(text: &str, keep: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in text.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(DIGITS[usize::from(byte >> 4)]));
            out.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_escaped() {
        let call = Call::get(&["services", "a b?c#d", "logs"])
            .query("x", "a&b=é")
            .flag("no", false);
        assert_eq!(
            call_uri(&call.path, &call.query),
            "/v1.51/services/a%20b%3Fc%23d/logs?x=a%26b%3D%C3%A9"
        );
        let image = Call::get(&["images", "host:5000/a/b@sha256:0a", "json"]);
        assert_eq!(image.path, "/images/host:5000/a/b@sha256:0a/json");
    }
}

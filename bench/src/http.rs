//! A client of the Engine API that is neither side's own: one kept-alive connection, JSON in and out.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    client::conn::http1::{self, SendRequest},
    header,
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

/// The newest version that the oldest peer, dockerd 20.10, speaks.
const API: &str = "/v1.41";

/// One connection to an engine.
#[derive(Debug)]
pub(crate) struct Engine {
    socket: PathBuf,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Engine {
    pub(crate) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            connection: None,
        }
    }

    /// Another connection to the same engine.
    pub(crate) fn another(&self) -> Self {
        Self::new(&self.socket)
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Value> {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> Result<Value> {
        let body = Bytes::from(body.to_string());
        self.call(Method::POST, path, Some(("application/json", body)))
            .await
    }

    pub(crate) async fn post_tar(&mut self, path: &str, tar: Vec<u8>) -> Result<Value> {
        self.call(Method::POST, path, Some(("application/x-tar", tar.into())))
            .await
    }

    pub(crate) async fn delete(&mut self, path: &str) -> Result<Value> {
        self.call(Method::DELETE, path, None).await
    }

    /// The answer's JSON; of a stream of documents the last; null when there is none.
    async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Value> {
        let body = self.bytes(method, path, body).await?;
        let documents = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
        let last = documents.last().transpose();
        // A ping answers with plain text.
        Ok(last.ok().flatten().unwrap_or_default())
    }

    /// The answer as it is.
    pub(crate) async fn get_bytes(&mut self, path: &str) -> Result<Bytes> {
        self.bytes(Method::GET, path, None).await
    }

    async fn bytes(
        &mut self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Bytes)>,
    ) -> Result<Bytes> {
        let what = format!("{method} {path}");
        let (kind, body) = body.unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{API}{path}"))
            .header(header::HOST, "engine");
        if !kind.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        let request = request.body(Full::new(body)).context("a request")?;
        let response = self.connection().await?.send_request(request).await;
        if response.is_err() {
            self.connection = None;
        }
        let response = response.with_context(|| what.clone())?;
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.with_context(|| what.clone())?.to_bytes();
        if !status.is_success() {
            bail!(
                "{what}: {status}: {}",
                String::from_utf8_lossy(&body).trim()
            );
        }
        Ok(body)
    }

    async fn connection(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        let usable = match &mut self.connection {
            Some(connection) => connection.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let stream = UnixStream::connect(&self.socket).await;
            let stream = stream.with_context(|| format!("connect to {}", self.socket.display()))?;
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await?;
            // Ends by itself when the sender is dropped or the engine hangs up.
            tokio::spawn(driver);
            self.connection = Some(sender);
        }
        self.connection.as_mut().context("just connected")
    }
}

/// Filters as Docker's query wants them, percent-encoded.
pub(crate) fn filters(pairs: &[(&str, &str)]) -> String {
    let object: serde_json::Map<String, Value> = pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), serde_json::json!([value])))
        .collect();
    let text = Value::Object(object).to_string();
    let encoded: String = text
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect();
    format!("filters={encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn filters_are_encoded() {
        assert_eq!(
            filters(&[("label", "a=b")]),
            "filters=%7B%22label%22%3A%5B%22a%3Db%22%5D%7D"
        );
    }

    #[tokio::test]
    async fn refusal_carries_the_engine_s_words_and_the_connection_is_used_again() {
        let path = std::env::temp_dir().join(format!("shoal-bench-http-{}", std::process::id()));
        let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            for answer in [
                "HTTP/1.1 404 Not Found\r\ncontent-length: 20\r\n\r\n{\"message\":\"no such\"}"
                    .replace("20", "21"),
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{\"a\":1}\n\r\n7\r\n{\"a\":2}\r\n0\r\n\r\n"
                    .to_owned(),
            ] {
                let mut request = [0; 512];
                let read = stream.read(&mut request).await.expect("a request");
                assert!(read > 0);
                stream.write_all(answer.as_bytes()).await.expect("answered");
            }
        });
        let mut engine = Engine::new(&path);
        let error = engine.get("/x").await.expect_err("404").to_string();
        assert_eq!(error, "GET /x: 404 Not Found: {\"message\":\"no such\"}");
        let answer = engine.get("/y").await.expect("200");
        assert_eq!(answer["a"], 2, "the last document");
        server.await.expect("one connection served both");
        std::fs::remove_file(&path).expect("remove the socket");
    }
}

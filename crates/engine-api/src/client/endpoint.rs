//! Where an engine listens.

use std::{
    fmt, io,
    path::PathBuf,
    pin::Pin,
    str::FromStr,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// In the form of `DOCKER_HOST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `unix:///path`.
    Unix(PathBuf),
    /// `tcp://host:port` or `http://host:port`; the port defaults to 2375.
    Tcp(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an address of an engine: expected unix:///path or tcp://host:port")]
pub struct ParseEndpointError {
    text: String,
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, ParseEndpointError> {
        let error = || ParseEndpointError {
            text: text.to_owned(),
        };
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.is_empty() {
                Err(error())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let address = text
            .strip_prefix("tcp://")
            .or_else(|| text.strip_prefix("http://"));
        let address = address
            .map(|a| a.trim_end_matches('/'))
            .filter(|a| !a.is_empty());
        let address = address.filter(|a| !a.contains('/')).ok_or_else(error)?;
        let has_port = address.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']'))
        });
        Ok(Self::Tcp(if has_port {
            address.to_owned()
        } else {
            format!("{address}:2375")
        }))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl Endpoint {
    pub(super) async fn connect(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(path) => UnixStream::connect(path).await.map(Connection::Unix),
            Self::Tcp(address) => {
                let stream = TcpStream::connect(address.as_str()).await?;
                // Requests are small and each waits for its answer.
                stream.set_nodelay(true)?;
                Ok(Connection::Tcp(stream))
            }
        }
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub(super) enum Connection {
    Unix(UnixStream),
    Tcp(TcpStream),
}

macro_rules! delegate {
    ($self:ident.$method:ident($($arg:expr),*)) => {
        match $self.get_mut() {
            Connection::Unix(stream) => Pin::new(stream).$method($($arg),*),
            Connection::Tcp(stream) => Pin::new(stream).$method($($arg),*),
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self.poll_read(cx, buf))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_host_forms_are_understood() {
        assert_eq!(
            "unix:///run/s.sock".parse(),
            Ok(Endpoint::Unix("/run/s.sock".into()))
        );
        assert_eq!("tcp://h:1".parse(), Ok(Endpoint::Tcp("h:1".into())));
        assert_eq!("tcp://h".parse(), Ok(Endpoint::Tcp("h:2375".into())));
        assert_eq!(
            "tcp://[::1]:9/".parse(),
            Ok(Endpoint::Tcp("[::1]:9".into()))
        );
        for bad in [
            "",
            "unix://",
            "tcp://",
            "ssh://h",
            "/run/s.sock",
            "tcp://h/x",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}

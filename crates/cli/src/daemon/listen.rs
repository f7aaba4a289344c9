//! Where the API listens.

use std::{
    fmt, fs, io,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use axum::Router;
use nix::unistd::{Group, chown};
use shoal_engine_api as api;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Only root and its group may command containers.
const SOCKET_MODE: u32 = 0o660;

/// A `--host` word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(String),
}

pub(crate) enum Bound {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener, String),
}

impl Address {
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if let Some(path) = text.strip_prefix("unix://") {
            if path.is_empty() {
                bail!("invalid --host {text:?}: unix:// needs a path");
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if let Some(address) = text.strip_prefix("tcp://") {
            if address
                .rsplit_once(':')
                .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
            {
                bail!("invalid --host {text:?}: tcp:// needs HOST:PORT");
            }
            return Ok(Self::Tcp(address.to_owned()));
        }
        bail!("invalid --host {text:?}: expected unix://PATH or tcp://HOST:PORT")
    }

    /// Listens; a unix socket is then for root and `group`, when there is such a group.
    pub(crate) async fn bind(&self, group: &str) -> Result<Bound> {
        match self {
            Self::Unix(path) => {
                take_stale_socket_away(path)?;
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)
                        .with_context(|| format!("make directory {}", parent.display()))?;
                }
                let listener = UnixListener::bind(path)
                    .with_context(|| format!("listen on {}", path.display()))?;
                fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))
                    .with_context(|| format!("set the mode of {}", path.display()))?;
                give_to(path, group)?;
                Ok(Bound::Unix(listener, path.clone()))
            }
            Self::Tcp(address) => {
                warn!(
                    address,
                    "whoever reaches this address commands this machine as root"
                );
                let listener = TcpListener::bind(address)
                    .await
                    .with_context(|| format!("listen on {address}"))?;
                Ok(Bound::Tcp(listener, address.clone()))
            }
        }
    }

    /// Takes the socket's file away.
    pub(crate) fn unbind(&self) {
        if let Self::Unix(path) = self {
            // Gone already is as good.
            let _ = fs::remove_file(path);
        }
    }
}

/// As dockerd does: a group that does not exist leaves the socket to root.
fn give_to(path: &Path, group: &str) -> Result<()> {
    match Group::from_name(group).with_context(|| format!("look for group {group}"))? {
        Some(group) => chown(path, None, Some(group.gid))
            .with_context(|| format!("give {} to group {}", path.display(), group.name)),
        None => Ok(()),
    }
}

/// The file of a socket that nobody listens on was left by a daemon that was killed.
fn take_stale_socket_away(path: &Path) -> Result<()> {
    match StdUnixStream::connect(path) {
        Ok(_) => bail!("{} is in use by another daemon", path.display()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .with_context(|| format!("take the stale socket {} away", path.display())),
        Err(_) => Ok(()),
    }
}

impl Bound {
    pub(crate) async fn serve(self, router: Router, stop: CancellationToken) {
        match self {
            Self::Unix(listener, _) => api::serve(listener, router, stop).await,
            Self::Tcp(listener, _) => api::serve(listener, router, stop).await,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(_, path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(_, address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_dockerds() {
        assert_eq!(
            Address::parse("unix:///run/x").unwrap(),
            Address::Unix("/run/x".into())
        );
        assert_eq!(
            Address::parse("tcp://127.0.0.1:1").unwrap(),
            Address::Tcp("127.0.0.1:1".into())
        );
        for bad in [
            "",
            "unix://",
            "/run/x",
            "tcp://127.0.0.1",
            "tcp://:80",
            "fd://",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("sub/s"));
        let first = address.bind("no-such-group").await.unwrap();
        assert!(address.bind("no-such-group").await.is_err(), "in use");
        drop(first);
        address.bind("no-such-group").await.unwrap();
        address.unbind();
        address.unbind();
    }
}

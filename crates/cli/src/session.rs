//! What every client command works with.

use std::path::Path;

use serde_json::Value;
use shoal_engine_api::client::Endpoint;

use crate::{
    api::{Api, Request},
    config::Config,
    error::{CliError, Result},
    opts::Filters,
    output,
};

const SHOAL_SOCKET: &str = "/run/shoal/shoal.sock";
const DOCKER_SOCKET: &str = "/var/run/docker.sock";

/// A daemon and the user's configuration.
pub(crate) struct Session {
    pub(crate) api: Api,
    pub(crate) config: Config,
}

impl Session {
    /// `host` in the form of `DOCKER_HOST`; `None` takes Shoal's socket, or Docker's when only that exists.
    pub(crate) fn new(host: Option<&str>, config: Config) -> Result<Self> {
        let endpoint = match host {
            Some(host) => parse_host(host)?,
            None => default_endpoint(Path::new(SHOAL_SOCKET), Path::new(DOCKER_SOCKET)),
        };
        Ok(Self {
            api: Api::new(endpoint),
            config,
        })
    }

    /// Sends a request for each name and prints the name when it worked; goes on after an error.
    pub(crate) async fn each(&self, names: &[String], request: impl Fn(&str) -> Request) -> Result {
        self.remove(names, false, request).await
    }

    /// As [`Session::each`]; with `force`, what is not there is no error.
    pub(crate) async fn remove(
        &self,
        names: &[String],
        force: bool,
        request: impl Fn(&str) -> Request,
    ) -> Result {
        let mut errors = Vec::new();
        for name in names {
            match self.api.done(request(name)).await {
                Ok(()) => output::line(name)?,
                Err(error) if force && error.is_not_found() => {}
                Err(error @ CliError::Refused { .. }) => errors.push(error),
                Err(error) => return Err(error),
            }
        }
        CliError::all(errors)
    }

    /// Asks before unused objects of `kind` are removed, unless `force` says not to ask, and has them removed.
    pub(crate) async fn prune(
        &self,
        kind: &str,
        what: &str,
        force: bool,
        filters: &Filters,
    ) -> Result<Value> {
        let question =
            format!("WARNING! This will remove {what}.\nAre you sure you want to continue?");
        if !force && !output::confirm(&question)? {
            return Err(CliError::message(format!(
                "{kind} prune has been cancelled"
            )));
        }
        let path = format!("{kind}s");
        self.api
            .json(Request::post(&[&path, "prune"]).filters(filters))
            .await
    }
}

fn parse_host(host: &str) -> Result<Endpoint> {
    // A bare path or `host:port` is meant as its usual scheme, as in Docker.
    let full = if host.contains("://") {
        host.to_owned()
    } else if host.starts_with('/') {
        format!("unix://{host}")
    } else {
        format!("tcp://{host}")
    };
    full.parse()
        .map_err(|error| CliError::message(format!("unable to parse docker host: {error}")))
}

fn default_endpoint(shoal: &Path, docker: &Path) -> Endpoint {
    let path = if !shoal.exists() && docker.exists() {
        docker
    } else {
        shoal
    };
    Endpoint::Unix(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_socket_comes_before_docker_s() {
        let dir = tempfile::tempdir().unwrap();
        let (shoal, docker) = (dir.path().join("s"), dir.path().join("d"));
        let chosen = || default_endpoint(&shoal, &docker);
        assert_eq!(chosen(), Endpoint::Unix(shoal.clone()));
        std::fs::write(&docker, "").unwrap();
        assert_eq!(chosen(), Endpoint::Unix(docker.clone()));
        std::fs::write(&shoal, "").unwrap();
        assert_eq!(chosen(), Endpoint::Unix(shoal.clone()));
    }

    #[test]
    fn hosts_may_leave_out_their_scheme() {
        assert_eq!(parse_host("/a/b").unwrap().to_string(), "unix:///a/b");
        assert_eq!(parse_host("h:1").unwrap().to_string(), "tcp://h:1");
        assert!(parse_host("ssh://h").is_err());
    }
}

//! The swarm's things in the API's words.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::stream;
use shoal_engine_api::engine::{
    BoxStream, EngineError, LocalNetwork, LogRecord, LogRequest, OutputStream, Result, Tokens,
};
use shoal_manager::{LogsError, Manager};
use shoal_transport::{ca, session, token::JoinToken};
use shoal_types::{
    NodeId, TaskId,
    object::{Meta, Network, Trust},
    spec::{Ipam, NetworkSpec},
    wire::{LogFrame, LogOptions, NetworkAssignment},
};

/// Letters of a line in PEM (RFC 7468).
const PEM_LINE: usize = 64;

/// A certificate in PEM.
pub(crate) fn pem(der: &[u8]) -> String {
    if der.is_empty() {
        return String::new();
    }
    let encoded = STANDARD.encode(der);
    let lines = encoded.as_bytes().chunks(PEM_LINE);
    let mut text = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in lines {
        text.push_str(&String::from_utf8_lossy(line));
        text.push('\n');
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

/// What others join with.
pub(crate) fn tokens(trust: &Trust) -> Tokens {
    let digest = ca::digest(&trust.root_certificate);
    let token = |secret| JoinToken { digest, secret }.to_string();
    Tokens {
        worker: token(trust.worker_secret),
        manager: token(trust.manager_secret),
    }
}

pub(crate) fn local_network(network: &NetworkAssignment) -> LocalNetwork {
    LocalNetwork {
        id: network.id,
        vni: network.vni,
        name: network.name.clone(),
        driver: driver(network).to_owned(),
        subnet: network.subnet,
        gateway: network.gateway,
        internal: network.internal,
        ingress: network.ingress,
    }
}

/// A network as a node knows it that is no manager.
pub(crate) fn network(network: &NetworkAssignment) -> Arc<Network> {
    Arc::new(Network {
        id: network.id,
        meta: Meta::default(),
        spec: NetworkSpec {
            name: network.name.clone(),
            driver: driver(network).to_owned(),
            internal: network.internal,
            ingress: network.ingress,
            ipam: Ipam {
                subnet: Some(network.subnet),
                gateway: Some(network.gateway),
                range: None,
            },
            ..NetworkSpec::default()
        },
        subnet: network.subnet,
        gateway: network.gateway,
        vni: network.vni,
        predefined: false,
    })
}

/// The predefined network for tasks without one is the only one that is not the cluster's.
fn driver(network: &NetworkAssignment) -> &'static str {
    if network.name == "bridge" {
        "bridge"
    } else {
        "overlay"
    }
}

/// The output of a task that is not on this node.
pub(crate) async fn task_logs(
    manager: &Manager,
    here: NodeId,
    task: TaskId,
    request: LogRequest,
) -> Result<BoxStream<'static, Result<LogRecord>>> {
    let nothing = || Ok(Box::pin(stream::empty()) as BoxStream<'static, _>);
    let state = manager.control().local_state();
    // A task without a container has written nothing.
    if state
        .task(&task)
        .is_some_and(|task| task.node == Some(here))
    {
        return nothing();
    }
    let options = LogOptions {
        stdout: request.stdout,
        stderr: request.stderr,
        follow: request.follow,
        since: request.since,
        until: request.until,
        tail: request.tail,
    };
    let stream = match manager.task_logs(&task, options).await {
        Ok(stream) => stream,
        Err(LogsError::NotPlaced { .. }) => return nothing(),
        Err(error @ LogsError::NoTask { .. }) => {
            return Err(EngineError::Missing(error.to_string()));
        }
        Err(error @ LogsError::Silent { .. }) => {
            return Err(EngineError::Unavailable(error.to_string()));
        }
    };
    let (to_agent, from_agent) = session::open::<LogFrame, LogFrame, _>(stream);
    // The agent takes the end of the other half for the end of all interest.
    let halves = Some((to_agent, from_agent));
    Ok(Box::pin(stream::unfold(halves, move |halves| async move {
        let (to_agent, mut from_agent) = halves?;
        let record = match from_agent.receive().await {
            Ok(None) => return None,
            Ok(Some(LogFrame::Record { at, stderr, bytes })) => Ok(LogRecord {
                at,
                stream: if stderr {
                    OutputStream::Stderr
                } else {
                    OutputStream::Stdout
                },
                bytes: Bytes::from(bytes),
            }),
            Ok(Some(LogFrame::Failed { reason })) => Err(EngineError::Unavailable(format!(
                "the output of task {task} cannot be read any further: {reason}"
            ))),
            Err(error) => Err(EngineError::Failed {
                what: format!("read the output of task {task} from its node"),
                source: Box::new(error),
            }),
        };
        let next = record.is_ok().then_some((to_agent, from_agent));
        Some((record, next))
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_written_as_openssl_writes_them() {
        let text = pem(&[7; 60]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "-----BEGIN CERTIFICATE-----");
        assert_eq!((lines[1].len(), lines[2].len()), (64, 16));
        assert_eq!(lines[3], "-----END CERTIFICATE-----");
        assert_eq!(pem(&[]), "");
    }
}

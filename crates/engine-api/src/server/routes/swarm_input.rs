//! What a request about the swarm asks for, checked as far as its text allows.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    time::Duration,
};

use shoal_types::{
    object::Cluster,
    spec::{Availability, Ipv4Net},
};

use crate::{
    convert,
    engine::{ClusterSettings, ControlError, InitRequest, JoinRequest},
    server::error::{ApiError, ApiResult},
    wire,
};

/// VXLAN's registered port (RFC 7348), Docker's default for traffic between containers.
const DATA_PATH_PORT: u32 = 4789;
/// Where managers listen, for addresses without a port.
const CLUSTER_PORT: u16 = 2377;
const SUBNET_PREFIX: u32 = 24;
const TASK_HISTORY: i64 = 5;
/// SwarmKit's, `ca/certificates.go`.
const SHORTEST_CERTIFICATE: Duration = Duration::from_hours(1);
/// With less, a node would be given up before TCP has repeated one lost packet; with more, never.
const HEARTBEAT_PERIODS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(1);

fn wrong(field: &str, why: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("{why} ({field})"))
}

pub(super) fn init_request(request: wire::InitRequest) -> ApiResult<InitRequest> {
    if request.auto_lock_managers {
        return Err(ApiError::not_yet("locking a swarm (AutoLockManagers)"));
    }
    let settings = settings(&request.spec, None)?;
    let data_path_port = match request.data_path_port {
        0 => DATA_PATH_PORT,
        port @ 1024..=49151 => port,
        port => {
            let why = format!("Datapath port number must be in the range 1024-49151: {port}");
            return Err(wrong("DataPathPort", why));
        }
    };
    let pools = request.default_addr_pool.iter().map(|text| {
        text.parse::<Ipv4Net>()
            .map_err(|error| wrong("DefaultAddrPool", error))
    });
    let address_pools: Vec<Ipv4Net> = pools.collect::<ApiResult<_>>()?;
    let prefix = if request.subnet_size == 0 {
        SUBNET_PREFIX
    } else {
        request.subnet_size
    };
    let largest = address_pools
        .iter()
        .map(|pool| pool.prefix())
        .max()
        .unwrap_or(8);
    let subnet_prefix = u8::try_from(prefix)
        .ok()
        .filter(|p| (largest..=29).contains(p));
    let subnet_prefix = subnet_prefix.ok_or_else(|| {
        wrong(
            "SubnetSize",
            format!("subnet size must be between {largest} and 29: {prefix}"),
        )
    })?;
    Ok(InitRequest {
        listen: listen_addr(&request.listen_addr)?,
        advertise: request.advertise_addr,
        data_path: request.data_path_addr,
        data_path_port: u16::try_from(data_path_port).expect("checked against the range above"),
        force_new_cluster: request.force_new_cluster,
        availability: availability(&request.availability)?,
        address_pools,
        subnet_prefix,
        task_history_limit: settings.task_history_limit,
        certificate_life: settings.certificate_life,
        heartbeat_period: settings.heartbeat_period,
        labels: settings.labels,
    })
}

/// The messages are moby's, `daemon/cluster/swarm.go`.
pub(super) fn join_request(request: wire::JoinRequest) -> ApiResult<JoinRequest> {
    let listen = listen_addr(&request.listen_addr)?;
    if request.remote_addrs.is_empty() {
        return Err(wrong(
            "RemoteAddrs",
            "at least 1 RemoteAddr is required to join",
        ));
    }
    let remotes = request.remote_addrs.iter().map(|addr| remote_addr(addr));
    let remotes = remotes.collect::<ApiResult<_>>()?;
    let token = request.join_token.trim();
    if !is_token(token) {
        return Err(wrong(
            "JoinToken",
            "invalid join token: take the whole of what \"docker swarm join-token\" prints on a \
             manager",
        ));
    }
    Ok(JoinRequest {
        listen,
        advertise: request.advertise_addr,
        data_path: request.data_path_addr,
        remotes,
        token: token.to_owned(),
        availability: availability(&request.availability)?,
    })
}

/// `HOST:PORT`, `HOST` or `:PORT`, where the host is an IP address or an interface; empty: the default.
fn listen_addr(text: &str) -> ApiResult<Option<String>> {
    let bare = text.strip_prefix("tcp://").unwrap_or(text);
    if bare.is_empty() {
        return Ok(None);
    }
    if let Ok(addr) = bare.parse::<IpAddr>() {
        return Ok(Some(SocketAddr::new(addr, CLUSTER_PORT).to_string()));
    }
    if bare.parse::<SocketAddr>().is_ok() {
        return Ok(Some(bare.to_owned()));
    }
    let (host, port) = match bare.rsplit_once(':') {
        Some((host, port)) => (host, port.parse::<u16>().ok()),
        None => (bare, Some(CLUSTER_PORT)),
    };
    let host = if host.is_empty() { "0.0.0.0" } else { host };
    match port {
        Some(port) if is_interface_name(host) => Ok(Some(format!("{host}:{port}"))),
        _ => {
            let why = format!(
                "listen address must be an IP address or network interface (with optional port \
                 number), not {text:?}"
            );
            Err(wrong("ListenAddr", why))
        }
    }
}

/// The kernel's rule, `dev_valid_name`.
fn is_interface_name(text: &str) -> bool {
    let is_good = |c: char| !c.is_whitespace() && !matches!(c, '/' | ':');
    (1..=15).contains(&text.len()) && text.chars().all(is_good)
}

/// `host:port`, with the port added where there is none.
fn remote_addr(text: &str) -> ApiResult<String> {
    let invalid = |why: &str| wrong("RemoteAddrs", format!("invalid remoteAddr {text:?}: {why}"));
    let bare = text.strip_prefix("tcp://").unwrap_or(text);
    if bare.is_empty() {
        return Err(invalid("invalid empty address"));
    }
    if let Ok(addr) = bare.parse::<IpAddr>() {
        return Ok(SocketAddr::new(addr, CLUSTER_PORT).to_string());
    }
    let (host, port) = match bare.rsplit_once(':') {
        Some((host, "")) => (host, CLUSTER_PORT),
        Some((host, port)) => {
            let port = port.parse().ok().filter(|port| *port != 0);
            let port = port.ok_or_else(|| invalid("the port must be a number from 1 to 65535"))?;
            (host, port)
        }
        None => (bare, CLUSTER_PORT),
    };
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let in_brackets = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let is_host = match in_brackets {
        Some(addr) => addr.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(name),
    };
    if is_host {
        Ok(format!("{host}:{port}"))
    } else {
        Err(invalid("expected HOST:PORT"))
    }
}

/// `SWMTKN-1-` and two numbers to the base 36 (swarmkit `ca/config.go`); whether they are the right ones
/// is for the node to say.
fn is_token(text: &str) -> bool {
    let digits = |text: &str| {
        let digit = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
        !text.is_empty() && text.bytes().all(digit)
    };
    text.strip_prefix("SWMTKN-1-")
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(digest, secret)| digits(digest) && digits(secret))
}

fn availability(text: &str) -> ApiResult<Availability> {
    match text {
        "" => Ok(Availability::Active),
        text => Ok(convert::availability(text)?),
    }
}

/// What can be changed; anything else must be left out or as it is. What is left out gets its default,
/// as in Docker.
pub(super) fn settings(
    spec: &wire::SwarmSpec,
    current: Option<&wire::SwarmSpec>,
) -> ApiResult<ClusterSettings> {
    let default = convert::default_swarm_spec();
    let current = current.unwrap_or(&default);
    let kept = |is_kept: bool, field: &str| {
        if is_kept {
            Ok(())
        } else {
            Err(ApiError::not_yet(&format!("changing {field}")))
        }
    };
    if !matches!(spec.name.as_str(), "" | "default") {
        return Err(wrong("Name", "swarm spec must be named \"default\""));
    }
    let (raft, old) = (&spec.raft, &current.raft);
    let same = |new: u64, old: u64| new == 0 || new == old;
    kept(
        same(raft.snapshot_interval, old.snapshot_interval),
        "Raft.SnapshotInterval",
    )?;
    kept(
        same(
            raft.log_entries_for_slow_followers,
            old.log_entries_for_slow_followers,
        ),
        "Raft.LogEntriesForSlowFollowers",
    )?;
    kept(
        raft.keep_old_snapshots.is_none() || raft.keep_old_snapshots == old.keep_old_snapshots,
        "Raft.KeepOldSnapshots",
    )?;
    let same = |new: i64, old: i64| new == 0 || new == old;
    kept(
        same(raft.election_tick, old.election_tick),
        "Raft.ElectionTick",
    )?;
    kept(
        same(raft.heartbeat_tick, old.heartbeat_tick),
        "Raft.HeartbeatTick",
    )?;
    let ca = &spec.ca_config;
    kept(ca.external_cas.is_empty(), "CAConfig.ExternalCAs")?;
    kept(
        ca.signing_ca_cert.is_empty() && ca.signing_ca_key.is_empty() && ca.force_rotate == 0,
        "the root certificate (CAConfig)",
    )?;
    kept(
        spec.task_defaults.log_driver.is_none(),
        "TaskDefaults.LogDriver",
    )?;
    kept(
        !spec.encryption_config.auto_lock_managers,
        "EncryptionConfig.AutoLockManagers",
    )?;
    Ok(ClusterSettings {
        labels: spec.labels.clone(),
        task_history_limit: spec
            .orchestration
            .task_history_retention_limit
            .unwrap_or(TASK_HISTORY),
        certificate_life: certificate_life(ca.node_cert_expiry)?,
        heartbeat_period: heartbeat_period(spec.dispatcher.heartbeat_period)?,
    })
}

/// Zero stands for the default.
fn heartbeat_period(nanos: i64) -> ApiResult<Duration> {
    if nanos == 0 {
        return Ok(Cluster::HEARTBEAT_PERIOD);
    }
    let period = u64::try_from(nanos).map(Duration::from_nanos);
    let possible = period
        .ok()
        .filter(|period| HEARTBEAT_PERIODS.contains(period));
    possible.ok_or_else(|| {
        let error = ControlError::Invalid {
            field: "Dispatcher.HeartbeatPeriod".to_owned(),
            message: "the dispatcher's heartbeat period must be between 1s and 1h0m0s".to_owned(),
        };
        error.into()
    })
}

/// Zero stands for the default.
fn certificate_life(nanos: i64) -> ApiResult<Duration> {
    if nanos == 0 {
        return Ok(convert::CERTIFICATE_LIFE);
    }
    let life = u64::try_from(nanos).map(Duration::from_nanos);
    let long_enough = life.ok().filter(|life| *life >= SHORTEST_CERTIFICATE);
    long_enough.ok_or_else(|| {
        let error = ControlError::Invalid {
            field: "CAConfig.NodeCertExpiry".to_owned(),
            message: "minimum certificate expiry time is 1h0m0s".to_owned(),
        };
        error.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_managers_get_the_port_they_lack() {
        for (given, whole) in [
            ("10.0.0.1", "10.0.0.1:2377"),
            ("10.0.0.1:99", "10.0.0.1:99"),
            ("tcp://m-1.example:", "m-1.example:2377"),
            ("fd00::1", "[fd00::1]:2377"),
            ("[fd00::1]:5", "[fd00::1]:5"),
        ] {
            assert_eq!(remote_addr(given).as_deref(), Ok(whole), "{given}");
        }
        for given in ["", "tcp://", ":2377", "a b:1", "a:0", "a:x", "[x]:1", "a/b"] {
            let error = remote_addr(given).unwrap_err();
            assert!(error.message.contains("RemoteAddrs"), "{given}: {error:?}");
        }
    }

    #[test]
    fn listen_addresses_may_lack_either_half() {
        assert_eq!(listen_addr(""), Ok(None));
        for (given, whole) in [
            ("0.0.0.0:2377", "0.0.0.0:2377"),
            (":1", "0.0.0.0:1"),
            ("::1", "[::1]:2377"),
            ("10.1.1.1", "10.1.1.1:2377"),
            ("eth0:99", "eth0:99"),
            ("eth0", "eth0:2377"),
        ] {
            assert_eq!(listen_addr(given), Ok(Some(whole.to_owned())));
        }
        for wrong in [
            "10.0.0.1:99999",
            "eth0:x",
            "[::1",
            "a b:1",
            "sixteen-letters0:1",
        ] {
            assert!(listen_addr(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens_have_two_numbers() {
        assert!(is_token("SWMTKN-1-0abc-9z"));
        for text in [
            "",
            "SWMTKN-1-",
            "SWMTKN-1-abc",
            "SWMTKN-1--a",
            "SWMTKN-1-a-",
            "SWMTKN-2-a-b",
            "SWMTKN-1-a-B",
            "SWMTKN-1-a-b-c",
        ] {
            assert!(!is_token(text), "{text}");
        }
    }

    #[test]
    fn certificates_live_for_an_hour_at_least() {
        assert_eq!(certificate_life(0), Ok(Duration::from_hours(90 * 24)));
        assert_eq!(
            certificate_life(3_600_000_000_000),
            Ok(SHORTEST_CERTIFICATE)
        );
        for nanos in [-1, 1, 3_599_999_999_999] {
            let error = certificate_life(nanos).unwrap_err();
            assert_eq!(error.status, http::StatusCode::BAD_REQUEST);
            assert!(error.message.contains("1h0m0s"), "{error:?}");
        }
    }

    #[test]
    fn heartbeat_periods_are_those_that_liveness_can_keep() {
        assert_eq!(heartbeat_period(0), Ok(Cluster::HEARTBEAT_PERIOD));
        assert_eq!(heartbeat_period(1_000_000_000), Ok(Duration::from_secs(1)));
        for nanos in [-1, 1, 999_999_999, 3_600_000_000_001] {
            let error = heartbeat_period(nanos).unwrap_err();
            assert_eq!(error.status, http::StatusCode::BAD_REQUEST);
            assert!(error.message.contains("between 1s and 1h"), "{error:?}");
        }
    }

    #[test]
    fn settings_that_stay_as_they_are_may_be_sent() {
        let current = convert::default_swarm_spec();
        assert!(settings(&current, Some(&current)).is_ok());
        assert!(settings(&wire::SwarmSpec::default(), Some(&current)).is_ok());
        let mut spec = current.clone();
        spec.raft.snapshot_interval += 1;
        let error = settings(&spec, Some(&current)).unwrap_err();
        assert_eq!(
            error.message,
            "changing Raft.SnapshotInterval is not supported by shoal yet"
        );
        let mut spec = current.clone();
        spec.ca_config.force_rotate = 1;
        assert!(settings(&spec, Some(&current)).is_err());
        let mut spec = current.clone();
        spec.encryption_config.auto_lock_managers = true;
        assert!(settings(&spec, Some(&current)).is_err());
        let mut spec = current;
        spec.ca_config.node_cert_expiry = 7_200_000_000_000;
        let life = settings(&spec, None).unwrap().certificate_life;
        assert_eq!(life, Duration::from_hours(2));
    }
}

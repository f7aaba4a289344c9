//! The swarm of this node.

use axum::extract::State;
use shoal_types::spec::{Availability, Ipv4Net};

use crate::{
    convert,
    engine::{ClusterSettings, InitRequest, SwarmState},
    server::{
        Engine,
        body::Json,
        error::{ApiError, ApiResult},
        query::Query,
    },
    wire,
};

/// VXLAN's registered port (RFC 7348), Docker's default for traffic between containers.
const DATA_PATH_PORT: u32 = 4789;
const SUBNET_PREFIX: u32 = 24;
const TASK_HISTORY: i64 = 5;

pub(crate) async fn inspect(State(engine): State<Engine>) -> ApiResult<Json<wire::Swarm>> {
    let manager = engine.manager()?;
    let state = manager.control.state().await?;
    let cluster = state.cluster().ok_or_else(ApiError::no_swarm)?;
    let tokens = wire::JoinTokens {
        worker: manager.swarm.tokens.worker.clone(),
        manager: manager.swarm.tokens.manager.clone(),
    };
    Ok(Json(convert::swarm(
        cluster,
        &manager.swarm.trust_root,
        tokens,
    )))
}

pub(crate) async fn init(
    State(engine): State<Engine>,
    Json(request): Json<wire::InitRequest>,
) -> ApiResult<Json<String>> {
    let taken = matches!(
        engine.local.swarm(),
        SwarmState::Active(_) | SwarmState::Pending
    );
    if taken && !request.force_new_cluster {
        return Err(ApiError::unavailable(
            "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm \
             and join another one.",
        ));
    }
    let node = engine.local.init(init_request(request)?).await?;
    Ok(Json(node.to_string()))
}

fn init_request(request: wire::InitRequest) -> ApiResult<InitRequest> {
    let wrong = |field: &str, why: String| ApiError::bad_request(format!("{why} ({field})"));
    if request.auto_lock_managers || request.spec.encryption_config.auto_lock_managers {
        return Err(ApiError::not_yet("locking a swarm (AutoLockManagers)"));
    }
    settings(&request.spec, None)?;
    let listen = match request.listen_addr.as_str() {
        "" => None,
        text => {
            // The port may be left out, as in Docker.
            let whole = if text.contains(':') {
                text.to_owned()
            } else {
                format!("{text}:2377")
            };
            Some(whole.parse().map_err(|_| {
                wrong(
                    "ListenAddr",
                    format!("invalid listen address {text:?}: expected IP:PORT"),
                )
            })?)
        }
    };
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
            .map_err(|error| wrong("DefaultAddrPool", error.to_string()))
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
    let availability = match request.availability.as_str() {
        "" => Availability::Active,
        text => convert::availability(text)?,
    };
    let history = request.spec.orchestration.task_history_retention_limit;
    Ok(InitRequest {
        listen,
        advertise: request.advertise_addr,
        data_path: request.data_path_addr,
        data_path_port: u16::try_from(data_path_port).expect("checked against the range above"),
        force_new_cluster: request.force_new_cluster,
        availability,
        address_pools,
        subnet_prefix,
        task_history_limit: history.unwrap_or(TASK_HISTORY),
        labels: request.spec.labels,
    })
}

pub(crate) async fn leave(State(engine): State<Engine>, query: Query) -> ApiResult<()> {
    if matches!(engine.local.swarm(), SwarmState::Inactive) {
        return Err(ApiError::unavailable("This node is not part of a swarm"));
    }
    engine.local.leave(query.flag("force")).await?;
    Ok(())
}

pub(crate) async fn update(
    State(engine): State<Engine>,
    query: Query,
    Json(spec): Json<wire::SwarmSpec>,
) -> ApiResult<()> {
    let manager = engine.manager()?;
    let version = query.version("swarm")?;
    for rotation in [
        "rotateWorkerToken",
        "rotateManagerToken",
        "rotateManagerUnlockKey",
    ] {
        if query.flag(rotation) {
            return Err(ApiError::not_yet(&format!(
                "changing a token or key ({rotation})"
            )));
        }
    }
    let state = manager.control.state().await?;
    let current = state.cluster().ok_or_else(ApiError::no_swarm)?;
    let settings = settings(&spec, Some(&convert::swarm_spec(current)))?;
    manager.control.update_cluster(version, settings).await?;
    Ok(())
}

/// What can be changed; anything else must be left out or as it is.
fn settings(
    spec: &wire::SwarmSpec,
    current: Option<&wire::SwarmSpec>,
) -> ApiResult<ClusterSettings> {
    let default = wire::SwarmSpec::default();
    let current = current.unwrap_or(&default);
    let same = |changed: bool, field: &str| {
        if changed {
            Err(ApiError::not_yet(&format!("changing {field}")))
        } else {
            Ok(())
        }
    };
    if !matches!(spec.name.as_str(), "" | "default") {
        return Err(ApiError::bad_request(
            "the name of a swarm is always \"default\" (Name)",
        ));
    }
    let (raft, dispatcher, ca) = (&spec.raft, &spec.dispatcher, &spec.ca_config);
    let unset = |value: bool, same: bool| !value && !same;
    same(unset(*raft == default.raft, *raft == current.raft), "Raft")?;
    same(
        unset(
            *dispatcher == default.dispatcher,
            *dispatcher == current.dispatcher,
        ),
        "Dispatcher.HeartbeatPeriod",
    )?;
    same(
        unset(*ca == default.ca_config, *ca == current.ca_config),
        "CAConfig",
    )?;
    same(
        spec.task_defaults != default.task_defaults,
        "TaskDefaults.LogDriver",
    )?;
    same(
        spec.encryption_config.auto_lock_managers,
        "EncryptionConfig.AutoLockManagers",
    )?;
    Ok(ClusterSettings {
        labels: spec.labels.clone(),
        task_history_limit: spec
            .orchestration
            .task_history_retention_limit
            .unwrap_or(TASK_HISTORY),
    })
}

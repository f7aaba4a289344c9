//! Volumes of the node.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use shoal_types::ContainerId;

use crate::{
    engine::{ContainerInfo, EngineError, VolumeInfo},
    server::{
        Engine,
        body::Json,
        error::{ApiError, ApiResult},
        filters::Filters,
        query::Query,
    },
    wire,
};

/// The label of volumes that were given no name.
const ANONYMOUS: &str = "com.docker.volume.anonymous";

pub(crate) async fn list(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<wire::VolumeList>> {
    let filters = query.filters(&["dangling", "driver", "label", "name"])?;
    let dangling = filters.flag("dangling")?;
    let volumes = engine.local.volumes().await?;
    let users = match dangling {
        Some(_) => users(&engine.local.containers().await?),
        None => BTreeMap::new(),
    };
    let wanted = |volume: &VolumeInfo| {
        filters.any("name", |name| volume.name.contains(name))
            && filters.exact("driver", "local")
            && filters.labels("label", &volume.labels)
            && dangling.is_none_or(|wanted| wanted != users.contains_key(&volume.name))
    };
    let volumes = volumes.into_iter().filter(wanted).map(shown);
    Ok(Json(wire::VolumeList {
        volumes: volumes.collect(),
        warnings: None,
    }))
}

pub(crate) async fn inspect(
    State(engine): State<Engine>,
    Path(name): Path<String>,
) -> ApiResult<Json<wire::Volume>> {
    Ok(Json(shown(engine.local.volume(&name).await?)))
}

pub(crate) async fn create(
    State(engine): State<Engine>,
    Json(mut request): Json<wire::VolumeCreate>,
) -> ApiResult<Response> {
    if request.cluster.is_some() {
        return Err(ApiError::not_yet(
            "volumes of the cluster (ClusterVolumeSpec)",
        ));
    }
    if !matches!(request.driver.as_str(), "" | "local") {
        let driver = &request.driver;
        let message =
            format!("error looking up volume plugin {driver}: plugin {driver:?} not found");
        return Err(EngineError::Missing(message).into());
    }
    if !request.options.is_empty() {
        return Err(ApiError::not_yet(
            "options of the local volume driver (DriverOpts)",
        ));
    }
    if request.name.is_empty() {
        request.name = ContainerId::from_random(rand::random()).to_string();
        request.labels.insert(ANONYMOUS.to_owned(), String::new());
    }
    let is_new = engine.local.volume(&request.name).await.is_err();
    let volume = engine
        .local
        .create_volume(&request.name, request.labels)
        .await?;
    if is_new {
        note(&engine, "create", &volume.name);
    }
    Ok((StatusCode::CREATED, Json(shown(volume))).into_response())
}

pub(crate) async fn remove(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    query: Query,
) -> ApiResult<StatusCode> {
    match engine.local.remove_volume(&name).await {
        // Docker's `force` is for volumes that are gone already; one in use stays all the same.
        Err(EngineError::Missing(_)) if query.flag("force") => {}
        other => {
            other?;
            note(&engine, "destroy", &name);
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

fn note(engine: &Engine, action: &str, name: &str) {
    engine
        .journal
        .note("volume", action, name, [("driver", "local")]);
}

/// Removes the volumes that no container has: the anonymous ones, with the filter `all` every one.
pub(crate) async fn prune(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<wire::VolumesPruned>> {
    let filters = query.filters(&["label", "label!", "all"])?;
    let all = filters.flag("all")?.unwrap_or(false);
    let mut pruned = wire::VolumesPruned::default();
    for volume in engine.local.volumes().await? {
        let is_anonymous = volume.labels.contains_key(ANONYMOUS);
        if !(all || is_anonymous) || !is_pruned(&filters, &volume) {
            continue;
        }
        let name = volume.name;
        // One that went meanwhile has no size.
        let size = engine.local.volume_size(&name).await.unwrap_or(0);
        match engine.local.remove_volume(&name).await {
            Ok(()) => {
                note(&engine, "destroy", &name);
                pruned.reclaimed += size;
                pruned.deleted.get_or_insert_default().push(name);
            }
            Err(EngineError::Conflict(_) | EngineError::Missing(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Json(pruned))
}

fn is_pruned(filters: &Filters, volume: &VolumeInfo) -> bool {
    filters.labels("label", &volume.labels) && !filters.spares("label!", &volume.labels)
}

/// With size and number of users, for `docker system df`.
pub(super) async fn usage(engine: &Engine) -> ApiResult<Vec<wire::Volume>> {
    let users = users(&engine.local.containers().await?);
    let mut volumes = Vec::new();
    for volume in engine.local.volumes().await? {
        let size = engine.local.volume_size(&volume.name).await;
        let usage = wire::VolumeUsage {
            ref_count: users.get(&volume.name).copied().unwrap_or(0),
            // -1 is Docker's "not known".
            size: size.map_or(-1, |size| i64::try_from(size).unwrap_or(i64::MAX)),
        };
        volumes.push(wire::Volume {
            usage: Some(usage),
            ..shown(volume)
        });
    }
    Ok(volumes)
}

/// How many containers have each volume.
fn users(containers: &[ContainerInfo]) -> BTreeMap<String, i64> {
    let mounts = containers.iter().flat_map(|container| &container.mounts);
    let mut users = BTreeMap::new();
    for mount in mounts.filter(|mount| mount.kind == "volume") {
        *users.entry(mount.name.clone()).or_default() += 1;
    }
    users
}

fn shown(volume: VolumeInfo) -> wire::Volume {
    wire::Volume {
        created_at: volume.created.into(),
        driver: "local".to_owned(),
        labels: volume.labels,
        mountpoint: volume.mountpoint,
        name: volume.name,
        options: None,
        scope: "local".to_owned(),
        usage: None,
    }
}

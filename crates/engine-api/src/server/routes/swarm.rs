//! The swarm of this node.

use axum::extract::State;

use super::swarm_input::{init_request, join_request, settings};
use crate::{
    convert,
    engine::{ControlError, SwarmState},
    server::{
        Engine,
        body::Json,
        error::{ApiError, ApiResult},
        query::Query,
    },
    wire,
};

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
    if !request.force_new_cluster {
        outside(&engine)?;
    }
    let node = engine.local.init(init_request(request)?).await?;
    engine.journal.catch_up().await;
    Ok(Json(node.to_string()))
}

pub(crate) async fn join(
    State(engine): State<Engine>,
    Json(request): Json<wire::JoinRequest>,
) -> ApiResult<()> {
    outside(&engine)?;
    engine.local.join(join_request(request)?).await?;
    engine.journal.catch_up().await;
    Ok(())
}

/// A node that could not take part in its swarm must leave it all the same before it is in another.
fn outside(engine: &Engine) -> ApiResult<()> {
    if matches!(engine.local.swarm(), SwarmState::Inactive) {
        return Ok(());
    }
    Err(ApiError::unavailable(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm \
         and join another one.",
    ))
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
    if query.flag("rotateManagerUnlockKey") {
        return Err(ApiError::not_yet(
            "changing the unlock key (rotateManagerUnlockKey)",
        ));
    }
    let worker = query.flag("rotateWorkerToken");
    let rotated_manager = query.flag("rotateManagerToken");
    let control = &manager.control;
    let state = control.state().await?;
    let current = state.cluster().ok_or_else(ApiError::no_swarm)?;
    let current = convert::swarm_spec(current);
    let wanted = settings(&spec, Some(&current))?;
    if !worker && !rotated_manager {
        control.update_cluster(version, wanted).await?;
        return Ok(());
    }
    if wanted == settings(&current, Some(&current))? {
        control
            .rotate_tokens(version, worker, rotated_manager)
            .await?;
        return Ok(());
    }
    control.update_cluster(version, wanted).await?;
    // From here on the request has had an effect, so that nothing may send it again by itself.
    let rotate = async {
        let state = control.basis().await?;
        let version = state.cluster().map(|cluster| cluster.meta.version);
        let version = version.unwrap_or_default();
        control
            .rotate_tokens(version, worker, rotated_manager)
            .await
    };
    rotate.await.map_err(|error: ControlError| {
        ApiError::from(error).after_effect("the settings are changed, the join tokens are not")
    })
}

/// No swarm is ever locked, which Docker's clients see in the key being empty.
pub(crate) async fn unlock_key(State(engine): State<Engine>) -> ApiResult<Json<wire::UnlockKey>> {
    engine.manager()?;
    Ok(Json(wire::UnlockKey::default()))
}

pub(crate) async fn unlock(State(engine): State<Engine>) -> ApiError {
    match engine.manager() {
        Ok(_) => ApiError::new(http::StatusCode::CONFLICT, "swarm is not locked"),
        Err(error) => error,
    }
}

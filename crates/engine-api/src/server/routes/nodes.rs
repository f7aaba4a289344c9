//! Nodes of the swarm.

use axum::extract::{Path, State};

use crate::{
    convert,
    server::{Engine, body::Json, error::ApiResult, find, query::Query},
    wire,
};

const FILTERS: &[&str] = &["id", "label", "membership", "name", "node.label", "role"];

pub(crate) async fn list(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<Vec<wire::Node>>> {
    let manager = engine.manager()?;
    let filters = query.filters(FILTERS)?;
    filters.one_of("role", &["worker", "manager"])?;
    filters.one_of("membership", &["accepted", "pending"])?;
    let state = manager.control.state().await?;
    let nodes = state.nodes().filter(|node| {
        let (spec, description) = (&node.spec, &node.description);
        filters.prefix("id", node.id.as_str())
            && (filters.prefix("name", &spec.name) || filters.prefix("name", &description.hostname))
            && filters.exact("role", spec.role.as_str())
            && filters.exact("membership", "accepted")
            && filters.labels("label", &description.engine_labels)
            && filters.labels("node.label", &spec.labels)
    });
    let swarm = &manager.swarm;
    Ok(Json(nodes.map(|node| convert::node(node, swarm)).collect()))
}

pub(crate) async fn inspect(
    State(engine): State<Engine>,
    Path(id): Path<String>,
) -> ApiResult<Json<wire::Node>> {
    let manager = engine.manager()?;
    let state = manager.control.state().await?;
    let node = find::node(&state, &id)?;
    Ok(Json(convert::node(node, &manager.swarm)))
}

pub(crate) async fn update(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
    Json(spec): Json<wire::NodeSpec>,
) -> ApiResult<()> {
    let manager = engine.manager()?;
    let version = query.version("node")?;
    let spec = convert::node_spec(spec)?;
    let state = manager.control.basis().await?;
    let node = find::node(&state, &id)?.id;
    manager.control.update_node(node, version, spec).await?;
    Ok(())
}

pub(crate) async fn remove(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<()> {
    let manager = engine.manager()?;
    let state = manager.control.basis().await?;
    let node = find::node(&state, &id)?.id;
    manager
        .control
        .remove_node(node, query.flag("force"))
        .await?;
    Ok(())
}

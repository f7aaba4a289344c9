//! Secrets and configs.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;

use crate::{
    convert,
    server::{
        Engine,
        body::Json,
        error::{ApiError, ApiResult},
        find,
        query::Query,
    },
    wire,
};

const SECRET_FILTERS: &[&str] = &["names", "name", "id", "label"];
const CONFIG_FILTERS: &[&str] = &["name", "id", "label"];

pub(crate) async fn list_secrets(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<Vec<wire::Secret>>> {
    let manager = engine.manager()?;
    let filters = query.filters(SECRET_FILTERS)?;
    let state = manager.control.state().await?;
    let secrets = state.secrets().filter(|secret| {
        filters.exact("names", &secret.name)
            && filters.prefix("name", &secret.name)
            && filters.prefix("id", secret.id.as_str())
            && filters.labels("label", &secret.labels)
    });
    Ok(Json(secrets.map(|s| convert::secret(s)).collect()))
}

pub(crate) async fn inspect_secret(
    State(engine): State<Engine>,
    Path(id): Path<String>,
) -> ApiResult<Json<wire::Secret>> {
    let state = engine.manager()?.control.state().await?;
    Ok(Json(convert::secret(find::secret(&state, &id)?)))
}

pub(crate) async fn create_secret(
    State(engine): State<Engine>,
    Json(spec): Json<wire::SecretSpec>,
) -> ApiResult<Response> {
    let manager = engine.manager()?;
    let id = manager
        .control
        .create_secret(convert::secret_spec(spec)?)
        .await?;
    Ok((
        StatusCode::CREATED,
        Json(wire::Created { id: id.to_string() }),
    )
        .into_response())
}

pub(crate) async fn update_secret(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
    Json(spec): Json<wire::SecretSpec>,
) -> ApiResult<()> {
    let manager = engine.manager()?;
    let version = query.version("secret")?;
    let state = manager.control.basis().await?;
    let secret = find::secret(&state, &id)?;
    only_labels(
        &spec.name,
        &secret.name,
        spec.data.is_empty() || spec.data == secret.data,
    )?;
    manager
        .control
        .update_secret(secret.id, version, spec.labels)
        .await?;
    Ok(())
}

pub(crate) async fn remove_secret(
    State(engine): State<Engine>,
    Path(id): Path<String>,
) -> ApiResult<StatusCode> {
    let manager = engine.manager()?;
    let state = manager.control.basis().await?;
    manager
        .control
        .remove_secret(find::secret(&state, &id)?.id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn list_configs(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<Vec<wire::Config>>> {
    let manager = engine.manager()?;
    let filters = query.filters(CONFIG_FILTERS)?;
    let state = manager.control.state().await?;
    let configs = state.configs().filter(|config| {
        filters.prefix("name", &config.name)
            && filters.prefix("id", config.id.as_str())
            && filters.labels("label", &config.labels)
    });
    Ok(Json(configs.map(|c| convert::config(c)).collect()))
}

pub(crate) async fn inspect_config(
    State(engine): State<Engine>,
    Path(id): Path<String>,
) -> ApiResult<Json<wire::Config>> {
    let state = engine.manager()?.control.state().await?;
    Ok(Json(convert::config(find::config(&state, &id)?)))
}

pub(crate) async fn create_config(
    State(engine): State<Engine>,
    Json(spec): Json<wire::ConfigSpec>,
) -> ApiResult<Response> {
    let manager = engine.manager()?;
    let id = manager
        .control
        .create_config(convert::config_spec(spec)?)
        .await?;
    Ok((
        StatusCode::CREATED,
        Json(wire::Created { id: id.to_string() }),
    )
        .into_response())
}

pub(crate) async fn update_config(
    State(engine): State<Engine>,
    Path(id): Path<String>,
    query: Query,
    Json(spec): Json<wire::ConfigSpec>,
) -> ApiResult<()> {
    let manager = engine.manager()?;
    let version = query.version("config")?;
    let state = manager.control.basis().await?;
    let config = find::config(&state, &id)?;
    only_labels(
        &spec.name,
        &config.name,
        spec.data.is_empty() || spec.data == config.data,
    )?;
    manager
        .control
        .update_config(config.id, version, spec.labels)
        .await?;
    Ok(())
}

pub(crate) async fn remove_config(
    State(engine): State<Engine>,
    Path(id): Path<String>,
) -> ApiResult<StatusCode> {
    let manager = engine.manager()?;
    let state = manager.control.basis().await?;
    manager
        .control
        .remove_config(find::config(&state, &id)?.id)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn only_labels(name: &str, current: &str, same_data: bool) -> ApiResult<()> {
    if (name.is_empty() || name == current) && same_data {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "rpc error: code = InvalidArgument desc = only updates to Labels are allowed",
    ))
}

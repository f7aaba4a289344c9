//! Errors as Docker's clients expect them: a status and `{"message": …}`.

use std::error::Error;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};

use crate::{
    convert::SpecError,
    engine::{ControlError, EngineError},
    wire::{ErrorBody, json},
};

/// An answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// It is so because this manager does not lead, and the request has had no effect.
    pub(crate) not_leader: bool,
}

/// In the extensions of an answer that is an [`ApiError`] with `not_leader`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NotLeader;

pub(crate) type ApiResult<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            not_leader: false,
        }
    }

    /// Of a request that had done `what` before it failed.
    pub(crate) fn after_effect(self, what: &str) -> Self {
        Self::new(self.status, format!("{what}: {}", self.message))
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub(crate) fn not_found(kind: &str, reference: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            format!("{kind} {reference} not found"),
        )
    }

    /// Docker has it, Shoal does not yet.
    pub(crate) fn not_yet(what: &str) -> Self {
        let message = format!("{what} is not supported by shoal yet");
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    pub(crate) fn no_swarm() -> Self {
        Self::unavailable(
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" \
             to connect this node to swarm and try again.",
        )
    }

    /// It may become one of its managers.
    pub(crate) fn not_yet_a_manager() -> Self {
        Self::unavailable(
            "This node is not a swarm manager. Manager is being prepared or has trouble connecting \
             to the cluster.",
        )
    }

    pub(crate) fn not_a_manager() -> Self {
        Self::unavailable(
            "This node is not a swarm manager. Worker nodes can't be used to view or modify \
             cluster state. Please run this command on a manager node or promote the current \
             node to a manager.",
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json::to_bytes(&ErrorBody {
            message: self.message,
        });
        let mut response = (self.status, body).into_response();
        let kind = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        if self.not_leader {
            response.extensions_mut().insert(NotLeader);
        }
        response
    }
}

impl From<SpecError> for ApiError {
    fn from(error: SpecError) -> Self {
        let status = match &error {
            SpecError::Invalid { .. } => StatusCode::BAD_REQUEST,
            SpecError::Unsupported { .. } => StatusCode::NOT_IMPLEMENTED,
            SpecError::NotFound { .. } => StatusCode::NOT_FOUND,
        };
        Self::new(status, error.to_string())
    }
}

impl From<json::ReadError> for ApiError {
    fn from(error: json::ReadError) -> Self {
        Self::bad_request(with_causes(&error))
    }
}

impl From<ControlError> for ApiError {
    /// Docker passes on the manager's gRPC errors in this form, and clients look for it.
    fn from(error: ControlError) -> Self {
        let (status, code) = match &error {
            ControlError::Invalid { .. } | ControlError::Ambiguous { .. } => {
                (StatusCode::BAD_REQUEST, "InvalidArgument")
            }
            ControlError::NotFound { .. } => {
                return Self::new(StatusCode::NOT_FOUND, error.to_string());
            }
            ControlError::NameConflict { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
            ControlError::InUse(_) => (StatusCode::BAD_REQUEST, "FailedPrecondition"),
            ControlError::OutOfSequence => (StatusCode::INTERNAL_SERVER_ERROR, "Unknown"),
            ControlError::NotSupported(_) => (StatusCode::NOT_IMPLEMENTED, "Unimplemented"),
            ControlError::NoLeader | ControlError::NotLeader | ControlError::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, "Unavailable")
            }
        };
        Self {
            not_leader: matches!(error, ControlError::NoLeader | ControlError::NotLeader),
            ..Self::new(status, format!("rpc error: code = {code} desc = {error}"))
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let status = match &error {
            EngineError::NotFound { .. } | EngineError::Missing(_) => StatusCode::NOT_FOUND,
            EngineError::Invalid(_) => StatusCode::BAD_REQUEST,
            EngineError::Conflict(_) => StatusCode::CONFLICT,
            EngineError::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            EngineError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            EngineError::NotSupported(_) => StatusCode::NOT_IMPLEMENTED,
            EngineError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, with_causes(&error))
    }
}

/// The error and what caused it, each cause once.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        cause = error.source();
    }
    text
}

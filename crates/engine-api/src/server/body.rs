//! Request bodies and JSON answers.

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Serialize, de::DeserializeOwned};
use tokio_util::io::StreamReader;

use super::error::ApiError;
use crate::{engine::BoxReader, wire::json};

/// The largest body that is read into memory: a config of 1000 KiB in base64, and some room.
pub(crate) const BODY_LIMIT: usize = 4 << 20;

/// A JSON body. Docker takes a body without a type only when it is empty.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let body = read(body).await?;
        if !body.is_empty() {
            check_type(&parts.headers)?;
        }
        Ok(Self(json::from_slice(&body)?))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let kind = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, kind)], json::to_bytes(&self.0)).into_response()
    }
}

pub(crate) async fn read(body: Body) -> Result<bytes::Bytes, ApiError> {
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {BODY_LIMIT} bytes"),
        )),
        Err(error) => Err(ApiError::bad_request(format!(
            "could not read the body: {error}"
        ))),
    }
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers
        .get(header::CONTENT_TYPE)
        .map_or("", |v| v.to_str().unwrap_or("?"));
    let media = given.split(';').next().unwrap_or_default().trim();
    if media.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "unsupported Content-Type header ({given}): must be 'application/json'"
    )))
}

/// A body that is read as it arrives: an archive.
pub(crate) fn reader(body: Body) -> BoxReader {
    let pieces =
        futures_util::TryStreamExt::map_err(body.into_data_stream(), std::io::Error::other);
    Box::pin(StreamReader::new(pieces))
}

/// The client's registry credentials, as sent.
pub(crate) fn registry_auth(headers: &HeaderMap) -> Option<String> {
    let value = headers.get("x-registry-auth")?.to_str().ok()?;
    (!value.is_empty()).then(|| value.to_owned())
}

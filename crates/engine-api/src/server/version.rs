//! Versions of the API: the prefix of a path, and the headers of every answer.

use std::convert::Infallible;

use axum::{Router, body::Body, response::IntoResponse};
use http::{HeaderName, HeaderValue, Request, Uri, header, uri::PathAndQuery};

use super::{drain::Drained, error::ApiError, forward::Gate};

/// Newest and oldest version that is understood.
pub(crate) const MAX: ApiVersion = ApiVersion {
    major: 1,
    minor: 51,
};
pub(crate) const MIN: ApiVersion = ApiVersion {
    major: 1,
    minor: 24,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion {
    major: u32,
    pub(crate) minor: u32,
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// In the extensions of a request: what it asked for, with the version.
#[derive(Debug, Clone)]
pub(crate) struct Original(pub(crate) Uri);

/// Puts the version handling around the routes. It must be outside, since it changes the path that
/// routing goes by.
pub(super) fn layer(gate: Gate) -> Router {
    let server = concat!("Docker/", env!("CARGO_PKG_VERSION"), " (linux)");
    let service = tower::service_fn(move |request: Request<Body>| {
        let gate = gate.clone();
        async move {
            let mut response = match versioned(request.map(Drained::new)) {
                Ok(request) if request.method() == http::Method::OPTIONS => {
                    Body::empty().into_response()
                }
                Ok(request) => gate.answer(request).await,
                Err(error) => error.into_response(),
            };
            let headers = response.headers_mut();
            headers.insert(header::SERVER, HeaderValue::from_static(server));
            headers.insert(
                HeaderName::from_static("api-version"),
                HeaderValue::from_static("1.51"),
            );
            headers.insert(
                HeaderName::from_static("ostype"),
                HeaderValue::from_static("linux"),
            );
            headers.insert(
                HeaderName::from_static("docker-experimental"),
                HeaderValue::from_static("false"),
            );
            Ok::<_, Infallible>(response)
        }
    });
    Router::new().fallback_service(service)
}

/// Takes the prefix off the path and leaves the version it names with the request.
fn versioned(mut request: Request<Body>) -> Result<Request<Body>, ApiError> {
    let original = Original(relative(request.uri()));
    request.extensions_mut().insert(original);
    let Some((version, rest)) = split(request.uri().path()) else {
        request.extensions_mut().insert(MAX);
        return Ok(request);
    };
    let text = version.to_owned();
    let version = parse(&text)
        .ok_or_else(|| ApiError::bad_request(format!("invalid API version: {text}")))?;
    if version < MIN {
        return Err(ApiError::bad_request(format!(
            "client version {text} is too old. Minimum supported API version is {MIN}, please \
             upgrade your client to a newer version"
        )));
    }
    if version > MAX {
        return Err(ApiError::bad_request(format!(
            "client version {text} is too new. Maximum supported API version is {MAX}"
        )));
    }
    let path = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    let path = PathAndQuery::try_from(path)
        .map_err(|error| ApiError::bad_request(format!("invalid path: {error}")))?;
    let mut parts = request.uri().clone().into_parts();
    parts.path_and_query = Some(path);
    *request.uri_mut() = Uri::from_parts(parts)
        .map_err(|error| ApiError::bad_request(format!("invalid path: {error}")))?;
    request.extensions_mut().insert(version);
    Ok(request)
}

/// Path and query alone: the rest of an absolute address is of the connection it came by.
fn relative(uri: &Uri) -> Uri {
    uri.path_and_query()
        .cloned()
        .map(Uri::from)
        .unwrap_or_default()
}

/// `/v1.43/info` into `1.43` and `/info`.
fn split(path: &str) -> Option<(&str, &str)> {
    let rest = path.strip_prefix("/v")?;
    let end = rest.find('/')?;
    let (version, rest) = rest.split_at(end);
    let numeric = version.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    (!version.is_empty() && numeric).then_some((version, rest))
}

fn parse(text: &str) -> Option<ApiVersion> {
    let (major, minor) = text.split_once('.')?;
    Some(ApiVersion {
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_is_told_from_a_path_that_begins_alike() {
        assert_eq!(split("/v1.43/info"), Some(("1.43", "/info")));
        assert_eq!(split("/volumes/x"), None);
        assert_eq!(split("/version"), None);
        assert_eq!(split("/v1.43"), None);
        assert_eq!(parse("1.43").map(|v| v.minor), Some(43));
        assert_eq!(parse("1"), None);
        assert!(parse("1.9") < parse("1.24"));
    }
}

//! Talking to one repository of one registry.

use std::{
    fs::File,
    io::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Response, Url};

use super::{
    RegistryAuth, RegistryError,
    auth::{Challenge, TokenAnswer, TokenCache},
    endpoint::Endpoint,
    error::ErrorBody,
    manifest::{DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_MAX, Manifest, OCI_INDEX, OCI_MANIFEST},
};
use crate::{
    catalog::Descriptor,
    digest::{Digest, HashingWriter},
    locks::lock,
    reference::Reference,
    space::SpaceGuard,
    unpack::UnpackLimits,
};

/// Attempts at a request or a download that keeps failing, as Docker's `maxDownloadAttempts`.
const ATTEMPTS: u32 = 5;
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A connection that brought this much before it broke does not count as a failed attempt.
const GOOD_PROGRESS: u64 = 1 << 20;
const ERROR_BODY_MAX: u64 = 64 * 1024;
/// Progress is told at these steps.
const PROGRESS_STEP: u64 = 512 * 1024;

/// One repository at one endpoint.
pub(crate) struct Session {
    endpoint: Endpoint,
    repository: String,
    familiar: String,
    auth: Option<RegistryAuth>,
    tokens: Arc<TokenCache>,
    authorization: Mutex<Option<HeaderValue>>,
    /// Nothing else can be tried when this one does not answer, so it is worth waiting for.
    is_last: bool,
    /// It has answered: that it can't be reached now will pass. One that never did may well not exist, and
    /// whoever asks wants to know soon.
    has_answered: AtomicBool,
}

/// A manifest and where it came from.
pub(crate) struct Resolved {
    pub(crate) session: Session,
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Manifest,
    pub(crate) raw: Bytes,
}

impl Session {
    pub(super) fn new(
        endpoint: Endpoint,
        reference: &Reference,
        auth: Option<RegistryAuth>,
        tokens: Arc<TokenCache>,
        is_last: bool,
    ) -> Self {
        let authorization = auth.as_ref().and_then(RegistryAuth::registry_token_header);
        Self {
            endpoint,
            repository: reference.path().to_owned(),
            familiar: reference.familiar_name(),
            auth,
            tokens,
            authorization: Mutex::new(authorization),
            is_last,
            has_answered: AtomicBool::new(false),
        }
    }

    /// Whether the registry lets its users in with `auth`.
    pub(super) async fn login(endpoint: Endpoint, auth: RegistryAuth) -> Result<(), RegistryError> {
        let session = Self {
            endpoint,
            repository: String::new(),
            familiar: String::new(),
            auth: Some(auth),
            tokens: Arc::default(),
            authorization: Mutex::default(),
            is_last: true,
            has_answered: AtomicBool::new(false),
        };
        let mut url = session.endpoint.base.clone();
        url.set_path("/v2/");
        let refused = |error| match error {
            RegistryError::Denied { cause, .. } => RegistryError::Unauthorized {
                url: url.to_string(),
                cause,
            },
            error => error,
        };
        let response = session
            .get(&url, &HeaderMap::new())
            .await
            .map_err(refused)?;
        if response.status().is_success() {
            return Ok(());
        }
        let (shown, status) = (url.to_string(), response.status());
        let cause = "there is no registry of version 2".to_owned();
        let not_found = |_, _: &str| RegistryError::Status {
            url: shown,
            status,
            cause,
        };
        Err(refused(session.refusal(response, not_found).await))
    }

    pub(super) async fn resolve(self, reference: &Reference) -> Result<Resolved, RegistryError> {
        let named = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.as_str().to_owned(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let (descriptor, manifest, raw) = self
            .manifest(&named, reference.digest(), &reference.familiar())
            .await?;
        Ok(Resolved {
            session: self,
            descriptor,
            manifest,
            raw,
        })
    }

    /// Fetches a manifest by digest.
    pub(crate) async fn manifest_by_digest(
        &self,
        digest: &Digest,
    ) -> Result<(Descriptor, Manifest, Bytes), RegistryError> {
        let shown = format!("{}@{digest}", self.familiar);
        self.manifest(digest.as_str(), Some(digest), &shown).await
    }

    async fn manifest(
        &self,
        named: &str,
        expected: Option<&Digest>,
        shown: &str,
    ) -> Result<(Descriptor, Manifest, Bytes), RegistryError> {
        let url = self.url(&format!("manifests/{named}"));
        let mut headers = HeaderMap::new();
        for kind in [DOCKER_MANIFEST, DOCKER_LIST, OCI_MANIFEST, OCI_INDEX] {
            headers.append(header::ACCEPT, HeaderValue::from_static(kind));
        }
        let response = self.get(&url, &headers).await?;
        if !response.status().is_success() {
            return Err(self
                .refusal(response, |cause, code| match code {
                    "NAME_UNKNOWN" => RegistryError::NameUnknown {
                        repository: self.familiar.clone(),
                        cause,
                    },
                    _ => RegistryError::ManifestUnknown {
                        reference: shown.to_owned(),
                        cause,
                    },
                })
                .await);
        }
        let kind = response
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .map(|value| value.split(';').next().unwrap_or(value).trim().to_owned());
        let raw = read_body(response, &url, MANIFEST_MAX).await?;
        let actual = Digest::of(&raw);
        if let Some(expected) = expected
            && *expected != actual
        {
            return Err(RegistryError::WrongManifest {
                expected: expected.clone(),
                actual,
            });
        }
        let (manifest, media_type) = Manifest::parse(kind.as_deref(), &raw)?;
        let descriptor = Descriptor {
            media_type,
            digest: actual,
            size: raw.len() as u64,
        };
        Ok((descriptor, manifest, raw))
    }

    /// Fetches and verifies a blob that fits in memory: a configuration.
    pub(crate) async fn small_blob(&self, blob: &Descriptor) -> Result<Bytes, RegistryError> {
        let url = self.url(&format!("blobs/{}", blob.digest));
        if blob.size > MANIFEST_MAX {
            return Err(RegistryError::TooLarge {
                url: url.into(),
                limit: MANIFEST_MAX,
            });
        }
        let mut attempt = 0;
        loop {
            let response = self.get(&url, &HeaderMap::new()).await?;
            if !response.status().is_success() {
                return Err(self.blob_refusal(response, &url, &blob.digest).await);
            }
            match read_body(response, &url, MANIFEST_MAX).await {
                Ok(raw) => {
                    let actual = Digest::of(&raw);
                    if actual == blob.digest {
                        return Ok(raw);
                    }
                    let expected = blob.digest.clone();
                    return Err(RegistryError::WrongContent { expected, actual });
                }
                Err(error) if error.is_connection() && attempt + 1 < ATTEMPTS => {
                    backoff(attempt).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Streams a blob within `limits` into `file`, resuming when the connection breaks, and verifies its digest.
    /// Returns with the content on disk.
    pub(crate) async fn download(
        &self,
        blob: &Descriptor,
        file: File,
        limits: &UnpackLimits,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), RegistryError> {
        let url = self.url(&format!("blobs/{}", blob.digest));
        if blob.size > limits.bytes {
            return Err(RegistryError::TooLarge {
                url: url.to_string(),
                limit: limits.bytes,
            });
        }
        let disk = |source| RegistryError::Disk {
            url: url.to_string(),
            source,
        };
        // Hashing and writing are done beside the network, on a thread that may block.
        let (chunks, mut queue) = tokio::sync::mpsc::channel::<Bytes>(16);
        let mut space = SpaceGuard::new(limits.keep_free);
        let writer = tokio::task::spawn_blocking(move || {
            let probe = file.try_clone()?;
            let mut out = HashingWriter::new(file);
            while let Some(chunk) = queue.blocking_recv() {
                space.before(&probe, chunk.len() as u64)?;
                out.write_all(&chunk)?;
            }
            let (file, digest, _) = out.finish();
            file.sync_data()?;
            Ok::<_, std::io::Error>(digest)
        });
        let received = self.receive(blob, &url, &chunks, progress).await;
        drop(chunks);
        let written = writer.await.expect("writing does not panic");
        received?;
        let actual = written.map_err(disk)?;
        if actual != blob.digest {
            return Err(RegistryError::WrongContent {
                expected: blob.digest.clone(),
                actual,
            });
        }
        Ok(())
    }

    async fn receive(
        &self,
        blob: &Descriptor,
        url: &Url,
        chunks: &tokio::sync::mpsc::Sender<Bytes>,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), RegistryError> {
        let mut received = 0_u64;
        let mut told = 0_u64;
        let mut failures = 0;
        while received < blob.size {
            let mut headers = HeaderMap::new();
            if received > 0 {
                let range = HeaderValue::from_str(&format!("bytes={received}-"));
                headers.insert(header::RANGE, range.expect("digits are a valid header"));
            }
            let mut response = self.get(url, &headers).await?;
            // A server that does not know ranges starts anew; what is here already is passed
            // over. Should it differ this time, the digest tells.
            let mut skip = match response.status() {
                StatusCode::PARTIAL_CONTENT if starts_at(&response, received) => 0,
                StatusCode::OK => received,
                _ => return Err(self.blob_refusal(response, url, &blob.digest).await),
            };
            let before = received;
            while let Ok(Some(mut chunk)) = response.chunk().await {
                let passed = skip.min(chunk.len() as u64);
                skip -= passed;
                let chunk = chunk.split_off(usize::try_from(passed).unwrap_or(chunk.len()));
                received += chunk.len() as u64;
                if received > blob.size {
                    return Err(RegistryError::TooLarge {
                        url: url.to_string(),
                        limit: blob.size,
                    });
                }
                if chunks.send(chunk).await.is_err() {
                    // The writer failed and has the reason.
                    return Ok(());
                }
                if received - told >= PROGRESS_STEP || received == blob.size {
                    told = received;
                    progress(received);
                }
            }
            if received < blob.size {
                failures = if received - before >= GOOD_PROGRESS {
                    0
                } else {
                    failures + 1
                };
                if failures >= ATTEMPTS {
                    let (url, size) = (url.to_string(), blob.size);
                    return Err(RegistryError::Interrupted {
                        url,
                        received,
                        size,
                    });
                }
                tracing::debug!(%url, received, size = blob.size, "download broken off, resuming");
                backoff(failures).await;
            }
        }
        Ok(())
    }

    fn url(&self, rest: &str) -> Url {
        let mut url = self.endpoint.base.clone();
        url.set_path(&format!("/v2/{}/{rest}", self.repository));
        url
    }

    /// Sends until there is an answer that repeating would not change.
    async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<Response, RegistryError> {
        let mut attempt = 0;
        let mut asked_for_token = false;
        loop {
            let mut request = self
                .endpoint
                .client
                .request(Method::GET, url.clone())
                .headers(headers.clone());
            let authorization = lock(&self.authorization).clone().or_else(|| {
                let base = self.endpoint.base.as_str();
                self.tokens.get(base, &self.scope(), self.auth.as_ref())
            });
            if let Some(value) = authorization {
                request = request.header(header::AUTHORIZATION, value);
            }
            let sent = request.send().await;
            if sent.is_ok() {
                self.has_answered.store(true, Ordering::Relaxed);
            }
            match sent {
                Ok(response)
                    if response.status() == StatusCode::UNAUTHORIZED && !asked_for_token =>
                {
                    asked_for_token = true;
                    match Challenge::of(response.headers()) {
                        Some(challenge) if self.authorize(&challenge, url).await? => {}
                        _ => return Ok(response),
                    }
                }
                Ok(response) if is_transient(response.status()) && attempt + 1 < ATTEMPTS => {
                    backoff(attempt).await;
                    attempt += 1;
                }
                Ok(response) => return Ok(response),
                Err(source) => {
                    // A redirect that was refused, or a certificate, is the same next time.
                    let final_answer = source.is_redirect()
                        || source.is_builder()
                        || source.is_connect() && !self.has_answered.load(Ordering::Relaxed);
                    if final_answer || !self.is_last || attempt + 1 >= ATTEMPTS {
                        return Err(RegistryError::Connection {
                            url: url.to_string(),
                            source: source.without_url(),
                        });
                    }
                    backoff(attempt).await;
                    attempt += 1;
                }
            }
        }
    }

    /// Empty when it is of no repository.
    fn scope(&self) -> String {
        if self.repository.is_empty() {
            return String::new();
        }
        format!("repository:{}:pull", self.repository)
    }

    /// Answers a challenge; false when there is nothing to answer it with.
    async fn authorize(&self, challenge: &Challenge, url: &Url) -> Result<bool, RegistryError> {
        match challenge {
            Challenge::Basic => {
                let header = self.auth.as_ref().and_then(RegistryAuth::basic_header);
                let can = header.is_some();
                *lock(&self.authorization) = header;
                Ok(can)
            }
            Challenge::Bearer { realm, service } => {
                let (answer, token) = self.fetch_token(realm, service.as_deref(), url).await?;
                let base = self.endpoint.base.as_str();
                self.tokens.put(
                    base,
                    &self.scope(),
                    self.auth.as_ref(),
                    &answer,
                    token.clone(),
                );
                *lock(&self.authorization) = Some(token);
                Ok(true)
            }
        }
    }

    async fn fetch_token(
        &self,
        realm: &str,
        service: Option<&str>,
        url: &Url,
    ) -> Result<(TokenAnswer, HeaderValue), RegistryError> {
        let insecure = || RegistryError::InsecureRealm {
            url: url.to_string(),
            realm: realm.to_owned(),
        };
        let mut realm_url = Url::parse(realm).map_err(|_| insecure())?;
        let may_be_plain = realm_url.scheme() == "http" && self.endpoint.allows_http;
        if realm_url.scheme() != "https" && !may_be_plain {
            return Err(insecure());
        }
        let refresh = self.auth.as_ref().map(|auth| auth.identity_token.as_str());
        let request = if let Some(refresh) = refresh.filter(|token| !token.is_empty()) {
            let mut form = Url::parse("form:").expect("a constant URL");
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.unwrap_or(""))
                .append_pair("client_id", "shoal")
                .append_pair("scope", &self.scope())
                .append_pair("refresh_token", refresh);
            self.endpoint
                .client
                .request(Method::POST, realm_url.clone())
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or("").to_owned())
        } else {
            let basic = self.auth.as_ref().and_then(RegistryAuth::basic_header);
            {
                let mut query = realm_url.query_pairs_mut();
                if let Some(service) = service {
                    query.append_pair("service", service);
                }
                let scope = self.scope();
                if !scope.is_empty() {
                    query.append_pair("scope", &scope);
                }
                if let (Some(auth), Some(_)) = (&self.auth, &basic) {
                    query.append_pair("account", &auth.username);
                }
            }
            let request = self.endpoint.client.request(Method::GET, realm_url.clone());
            match basic {
                Some(basic) => request.header(header::AUTHORIZATION, basic),
                None => request,
            }
        };
        let response = request
            .send()
            .await
            .map_err(|source| RegistryError::Connection {
                url: realm_url.origin().ascii_serialization(),
                source: source.without_url(),
            })?;
        if !response.status().is_success() {
            return Err(self
                .refusal(response, |cause, _| RegistryError::Denied {
                    repository: self.familiar.clone(),
                    cause,
                })
                .await);
        }
        let body = read_body(response, &realm_url, MANIFEST_MAX).await?;
        let no_token = || RegistryError::NoToken {
            url: url.to_string(),
        };
        let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| no_token())?;
        let token = answer.header().ok_or_else(no_token)?;
        Ok((answer, token))
    }

    async fn blob_refusal(&self, response: Response, url: &Url, digest: &Digest) -> RegistryError {
        let (url, digest) = (url.to_string(), digest.clone());
        self.refusal(response, |_, _| RegistryError::BlobUnknown { url, digest })
            .await
    }

    /// Turns a refusal into an error; `not_found` makes that of a 404 of its text and code.
    async fn refusal(
        &self,
        response: Response,
        not_found: impl FnOnce(String, &str) -> RegistryError,
    ) -> RegistryError {
        let status = response.status();
        let url = response.url().clone();
        let shown = format!("{}{}", url.origin().ascii_serialization(), url.path());
        let body = read_body(response, &url, ERROR_BODY_MAX)
            .await
            .unwrap_or_default();
        let body = ErrorBody::parse(&body);
        let fallback = status
            .canonical_reason()
            .unwrap_or("no reason given")
            .to_lowercase();
        let cause = body.text(&fallback);
        match status {
            StatusCode::NOT_FOUND => not_found(cause, body.code()),
            StatusCode::UNAUTHORIZED if self.auth.is_some() => RegistryError::Unauthorized {
                url: shown,
                cause: cause.trim_start_matches("unauthorized: ").to_owned(),
            },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
                repository: self.familiar.clone(),
                cause,
            },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::TooManyRequests { cause },
            status => RegistryError::Status {
                url: shown,
                status,
                cause,
            },
        }
    }
}

fn is_transient(status: StatusCode) -> bool {
    status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

fn starts_at(response: &Response, offset: u64) -> bool {
    let range = response
        .headers()
        .get(header::CONTENT_RANGE)
        .and_then(|v| v.to_str().ok());
    range.is_some_and(|text| text.starts_with(&format!("bytes {offset}-")))
}

async fn read_body(mut response: Response, url: &Url, limit: u64) -> Result<Bytes, RegistryError> {
    let mut body = bytes::BytesMut::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Ok(body.freeze()),
            Err(source) => {
                let (url, source) = (url.to_string(), source.without_url());
                return Err(RegistryError::Connection { url, source });
            }
        }
        if body.len() as u64 > limit {
            return Err(RegistryError::TooLarge {
                url: url.to_string(),
                limit,
            });
        }
    }
}

/// Doubles from a quarter of a second, with a quarter of chance, so that many nodes that lost one
/// registry do not come back as one.
async fn backoff(attempt: u32) {
    let base = BACKOFF_FIRST
        .saturating_mul(1 << attempt.min(8))
        .min(BACKOFF_MAX);
    let chance = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.subsec_nanos() % 256);
    tokio::time::sleep(base + base * chance / 1024).await;
}

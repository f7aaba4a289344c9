//! Images of this node.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use shoal_types::Timestamp;
use tokio_util::io::ReaderStream;

use crate::{
    convert,
    engine::{EngineError, ImageDetails, ImageInfo, ImportRequest, Removed, progress},
    server::{
        Engine,
        body::{Json, reader, registry_auth},
        error::{ApiError, ApiResult},
        filters::Filters,
        query::Query,
        routes::now,
        stream,
    },
    wire,
};

const FILTERS: &[&str] = &[
    "before",
    "dangling",
    "label",
    "label!",
    "reference",
    "since",
    "until",
];

pub(crate) async fn list(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<Vec<wire::ImageSummary>>> {
    let filters = query.filters(FILTERS)?;
    let until = filters.until(now())?;
    let (before, since) = (
        made(&engine, &filters, "before").await?,
        made(&engine, &filters, "since").await?,
    );
    let dangling = filters.flag("dangling")?;
    let mut images = engine.local.images().await?;
    images.retain_mut(|image| {
        let is_in_time = until.is_none_or(|until| image.created <= until)
            && before.is_none_or(|other| image.created < other)
            && since.is_none_or(|other| image.created > other);
        is_in_time
            && dangling.is_none_or(|wanted| wanted == image.repo_tags.is_empty())
            && filters.labels("label", &image.labels)
            && !filters.spares("label!", &image.labels)
            && keep_references(&filters, image)
    });
    // Newest first, as Docker's client prints them.
    images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
    Ok(Json(images.into_iter().map(summary).collect()))
}

/// When the image was made that `key` names.
async fn made(engine: &Engine, filters: &Filters, key: &str) -> ApiResult<Option<Timestamp>> {
    match filters.get(key) {
        [] => Ok(None),
        [image] => Ok(Some(engine.local.image(image).await?.info.created)),
        [..] => Err(ApiError::bad_request(format!("invalid filter '{key}'"))),
    }
}

/// Keeps the names that are asked for, by shell patterns on the familiar name with its tag or digest or without:
/// `nginx`, `nginx:1.*`, `*/app:latest`. False when none is left.
fn keep_references(filters: &Filters, image: &mut ImageInfo) -> bool {
    let is_wanted = |reference: &String| {
        filters.any("reference", |pattern| {
            let familiar = familiar(reference);
            let end = familiar.find('@').or_else(|| familiar.rfind(':'));
            let name = end.map_or(familiar, |end| &familiar[..end]);
            glob(pattern.as_bytes(), familiar.as_bytes())
                || glob(pattern.as_bytes(), name.as_bytes())
        })
    };
    let had_none = image.repo_tags.is_empty() && image.repo_digests.is_empty();
    image.repo_tags.retain(is_wanted);
    image.repo_digests.retain(is_wanted);
    let has_none = image.repo_tags.is_empty() && image.repo_digests.is_empty();
    // An image without names is there when names are not asked for.
    !has_none || had_none && filters.any("reference", |_| false)
}

/// `*` and `?`, neither of which matches a slash (Go's `path.Match`).
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            glob(rest, text)
                || text
                    .split_first()
                    .is_some_and(|(c, tail)| *c != b'/' && glob(pattern, tail))
        }
        (Some((b'?', rest)), Some((c, tail))) => *c != b'/' && glob(rest, tail),
        (Some((p, rest)), Some((c, tail))) => p == c && glob(rest, tail),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

pub(crate) fn summary(image: ImageInfo) -> wire::ImageSummary {
    wire::ImageSummary {
        containers: image.containers,
        created: image.created.0.div_euclid(1_000_000_000),
        id: image.id,
        labels: Some(image.labels).filter(|labels| !labels.is_empty()),
        parent_id: String::new(),
        repo_digests: image.repo_digests,
        repo_tags: image.repo_tags,
        shared_size: -1,
        size: i64::try_from(image.size).unwrap_or(i64::MAX),
    }
}

/// What a path below `/images` asks for: the name has slashes of its own.
fn split<'a>(path: &'a str, actions: &[&'static str]) -> ApiResult<(&'a str, &'static str)> {
    let found = actions.iter().find_map(|action| {
        let name = path.strip_suffix(action)?.strip_suffix('/')?;
        (!name.is_empty()).then_some((name, *action))
    });
    found.ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "page not found"))
}

pub(crate) async fn get(
    State(engine): State<Engine>,
    Path(path): Path<String>,
) -> ApiResult<Response> {
    let (name, action) = split(&path, &["json", "history", "get"])?;
    match action {
        "json" => Ok(Json(inspect(engine.local.image(name).await?)).into_response()),
        "history" => Ok(Json(history(engine.local.image(name).await?)).into_response()),
        _ => save(&engine, &[name.to_owned()]).await,
    }
}

fn inspect(image: ImageDetails) -> wire::ImageInspect {
    let ImageDetails { info, settings, .. } = image;
    let some = |list: Vec<String>| Some(list).filter(|l| !l.is_empty());
    let set = |list: Vec<String>| -> BTreeMap<String, wire::Empty> {
        list.into_iter()
            .map(|item| (item, wire::Empty::default()))
            .collect()
    };
    wire::ImageInspect {
        id: info.id,
        repo_tags: info.repo_tags,
        repo_digests: info.repo_digests,
        comment: image.comment,
        created: info.created.into(),
        author: image.author,
        config: wire::ImageConfig {
            user: settings.user,
            exposed_ports: set(settings.exposed_ports),
            env: Some(settings.env),
            cmd: some(settings.cmd),
            healthcheck: settings.health.as_ref().map(convert::health_check),
            volumes: Some(set(settings.volumes)).filter(|v| !v.is_empty()),
            working_dir: settings.working_dir,
            entrypoint: some(settings.entrypoint),
            on_build: some(settings.on_build),
            labels: Some(info.labels).filter(|l| !l.is_empty()),
            stop_signal: settings.stop_signal,
            shell: settings.shell,
            ..wire::ImageConfig::default()
        },
        architecture: image.architecture,
        variant: image.variant,
        os: image.os,
        size: i64::try_from(info.size).unwrap_or(i64::MAX),
        graph_driver: wire::DriverData {
            data: None,
            name: "overlay2".to_owned(),
        },
        root_fs: wire::RootFs {
            kind: "layers".to_owned(),
            layers: image.layers,
        },
        ..wire::ImageInspect::default()
    }
}

/// Newest first; only the newest step has an id, since the others are no images of their own.
fn history(image: ImageDetails) -> Vec<wire::History> {
    let tags = image.info.repo_tags;
    let newest = wire::History {
        id: image.info.id,
        tags: Some(tags).filter(|t| !t.is_empty()),
        ..wire::History::default()
    };
    let unnamed = wire::History {
        id: "<missing>".to_owned(),
        ..wire::History::default()
    };
    let heads = std::iter::once(newest).chain(std::iter::repeat(unnamed));
    let steps = image.history.into_iter().rev();
    let steps = steps.zip(heads).map(|(item, head)| wire::History {
        comment: item.comment,
        created: item.created.0.div_euclid(1_000_000_000),
        created_by: item.created_by,
        size: i64::try_from(item.size).unwrap_or(i64::MAX),
        ..head
    });
    steps.collect()
}

pub(crate) async fn post(
    State(engine): State<Engine>,
    Path(path): Path<String>,
    query: Query,
) -> ApiResult<StatusCode> {
    let (name, action) = split(&path, &["tag", "push"])?;
    if action == "push" {
        return Err(ApiError::not_yet("pushing images"));
    }
    let (repository, tag) = (query.text("repo"), query.text("tag"));
    let target = with_tag(repository, tag);
    let well_formed = convert::image_reference(&target).is_ok() && !target.contains('@');
    if repository.is_empty() || !well_formed {
        return Err(ApiError::bad_request(format!(
            "invalid reference format: {target:?}"
        )));
    }
    engine.local.tag_image(name, &target).await?;
    let id = engine.local.image(&target).await?.info.id;
    let attributes = [("name", familiar(&target))];
    engine.journal.note("image", "tag", &id, attributes);
    Ok(StatusCode::CREATED)
}

/// `repository:tag`, unless the repository brings its own tag or digest.
fn with_tag(repository: &str, tag: &str) -> String {
    let last = repository
        .rfind('/')
        .map_or(repository, |slash| &repository[slash + 1..]);
    match tag {
        "" if last.contains(':') || repository.contains('@') => repository.to_owned(),
        "" => format!("{repository}:latest"),
        tag if tag.contains(':') => format!("{repository}@{tag}"),
        tag => format!("{repository}:{tag}"),
    }
}

pub(crate) async fn remove(
    State(engine): State<Engine>,
    Path(name): Path<String>,
    query: Query,
) -> ApiResult<Json<Vec<wire::DeleteItem>>> {
    if query.has("platforms") {
        return Err(ApiError::not_yet("removing single platforms of an image"));
    }
    let id = engine.local.image(&name).await?.info.id;
    let removed = engine
        .local
        .remove_image(&name, query.flag("force"))
        .await?;
    note_removed(&engine, &id, &removed);
    Ok(Json(removed.into_iter().map(deleted_item).collect()))
}

fn deleted_item(removed: Removed) -> wire::DeleteItem {
    match removed {
        Removed::Untagged(untagged) => wire::DeleteItem {
            untagged,
            deleted: String::new(),
        },
        Removed::Deleted(deleted) => wire::DeleteItem {
            deleted,
            untagged: String::new(),
        },
    }
}

fn note_removed(engine: &Engine, id: &str, removed: &[Removed]) {
    for step in removed {
        let action = match step {
            Removed::Untagged(_) => "untag",
            Removed::Deleted(deleted) if deleted == id => "delete",
            Removed::Deleted(_) => continue,
        };
        engine.journal.note("image", action, id, [("name", id)]);
    }
}

/// The name as people write it.
fn familiar(reference: &str) -> &str {
    reference
        .strip_prefix("docker.io/library/")
        .or_else(|| reference.strip_prefix("docker.io/"))
        .unwrap_or(reference)
}

/// Pull or import.
pub(crate) async fn create(
    State(engine): State<Engine>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> ApiResult<Response> {
    match (query.text("fromImage"), query.text("fromSrc")) {
        ("", "") => Err(ApiError::bad_request("fromImage or fromSrc must be given")),
        ("", "-") => import(engine, &query, body).await,
        ("", _) => Err(ApiError::not_yet("importing from a URL (fromSrc)")),
        (image, _) => pull(engine, image, &query, &headers).await,
    }
}

async fn pull(
    engine: Engine,
    image: &str,
    query: &Query,
    headers: &HeaderMap,
) -> ApiResult<Response> {
    let reference = with_tag(image, query.text("tag"));
    convert::image_reference(&reference)
        .map_err(|_| ApiError::bad_request(format!("invalid reference format: {reference:?}")))?;
    let auth = registry_auth(headers);
    let platform = query.text("platform").to_owned();
    let (sink, lines) = progress();
    let work = async move {
        let platform = Some(platform.as_str()).filter(|p| !p.is_empty());
        engine
            .local
            .pull_image(&reference, auth.as_deref(), platform, sink)
            .await?;
        let familiar = familiar(&reference);
        let end = familiar.find('@').or_else(|| familiar.rfind(':'));
        let name = end.map_or(familiar, |end| &familiar[..end]);
        engine
            .journal
            .note("image", "pull", familiar, [("name", name)]);
        Ok(Vec::new())
    };
    stream::with_progress(lines, work).await
}

async fn import(engine: Engine, query: &Query, body: Body) -> ApiResult<Response> {
    let repository = query.text("repo");
    let reference = if repository.is_empty() {
        String::new()
    } else {
        with_tag(repository, query.text("tag"))
    };
    if !reference.is_empty() && convert::image_reference(&reference).is_err() {
        return Err(ApiError::bad_request(format!(
            "invalid reference format: {reference:?}"
        )));
    }
    let request = ImportRequest {
        reference,
        message: query.text("message").to_owned(),
        changes: query.all("changes").map(str::to_owned).collect(),
        platform: query.text("platform").to_owned(),
    };
    let (sink, lines) = progress();
    let archive = reader(body);
    let work = async move {
        let id = engine.local.import_image(archive, request, sink).await?;
        engine
            .journal
            .note("image", "import", &id, [("name", &*id)]);
        Ok(vec![wire::Progress {
            status: id,
            ..wire::Progress::default()
        }])
    };
    stream::with_progress(lines, work).await
}

pub(crate) async fn load(
    State(engine): State<Engine>,
    query: Query,
    body: Body,
) -> ApiResult<Response> {
    if query.has("platform") {
        return Err(ApiError::not_yet("loading one platform of an archive"));
    }
    let (sink, lines) = progress();
    // As in Docker silence is the default, and lines that nobody wants go nowhere.
    let lines = if query.has("quiet") && !query.flag("quiet") {
        lines
    } else {
        progress().1
    };
    let archive = reader(body);
    let work = async move {
        let loaded = engine.local.load_images(archive, sink).await?;
        for name in &loaded {
            if let Ok(image) = engine.local.image(name).await {
                let id = &*image.info.id;
                engine.journal.note("image", "load", id, [("name", id)]);
            }
        }
        let line = |name: String| {
            let what = if name.starts_with("sha256:") {
                "Loaded image ID"
            } else {
                "Loaded image"
            };
            wire::Progress {
                stream: format!("{what}: {name}\n"),
                ..wire::Progress::default()
            }
        };
        Ok(loaded.into_iter().map(line).collect())
    };
    stream::with_progress(lines, work).await
}

pub(crate) async fn save_many(State(engine): State<Engine>, query: Query) -> ApiResult<Response> {
    let names: Vec<String> = query.all("names").map(str::to_owned).collect();
    if names.is_empty() {
        return Err(ApiError::bad_request("no image was named (names)"));
    }
    save(&engine, &names).await
}

async fn save(engine: &Engine, names: &[String]) -> ApiResult<Response> {
    let archive = engine.local.save_images(names).await?;
    for name in names {
        let id = engine.local.image(name).await?.info.id;
        engine.journal.note("image", "save", &id, [("name", &*id)]);
    }
    // An error in the middle cuts the connection, so that no client takes a half archive for a whole one.
    let mut response = Response::new(Body::from_stream(ReaderStream::with_capacity(
        archive,
        64 << 10,
    )));
    let kind = http::HeaderValue::from_static("application/x-tar");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    Ok(response)
}

pub(crate) async fn distribution(
    State(engine): State<Engine>,
    Path(path): Path<String>,
    headers: HeaderMap,
) -> ApiResult<Json<wire::Distribution>> {
    let (name, _) = split(&path, &["json"])?;
    convert::image_reference(name)
        .map_err(|_| ApiError::bad_request(format!("invalid reference format: {name:?}")))?;
    let auth = registry_auth(&headers);
    let found = engine.local.distribution(name, auth.as_deref()).await?;
    let platforms = found.platforms.into_iter().map(|p| wire::OciPlatform {
        architecture: p.architecture,
        os: p.os,
        variant: p.variant,
        ..wire::OciPlatform::default()
    });
    Ok(Json(wire::Distribution {
        descriptor: wire::Descriptor {
            media_type: found.media_type,
            digest: found.digest,
            size: i64::try_from(found.size).unwrap_or(i64::MAX),
        },
        platforms: Some(platforms.collect()),
    }))
}

/// Removes images that no container has: those without a name, with `dangling=false` all of them.
pub(crate) async fn prune(
    State(engine): State<Engine>,
    query: Query,
) -> ApiResult<Json<wire::ImagesPruned>> {
    let filters = query.filters(&["dangling", "label", "label!", "until"])?;
    let until = filters.until(now())?;
    let dangling = filters.flag("dangling")?.unwrap_or(true);
    let mut pruned = wire::ImagesPruned::default();
    for image in engine.local.images().await? {
        let is_dangling = image.repo_tags.is_empty() && image.repo_digests.is_empty();
        if image.containers != 0
            || dangling && !is_dangling
            || !filters.labels("label", &image.labels)
            || filters.spares("label!", &image.labels)
            || until.is_some_and(|until| image.created > until)
        {
            continue;
        }
        // By its names one after another, so that nothing has to be forced; the last one takes the image along.
        let mut names = [image.repo_tags, image.repo_digests].concat();
        if names.is_empty() {
            names.push(image.id.clone());
        }
        for name in names {
            match engine.local.remove_image(&name, false).await {
                Ok(removed) => {
                    note_removed(&engine, &image.id, &removed);
                    let is_gone = |step: &Removed| *step == Removed::Deleted(image.id.clone());
                    if removed.iter().any(is_gone) {
                        pruned.reclaimed += image.size;
                    }
                    let deleted = pruned.deleted.get_or_insert_default();
                    deleted.extend(removed.into_iter().map(deleted_item));
                }
                // Gone with another name, or a container has come meanwhile.
                Err(EngineError::NotFound { .. } | EngineError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(Json(pruned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slashes_are_told_from_what_is_asked_of_them() {
        assert_eq!(split("a/b:1/json", &["json"]).unwrap(), ("a/b:1", "json"));
        assert_eq!(split("json/json", &["json"]).unwrap(), ("json", "json"));
        assert!(split("json", &["json"]).is_err());
        assert!(split("a/b", &["json"]).is_err());
        assert_eq!(with_tag("h:5000/a", ""), "h:5000/a:latest");
        assert_eq!(with_tag("h:5000/a:1", ""), "h:5000/a:1");
        assert_eq!(with_tag("a", "sha256:00"), "a@sha256:00");
    }

    #[test]
    fn patterns_do_not_cross_slashes() {
        assert!(glob(b"ngi*:1.?", b"nginx:1.2"));
        assert!(!glob(b"*", b"a/b") && glob(b"*/b", b"a/b"));
        assert!(!glob(b"nginx", b"nginx:1"));
    }
}

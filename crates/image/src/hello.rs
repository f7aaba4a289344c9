//! The built-in image `shoal/hello`: a web server that says who answered, so that everything can
//! be tried on a machine without a registry. The program is in `hello/main.rs`.
//!
//! The store is the registry of this repository: none on the network is ever asked for it, so nobody
//! else can put an image in its place. The digest it goes by is the image's id.

use std::{fs::File, io::Write as _, sync::Arc};

use serde_json::json;

use crate::{
    catalog::Descriptor,
    digest::Digest,
    image::Image,
    import::{ImportError, document, import_archive},
    reference::Reference,
    registry::{DistributionInfo, Platform, RegistryError},
    store::{ImageStore, Inner},
};

/// The name of the built-in image.
pub const HELLO_REFERENCE: &str = "shoal/hello:latest";

/// The same without its tag.
const REPOSITORY: &str = "docker.io/shoal/hello";

/// Built by `build.rs`: static, so that it runs in an otherwise empty root.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));
/// Marks the image as ours to replace when a new release brings another program.
const LABEL: &str = "shoal.builtin";
/// A fixed date: the same program gives the same image on every node.
const CREATED: &str = "2026-01-01T00:00:00Z";
const MTIME: u64 = 1_767_225_600;

/// Whether the store answers for `reference` itself.
pub(crate) fn serves(reference: &Reference) -> bool {
    reference.name() == REPOSITORY
}

/// The image that `reference`, which the store answers for, names; made again if it was removed.
pub(crate) async fn pull(
    store: &ImageStore,
    reference: &Reference,
) -> Result<Arc<Image>, RegistryError> {
    let name = reference.familiar();
    if let Ok(image) = store.get(&name) {
        return Ok(image);
    }
    let made = store.blocking(ensure).await;
    made.map_err(|source| RegistryError::Builtin(Box::new(source)))?;
    store
        .get(&name)
        .map_err(|_| RegistryError::ManifestUnknown {
            reference: name.clone(),
            cause: "manifest unknown".to_owned(),
        })
}

/// What a registry would say of `reference`. There is no manifest: the description is that of the
/// image's configuration.
pub(crate) async fn resolve(
    store: &ImageStore,
    reference: &Reference,
) -> Result<DistributionInfo, RegistryError> {
    let image = pull(store, reference).await?;
    let document = &image.config;
    let platform = Platform {
        architecture: document.architecture().to_string(),
        os: document.os().to_string(),
        os_version: document.os_version().clone(),
        variant: document.variant().clone(),
    };
    Ok(DistributionInfo {
        descriptor: Descriptor {
            media_type: "application/vnd.oci.image.config.v1+json".to_owned(),
            digest: image.id.0.clone(),
            size: document.raw().len() as u64,
        },
        platforms: vec![platform],
    })
}

/// Makes the image unless it is there. A user's own image of that name is left alone. Blocks.
pub(crate) fn ensure(inner: &Arc<Inner>) -> Result<(), ImportError> {
    let reference = Reference::parse(HELLO_REFERENCE)?;
    let key = reference.tag_key().expect("the reference has a tag");
    let config = config();
    let archive = archive().map_err(|source| ImportError::Io {
        action: "build archive",
        source,
    })?;
    let expected = document(&config, CREATED, "built into shoal", &Digest::of(&archive));
    let id = crate::ImageId(Digest::of(&expected));

    let catalog = inner.catalog();
    if let Some(current) = catalog.tag(&key) {
        let is_builtin = catalog.image(current).is_some_and(|image| {
            image
                .config
                .labels_of_config()
                .is_some_and(|labels| labels.contains_key(LABEL))
        });
        if *current == id || !is_builtin {
            return Ok(());
        }
    }
    let spooled = inner.blobs.temporary_path("hello");
    File::create_new(spooled.path())
        .and_then(|mut file| file.write_all(&archive))
        .map_err(|source| ImportError::Io {
            action: "write archive",
            source,
        })?;
    import_archive(inner, spooled, Some(key), |_| expected)?;
    Ok(())
}

fn config() -> serde_json::Map<String, serde_json::Value> {
    let config = json!({
        "Entrypoint": ["/hello"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {LABEL: "hello"},
        "StopSignal": "SIGTERM",
        "WorkingDir": "/",
    });
    match config {
        serde_json::Value::Object(map) => map,
        _ => unreachable!("written as an object above"),
    }
}

fn archive() -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind, mode, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(MTIME);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, path, data)
    };
    let (directory, file) = (tar::EntryType::Directory, tar::EntryType::Regular);
    add("etc/", directory, 0o755, b"")?;
    let passwd = b"root:x:0:0:root:/:/hello\nnobody:x:65534:65534:nobody:/:/hello\n";
    add("etc/passwd", file, 0o644, passwd)?;
    add("etc/group", file, 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    add("tmp/", directory, 0o1777, b"")?;
    add("hello", file, 0o755, PROGRAM)?;
    tar.into_inner()
}

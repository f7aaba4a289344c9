//! Archives, stores and images for the tests of this crate.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    io::{Cursor, Write as _},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use serde_json::json;
use shoal_image::{
    Digest, Image, ImageConfig, ImageStore, LoadError, Loaded, Progress, ProgressSink,
};
use tempfile::TempDir;

/// A store in a directory that goes with it. Needs root, for owners and devices.
pub(crate) struct TestStore {
    pub(crate) store: ImageStore,
    pub(crate) dir: TempDir,
}

impl TestStore {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut ImageConfig)) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "run as root: sudo -E cargo test -p shoal-image"
        );
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        change(&mut config);
        let store = ImageStore::open(config).await.unwrap();
        Self { store, dir }
    }

    pub(crate) fn layer(&self, image: &Image, from_top: usize) -> PathBuf {
        self.store.layers_dir().join(&image.lower[from_top])
    }

    pub(crate) fn count(&self, folder: &str) -> usize {
        std::fs::read_dir(self.dir.path().join(folder))
            .unwrap()
            .count()
    }

    /// Nothing unfinished lies about.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.count("tmp"), 0, "tmp is empty");
    }

    pub(crate) async fn load(&self, archive: Vec<u8>) -> Result<Vec<Loaded>, LoadError> {
        self.store
            .load(Cursor::new(archive), ProgressSink::none())
            .await
    }
}

pub(crate) fn config(root: &Path) -> ImageConfig {
    let mut config = ImageConfig::new(root);
    // The tests do not pull the plug, and the disk is shared.
    config.sync_layers = false;
    config.registry.certs_dir = None;
    config
}

/// Writes tar archives, false ones too.
#[derive(Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn header(kind: u8, path: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[156] = kind;
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(size);
        header
    }

    pub(crate) fn raw(mut self, mut header: tar::Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.raw(Self::header(b'0', path, data.len() as u64), data)
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        let mut header = Self::header(b'5', path, 0);
        header.set_mode(0o755);
        self.raw(header, b"")
    }

    pub(crate) fn link(self, kind: u8, path: &str, target: &str) -> Self {
        let mut header = Self::header(kind, path, 0);
        header.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.link(b'2', path, target)
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.link(b'1', path, target)
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let mut length = key.len() + value.len() + 3;
            while length != key.len() + value.len() + 3 + length.to_string().len() {
                length = key.len() + value.len() + 3 + length.to_string().len();
            }
            write!(data, "{length} {key}=").unwrap();
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(Self::header(b'x', "pax", data.len() as u64), &data)
    }

    pub(crate) fn done(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(data).unwrap();
    out.finish().unwrap()
}

/// An image configuration for layers given as plain archives.
pub(crate) fn image_config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer).to_string())
        .collect();
    serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2026-02-03T04:05:06Z",
        "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"], "Volumes": null},
        "history": layers.iter().map(|_| json!({"created_by": "test"})).collect::<Vec<_>>(),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap()
}

/// What `docker save` wrote up to version 24.
pub(crate) fn docker_archive(config: &[u8], layers: &[Vec<u8>], tags: &[&str]) -> Vec<u8> {
    let config_name = format!("{}.json", Digest::of(config).hex());
    let names: Vec<String> = (0..layers.len())
        .map(|n| format!("layer{n}/layer.tar"))
        .collect();
    let manifest = json!([{"Config": config_name, "RepoTags": tags, "Layers": names}]);
    let mut tar = Tar::new();
    for (name, layer) in names.iter().zip(layers) {
        tar = tar.file(name, layer);
    }
    // The name of a configuration is longer than the short form of a path allows with `file`.
    tar.file(&config_name, config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .done()
}

/// One image of plain layers as an archive, loaded.
pub(crate) async fn load_layers(
    store: &TestStore,
    layers: &[Vec<u8>],
    tag: &str,
) -> Result<Arc<Image>, LoadError> {
    let plain: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let archive = docker_archive(&image_config(&plain), layers, &[tag]);
    store.load(archive).await?;
    Ok(store.store.get(tag).unwrap())
}

/// Everything below a directory, one line each, for comparing.
pub(crate) fn listing(root: &Path) -> BTreeMap<String, String> {
    fn walk(root: &Path, at: &Path, out: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let text = if kind.is_symlink() {
                format!("link {}", std::fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                format!("dir {:o}", meta.mode() & 0o7777)
            } else if kind.is_char_device() {
                format!("char {}", meta.rdev())
            } else if kind.is_fifo() {
                "fifo".to_owned()
            } else if kind.is_file() {
                format!(
                    "file {}",
                    String::from_utf8_lossy(&std::fs::read(&path).unwrap())
                )
            } else {
                "other".to_owned()
            };
            out.insert(path.strip_prefix(root).unwrap().display().to_string(), text);
            if kind.is_dir() {
                walk(root, &path, out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, root, &mut out);
    out
}

/// A sink that remembers.
pub(crate) fn recorder() -> (ProgressSink, Arc<Mutex<Vec<Progress>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let lines = Arc::clone(&lines);
        ProgressSink::new(move |line| lines.lock().unwrap().push(line))
    };
    (sink, lines)
}

pub(crate) fn statuses(lines: &Mutex<Vec<Progress>>) -> Vec<String> {
    lines
        .lock()
        .unwrap()
        .iter()
        .map(|line| line.status.clone())
        .collect()
}

/// The error and all its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = format!("{text}: {source}");
        next = source.source();
    }
    text
}

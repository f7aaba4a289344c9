//! Debian's `docker-registry`, on the loopback of a host under test.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{Host, docker_archive, network::inside, wait_for};

/// Where it listens.
pub const REGISTRY: &str = "127.0.0.1:5000";
/// `diver:open sesame`, and bcrypt(3)'s hash of the password.
const CREDENTIALS: &str = "diver:open sesame";
const MANIFEST: &str = "Content-Type: application/vnd.oci.image.manifest.v1+json";
const HTPASSWD: &str = "diver:$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW\n";

/// A registry in a host's network; ended when dropped.
#[derive(Debug)]
pub struct Registry {
    netns: String,
    dir: PathBuf,
    child: Child,
    auth: bool,
}

impl Registry {
    /// Starts one; with `auth`, it wants the password of `diver`.
    #[track_caller]
    pub fn start(host: &Host, auth: bool) -> Self {
        let mut config = json!({
            "version": "0.1",
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": host.path("registry") } },
            "http": { "addr": REGISTRY },
        });
        if auth {
            fs::write(host.path("htpasswd"), HTPASSWD).expect("the registry's files and answers");
            config["auth"] =
                json!({ "htpasswd": { "realm": "reef", "path": host.path("htpasswd") } });
        }
        // YAML takes JSON.
        fs::write(host.path("registry.yml"), config.to_string())
            .expect("the registry's files and answers");
        let mut command = host.in_network("docker-registry");
        command
            .args(["serve", &host.path("registry.yml")])
            .stdin(Stdio::null());
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the registry's files and answers");
        let registry = Self {
            netns: host.netns().to_owned(),
            dir: host.dir().to_owned(),
            child,
            auth,
        };
        wait_for(
            "the registry to answer",
            || registry.curl(&["--fail", &Self::url("")]).status.success(),
            |answers| *answers,
        );
        registry
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn url(rest: &str) -> String {
        format!("http://{REGISTRY}/v2/{rest}")
    }

    fn curl(&self, args: &[&str]) -> std::process::Output {
        let mut command: Command = inside(&self.netns, "curl");
        command.args(["-sS", "--max-time", "20"]);
        if self.auth {
            command.args(["--user", CREDENTIALS]);
        }
        command
            .args(args)
            .output()
            .expect("the registry's files and answers")
    }

    #[track_caller]
    fn send(&self, args: &[&str]) -> String {
        let output = self.curl(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("the registry's files and answers")
    }

    /// Uploads a blob; its descriptor.
    fn push_blob(&self, repository: &str, kind: &str, file: &str) -> Value {
        let sum = Command::new("sha256sum")
            .arg(file)
            .output()
            .expect("the registry's files and answers");
        let sum = String::from_utf8(sum.stdout).expect("the registry's files and answers");
        let digest = format!(
            "sha256:{}",
            sum.split_whitespace()
                .next()
                .expect("the registry's files and answers")
        );
        let begin = Self::url(&format!("{repository}/blobs/uploads/"));
        let location = self.send(&[
            "--fail",
            "-X",
            "POST",
            "-o",
            "/dev/null",
            "-w",
            "%header{location}",
            &begin,
        ]);
        let separator = if location.contains('?') { '&' } else { '?' };
        let put = format!("{location}{separator}digest={digest}");
        let kind_header = "Content-Type: application/octet-stream";
        self.send(&[
            "--fail",
            "-X",
            "PUT",
            "-H",
            kind_header,
            "--data-binary",
            &format!("@{file}"),
            &put,
        ]);
        json!({ "mediaType": kind, "digest": digest, "size": fs::metadata(file).expect("the registry's files and answers").len() })
    }

    /// Pushes a busybox whose `VERSION` is the tag; the digest of its manifest.
    #[track_caller]
    pub fn push(&self, repository: &str, tag: &str) -> String {
        docker_archive(&self.dir, "made:here").expect("the registry's files and answers");
        self.push_layer(repository, tag, "tar", "layer.tar")
    }

    /// The same, its layer packed with zstd.
    #[track_caller]
    pub fn push_zstd(&self, repository: &str, tag: &str) -> String {
        docker_archive(&self.dir, "made:here").expect("the registry's files and answers");
        let packed = Command::new("zstd")
            .args(["-qf", &self.path("save/layer.tar")])
            .status()
            .expect("zstd is missing: tests/run.sh --prepare installs it");
        assert!(packed.success(), "{packed}");
        self.push_layer(repository, tag, "tar+zstd", "layer.tar.zst")
    }

    fn push_layer(&self, repository: &str, tag: &str, packed: &str, layer: &str) -> String {
        let saved = |name: &str| self.path(&format!("save/{name}"));
        let mut config: Value = serde_json::from_slice(
            &fs::read(saved("config.json")).expect("the registry's files and answers"),
        )
        .expect("the registry's files and answers");
        config["config"]["Env"] = json!(["PATH=/bin", format!("VERSION={tag}")]);
        fs::write(saved("config.json"), config.to_string())
            .expect("the registry's files and answers");
        let kind = |of: &str| format!("application/vnd.oci.image.{of}");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind("manifest.v1+json"),
            "config": self.push_blob(repository, &kind("config.v1+json"), &saved("config.json")),
            "layers": [self.push_blob(repository, &kind(&format!("layer.v1.{packed}")), &saved(layer))],
        });
        fs::write(saved("pushed.json"), manifest.to_string())
            .expect("the registry's files and answers");
        self.put_manifest(repository, tag)
    }

    /// The image that was pushed last, of manifest `digest`, as an archive with an OCI layout; its path.
    #[track_caller]
    pub fn oci_archive(&self, digest: &str, name: &str) -> String {
        const WHY: &str = "the archive's files";
        let blobs = self.dir.join("oci/blobs/sha256");
        fs::create_dir_all(&blobs).expect(WHY);
        let manifest = fs::read(self.path("save/pushed.json")).expect(WHY);
        let parsed: Value = serde_json::from_slice(&manifest).expect(WHY);
        let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
        for (descriptor, file) in [
            (&parsed["config"], "config.json"),
            (&parsed["layers"][0], "layer.tar"),
        ] {
            let named = blobs.join(hex(descriptor["digest"].as_str().expect(WHY)));
            fs::copy(self.path(&format!("save/{file}")), named).expect(WHY);
        }
        fs::write(blobs.join(hex(digest)), &manifest).expect(WHY);
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest,
                "size": manifest.len(),
                "annotations": { "io.containerd.image.name": name },
            }],
        });
        fs::write(self.dir.join("oci/index.json"), index.to_string()).expect(WHY);
        let layout = r#"{"imageLayoutVersion":"1.0.0"}"#;
        fs::write(self.dir.join("oci/oci-layout"), layout).expect(WHY);
        let (archive, directory) = (self.path("oci.tar"), self.path("oci"));
        let tar = ["-C", &directory, "-cf", &archive, "."];
        let made = Command::new("tar").args(tar).status().expect(WHY);
        assert!(made.success(), "{made}");
        archive
    }

    /// Gives the image that was pushed last the name `tag`; the digest of its manifest.
    #[track_caller]
    pub fn put_manifest(&self, repository: &str, tag: &str) -> String {
        let body = format!("@{}", self.path("save/pushed.json"));
        let url = Self::url(&format!("{repository}/manifests/{tag}"));
        let format = "%header{docker-content-digest}";
        let put = [
            "--fail",
            "-X",
            "PUT",
            "-H",
            MANIFEST,
            "--data-binary",
            &body,
            "-w",
            format,
        ];
        self.send(&[&put[..], &[&url]].concat())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! Registries for tests: Debian's docker-registry, a scripted one, and a wire that breaks.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener},
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use reqwest::Client;
use serde_json::{Value, json};
use shoal_image::Digest;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// bcrypt of "secret".
const HTPASSWD: &str = "user:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// A running docker-registry; killed with the value.
pub(crate) struct RealRegistry {
    child: Child,
    _dir: tempfile::TempDir,
    pub(crate) host: String,
    pub(crate) base: String,
    pub(crate) auth: bool,
}

impl RealRegistry {
    pub(crate) async fn start(auth: bool, tls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let tls = tls.then(|| {
            let (certificate, key) = certificate(dir.path());
            json!({"certificate": certificate, "key": key})
        });
        Self::start_at("127.0.0.1", auth, tls, dir).await
    }

    /// With docker-registry's settings for TLS, if any.
    pub(crate) async fn start_at(
        address: &str,
        auth: bool,
        tls: Option<Value>,
        dir: tempfile::TempDir,
    ) -> Self {
        let host = format!("{address}:{}", free_port());
        let mut config = json!({
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": dir.path().join("data")}},
            "http": {"addr": host},
        });
        if auth {
            let file = dir.path().join("htpasswd");
            std::fs::write(&file, HTPASSWD).unwrap();
            config["auth"] = json!({"htpasswd": {"realm": "test", "path": file}});
        }
        let scheme = if tls.is_some() { "https" } else { "http" };
        if let Some(tls) = tls {
            config["http"]["tls"] = tls;
        }
        // JSON is YAML.
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config.to_string()).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed (apt install docker-registry)");
        let registry = Self {
            child,
            _dir: dir,
            base: format!("{scheme}://{host}"),
            host: host.clone(),
            auth,
        };
        wait_for("the registry listens", || {
            std::net::TcpStream::connect(&host).is_ok()
        })
        .await;
        registry
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> reqwest::Response {
        let request = if self.auth {
            request.basic_auth("user", Some("secret"))
        } else {
            request
        };
        let response = request.send().await.unwrap();
        assert!(response.status().is_success(), "{response:?}");
        response
    }

    pub(crate) async fn push_blob(&self, repository: &str, data: Vec<u8>) -> Digest {
        let client = client();
        let digest = Digest::of(&data);
        let url = format!("{}/v2/{repository}/blobs/uploads/", self.base);
        let response = self.send(client.post(url)).await;
        let location = response.headers()["location"].to_str().unwrap();
        let mut url = reqwest::Url::parse(&self.base)
            .unwrap()
            .join(location)
            .unwrap();
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        self.send(client.put(url).body(data)).await;
        digest
    }

    pub(crate) async fn push_manifest(
        &self,
        repository: &str,
        tag: &str,
        kind: &str,
        body: &Value,
    ) -> Digest {
        let raw = serde_json::to_vec(body).unwrap();
        let digest = Digest::of(&raw);
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.base);
        self.send(client().put(url).header("content-type", kind).body(raw))
            .await;
        digest
    }

    /// Pushes an image; returns its manifest's digest and length.
    pub(crate) async fn push_image(
        &self,
        repository: &str,
        tag: &str,
        config: &[u8],
        layers: &[Vec<u8>],
    ) -> (Digest, usize) {
        let mut descriptors = Vec::new();
        for layer in layers {
            let digest = self.push_blob(repository, layer.clone()).await;
            descriptors.push(json!({
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                "digest": digest,
                "size": layer.len(),
            }));
        }
        let digest = self.push_blob(repository, config.to_vec()).await;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "digest": digest,
                "size": config.len(),
            },
            "layers": descriptors,
        });
        let length = serde_json::to_vec(&manifest).unwrap().len();
        (
            self.push_manifest(repository, tag, DOCKER_MANIFEST, &manifest)
                .await,
            length,
        )
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Takes this thread, and whatever it starts from now on, to a network of its own where 10.99.0.1 is the
/// machine itself: certificates of loopback are never checked.
pub(crate) fn enter_own_network() -> &'static str {
    let name = format!("shoal-image-{}", std::process::id());
    let ip = |words: &str| {
        let done = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(done.success(), "ip {words}");
    };
    ip(&format!("netns add {name}"));
    let network = std::fs::File::open(format!("/run/netns/{name}")).unwrap();
    // It lives on as long as somebody is in it.
    ip(&format!("netns del {name}"));
    rustix::thread::move_into_link_name_space(
        network.as_fd(),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .unwrap();
    ip("address add 10.99.0.1/32 dev lo");
    ip("link set lo up");
    "10.99.0.1"
}

/// An authority in `dir` and what it has signed: `ca.crt`, `server.crt` and `server.key` for `address`,
/// `client.cert` and `client.key`.
pub(crate) fn authority(dir: &Path, address: &str) {
    let made = |certificate: &str, key: &str, more: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"]);
        command.args([
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-out",
            certificate,
        ]);
        let done = command
            .args(["-keyout", key])
            .args(more)
            .current_dir(dir)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    made("ca.crt", "ca.secret", &["-subj", "/CN=reef authority"]);
    let signed = [
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.secret",
        "-addext",
        "basicConstraints=CA:FALSE",
    ];
    let name = format!("subjectAltName=IP:{address}");
    let server = [&signed[..], &["-subj", "/CN=server", "-addext", &name]].concat();
    made("server.crt", "server.key", &server);
    made(
        "client.cert",
        "client.key",
        &[&signed[..], &["-subj", "/CN=diver"]].concat(),
    );
}

/// A certificate for 127.0.0.1 that nobody knows.
pub(crate) fn certificate(dir: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
    let (certificate, key) = (dir.join("tls.crt"), dir.join("tls.key"));
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
        ])
        .args(["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    (certificate, key)
}

pub(crate) fn client() -> Client {
    // Only the tests' own client looks for a process-wide provider.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

pub(crate) async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("timed out: {what}");
}

/// Passes connections on; the first `cuts` that carry a blob of more than `after` bytes are cut.
pub(crate) struct CuttingProxy {
    pub(crate) host: String,
    pub(crate) cut: Arc<AtomicUsize>,
    pub(crate) ranges: Arc<Mutex<Vec<String>>>,
}

impl CuttingProxy {
    pub(crate) async fn start(target: &str, after: usize, cuts: usize) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let cut = Arc::new(AtomicUsize::new(0));
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let target = target.to_owned();
        let (counter, seen) = (Arc::clone(&cut), Arc::clone(&ranges));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&target).await else {
                    continue;
                };
                let (counter, seen) = (Arc::clone(&counter), Arc::clone(&seen));
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = tokio::spawn(async move {
                        let mut buffer = vec![0; 16 * 1024];
                        while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
                            let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                            for line in text
                                .lines()
                                .filter(|l| l.to_lowercase().starts_with("range:"))
                            {
                                seen.lock().unwrap().push(line.to_owned());
                            }
                            if to_server.write_all(&buffer[..n]).await.is_err() {
                                break;
                            }
                        }
                    });
                    let mut buffer = vec![0; 16 * 1024];
                    let mut passed = 0;
                    while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                        passed += n;
                        if passed > after && counter.load(Ordering::SeqCst) < cuts {
                            counter.fetch_add(1, Ordering::SeqCst);
                            break;
                        }
                        if to_client.write_all(&buffer[..n]).await.is_err() {
                            break;
                        }
                    }
                    up.abort();
                });
            }
        });
        Self { host, cut, ranges }
    }
}

/// What a scripted registry was asked.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// An HTTP server whose answers a test writes; for what the real registry does not do.
pub(crate) struct Scripted {
    pub(crate) host: String,
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
}

impl Scripted {
    pub(crate) async fn start(
        answer: impl Fn(&Asked, SocketAddr) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                tokio::spawn(async move {
                    let (read, mut write) = stream.into_split();
                    let mut lines = tokio::io::BufReader::new(read);
                    let mut first = String::new();
                    if lines.read_line(&mut first).await.unwrap_or(0) == 0 {
                        return;
                    }
                    let mut words = first.split(' ').map(str::to_owned);
                    let (Some(method), Some(target)) = (words.next(), words.next()) else {
                        return;
                    };
                    let mut headers = HashMap::new();
                    loop {
                        let mut line = String::new();
                        if lines.read_line(&mut line).await.unwrap_or(0) == 0 {
                            // Not HTTP: somebody tries TLS.
                            return;
                        }
                        let Some((name, value)) = line.trim().split_once(':') else {
                            break;
                        };
                        headers.insert(name.to_lowercase(), value.trim().to_owned());
                    }
                    let length = headers
                        .get("content-length")
                        .and_then(|n| n.parse().ok())
                        .unwrap_or(0);
                    let mut body = vec![0; length];
                    if lines.read_exact(&mut body).await.is_err() {
                        return;
                    }
                    let body = String::from_utf8_lossy(&body).into_owned();
                    let request = Asked {
                        method,
                        target,
                        headers,
                        body,
                    };
                    log.lock().unwrap().push(request.clone());
                    let answer = answer(&request, address);
                    let mut out = format!(
                        "HTTP/1.1 {} X\r\ncontent-length: {}\r\nconnection: close\r\n",
                        answer.status,
                        answer.body.len()
                    );
                    for (name, value) in answer.headers {
                        out.extend([name.as_str(), ": ", value.as_str(), "\r\n"]);
                    }
                    out.push_str("\r\n");
                    let _ = write.write_all(out.as_bytes()).await;
                    let _ = write.write_all(&answer.body).await;
                });
            }
        });
        Self {
            host: address.to_string(),
            asked,
        }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

/// Reads lines of a child until one holds `text`.
pub(crate) fn read_until(reader: &mut impl std::io::Read, text: &str) -> String {
    let mut lines = BufReader::new(reader);
    let mut line = String::new();
    while !line.contains(text) {
        line.clear();
        assert_ne!(
            lines.read_line(&mut line).unwrap(),
            0,
            "ended before {text:?}"
        );
    }
    line
}

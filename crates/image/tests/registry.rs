//! Pulling: from Debian's docker-registry, and from servers that misbehave.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;
#[path = "common/registry.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod registry;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use common::{Tar, TestStore, chain, gzip, image_config, listing, recorder, statuses};
use registry::{
    Answer, CuttingProxy, DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, RealRegistry, Scripted, authority,
    enter_own_network, wait_for,
};
use serde_json::json;
use shoal_image::{Digest, ProgressSink, PullError, RegistryAuth, RegistryError};

/// Bytes that do not pack, the same for the same seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(length)
    .collect()
}

fn layer(name: &str, length: usize) -> Vec<u8> {
    Tar::new()
        .file(name, &noise(name.len() as u64, length))
        .done()
}

async fn pull(t: &TestStore, name: &str) -> Result<std::sync::Arc<shoal_image::Image>, PullError> {
    t.store.pull(name, None, ProgressSink::none()).await
}

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest() {
    let registry = RealRegistry::start(false, false).await;
    let plain = [layer("one", 2_000_000), layer("second", 10)];
    let config = image_config(&[&plain[0], &plain[1]]);
    let packed = plain.each_ref().map(|layer| gzip(layer));
    let (digest, _) = registry
        .push_image("team/app", "v1", &config, &packed)
        .await;

    let t = TestStore::new().await;
    let name = format!("{}/team/app:v1", registry.host);
    let (sink, lines) = recorder();
    let image = t.store.pull(&name, None, sink).await.unwrap();
    assert_eq!(image.id.0, Digest::of(&config));
    assert_eq!(image.repo_tags, std::slice::from_ref(&name));
    let pinned = format!("{}/team/app@{digest}", registry.host);
    assert_eq!(image.repo_digests, std::slice::from_ref(&pinned));
    assert_eq!(image.lower.len(), 2);
    assert_eq!(
        listing(&t.layer(&image, 0)).into_keys().collect::<Vec<_>>(),
        ["second"]
    );
    assert_eq!(
        listing(&t.layer(&image, 1)).into_keys().collect::<Vec<_>>(),
        ["one"]
    );
    assert_eq!(image.size, 2_000_010);
    t.assert_clean();

    let seen = statuses(&lines);
    assert_eq!(seen[0], "Pulling from team/app");
    for status in [
        "Pulling fs layer",
        "Downloading",
        "Verifying Checksum",
        "Download complete",
        "Extracting",
        "Pull complete",
    ] {
        assert!(seen.iter().any(|line| line == status), "{status}: {seen:?}");
    }
    assert_eq!(seen[seen.len() - 2], format!("Digest: {digest}"));
    assert_eq!(
        seen[seen.len() - 1],
        format!("Status: Downloaded newer image for {name}")
    );
    let download = lines
        .lock()
        .unwrap()
        .iter()
        .rfind(|l| l.status == "Downloading" && l.total > Some(1000))
        .cloned()
        .unwrap();
    assert_eq!(download.current, download.total);
    assert_eq!(download.id.as_deref(), Some(Digest::of(&packed[0]).short()));

    let (sink, lines) = recorder();
    t.store.pull(&name, None, sink).await.unwrap();
    assert_eq!(
        statuses(&lines).last().unwrap(),
        &format!("Status: Image is up to date for {name}")
    );

    let other = TestStore::new().await;
    let image = pull(&other, &pinned).await.unwrap();
    assert_eq!(image.repo_tags, Vec::<String>::new());
    assert_eq!(other.store.get(&pinned).unwrap().id, image.id);

    let info = t.store.resolve_digest(&name, None).await.unwrap();
    assert_eq!(info.descriptor.digest, digest);
    assert_eq!(
        (
            info.platforms[0].os.as_str(),
            info.platforms[0].architecture.as_str()
        ),
        ("linux", "amd64")
    );
}

#[tokio::test]
async fn a_tag_that_moved_is_pulled_anew_and_shares_layers() {
    let registry = RealRegistry::start(false, false).await;
    let base = layer("base", 5000);
    let (top1, top2) = (layer("top", 10), layer("top2", 10));
    let name = format!("{}/app", registry.host);
    let t = TestStore::new().await;
    let hello = t.count("layers");
    registry
        .push_image(
            "app",
            "latest",
            &image_config(&[&base, &top1]),
            &[gzip(&base), gzip(&top1)],
        )
        .await;
    let first = pull(&t, &name).await.unwrap();
    registry
        .push_image(
            "app",
            "latest",
            &image_config(&[&base, &top2]),
            &[gzip(&base), gzip(&top2)],
        )
        .await;
    let (sink, lines) = recorder();
    let second = t.store.pull(&name, None, sink).await.unwrap();
    assert!(statuses(&lines).contains(&"Already exists".to_owned()));
    assert_eq!(first.lower[1], second.lower[1]);
    assert_ne!(first.lower[0], second.lower[0]);
    assert_eq!(t.count("layers"), hello + 3);
    assert_eq!(t.store.get(&name).unwrap().id, second.id);
    assert_eq!(
        t.store.get(first.id.as_str()).unwrap().repo_tags,
        Vec::<String>::new()
    );
}

#[tokio::test]
async fn the_image_for_this_machine_is_chosen_from_lists_and_indexes() {
    let registry = RealRegistry::start(false, false).await;
    let plain = layer("x", 10);
    let config = image_config(&[&plain]);
    let (digest, size) = registry
        .push_image("app", "amd64", &config, &[gzip(&plain)])
        .await;
    let other = layer("other", 10);
    let (foreign, foreign_size) = registry
        .push_image("app", "s390x", &image_config(&[&other]), &[gzip(&other)])
        .await;
    let media = "application/vnd.docker.distribution.manifest.v2+json";
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [
        {"mediaType": media, "digest": foreign, "size": foreign_size, "platform": {"architecture": "s390x", "os": "linux"}},
        {"mediaType": media, "digest": digest, "size": size, "platform": {"architecture": "amd64", "os": "linux"}},
    ]});
    let list_digest = registry
        .push_manifest("app", "list", DOCKER_LIST, &list)
        .await;
    let mut index = list.clone();
    index["mediaType"] = json!(OCI_INDEX);
    registry
        .push_manifest("app", "index", OCI_INDEX, &index)
        .await;

    for tag in ["list", "index"] {
        let t = TestStore::new().await;
        let image = pull(&t, &format!("{}/app:{tag}", registry.host))
            .await
            .unwrap();
        assert_eq!(image.id.0, Digest::of(&config));
    }
    let t = TestStore::new().await;
    let name = format!("{}/app:list", registry.host);
    let image = pull(&t, &name).await.unwrap();
    assert_eq!(
        image.repo_digests,
        [format!("{}/app@{list_digest}", registry.host)]
    );
    let info = t.store.resolve_digest(&name, None).await.unwrap();
    assert_eq!(info.descriptor.digest, list_digest);
    assert_eq!(info.platforms.len(), 2);

    index["manifests"] = json!([index["manifests"][0]]);
    registry
        .push_manifest("app", "foreign", OCI_INDEX, &index)
        .await;
    let text = chain(
        &pull(&t, &format!("{}/app:foreign", registry.host))
            .await
            .unwrap_err(),
    );
    assert!(
        text.contains("no matching manifest for linux/amd64 in the manifest list entries"),
        "{text}"
    );
}

#[tokio::test]
async fn passwords_are_asked_for_and_checked() {
    let registry = RealRegistry::start(true, false).await;
    let plain = layer("x", 10);
    registry
        .push_image("app", "1", &image_config(&[&plain]), &[gzip(&plain)])
        .await;
    let t = TestStore::new().await;
    let name = format!("{}/app:1", registry.host);
    let text = pull(&t, &name).await.unwrap_err().to_string();
    let repository = format!("{}/app", registry.host);
    assert!(text.starts_with(&format!("pull access denied for {repository}, repository does not exist or may require 'docker login'")), "{text}");
    let wrong = Some(RegistryAuth::basic("user", "wrong"));
    let error = t
        .store
        .pull(&name, wrong, ProgressSink::none())
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            PullError::Registry(RegistryError::Unauthorized { .. })
        ),
        "{error}"
    );
    let right = Some(RegistryAuth::basic("user", "secret"));
    t.store
        .pull(&name, right, ProgressSink::none())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_loopback_registry_may_speak_tls_with_any_certificate() {
    let registry = RealRegistry::start(false, true).await;
    let t = TestStore::new().await;
    let error = pull(&t, &format!("{}/none:1", registry.host))
        .await
        .unwrap_err();
    assert!(
        matches!(
            &error,
            PullError::Registry(RegistryError::ManifestUnknown { .. })
        ),
        "{error}"
    );
}

#[tokio::test]
async fn other_registries_need_a_certificate_of_a_known_authority_and_may_ask_for_one() {
    let address = enter_own_network();
    let dir = tempfile::tempdir().unwrap();
    let made = dir.path();
    authority(made, address);
    let mut tls = json!({"certificate": made.join("server.crt"), "key": made.join("server.key")});
    let open = tempfile::tempdir().unwrap();
    let open = RealRegistry::start_at(address, false, Some(tls.clone()), open).await;
    tls["clientcas"] = json!([made.join("ca.crt")]);
    let closed = tempfile::tempdir().unwrap();
    let closed = RealRegistry::start_at(address, false, Some(tls), closed).await;

    let certs = tempfile::tempdir().unwrap();
    let known = certs.path().to_owned();
    let t = TestStore::with(|config| config.registry.certs_dir = Some(known)).await;
    let ask = async |t: &TestStore, registry: &RealRegistry| {
        let error = pull(t, &format!("{}/none:1", registry.host))
            .await
            .unwrap_err();
        let answered = matches!(
            &error,
            PullError::Registry(RegistryError::ManifestUnknown { .. })
        );
        (answered, chain(&error))
    };
    let (answered, error) = ask(&t, &open).await;
    assert!(!answered && error.contains("UnknownIssuer"), "{error}");

    // What is put there counts at once.
    let give = |registry: &RealRegistry, name: &str| {
        let folder = certs.path().join(&registry.host);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::copy(made.join(name), folder.join(name)).unwrap();
    };
    give(&open, "ca.crt");
    let (answered, error) = ask(&t, &open).await;
    assert!(answered, "{error}");

    give(&closed, "ca.crt");
    let (answered, error) = ask(&t, &closed).await;
    assert!(
        !answered && error.contains("alert") && error.contains("Certificate"),
        "{error}"
    );
    give(&closed, "client.cert");
    let (answered, error) = ask(&t, &closed).await;
    assert!(!answered && error.contains("missing key "), "{error}");
    give(&closed, "client.key");
    let (answered, error) = ask(&t, &closed).await;
    assert!(answered, "{error}");

    let insecure = vec!["10.99.0.0/16".to_owned()];
    let t = TestStore::with(|config| config.registry.insecure = insecure).await;
    let (answered, error) = ask(&t, &open).await;
    assert!(answered, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 5)]
async fn layers_are_fetched_three_at_a_time() {
    let plain = ["a", "b", "c", "d", "e", "f"].map(|name| layer(name, 1000));
    let layers: Vec<&[u8]> = plain.iter().map(Vec::as_slice).collect();
    let images = canned_layers(&layers, |plain| zstd::encode_all(plain, 1).unwrap());
    let (at_once, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&most);
    let configuration = Digest::of(&image_config(&layers)).to_string();
    let server = Scripted::start(move |asked, _| {
        if asked.target.contains("/blobs/") && !asked.target.ends_with(&configuration) {
            let now = at_once.fetch_add(1, Ordering::SeqCst) + 1;
            seen.fetch_max(now, Ordering::SeqCst);
            // Nobody is served before three have asked, unless they never do.
            for _ in 0..500 {
                if seen.load(Ordering::SeqCst) >= 3 {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            at_once.fetch_sub(1, Ordering::SeqCst);
        }
        images.answer(&asked.target)
    })
    .await;
    let t = TestStore::new().await;
    let image = pull(&t, &format!("{}/app:1", server.host)).await.unwrap();
    assert_eq!(most.load(Ordering::SeqCst), 3);
    let names: Vec<String> = (0..6)
        .flat_map(|from_top| listing(&t.layer(&image, from_top)).into_keys())
        .collect();
    assert_eq!(names, ["f", "e", "d", "c", "b", "a"]);
}

#[tokio::test]
async fn what_is_not_there_is_told_in_dockers_words() {
    let registry = RealRegistry::start(false, false).await;
    let plain = layer("x", 10);
    registry
        .push_image("app", "1", &image_config(&[&plain]), &[gzip(&plain)])
        .await;
    let t = TestStore::new().await;
    let name = format!("{}/app:2", registry.host);
    let text = pull(&t, &name).await.unwrap_err().to_string();
    assert_eq!(
        text,
        format!("manifest for {name} not found: manifest unknown: manifest unknown")
    );
    let missing = format!("{}/app@{}", registry.host, Digest::of(b"none"));
    assert!(
        pull(&t, &missing)
            .await
            .unwrap_err()
            .to_string()
            .contains("manifest unknown")
    );
    assert!(
        pull(&t, "Bad/Name")
            .await
            .unwrap_err()
            .to_string()
            .contains("lowercase")
    );
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let error = pull(&t, &format!("127.0.0.1:{port}/app:1"))
        .await
        .unwrap_err();
    assert!(
        chain(&error).contains("onnection refused"),
        "{}",
        chain(&error)
    );
    t.assert_clean();
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_not_waited_for() {
    let t = TestStore::new().await;
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = port.local_addr().unwrap();
    drop(port);
    let started = std::time::Instant::now();
    let error = pull(&t, &format!("{host}/app:1")).await.unwrap_err();
    assert!(chain(&error).contains("refused"), "{error:?}");
    // The first pause between two attempts is a quarter of a second, and there are four.
    assert!(started.elapsed() < std::time::Duration::from_secs(1));
    t.assert_clean();
}

#[tokio::test]
async fn an_interrupted_download_is_resumed_where_it_stopped() {
    let registry = RealRegistry::start(false, false).await;
    let plain = layer("large", 3_000_000);
    registry
        .push_image("app", "1", &image_config(&[&plain]), &[gzip(&plain)])
        .await;
    let proxy = CuttingProxy::start(&registry.host, 1_000_000, 2).await;
    let t = TestStore::new().await;
    let image = pull(&t, &format!("{}/app:1", proxy.host)).await.unwrap();
    assert_eq!(
        std::fs::read(t.layer(&image, 0).join("large"))
            .unwrap()
            .len(),
        3_000_000
    );
    assert_eq!(proxy.cut.load(Ordering::SeqCst), 2);
    let ranges = proxy.ranges.lock().unwrap().clone();
    assert_eq!(ranges.len(), 2, "{ranges:?}");
    assert!(
        ranges.iter().all(|range| !range.contains("bytes=0-")),
        "{ranges:?}"
    );
    t.assert_clean();
}

/// The answers of a registry that has one image, by path.
struct Canned {
    answers: HashMap<String, (String, Vec<u8>)>,
    manifest: Digest,
    blob: Digest,
}

fn canned(plain: &[u8]) -> Canned {
    canned_layers(&[plain], gzip)
}

/// An image of these layers, packed so.
fn canned_layers(plain: &[&[u8]], pack: impl Fn(&[u8]) -> Vec<u8>) -> Canned {
    let config = image_config(plain);
    let packed: Vec<Vec<u8>> = plain.iter().map(|plain| pack(plain)).collect();
    let blob = Digest::of(&packed[0]);
    let kind = match packed[0][..] {
        [0x1f, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
        _ => "application/vnd.oci.image.layer.v1.tar+zstd",
    };
    let layers: Vec<_> = packed
        .iter()
        .map(
            |packed| json!({"mediaType": kind, "digest": Digest::of(packed), "size": packed.len()}),
        )
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
        "layers": layers,
    })
    .to_string()
    .into_bytes();
    let digest = Digest::of(&manifest);
    let octets = "application/octet-stream".to_owned();
    let mut answers = HashMap::from([
        (
            "/v2/app/manifests/1".to_owned(),
            (OCI_MANIFEST.to_owned(), manifest.clone()),
        ),
        (
            format!("/v2/app/manifests/{digest}"),
            (OCI_MANIFEST.to_owned(), manifest),
        ),
        (
            format!("/v2/app/blobs/{}", Digest::of(&config)),
            (octets.clone(), config),
        ),
    ]);
    for packed in packed {
        let path = format!("/v2/app/blobs/{}", Digest::of(&packed));
        answers.insert(path, (octets.clone(), packed));
    }
    Canned {
        answers,
        manifest: digest,
        blob,
    }
}

impl Canned {
    fn answer(&self, target: &str) -> Answer {
        match self.answers.get(target) {
            Some((kind, body)) => Answer::new(200, body.clone()).with("content-type", kind),
            None => Answer::new(
                404,
                r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}"#,
            ),
        }
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_for_everything() {
    let images = canned(&layer("x", 1000));
    let server = Scripted::start(move |asked, address| {
        if asked.target.starts_with("/token") {
            return Answer::new(200, r#"{"token":"t0ken","expires_in":300}"#);
        }
        if asked.headers.get("authorization").map(String::as_str) != Some("Bearer t0ken") {
            let challenge = format!(r#"Bearer realm="http://{address}/token",service="test",scope="repository:app:pull""#);
            return Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
                .with("www-authenticate", &challenge);
        }
        images.answer(&asked.target)
    })
    .await;
    let t = TestStore::new().await;
    let name = format!("{}/app:1", server.host);
    let auth = Some(RegistryAuth::basic("me", "pw"));
    t.store
        .pull(&name, auth.clone(), ProgressSink::none())
        .await
        .unwrap();
    t.store
        .pull(&name, auth, ProgressSink::none())
        .await
        .unwrap();
    let tokens: Vec<_> = server
        .asked()
        .into_iter()
        .filter(|asked| asked.target.starts_with("/token"))
        .collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(
        tokens[0].target,
        "/token?service=test&scope=repository%3Aapp%3Apull&account=me"
    );
    assert_eq!(tokens[0].headers["authorization"], "Basic bWU6cHc=");
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let plain = layer("x", 1000);
    let images = canned(&plain);
    let blob = images.blob.clone();
    let storage = {
        let images = canned(&plain);
        Scripted::start(move |asked, _| images.answer(&asked.target)).await
    };
    let storage_host = storage.host.clone();
    let server = Scripted::start(move |asked, _| {
        if !asked.headers.contains_key("authorization") {
            return Answer::new(401, "").with("www-authenticate", "Basic realm=x");
        }
        if asked.target.ends_with(blob.as_str()) {
            return Answer::new(307, "").with(
                "location",
                &format!("http://{storage_host}{}", asked.target),
            );
        }
        images.answer(&asked.target)
    })
    .await;
    let t = TestStore::new().await;
    let auth = Some(RegistryAuth::basic("me", "pw"));
    t.store
        .pull(
            &format!("{}/app:1", server.host),
            auth,
            ProgressSink::none(),
        )
        .await
        .unwrap();
    let asked = storage.asked();
    assert_eq!(asked.len(), 1);
    assert!(!asked[0].headers.contains_key("authorization"), "{asked:?}");
}

#[tokio::test]
async fn content_that_is_not_what_its_digest_says_is_refused() {
    let plain = layer("x", 1000);
    let t = TestStore::new().await;
    let before = (t.count("layers"), t.count("blobs/sha256"));
    // The same length, another content.
    for which in ["blob", "config", "manifest"] {
        let images = canned(&plain);
        let (blob, manifest) = (images.blob.clone(), images.manifest.clone());
        let pinned = manifest.clone();
        let server = Scripted::start(move |asked, _| {
            let mut answer = images.answer(&asked.target);
            let hit = match which {
                "blob" => asked.target.ends_with(blob.as_str()),
                "config" => {
                    asked.target.contains("/blobs/") && !asked.target.ends_with(blob.as_str())
                }
                _ => asked.target.ends_with(manifest.as_str()),
            };
            if hit {
                let last = answer.body.len() - 1;
                answer.body[last] ^= 1;
            }
            answer
        })
        .await;
        let error = pull(&t, &format!("{}/app@{pinned}", server.host))
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("verification failed for digest"),
            "{which}: {error}"
        );
        wait_for("the failed pull is swept", || {
            (t.count("layers"), t.count("blobs/sha256")) == before && t.count("tmp") == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_that_stumbles_is_asked_again_and_a_refusal_is_not() {
    let images = canned(&layer("x", 1000));
    let stumbles = AtomicUsize::new(0);
    let server = Scripted::start(move |asked, _| match asked.target.as_str() {
        "/v2/app/manifests/denied" => Answer::new(403, r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#),
        _ if stumbles.fetch_add(1, Ordering::SeqCst) < 2 => Answer::new(503, "later"),
        target => images.answer(target),
    })
    .await;
    let t = TestStore::new().await;
    pull(&t, &format!("{}/app:1", server.host)).await.unwrap();
    let before = server.asked().len();
    let text = pull(&t, &format!("{}/app:denied", server.host))
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(server.asked().len(), before + 1);
    assert_eq!(
        text,
        format!(
            "pull access denied for {}/app, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
            server.host
        )
    );
    let text = pull(&t, &format!("{}/none:1", server.host))
        .await
        .unwrap_err()
        .to_string();
    assert_eq!(
        text,
        format!(
            "repository {}/none not found: name unknown: repository name not known to registry",
            server.host
        )
    );
}

#[tokio::test]
async fn mirrors_are_asked_before_docker_hub() {
    let mut images = canned(&layer("x", 1000));
    images.answers = images
        .answers
        .into_iter()
        .map(|(path, answer)| (path.replace("/v2/app/", "/v2/library/app/"), answer))
        .collect();
    let mirror = Scripted::start(move |asked, _| images.answer(&asked.target)).await;
    let empty = Scripted::start(|_, _| Answer::new(404, "")).await;
    let mirrors = vec![
        format!("http://{}", empty.host),
        format!("http://{}", mirror.host),
    ];
    let t = TestStore::with(|config| config.registry.mirrors = mirrors).await;
    let auth = Some(RegistryAuth::basic("hub", "secret"));
    let image = t
        .store
        .pull("app:1", auth, ProgressSink::none())
        .await
        .unwrap();
    assert_eq!(image.repo_tags, ["app:1"]);
    assert_eq!(empty.asked().len(), 1);
    assert!(
        mirror
            .asked()
            .iter()
            .all(|asked| !asked.headers.contains_key("authorization"))
    );
}

#[tokio::test]
async fn pulls_at_the_same_time_share_their_work() {
    let plain = layer("x", 2_000_000);
    let images = canned(&plain);
    let blob = images.blob.clone();
    let server = Scripted::start(move |asked, _| images.answer(&asked.target)).await;
    let t = TestStore::new().await;
    let name = format!("{}/app:1", server.host);
    let pulls = (0..8).map(|_| pull(&t, &name));
    let results = futures_util::future::join_all(pulls).await;
    assert!(results.iter().all(Result::is_ok));
    let downloads = server
        .asked()
        .iter()
        .filter(|asked| asked.target.ends_with(blob.as_str()))
        .count();
    assert_eq!(downloads, 1);
    assert_eq!(t.store.list().len(), 2, "the image and the built-in one");
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_leaves_nothing() {
    let registry = RealRegistry::start(false, false).await;
    let plain = layer("large", 3_000_000);
    registry
        .push_image("app", "1", &image_config(&[&plain]), &[gzip(&plain)])
        .await;
    // Cut for ever: the download would retry for seconds.
    let proxy = CuttingProxy::start(&registry.host, 500_000, usize::MAX).await;
    let t = TestStore::new().await;
    let before = (t.count("layers"), t.count("blobs/sha256"));
    let name = format!("{}/app:1", proxy.host);
    let store = t.store.clone();
    let task = tokio::spawn(async move {
        store
            .pull(&name, None, ProgressSink::none())
            .await
            .map(|_| ())
    });
    wait_for("the download is under way", || {
        proxy.cut.load(Ordering::SeqCst) > 0
    })
    .await;
    task.abort();
    wait_for("all is swept", || {
        (t.count("layers"), t.count("blobs/sha256"), t.count("tmp")) == (before.0, before.1, 0)
    })
    .await;
}

#[tokio::test]
async fn all_pages_of_a_repositorys_tags_are_read() {
    let server = Scripted::start(|asked, _| match asked.target.as_str() {
        "/v2/app/tags/list" => Answer::new(200, r#"{"name":"app","tags":["1","2"]}"#)
            .with("link", r#"</v2/app/tags/list?last=2>; rel="next""#),
        "/v2/app/tags/list?last=2" => Answer::new(200, r#"{"name":"app","tags":["3"]}"#).with(
            "link",
            r#"<http://192.0.2.1/v2/app/tags/list?last=3>; rel="next""#,
        ),
        "/v2/empty/tags/list" => Answer::new(200, r#"{"name":"empty","tags":null}"#),
        "/v2/odd/tags/list" => Answer::new(200, "<html>"),
        _ => Answer::new(
            404,
            r#"{"errors":[{"code":"NAME_UNKNOWN","message":"unknown"}]}"#,
        ),
    })
    .await;
    let t = TestStore::new().await;
    let tags = |name: &str| {
        let name = format!("{}/{name}", server.host);
        let store = t.store.clone();
        async move { store.tags(&name, None).await }
    };
    // Another host than the registry is not asked for more.
    assert_eq!(tags("app").await.unwrap(), ["1", "2", "3"]);
    assert!(tags("empty").await.unwrap().is_empty());
    let odd = tags("odd").await.unwrap_err().to_string();
    assert!(odd.ends_with("the answer holds no list of tags"), "{odd}");
    let missing = tags("none").await.unwrap_err().to_string();
    assert!(missing.contains("none not found"), "{missing}");
    assert_eq!(t.store.tags("shoal/hello", None).await.unwrap(), ["latest"]);
}

//! Importing, loading, saving, naming, removing, and coming back after an unclean end.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{io::Cursor, process::Command};

use common::{
    Tar, TestStore, chain, config, docker_archive, gzip, image_config, listing, load_layers,
    recorder, statuses,
};
use serde_json::json;
use shoal_image::{
    Digest, HELLO_REFERENCE, ImageId, ImageStore, Loaded, LookupError, ProgressSink, Removal,
    RemoveError, Removed,
};

fn nobody(_: &ImageId) -> Vec<String> {
    Vec::new()
}

fn text(list: &[&str]) -> Vec<String> {
    list.iter().map(|&item| item.to_owned()).collect()
}

#[tokio::test]
async fn a_root_filesystem_is_imported_with_changes() {
    let busybox = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    let mut program = Tar::header(b'0', "bin/busybox", busybox.len() as u64);
    program.set_mode(0o755);
    let archive = Tar::new()
        .dir("bin")
        .raw(program, &busybox)
        .hardlink("bin/sh", "bin/busybox")
        .dir("etc")
        .done();
    let t = TestStore::new().await;
    let changes = text(&[
        "CMD [\"/bin/sh\"]",
        "ENV A=1",
        "EXPOSE 80",
        "HEALTHCHECK --interval=5s CMD true",
    ]);
    let image = t
        .store
        .import(Cursor::new(archive), Some("busybox"), "", &changes)
        .await
        .unwrap();
    assert_eq!(image.repo_tags, ["busybox:latest"]);
    assert_eq!(image.size, busybox.len() as u64);
    assert_eq!(image.history[0].comment, "Imported from -");
    assert_eq!(
        image.config.docker().healthcheck.as_ref().unwrap().test,
        ["CMD-SHELL", "true"]
    );
    let settings = image.config.oci().config().as_ref().unwrap();
    assert_eq!(settings.cmd().as_ref().unwrap(), &["/bin/sh"]);
    assert!(image.created.is_some());
    // It runs: the layer is a working root.
    let output = Command::new("chroot")
        .arg(t.layer(&image, 0))
        .args(["/bin/busybox", "echo", "hi"])
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"hi\n");
    t.assert_clean();

    let error = t
        .store
        .import(Cursor::new(Vec::new()), Some("A"), "", &[])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("must be lowercase"));
    let bad = text(&["RUN x"]);
    let error = t
        .store
        .import(Cursor::new(Vec::new()), None, "", &bad)
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("RUN x is not a valid change command")
    );
    assert_eq!(t.store.list().len(), 2);
}

#[tokio::test]
async fn an_archive_of_docker_save_is_loaded() {
    let t = TestStore::new().await;
    let layers = [
        Tar::new().file("a", b"1").done(),
        Tar::new().file("b", b"2").done(),
    ];
    let config = image_config(&[&layers[0], &layers[1]]);
    let archive = docker_archive(&config, &layers, &["one:1", "quay.io/two:2"]);
    let (sink, lines) = recorder();
    let loaded = t
        .store
        .load(Cursor::new(gzip(&archive)), sink)
        .await
        .unwrap();
    assert_eq!(
        loaded,
        [
            Loaded::Reference("one:1".into()),
            Loaded::Reference("quay.io/two:2".into())
        ]
    );
    assert!(statuses(&lines).contains(&"Loading layer".to_owned()));
    let image = t.store.get("one:1").unwrap();
    assert_eq!(image.id.0, Digest::of(&config));
    assert_eq!(image.config.raw(), config);
    assert_eq!(image.repo_tags, ["one:1", "quay.io/two:2"]);
    assert_eq!(image.lower.len(), 2);
    assert!(
        image.lower.iter().all(|name| name.len() <= 2),
        "short names: {:?}",
        image.lower
    );
    assert_eq!(image.history[1].size, 1);

    let unnamed = docker_archive(&config, &layers, &[]);
    assert_eq!(
        t.load(unnamed).await.unwrap(),
        [Loaded::Id(image.id.clone())]
    );
    t.assert_clean();
}

#[tokio::test]
async fn an_oci_layout_is_loaded_and_its_digests_are_checked() {
    let plain = Tar::new().file("a", b"1").done();
    let config = image_config(&[&plain]);
    let layer = zstd::encode_all(plain.as_slice(), 1).unwrap();
    let blob = |data: &[u8]| format!("blobs/sha256/{}", Digest::of(data).hex());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::of(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": Digest::of(&layer), "size": layer.len()}],
    })
    .to_string();
    let index = |annotations: serde_json::Value| {
        json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Digest::of(manifest.as_bytes()), "size": manifest.len(), "annotations": annotations,
        }]})
        .to_string()
    };
    let archive = |layer_content: &[u8], index: &str| {
        Tar::new()
            .file("oci-layout", b"{\"imageLayoutVersion\":\"1.0.0\"}")
            .file("index.json", index.as_bytes())
            .file(&blob(manifest.as_bytes()), manifest.as_bytes())
            .file(&blob(&config), &config)
            .file(&blob(&layer), layer_content)
            .done()
    };
    let t = TestStore::new().await;
    let named = index(
        json!({"io.containerd.image.name": "docker.io/library/x:1", "org.opencontainers.image.ref.name": "1"}),
    );
    let mut wrong = layer.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let before = (t.count("layers"), t.count("blobs/sha256"));
    let error = t.load(archive(&wrong, &named)).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not have the content its name promises"),
        "{error}"
    );
    assert_eq!((t.count("layers"), t.count("blobs/sha256")), before);
    assert_eq!(
        t.load(archive(&layer, &named)).await.unwrap(),
        [Loaded::Reference("x:1".into())]
    );
    let image = t.store.get("x:1").unwrap();
    assert_eq!(listing(&t.layer(&image, 0))["a"], "file 1");
    let tag_only = index(json!({"org.opencontainers.image.ref.name": "1"}));
    assert_eq!(
        t.load(archive(&layer, &tag_only)).await.unwrap(),
        [Loaded::Id(image.id.clone())]
    );
    t.assert_clean();
}

#[tokio::test]
async fn archives_that_are_no_images_say_so() {
    let t = TestStore::new().await;
    let error = t
        .load(Tar::new().file("etc/passwd", b"x").done())
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("neither manifest.json nor index.json"),
        "{error}"
    );
    let missing = json!([{"Config": "../../etc/passwd", "Layers": []}]).to_string();
    let error = t
        .load(Tar::new().file("manifest.json", missing.as_bytes()).done())
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("../../etc/passwd is missing"),
        "{error}"
    );
    let error = t.load(b"nonsense".repeat(200)).await.unwrap_err();
    assert!(
        chain(&error).contains("not a tar archive"),
        "{}",
        chain(&error)
    );
    let plain = Tar::new().file("a", b"1").done();
    let error = t
        .load(docker_archive(&image_config(&[&plain]), &[], &["x:1"]))
        .await
        .unwrap_err();
    assert!(
        chain(&error).contains("0 layers, its configuration 1"),
        "{}",
        chain(&error)
    );
    t.assert_clean();
}

#[tokio::test]
async fn what_is_saved_can_be_loaded_elsewhere() {
    let t = TestStore::new().await;
    let layers = [
        Tar::new().file("a", &vec![7; 300_000]).done(),
        Tar::new().file("b", b"2").done(),
    ];
    let image = load_layers(&t, &layers, "one:1").await.unwrap();
    t.store.tag("one:1", "one:2").await.unwrap();
    let mut archive = Vec::new();
    t.store
        .save(&text(&["one:1", "one:2", HELLO_REFERENCE]), &mut archive)
        .await
        .unwrap();
    let other = TestStore::new().await;
    let loaded = other.load(archive.clone()).await.unwrap();
    assert_eq!(loaded.len(), 3);
    let copy = other.store.get("one:2").unwrap();
    assert_eq!(copy.id, image.id);
    assert_eq!(
        listing(&other.layer(&copy, 1)),
        listing(&t.layer(&image, 1))
    );

    // The same archive without Docker's file is an OCI layout.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.tar"), archive).unwrap();
    let script = "tar -xf a.tar && tar -cf b.tar oci-layout index.json blobs";
    let repacked = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(repacked.success());
    let third = TestStore::new().await;
    let loaded = third
        .load(std::fs::read(dir.path().join("b.tar")).unwrap())
        .await
        .unwrap();
    assert!(
        loaded.contains(&Loaded::Reference("one:2".into())),
        "{loaded:?}"
    );
    let error = t
        .store
        .save(&text(&["none"]), Vec::new())
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "No such image: none:latest");
}

#[tokio::test]
async fn images_are_found_by_name_digest_id_and_unique_prefix() {
    let t = TestStore::new().await;
    let mut ids = Vec::new();
    for n in 0..20 {
        let layer = Tar::new().file("n", n.to_string().as_bytes()).done();
        ids.push(
            load_layers(&t, &[layer], &format!("many:{n}"))
                .await
                .unwrap()
                .id
                .clone(),
        );
    }
    let id = &ids[3];
    for name in [
        id.as_str(),
        id.0.hex(),
        id.short(),
        "many:3",
        "library/many:3",
        "docker.io/library/many:3",
    ] {
        assert_eq!(t.store.get(name).unwrap().id, *id, "{name}");
    }
    // Twenty ids and sixteen digits: some first digit is shared.
    let shared = "0123456789abcdef"
        .chars()
        .find(|c| ids.iter().filter(|id| id.0.hex().starts_with(*c)).count() > 1)
        .unwrap();
    assert!(matches!(
        t.store.get(&shared.to_string()),
        Err(LookupError::Ambiguous(_))
    ));
    assert_eq!(
        t.store.get("many").unwrap_err().to_string(),
        "No such image: many:latest"
    );
    assert_eq!(t.store.list().len(), 21);
    t.store.tag("many:3", "other.io/x").await.unwrap();
    assert_eq!(t.store.get("other.io/x:latest").unwrap().id, *id);
    assert!(
        t.store
            .tag("many:3", &format!("x@{id}"))
            .await
            .unwrap_err()
            .to_string()
            .contains("digest reference")
    );
    assert!(
        t.store
            .tag("none", "x")
            .await
            .unwrap_err()
            .to_string()
            .starts_with("No such image")
    );
}

#[tokio::test]
async fn removing_frees_only_what_nobody_needs() {
    let t = TestStore::new().await;
    let (layers0, blobs0) = (t.count("layers"), t.count("blobs/sha256"));
    let shared = Tar::new().file("base", b"b").done();
    let (one, two) = (
        Tar::new().file("one", b"1").done(),
        Tar::new().file("two", b"2").done(),
    );
    let first = load_layers(&t, &[shared.clone(), one], "first:1")
        .await
        .unwrap();
    let second = load_layers(&t, &[shared, two], "second:1").await.unwrap();
    assert_eq!(first.lower[1], second.lower[1]);
    assert_eq!(t.count("layers"), layers0 + 3);

    let used = |id: &ImageId| {
        if *id == first.id {
            vec!["c".repeat(64)]
        } else {
            Vec::new()
        }
    };
    let error = t
        .store
        .remove("first:1", Removal::default(), &used)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RemoveError::ReferenceInUse { .. }),
        "{error}"
    );
    assert_eq!(t.store.get("first:1").unwrap().id, first.id);

    let removed = t
        .store
        .remove("first:1", Removal::default(), &nobody)
        .await
        .unwrap();
    assert_eq!(
        removed,
        [
            Removed::Untagged("first:1".into()),
            Removed::Deleted(first.id.clone())
        ]
    );
    assert_eq!(t.count("layers"), layers0 + 2);
    assert!(!t.layer(&first, 0).exists());
    assert_eq!(listing(&t.layer(&second, 1))["base"], "file b");
    t.store
        .remove("second:1", Removal::default(), &nobody)
        .await
        .unwrap();
    assert_eq!(
        (t.count("layers"), t.count("blobs/sha256")),
        (layers0, blobs0)
    );
    t.assert_clean();
    // A directory's name is never used again: an old record must not find a new layer.
    let third = load_layers(&t, &[Tar::new().file("x", b"x").done()], "third:1")
        .await
        .unwrap();
    assert!(!first.lower.contains(&third.lower[0]) && !second.lower.contains(&third.lower[0]));
    assert!(
        t.store
            .remove("gone", Removal::default(), &nobody)
            .await
            .unwrap_err()
            .to_string()
            .starts_with("No such image")
    );
}

#[tokio::test]
async fn a_store_survives_reopening_and_heals_after_an_unclean_end() {
    let t = TestStore::new().await;
    let layers = [
        Tar::new().file("a", b"1").done(),
        Tar::new().file("b", b"2").done(),
    ];
    let image = load_layers(&t, &layers, "one:1").await.unwrap();
    let broken = load_layers(&t, &[Tar::new().file("c", b"3").done()], "broken:1")
        .await
        .unwrap();
    let TestStore { store, dir } = t;
    let root = dir.path();
    let before = listing(&store.layers_dir().join(&image.lower[1]));
    assert_eq!(before["a"], "file 1");
    drop(store);
    // What a kill leaves behind, and what a careless hand takes away.
    std::fs::create_dir_all(root.join("tmp/layer-0/deep/er")).unwrap();
    std::fs::write(root.join("tmp/download-1"), b"half").unwrap();
    std::fs::create_dir_all(root.join("layers/zz/half")).unwrap();
    std::fs::write(root.join("blobs/sha256").join("0".repeat(64)), b"nobody's").unwrap();
    std::fs::write(root.join("blobs/sha256/stranger"), b"?").unwrap();
    std::fs::remove_dir_all(root.join("layers").join(&image.lower[1])).unwrap();
    std::fs::remove_dir_all(root.join("layers").join(&broken.lower[0])).unwrap();
    for entry in std::fs::read_dir(root.join("blobs/sha256")).unwrap() {
        let path = entry.unwrap().path();
        let plain = zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap_or_default();
        if Digest::of(&plain) == broken.diff_ids()[0] {
            std::fs::write(&path, b"damaged").unwrap();
        }
    }

    let store = ImageStore::open(config(root)).await.unwrap();
    let healed = store.get("one:1").unwrap();
    assert_eq!(healed.lower, image.lower);
    assert_eq!(listing(&store.layers_dir().join(&image.lower[1])), before);
    assert!(matches!(
        store.get("broken:1"),
        Err(LookupError::NotFound(_))
    ));
    assert_eq!(std::fs::read_dir(root.join("tmp")).unwrap().count(), 0);
    assert!(!root.join("layers/zz").exists());
    assert!(!root.join("blobs/sha256/stranger").exists());
    assert!(!root.join("blobs/sha256").join("0".repeat(64)).exists());

    let second = ImageStore::open(config(root)).await;
    let error = chain(&second.err().expect("two daemons cannot share a store"));
    assert!(error.contains("open image store in"), "{error}");
}

#[tokio::test]
async fn the_layers_stack_in_an_overlay() {
    let t = TestStore::new().await;
    let bottom = Tar::new()
        .dir("d")
        .file("d/old", b"1")
        .file("gone", b"2")
        .file("kept", b"3")
        .done();
    let top = Tar::new()
        .dir("d")
        .file("d/.wh..wh..opq", b"")
        .file("d/new", b"4")
        .file(".wh.gone", b"")
        .done();
    let image = load_layers(&t, &[bottom, top], "t:1").await.unwrap();
    // In a mount namespace of its own, so that nothing stays mounted whatever happens.
    let script = format!(
        "cd {} && mount -t overlay overlay -o lowerdir={} /mnt && cd /mnt && find . -type f | sort",
        t.store.layers_dir().display(),
        image.lower.join(":"),
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "./d/new\n./kept\n");
}

#[tokio::test]
async fn the_store_itself_is_the_registry_of_the_built_in_image() {
    let hub = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    hub.set_nonblocking(true).unwrap();
    let url = format!("http://{}", hub.local_addr().unwrap());
    let t = TestStore::with(|config| config.registry.mirrors = vec![url]).await;
    let image = t.store.get(HELLO_REFERENCE).unwrap();

    let found = t.store.resolve_digest("shoal/hello", None).await.unwrap();
    let digest = &found.descriptor.digest;
    assert_eq!(*digest, image.id.0);
    assert_eq!(found.descriptor.size, image.config.raw().len() as u64);
    assert_eq!(found.platforms[0].os, "linux");
    let pinned = format!("{HELLO_REFERENCE}@{digest}");
    assert_eq!(t.store.get(&pinned).unwrap().id, image.id);
    let again = t.store.resolve_digest(&pinned, None).await.unwrap();
    assert_eq!(again, found);

    // Removed, it is made again for whoever pulls it.
    t.store
        .remove(HELLO_REFERENCE, Removal::default(), &nobody)
        .await
        .unwrap();
    assert!(t.store.get(&pinned).is_err());
    let (sink, events) = recorder();
    let pulled = t.store.pull(&pinned, None, sink).await.unwrap();
    assert_eq!(pulled.id, image.id);
    let statuses = statuses(&events);
    let last = statuses.last().unwrap();
    assert!(
        last.starts_with("Status: Image is up to date for shoal/hello"),
        "{last}"
    );
    assert_eq!(t.store.get(HELLO_REFERENCE).unwrap().id, image.id);

    let other = format!("shoal/hello@sha256:{}", "0".repeat(64));
    for missing in ["shoal/hello:other", &other] {
        let error = t.store.resolve_digest(missing, None).await.unwrap_err();
        let expected = format!("manifest for {missing} not found: manifest unknown");
        assert_eq!(error.to_string(), expected);
        let error = t.store.pull(missing, None, ProgressSink::none()).await;
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
    assert!(hub.accept().is_err(), "nobody else was asked");
    t.assert_clean();
}

#[tokio::test]
async fn the_built_in_image_is_there_and_the_same_everywhere() {
    let (a, b) = (TestStore::new().await, TestStore::new().await);
    let image = a.store.get(HELLO_REFERENCE).unwrap();
    assert_eq!(image.id, b.store.get("shoal/hello").unwrap().id);
    let settings = image.config.oci().config().as_ref().unwrap();
    assert_eq!(settings.entrypoint().as_ref().unwrap(), &["/hello"]);
    assert_eq!(settings.exposed_ports().as_ref().unwrap(), &["80/tcp"]);
    assert_eq!(settings.stop_signal().as_deref(), Some("SIGTERM"));
    assert!(image.config.docker().healthcheck.is_none());

    // Removed, it comes back with the next start; a user's own image of the name is left alone.
    a.store
        .remove(HELLO_REFERENCE, Removal::default(), &nobody)
        .await
        .unwrap();
    let own = load_layers(
        &a,
        &[Tar::new().file("x", b"x").done()],
        "shoal/hello:latest",
    )
    .await
    .unwrap();
    b.store
        .remove(HELLO_REFERENCE, Removal::default(), &nobody)
        .await
        .unwrap();
    for (t, want) in [(a, &own.id), (b, &image.id)] {
        let TestStore { store, dir } = t;
        drop(store);
        let store = ImageStore::open(config(dir.path())).await.unwrap();
        assert_eq!(store.get(HELLO_REFERENCE).unwrap().id, *want);
        drop(ProgressSink::none());
    }
}

//! What archives become on disk, and what hostile ones do not.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::{
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
};

use common::{Tar, TestStore, chain, docker_archive, gzip, image_config, listing, load_layers};
use rustix::fs::{getxattr, lgetxattr};

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let n = getxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}

#[tokio::test]
async fn whiteouts_become_what_overlay_expects() {
    let t = TestStore::new().await;
    let layer = Tar::new()
        .dir("a")
        .file("a/.wh.gone", b"")
        .dir("b")
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"x")
        // Both orders of a whiteout and a directory of the same layer: the directory stays and
        // hides what lower layers have in it.
        .file(".wh.c", b"")
        .dir("c")
        .dir("d")
        .file("d/keep", b"1")
        .file(".wh.d", b"")
        .file("e", b"mine")
        .file(".wh.e", b"")
        .file(".wh..wh.plnk", b"")
        .done();
    let image = load_layers(&t, &[layer], "t:1").await.unwrap();
    let root = t.layer(&image, 0);
    let seen = listing(&root);
    assert_eq!(seen["a/gone"], "char 0");
    assert_eq!(seen["b/new"], "file x");
    assert_eq!(seen["d/keep"], "file 1");
    assert_eq!(seen["e"], "file mine");
    assert!(!seen.keys().any(|name| name.contains(".wh.")), "{seen:?}");
    for (name, opaque) in [("a", false), ("b", true), ("c", true), ("d", true)] {
        let value = xattr(&root.join(name), "trusted.overlay.opaque");
        assert_eq!(
            value.as_deref(),
            opaque.then_some(b"y".as_slice()),
            "{name}"
        );
    }
}

#[tokio::test]
async fn owners_modes_times_links_devices_and_attributes_are_kept() {
    let t = TestStore::new().await;
    let mut suid = Tar::header(b'0', "bin/su", 2);
    suid.set_mode(0o4755);
    suid.set_uid(1000);
    suid.set_gid(1001);
    let mut null = Tar::header(b'3', "null", 0);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    null.set_mode(0o666);
    let mut tmp = Tar::header(b'5', "tmp", 0);
    tmp.set_mode(0o1777);
    // version 2, effective, CAP_NET_BIND_SERVICE
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(150));
    let layer = Tar::new()
        .raw(tmp, b"")
        .file("tmp/inside", b"later")
        .raw(suid, b"su")
        .hardlink("bin/su2", "bin/su")
        .symlink("sh", "/bin/su")
        .raw(null, b"")
        .raw(Tar::header(b'6', "pipe", 0), b"")
        .pax(&[
            ("SCHILY.xattr.security.capability", &capability),
            ("SCHILY.xattr.user.note", b"hi"),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("mtime", b"1234567890.5"),
            ("uid", b"70000"),
        ])
        .file("capable", b"x")
        .pax(&[("path", long.as_bytes())])
        .file("short", b"long")
        .raw(
            Tar::header(b'L', "././@LongLink", 201),
            format!("{}\0", "g".repeat(200)).as_bytes(),
        )
        .file("cut", b"gnu")
        .done();
    let image = load_layers(&t, &[gzip(&layer)], "t:1").await;
    // The archive's layer is packed; its configuration must speak of the plain one.
    assert!(image.is_err());
    let archive = docker_archive(&image_config(&[&layer]), &[gzip(&layer)], &["t:1"]);
    t.load(archive).await.unwrap();
    let image = t.store.get("t:1").unwrap();
    let root = t.layer(&image, 0);
    let meta = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    let su = meta("bin/su");
    assert_eq!(
        (su.uid(), su.gid(), su.mode() & 0o7777),
        (1000, 1001, 0o4755)
    );
    assert_eq!(su.ino(), meta("bin/su2").ino());
    assert_eq!(su.mtime(), 1_000_000_000);
    assert_eq!(meta("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(
        meta("tmp").mtime(),
        1_000_000_000,
        "the file made in it must not change its time"
    );
    assert_eq!(meta("sh").mtime(), 1_000_000_000);
    assert_eq!(meta("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(meta("null").mode() & 0o777, 0o666);
    let capable = root.join("capable");
    assert_eq!(xattr(&capable, "security.capability").unwrap(), capability);
    assert_eq!(xattr(&capable, "user.note").unwrap(), b"hi");
    assert_eq!(xattr(&capable, "user.overlay.redirect"), None);
    assert_eq!(xattr(&capable, "trusted.overlay.redirect"), None);
    assert_eq!(
        (meta("capable").mtime(), meta("capable").mtime_nsec()),
        (1_234_567_890, 500_000_000)
    );
    assert_eq!(meta("capable").uid(), 70_000);
    assert_eq!(std::fs::read(root.join(long)).unwrap(), b"long");
    assert_eq!(std::fs::read(root.join("g".repeat(200))).unwrap(), b"gnu");
    assert_eq!(
        meta("bin").mode() & 0o7777,
        0o755,
        "an implied directory has Docker's mode"
    );
    let mut buffer = [0; 16];
    assert!(lgetxattr(&root, "trusted.overlay.opaque", &mut buffer[..]).is_err());
    assert_eq!(
        std::fs::metadata(&root).unwrap().permissions().mode() & 0o777,
        0o755
    );
}

#[tokio::test]
async fn sparse_files_of_every_format_are_restored_with_their_holes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sparse");
    let file = std::fs::File::create(&path).unwrap();
    for n in 0..40_u64 {
        file.write_at(format!("data{n}").as_bytes(), n * 1_000_000)
            .unwrap();
    }
    file.set_len(50_000_000).unwrap();
    let want = std::fs::read(&path).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let tar = std::process::Command::new("tar")
            .args(["--sparse", "-C"])
            .arg(dir.path())
            .args(format)
            .args(["-cf", "-", "sparse"])
            .output()
            .unwrap();
        assert!(tar.status.success() && tar.stdout.len() < 2_000_000);
        let t = TestStore::new().await;
        let image = load_layers(&t, &[tar.stdout], "t:1").await.unwrap();
        let made = t.layer(&image, 0).join("sparse");
        assert!(std::fs::read(&made).unwrap() == want, "{format:?}");
        assert!(
            std::fs::metadata(&made).unwrap().blocks() * 512 < 2_000_000,
            "{format:?}"
        );
        assert_eq!(image.size, 50_000_000);
    }
}

/// Loads a hostile layer; nothing may be left of it, and nothing made outside.
async fn refuse(layer: Vec<u8>) -> String {
    let outside = tempfile::tempdir().unwrap();
    let t = TestStore::with(|config| {
        config.limits.entries = 1000;
        config.limits.bytes = 4 << 20;
    })
    .await;
    let before = (t.count("layers"), t.count("blobs/sha256"));
    let error = load_layers(&t, &[layer], "evil:1").await.unwrap_err();
    assert!(t.store.get("evil:1").is_err());
    // The sweep runs beside; the next operation waits for the same locks.
    for _ in 0..200 {
        if (t.count("layers"), t.count("blobs/sha256")) == before && t.count("tmp") == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!((t.count("layers"), t.count("blobs/sha256")), before);
    t.assert_clean();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    chain(&error)
}

#[tokio::test]
async fn paths_and_links_cannot_leave_the_layer() {
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    let name = format!("../../../../../../{out}/x");
    for (layer, words) in [
        (Tar::new().file("../x", b"x"), "\"../x\": points outside"),
        (Tar::new().file(&name, b"x"), "points outside"),
        (Tar::new().file("a/../../x", b"x"), "points outside"),
        (
            Tar::new().symlink("l", out).file("l/x", b"x"),
            "cannot be used",
        ),
        (
            Tar::new()
                .symlink("l", "../../../../../..")
                .symlink("m", "l")
                .file("m/proc/x", b"x")
                .symlink("z", "z")
                .file("z/x", b""),
            "cannot be used",
        ),
        (
            Tar::new()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", b"x"),
            "cannot be used",
        ),
        (Tar::new().hardlink("h", "/etc/passwd"), "not in this layer"),
        (
            Tar::new().hardlink("h", "../../../etc/passwd"),
            "points outside",
        ),
        (
            Tar::new()
                .symlink("etc", "/etc")
                .hardlink("h", "etc/passwd"),
            "not in this layer",
        ),
        (Tar::new().file("a/.wh...", b""), "whiteout"),
        (
            Tar::new().symlink("l", out).file("l/.wh..wh..opq", b""),
            "cannot be used",
        ),
    ] {
        let text = refuse(layer.done()).await;
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn absolute_names_and_links_stay_below_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    let t = TestStore::new().await;
    let layer = Tar::new()
        .dir("real")
        .symlink("abs", "/real")
        .file("abs/x", b"x")
        .file(&format!("{out}/y"), b"y")
        // A link that stands where a file is to go is replaced, never written through.
        .symlink("target", &format!("{out}/z"))
        .file("target", b"z")
        .done();
    let image = load_layers(&t, &[layer], "t:1").await.unwrap();
    let seen = listing(&t.layer(&image, 0));
    assert_eq!(seen["real/x"], "file x");
    assert_eq!(seen["abs"], "link /real");
    assert_eq!(seen["target"], "file z");
    assert_eq!(seen[&format!("{}/y", &out[1..])], "file y");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_directory_replaced_by_a_link_is_not_written_through() {
    let t = TestStore::new().await;
    let layer = Tar::new()
        .dir("d")
        .file("d/a", b"a")
        .symlink("d", "e")
        .dir("e")
        .file("d/b", b"b")
        .done();
    let image = load_layers(&t, &[layer], "t:1").await.unwrap();
    let seen = listing(&t.layer(&image, 0));
    assert_eq!(
        (seen["d"].as_str(), seen["e/b"].as_str()),
        ("link e", "file b")
    );
    assert!(!seen.contains_key("e/a"));
}

#[tokio::test]
async fn bombs_meet_their_limits() {
    let mut many = Tar::new();
    for n in 0..1001 {
        many = many.file(&format!("f{n}"), b"");
    }
    assert!(refuse(many.done()).await.contains("more than 1000 entries"));

    let zeros = vec![0; 3 << 20];
    let text = refuse(Tar::new().file("a", &zeros).file("b", &zeros).done()).await;
    assert!(text.contains("larger than"), "{text}");

    // A few bytes that claim a file of a petabyte.
    let text = refuse(
        Tar::new()
            .pax(&[
                ("GNU.sparse.size", b"1125899906842624"),
                ("GNU.sparse.map", b"0,1"),
            ])
            .file("hole", b"x")
            .done(),
    )
    .await;
    assert!(text.contains("file is larger than"), "{text}");

    let long = format!("{}/x", "a/".repeat(2100));
    let text = refuse(
        Tar::new()
            .pax(&[("path", long.as_bytes())])
            .file("p", b"")
            .done(),
    )
    .await;
    assert!(text.contains("too long"), "{text}");
}

#[tokio::test]
async fn a_small_packed_bomb_is_stopped_while_it_inflates() {
    let t = TestStore::with(|config| config.limits.bytes = 4 << 20).await;
    let plain = Tar::new().file("a", &vec![0; 64 << 20]).done();
    let archive = docker_archive(&image_config(&[&plain]), &[gzip(&plain)], &["evil:1"]);
    let text = chain(&t.load(archive).await.unwrap_err());
    assert!(
        text.contains("inflates to more than") || text.contains("larger than"),
        "{text}"
    );
    t.assert_clean();
}

#[tokio::test]
async fn damaged_layers_are_refused_whole() {
    let plain = Tar::new()
        .file("a", &vec![7; 100_000])
        .file("b", b"b")
        .done();
    let packed = gzip(&plain);
    let other = Tar::new().file("other", b"x").done();
    for (config_layer, stored, words) in [
        (&plain, packed[..packed.len() / 2].to_vec(), "inflate"),
        (&plain, gzip(&other), "verification failed"),
        (&plain, other.clone(), "verification failed"),
        (&plain, plain[..60_000].to_vec(), "ends in the middle"),
        (
            &plain,
            b"this is no archive at all, but it is long enough to be a header ".repeat(20),
            "not a tar",
        ),
        (&plain, b"BZh91AY&SY".to_vec(), "bzip2"),
    ] {
        let t = TestStore::new().await;
        let layers = t.count("layers");
        let archive = docker_archive(&image_config(&[config_layer]), &[stored], &["evil:1"]);
        let text = chain(&t.load(archive).await.unwrap_err());
        assert!(text.contains(words), "{text}");
        assert_eq!(t.count("layers"), layers);
        t.assert_clean();
    }
}

#[tokio::test]
async fn several_gzip_members_are_one_layer() {
    let plain = Tar::new().file("a", b"1").file("b", b"2").done();
    let mut packed = gzip(&plain[..700]);
    packed.extend(gzip(&plain[700..]));
    let t = TestStore::new().await;
    t.load(docker_archive(
        &image_config(&[&plain]),
        &[packed],
        &["t:1"],
    ))
    .await
    .unwrap();
    let image = t.store.get("t:1").unwrap();
    assert_eq!(listing(&t.layer(&image, 0)).len(), 2);
}

//! Images that come from a registry: Debian's `docker-registry`, on the loopback of the host under test.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;

use cluster_tests::{Host, REGISTRY as ADDRESS, Registry, wait_for};
use serde_json::json;

/// `diver:open sesame`.
const ENCODED: &str = "ZGl2ZXI6b3BlbiBzZXNhbWU=";

const SCRIPT: &str = "echo version $VERSION; while :; do sleep 0.1; done";

/// The image that a service's spec names.
fn spec_image(host: &Host, service: &str) -> String {
    let format = "{{.Spec.TaskTemplate.ContainerSpec.Image}}";
    host.docker(&["service", "inspect", service, "--format", format])
        .trim()
        .to_owned()
}

#[test]
fn images_are_pulled_by_tag_and_by_digest() {
    let host = Host::local();
    let registry = Registry::start(&host, false);
    let one = registry.push("team/app", "1");
    let two = registry.push("team/app", "2");
    assert_ne!(one, two);
    let app = format!("{ADDRESS}/team/app");

    let pulled = host.docker(&["pull", &format!("{app}:1")]);
    for part in [
        "1: Pulling from team/app\n".to_owned(),
        format!("Digest: {one}\n"),
        format!("Status: Downloaded newer image for {app}:1\n{app}:1\n"),
    ] {
        assert!(pulled.contains(&part), "{part:?} is not in:\n{pulled}");
    }
    let again = host.docker(&["pull", &format!("{app}:1")]);
    assert!(
        again.contains(&format!("Status: Image is up to date for {app}:1\n")),
        "{again}"
    );
    let format = "{{json .RepoDigests}} {{json .Config.Env}}";
    assert_eq!(
        host.docker(&["image", "inspect", &format!("{app}:1"), "--format", format]),
        format!("[\"{app}@{one}\"] [\"PATH=/bin\",\"VERSION=1\"]\n")
    );

    host.docker(&["pull", "--quiet", &format!("{app}@{two}")]);
    let images = host.docker(&[
        "images",
        "--digests",
        "--format",
        "{{.Tag}} {{.Digest}}",
        &app,
    ]);
    assert!(images.contains(&format!("1 {one}\n")), "{images}");
    assert!(
        images.contains(&format!("<none> {two}\n")),
        "a digest gives no tag: {images}"
    );
    assert_eq!(
        host.shoal(&["images", "--digests"]),
        host.docker(&["images", "--digests"])
    );

    let missing = host.try_docker(&["pull", &format!("{app}:3")]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        missing.stderr.trim(),
        format!(
            "Error response from daemon: manifest for {app}:3 not found: manifest unknown: \
             manifest unknown"
        )
    );
}

#[test]
fn a_service_s_tag_is_pinned_and_its_image_pulled_where_it_runs() {
    let host = Host::local();
    let registry = Registry::start(&host, false);
    let one = registry.push("app", "latest");
    let app = format!("{ADDRESS}/app");
    let create = |name: &str, image: &str| {
        host.try_docker(&[
            "service",
            "create",
            "--detach",
            "--name",
            name,
            "--stop-grace-period",
            "1s",
            "--restart-condition",
            "none",
            image,
            "sh",
            "-c",
            SCRIPT,
        ])
    };
    let created = create("pinned", &app);
    assert!(
        created.status.success() && created.stderr.is_empty(),
        "{created:?}"
    );
    assert_eq!(spec_image(&host, "pinned"), format!("{app}:latest@{one}"));
    host.wait_running("pinned", 1);
    assert_eq!(
        host.docker(&["service", "ps", "--format", "{{.Image}}", "pinned"]),
        format!("{app}:latest\n")
    );

    // The tag moves on; the service stays with what it named until it is asked again.
    registry.push("app", "moved");
    registry.put_manifest("app", "latest");
    host.docker(&["service", "update", "--detach", "--force", "pinned"]);
    let logs = wait_for(
        "the second task to write",
        || host.docker(&["service", "logs", "--raw", "pinned"]),
        |log| log.lines().count() == 2,
    );
    assert_eq!(logs, "version latest\nversion latest\n");
    host.docker(&["service", "update", "--detach", "--image", &app, "pinned"]);
    assert_ne!(spec_image(&host, "pinned"), format!("{app}:latest@{one}"));
    wait_for(
        "the new image to run",
        || host.docker(&["service", "logs", "--raw", "pinned"]),
        |log| log.contains("version moved\n"),
    );

    let missing = create("missing", &format!("{app}:none"));
    assert!(missing.status.success(), "{missing:?}");
    assert!(
        missing.stderr.contains(&format!(
            "image {app}:none could not be accessed on a registry"
        )),
        "{missing:?}"
    );
    let reason = wait_for(
        "the task to be rejected",
        || {
            let format = "{{.CurrentState}}: {{.Error}}";
            host.docker(&["service", "ps", "--no-trunc", "--format", format, "missing"])
        },
        |text| text.starts_with("Rejected"),
    );
    assert!(
        reason.contains(&format!("No such image: {app}:none")),
        "{reason}"
    );
}

#[test]
fn a_registry_that_wants_a_password_gets_the_one_of_whoever_created_the_service() {
    let host = Host::local();
    let registry = Registry::start(&host, true);
    let digest = registry.push("secret/app", "1");
    let app = format!("{ADDRESS}/secret/app:1");
    let refused = host.try_docker(&["pull", &app]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.stderr.contains("authentication required"),
        "{}",
        refused.stderr
    );

    fs::create_dir_all(host.path("docker-config")).unwrap();
    let config = json!({ "auths": { ADDRESS: { "auth": ENCODED } } });
    fs::write(host.path("docker-config/config.json"), config.to_string()).unwrap();
    let create = |name: &str, options: &[&str]| {
        let mut words = vec!["service", "create", "--detach", "--name", name];
        words.extend(["--restart-condition", "none", "--stop-grace-period", "1s"]);
        words.extend(options);
        words.extend([app.as_str(), "sh", "-c", SCRIPT]);
        host.docker(&words);
    };
    // Neither the digest nor the image is to be had without a password.
    create("without", &[]);
    assert_eq!(spec_image(&host, "without"), app);
    wait_for(
        "the task to be rejected",
        || {
            host.docker(&[
                "service",
                "ps",
                "--no-trunc",
                "--format",
                "{{.Error}}",
                "without",
            ])
        },
        |text| text.contains("No such image") && text.contains("authentication required"),
    );
    create("with", &["--with-registry-auth"]);
    assert_eq!(spec_image(&host, "with"), format!("{app}@{digest}"));
    host.wait_running("with", 1);
    wait_for(
        "its output",
        || host.docker(&["service", "logs", "--raw", "with"]),
        |log| log == "version 1\n",
    );
    let shown = host.docker(&["service", "inspect", "with"]);
    assert!(
        !shown.contains(ENCODED) && !shown.contains("sesame"),
        "nobody is told the password"
    );
}

#[test]
fn what_was_pulled_by_name_is_there_under_it_after_a_restart_without_the_registry() {
    let mut host = Host::local();
    let app = format!("{ADDRESS}/app:1");
    let digest = {
        let registry = Registry::start(&host, false);
        let digest = registry.push("app", "1");
        host.docker(&["pull", "--quiet", &app]);
        digest
    };
    host.docker(&["tag", &app, "mine:2"]);
    let format = "{{.Repository}} {{.Tag}} {{.Digest}} {{.ID}}";
    let list = ["images", "--digests", "--no-trunc", "--format", format];
    // Images of the same age come in any order.
    let sorted = |listed: String| {
        let mut lines: Vec<String> = listed.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = sorted(host.docker(&list));
    host.kill_daemon();
    host.start();
    assert_eq!(sorted(host.docker(&list)), before);
    let pinned = format!("{ADDRESS}/app@{digest}");
    for (name, image) in [
        ("tag", app.as_str()),
        ("own", "mine:2"),
        ("digest", &pinned),
    ] {
        let head = [
            "service",
            "create",
            "--detach",
            "--name",
            name,
            "--stop-grace-period",
            "1s",
        ];
        host.docker(&[&head[..], &[image, "sh", "-c", SCRIPT]].concat());
        host.wait_running(name, 1);
    }
    // Its last name does not go while a container runs from it.
    let used = host.try_docker(&["rmi", "mine:2", &app]);
    assert!(
        !used.status.success() && used.stderr.contains("is using its referenced image"),
        "{used:?}"
    );
    assert_eq!(host.wait_running("own", 1).len(), 1);
}

/// `docker login` asks the daemon, and keeps what the registry takes.
#[test]
fn credentials_are_tried_before_they_are_kept() {
    let mut host = Host::new().unwrap();
    host.start();
    let _registry = Registry::start(&host, true);
    let login = |password: &str, server: &str| {
        host.try_docker(&["login", "-u", "diver", "-p", password, server])
    };
    let wrong = login("open, please", ADDRESS);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(wrong.stderr.contains("unauthorized: "), "{wrong:?}");
    let nowhere = login("open sesame", "127.0.0.1:1");
    assert!(nowhere.stderr.contains("refused"), "{nowhere:?}");
    let nameless = login("open sesame", "nowhere");
    assert!(
        nameless.stderr.contains("it needs a dot or a port"),
        "{nameless:?}"
    );
    let right = login("open sesame", ADDRESS);
    assert_eq!(right.status.code(), Some(0), "{right:?}");
    assert!(right.stdout.contains("Login Succeeded"), "{right:?}");
}

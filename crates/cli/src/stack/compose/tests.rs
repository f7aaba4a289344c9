//! What files say, and what a later file says over it.

use super::*;

fn project(text: &str) -> Project {
    Project::read(&Node::parse(text).unwrap()).unwrap()
}

fn fault(text: &str) -> String {
    let fault = Project::read(&Node::parse(text).unwrap()).unwrap_err();
    format!("{}: {fault}", fault.line)
}

fn merged(base: &str, over: &str) -> String {
    let mut base = project(base);
    base.merge(project(over));
    yaml::document(&base.services.write())
}

#[test]
fn a_later_file_replaces_texts_and_adds_to_lists() {
    assert_eq!(
        merged(
            "services: {a: {image: x, command: [a, b], dns: 1.1.1.1, tty: true, environment: {A: '1', B: '2'}}}",
            "services: {a: {image: '', command: c, dns: [2.2.2.2], tty: false, environment: [A=, B=3, C]}}",
        ),
        "a:\n  command:\n    - c\n  dns:\n    - 1.1.1.1\n    - 2.2.2.2\n  environment:\n    A: \"1\"\n    B: \"3\"\n    C: null\n  image: x\n  tty: true\n"
    );
}

#[test]
fn a_zero_counts_where_it_says_something() {
    assert_eq!(
        merged(
            "services: {a: {deploy: {replicas: 3, update_config: {parallelism: 2, delay: 3s}}}}",
            "services: {a: {deploy: {replicas: 0, update_config: {parallelism: 0}}}}",
        ),
        "a:\n  deploy:\n    replicas: 0\n    update_config:\n      parallelism: 0\n      delay: 3s\n"
    );
}

#[test]
fn no_port_is_lost_when_two_files_have_some() {
    let all = merged(
        "services: {a: {ports: ['53:53/tcp', '53:53/udp', '80', '81']}}",
        "services: {a: {ports: ['53:5353/udp']}}",
    );
    let targets: Vec<&str> = all
        .lines()
        .filter_map(|line| line.trim().strip_prefix("target: "))
        .collect();
    assert_eq!(targets, ["80", "81", "53", "5353"], "{all}");
}

#[test]
fn options_of_one_log_driver_are_not_given_to_another() {
    let base = "services: {a: {logging: {driver: d, options: {a: 1}}}}";
    let same = merged(base, "services: {a: {logging: {options: {b: 2}}}}");
    assert!(
        same.contains("a: \"1\"") && same.contains("b: \"2\""),
        "{same}"
    );
    let other = merged(
        base,
        "services: {a: {logging: {driver: e, options: {b: 2}}}}",
    );
    assert!(
        !other.contains("a: \"1\"") && other.contains("driver: e"),
        "{other}"
    );
}

#[test]
fn mounts_are_told_apart_by_their_source() {
    let project = project(
        "services: {a: {volumes: ['/only', 'named:/n:ro,nocopy', './here:/h:rshared', '~/x:/y', 'c:/d']}}",
    );
    let mounts = &project.services.0["a"].volumes.0;
    let shown: Vec<(&str, &str, &str)> = mounts
        .iter()
        .map(|mount| (&*mount.kind, &*mount.source, &*mount.target))
        .collect();
    let expected = [
        ("volume", "", "/only"),
        ("volume", "named", "/n"),
        ("bind", "./here", "/h"),
        ("bind", "~/x", "/y"),
        // A letter before a colon is a drive of Windows.
        ("volume", "", "c:/d"),
    ];
    assert_eq!(shown, expected);
    assert!(mounts[1].read_only && mounts[1].volume.as_ref().unwrap().no_copy);
}

#[test]
fn faults_have_their_line_and_path() {
    assert_eq!(
        fault("services:\n  a:\n    deploy:\n      resources:\n        limits: {cpus: 1}"),
        "5: services.a.deploy.resources.limits.cpus must be a string"
    );
    assert_eq!(
        fault("services:\n  a:\n    image: x\n    imago: y"),
        "4: services.a Additional property imago is not allowed"
    );
    assert_eq!(
        fault("services: {a: null}"),
        "1: services.a must be a mapping"
    );
}

#[test]
fn paths_lose_their_dots() {
    let path = |path| absolute(Path::new("/a/b"), path);
    assert_eq!(path("./c"), Path::new("/a/b/c"));
    assert_eq!(path("../c/."), Path::new("/a/c"));
    assert_eq!(path("/x/../y"), Path::new("/y"));
}

proptest::proptest! {
    /// No file makes the reader panic.
    #[test]
    fn any_text_is_read_or_refused(
        text in "(services|networks|ports|image|[-:{}\\[\\] \n&*a-z0-9\"'|>$]){0,40}"
    ) {
        if let Ok(mut node) = Node::parse(&text) {
            let _ = interpolate::interpolate(&mut node, &|_| None);
            let _ = Project::read(&node);
        }
    }
}

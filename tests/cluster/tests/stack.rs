//! Stacks: the same Compose file means the same to `docker stack` and to `shoal stack`.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use cluster_tests::{Host, Output, docker_archive, wait_for};
use serde_json::Value;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/stack")
}

/// Runs `docker` or `shoal` with the words of `line`, in the directory of the files.
fn run(host: &Host, program: &str, line: &str) -> Output {
    let program_path = if program == "shoal" {
        let mut path = std::env::current_exe().unwrap();
        path.pop();
        if path.ends_with("deps") {
            path.pop();
        }
        path.join("shoal").to_string_lossy().into_owned()
    } else {
        program.to_owned()
    };
    let mut command: Command = host.in_network(program_path);
    let output = command
        .args(["--host", &host.socket()])
        .args(line.split_whitespace())
        .current_dir(host.path("files"))
        .env("FROM_CLIENT", "client")
        .output()
        .unwrap();
    Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[track_caller]
fn done(host: &Host, program: &str, line: &str) -> Output {
    let output = run(host, program, line);
    assert!(output.status.success(), "{program} {line}: {output:?}");
    output
}

fn with_files(host: &Host) {
    fs::create_dir_all(host.path("files/bound")).unwrap();
    for file in fs::read_dir(testdata()).unwrap() {
        let file = file.unwrap();
        let to = Path::new(&host.path("files")).join(file.file_name());
        fs::copy(file.path(), to).unwrap();
    }
}

#[test]
fn config_prints_what_docker_prints() {
    let host = Host::new().unwrap();
    with_files(&host);
    for files in [
        "-c compose.yml",
        "-c override.yml",
        "-c compose.yml -c override.yml",
        "-c compose.yml,override.yml",
        "-c override.yml -c compose.yml",
        "-c shop.yml",
        "-c edge.yml",
        "-c shop.yml -c edge.yml",
        "-c texts.yml",
        "-c texts.yml --skip-interpolation",
    ] {
        let line = format!("stack config {files}");
        let docker = done(&host, "docker", &line);
        let shoal = done(&host, "shoal", &line);
        assert!(docker.stdout.starts_with("version: \"3.13\"\nservices:\n"));
        assert_eq!(shoal.stdout, docker.stdout, "{line}");
    }
}

/// What is wrong, in Docker's words, behind the file and the line.
#[test]
fn faults_name_file_line_and_field() {
    let host = Host::new().unwrap();
    with_files(&host);
    let file = Path::new(&host.path("files")).join("bad.yml");
    for field in [
        "ports: [80, {foo: 1}]",
        "image: 1.1",
        "foo: 1",
        "environment: {A: true}",
        "healthcheck: {interval: x}",
        "image: ${",
        "image: ${NOT_SET:?give it}",
        "ulimits: {nofile: {soft: 1}}",
        "ports: [\"x:y\"]",
        "volumes: [{source: x}]",
        "deploy: {replicas: 1.5}",
        "deploy: {resources: {limits: {cpus: 0.5}}}",
        "deploy: 5",
        "tty: \"yes\"",
        "depends_on: 5",
    ] {
        fs::write(&file, format!("services:\n  web:\n    {field}\n")).unwrap();
        let line = "stack config -c bad.yml";
        let docker = run(&host, "docker", line);
        let shoal = run(&host, "shoal", line);
        for output in [&docker, &shoal] {
            assert_eq!(output.status.code(), Some(1), "{field}: {output:?}");
        }
        let said = docker.stderr.trim();
        // Docker names the path in the middle of what it says of variables.
        let said = said
            .strip_prefix("invalid interpolation format for ")
            .and_then(|rest| rest.split_once(": "))
            .map_or(said, |(_, rest)| rest);
        let at = "bad.yml:3: services.web";
        assert!(shoal.stderr.starts_with(at), "{field}: {}", shoal.stderr);
        assert!(
            shoal.stderr.contains(said),
            "{field}: {:?} is not in {:?}",
            said,
            shoal.stderr
        );
    }
    for (text, said) in [
        (
            "services: {a: {extends: x}}",
            "extends: Support for `extends` is not implemented yet. (bad.yml:1)",
        ),
        (
            "foo: 1",
            "bad.yml:1: (root) Additional property foo is not allowed",
        ),
        ("version: \"2\"", "unsupported Compose file version: 2"),
        (
            "services:\n  a: {image: x}\n  a: {image: y}",
            "bad.yml:3: mapping key \"a\" already defined",
        ),
        ("[1]", "top-level object must be a mapping"),
        (
            "volumes: {a: {external: true, driver: x}}",
            "conflicting parameters \"external\" and \"driver\" specified for volume \"a\"",
        ),
        (
            "services: {a: {}}",
            "invalid image reference for service a: no image specified",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let shoal = run(&host, "shoal", "stack deploy -c bad.yml s");
        assert_eq!(shoal.status.code(), Some(1), "{text}: {shoal:?}");
        assert!(shoal.stderr.contains(said), "{text}: {}", shoal.stderr);
    }
}

#[track_caller]
fn json(host: &Host, line: &str) -> Value {
    let output = done(host, "docker", line);
    serde_json::from_str(&output.stdout).unwrap_or_else(|_| panic!("{line}: {output:?}"))
}

/// Everything that a stack has, by name: specs without times, names in the place of ids.
fn objects(host: &Host, stack: &str) -> BTreeMap<String, Value> {
    let mut found = Vec::new();
    let mut names = Vec::new();
    for kind in ["network", "secret", "config", "service"] {
        let label = format!("label=com.docker.stack.namespace={stack}");
        let ids = done(
            host,
            "docker",
            &format!("{kind} ls --quiet --filter {label}"),
        );
        for id in ids.stdout.split_whitespace() {
            let object = json(host, &format!("{kind} inspect {id}"))[0].clone();
            let (id, name, spec) = if kind == "network" {
                let mut spec = object.clone();
                for gone in ["Id", "Created", "Containers", "Peers"] {
                    spec.as_object_mut().unwrap().remove(gone);
                }
                if let Some(options) = spec["Options"].as_object_mut() {
                    options.remove("com.docker.network.driver.overlay.vxlanid_list");
                }
                // Chosen anew for each network that asks for none.
                if object["Name"] == format!("{stack}_front")
                    || object["Name"] == format!("{stack}_default")
                {
                    spec.as_object_mut().unwrap().remove("IPAM");
                }
                (&object["Id"], &object["Name"], spec)
            } else {
                (
                    &object["ID"],
                    &object["Spec"]["Name"],
                    object["Spec"].clone(),
                )
            };
            let name = name.as_str().unwrap().to_owned();
            names.push((id.as_str().unwrap().to_owned(), name.clone()));
            found.push((format!("{kind} {name}"), spec));
        }
    }
    let named = |spec: &Value| {
        let mut text = spec.to_string();
        for (id, name) in &names {
            text = text.replace(id, name);
        }
        serde_json::from_str(&text).unwrap()
    };
    found
        .iter()
        .map(|(key, spec)| (key.clone(), named(spec)))
        .collect()
}

fn gone(host: &Host, stack: &str) {
    wait_for(
        "the stack to go",
        || {
            let label = format!("label=com.docker.stack.namespace={stack}");
            done(
                host,
                "docker",
                &format!("ps --all --quiet --filter {label}"),
            )
            .stdout
        },
        String::is_empty,
    );
}

#[test]
fn a_stack_is_the_same_whoever_deploys_it() {
    let host = Host::local();
    with_files(&host);
    let tar = docker_archive(host.dir(), "busybox:1").unwrap();
    done(
        &host,
        "docker",
        &format!("load --quiet --input {}", tar.display()),
    );

    let deploy = "stack deploy --resolve-image never -c compose.yml reef";
    let by_docker = done(&host, "docker", deploy);
    let first = objects(&host, "reef");
    assert_eq!(first.len(), 8, "{first:#?}");
    let log = &first["service reef_web"]["TaskTemplate"]["LogDriver"];
    assert_eq!(log["Options"]["max-size"], "10m", "{log}");
    let tasks = host.wait_running("reef_web", 2);
    host.wait_running("reef_everywhere", 1);

    // The other client finds nothing to change, and so no task is replaced.
    let again = done(&host, "shoal", deploy);
    assert_eq!(objects(&host, "reef"), first);
    let mut lines: Vec<&str> = again
        .stdout
        .lines()
        .map(|l| l.split(" (").next().unwrap())
        .collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "Updating service reef_everywhere",
            "Updating service reef_job",
            "Updating service reef_web"
        ]
    );
    assert_eq!(again.stderr, by_docker.stderr);
    assert_eq!(host.wait_running("reef_web", 2), tasks);

    for list in [
        "stack ls",
        "stack ls --format json",
        "stack services reef",
        "stack services --quiet reef",
        "stack services --filter name=reef_web --format {{.Name}}:{{.Replicas}} reef",
        "stack ps reef",
        "stack ps --no-trunc --filter desired-state=running reef",
        "stack ps nothing",
        "stack services nothing",
    ] {
        wait_for(
            &format!("docker and shoal to agree on {list:?}"),
            || {
                ["shoal", "docker", "shoal"].map(|program| {
                    let output = run(&host, program, list);
                    (output.status.code(), output.stdout, output.stderr)
                })
            },
            |[before, docker, after]| docker == before || docker == after,
        );
    }

    let removed = done(&host, "docker", "stack rm reef");
    gone(&host, "reef");
    let by_shoal = done(&host, "shoal", deploy);
    let mut sides = [by_docker.stdout, by_shoal.stdout]
        .map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    for side in &mut sides {
        side.sort();
    }
    assert_eq!(sides[0], sides[1]);
    assert_eq!(objects(&host, "reef"), first);
    host.wait_running("reef_web", 2);
    let removed_by_shoal = done(&host, "shoal", "stack rm --detach=false reef");
    let mut sides = [removed.stdout, removed_by_shoal.stdout]
        .map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    for side in &mut sides {
        side.sort();
    }
    assert_eq!(sides[0], sides[1]);
    assert_eq!(
        run(&host, "shoal", "stack rm reef").stderr,
        "Nothing found in stack: reef\n"
    );
    gone(&host, "reef");
}

/// What a stack has, but for the addresses that its networks were given.
fn meaning(host: &Host, stack: &str) -> BTreeMap<String, Value> {
    let mut found = objects(host, stack);
    for (key, spec) in &mut found {
        if key.starts_with("network ") {
            spec.as_object_mut().unwrap().remove("IPAM");
        }
    }
    found
}

/// Services with every option that people's files have. None of them runs: what they run as is tested elsewhere.
#[test]
fn files_as_people_have_them_mean_the_same_to_both() {
    let host = Host::local();
    with_files(&host);
    done(
        &host,
        "docker",
        "network create -d overlay --attachable traefik-public",
    );
    done(&host, "docker", "config create shared_cfg page.html");
    for (stack, count) in [("shop", 5), ("edge", 5)] {
        let deploy = |program: &str| {
            let line = format!("stack deploy --resolve-image never -c {stack}.yml {stack}");
            done(&host, program, &line)
        };
        deploy("docker");
        let first = meaning(&host, stack);
        assert_eq!(first.len(), count, "{first:#?}");
        deploy("shoal");
        assert_eq!(meaning(&host, stack), first);
        done(&host, "docker", &format!("stack rm {stack}"));
        deploy("shoal");
        assert_eq!(meaning(&host, stack), first);
        deploy("docker");
        assert_eq!(meaning(&host, stack), first);
        done(&host, "shoal", &format!("stack rm {stack}"));
    }
}

#[test]
fn a_stack_is_updated_pruned_and_waited_for() {
    let host = Host::local();
    with_files(&host);
    let tar = docker_archive(host.dir(), "busybox:1").unwrap();
    done(
        &host,
        "docker",
        &format!("load --quiet --input {}", tar.display()),
    );
    let write = |text: &str| fs::write(host.path("files/small.yml"), text).unwrap();
    write(
        "services:\n  a: {image: shoal/hello, build: ., restart: always, container_name: x}\n  b: {image: shoal/hello}\n",
    );
    let deployed = done(&host, "shoal", "stack deploy --detach=false -c small.yml s");
    assert!(
        deployed.stdout.contains("Creating network s_default\n"),
        "{deployed:?}"
    );
    assert!(deployed.stdout.contains("converged\n"), "{deployed:?}");
    assert!(
        deployed
            .stderr
            .contains("Ignoring unsupported options: build, restart\n\n")
            && deployed
                .stderr
                .contains("Ignoring deprecated options:\n\ncontainer_name: "),
        "{deployed:?}"
    );
    let policy =
        json(&host, "service inspect s_a")[0]["Spec"]["TaskTemplate"]["RestartPolicy"].clone();
    assert_eq!(policy["Condition"], "any");

    write("services:\n  a: {image: shoal/hello, environment: {N: '2'}}\n");
    let updated = done(
        &host,
        "shoal",
        "stack deploy --prune --detach=false --quiet -c small.yml s",
    );
    assert!(
        updated
            .stdout
            .starts_with("Removing service s_b\nUpdating service s_a (id: "),
        "{updated:?}"
    );
    let env = json(&host, "service inspect s_a")[0]["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"]
        .clone();
    assert_eq!(env, serde_json::json!(["N=2"]));
    assert_eq!(
        done(&host, "docker", "stack services --format {{.Name}} s").stdout,
        "s_a\n"
    );

    // The data of a secret cannot change under its name.
    let secrets =
        "services:\n  a: {image: shoal/hello, secrets: [t]}\nsecrets: {t: {file: ./token}}\n";
    write(secrets);
    done(&host, "shoal", "stack deploy --detach=true -c small.yml s");
    fs::write(host.path("files/token"), "another").unwrap();
    let docker = run(&host, "docker", "stack deploy --detach=true -c small.yml s");
    let shoal = run(&host, "shoal", "stack deploy --detach=true -c small.yml s");
    assert_eq!(docker.status.code(), Some(1));
    assert_eq!((shoal.status, shoal.stderr), (docker.status, docker.stderr));

    for (text, said) in [
        (
            "services: {a: {image: x, networks: [n]}}",
            "service a: undefined network \"n\"",
        ),
        (
            "services: {a: {image: x, secrets: [n]}}",
            "service a: undefined secret \"n\"",
        ),
        (
            "services: {a: {image: x, volumes: ['named:/n']}}",
            "service a: undefined volume \"named\"",
        ),
        (
            "services: {a: {image: x, networks: [not_there]}}\nnetworks: {not_there: {external: true}}",
            "network \"not_there\" is declared as external, but could not be found.",
        ),
        (
            "services: {a: {image: x, deploy: {mode: other}}}",
            "nknown mode: other",
        ),
    ] {
        write(text);
        for program in ["docker", "shoal"] {
            let refused = run(
                &host,
                program,
                "stack deploy --detach=true -c small.yml other",
            );
            assert_eq!(
                refused.status.code(),
                Some(1),
                "{program} {text}: {refused:?}"
            );
            assert!(
                refused.stderr.contains(said),
                "{program} {text}: {refused:?}"
            );
        }
    }
    done(&host, "shoal", "stack rm s other");
    gone(&host, "s");
}

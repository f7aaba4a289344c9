//! The server over a real socket: statuses, headers, messages, and streams that end.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::sync::atomic::Ordering;

use common::{TestServer, raw, wait_for};
use futures_util::StreamExt;
use shoal_engine_api::{
    client::{EventOptions, Filters, LogOptions},
    wire,
};

#[tokio::test]
async fn bad_requests_are_answered_as_docker_does() {
    let server = TestServer::swarm().await;
    let json = "application/json";
    let image = r#""TaskTemplate":{"ContainerSpec":{"Image":"x"}}"#;
    let service = |rest: &str| format!("{{{image}{rest}}}");
    let cases: &[(&str, &str, &str, &str, u16, &str)] = &[
        ("GET", "/nowhere", "", "", 404, "page not found"),
        ("PATCH", "/services", "", "", 404, "page not found"),
        (
            "GET",
            "/v1.23/info",
            "",
            "",
            400,
            "client version 1.23 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version",
        ),
        (
            "GET",
            "/v1.99/info",
            "",
            "",
            400,
            "client version 1.99 is too new. Maximum supported API version is 1.51",
        ),
        (
            "GET",
            "/services/nope",
            "",
            "",
            404,
            "service nope not found",
        ),
        ("GET", "/nodes/nope", "", "", 404, "node nope not found"),
        ("GET", "/tasks/nope", "", "", 404, "task nope not found"),
        (
            "GET",
            "/v1.44/networks/nope",
            "",
            "",
            404,
            "network nope not found",
        ),
        (
            "GET",
            "/images/no/such/json",
            "",
            "",
            404,
            "No such image: no/such",
        ),
        (
            "GET",
            "/containers/nope/json",
            "",
            "",
            404,
            "No such container: nope",
        ),
        (
            "GET",
            "/services?filters=%7B%22x%22%3A%5B%22y%22%5D%7D",
            "",
            "",
            400,
            "invalid filter 'x'",
        ),
        (
            "GET",
            "/containers/nope/logs",
            "",
            "",
            400,
            "Bad parameters: you must choose at least one stream",
        ),
        (
            "POST",
            "/services/create",
            "text/plain",
            "{}",
            400,
            "unsupported Content-Type header (text/plain): must be 'application/json'",
        ),
        (
            "POST",
            "/services/create",
            json,
            "{} {}",
            400,
            "unexpected content after JSON",
        ),
        (
            "POST",
            "/services/create",
            json,
            r#"{"Labels":{"a":1}}"#,
            400,
            "invalid JSON: Labels.a: invalid type: integer `1`, expected a string",
        ),
        (
            "POST",
            "/services/create",
            json,
            "{}",
            400,
            "TaskSpec: missing runtime: a container spec must be provided (TaskTemplate.ContainerSpec)",
        ),
        (
            "POST",
            "/services/x/update",
            json,
            "{}",
            400,
            "invalid service version '': a number is needed",
        ),
        (
            "POST",
            "/swarm/init",
            json,
            "{}",
            503,
            "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join another one.",
        ),
        (
            "GET",
            "/volumes/some",
            json,
            "",
            501,
            "volumes is not supported by shoal yet",
        ),
        (
            "POST",
            "/containers/create",
            json,
            "{}",
            501,
            "creating containers outside a service is not supported by shoal yet",
        ),
        (
            "POST",
            "/networks/create",
            json,
            r#"{"Name":"n","EnableIPv6":true}"#,
            501,
            "EnableIPv6 is not supported: networks have IPv4 addresses only",
        ),
        (
            "POST",
            "/networks/create",
            json,
            r#"{"Name":"ingress"}"#,
            409,
            "network with name ingress already exists",
        ),
        (
            "POST",
            "/nodes/reef/update?version=1",
            json,
            r#"{"Role":"manager","Availability":"active"}"#,
            500,
            "rpc error: code = Unknown desc = update out of sequence",
        ),
        (
            "POST",
            "/secrets/create",
            json,
            r#"{"Name":"s"}"#,
            400,
            "secret data must be larger than 0 and less than 512000 bytes (Data)",
        ),
    ];
    for (method, path, kind, body, status, message) in cases {
        let (got, head, text) = raw(&server, method, path, kind, body).await;
        let error: wire::ErrorBody =
            serde_json::from_str(&text).unwrap_or_else(|_| panic!("{path}: {text}"));
        assert_eq!(
            (got, error.message.as_str()),
            (*status, *message),
            "{method} {path}"
        );
        assert!(
            head.contains("content-type: application/json\r\n"),
            "{head}"
        );
        assert!(head.contains("api-version: 1.51"), "{head}");
    }
    let (status, _, body) = raw(&server, "POST", "/services/create", json, &service("")).await;
    assert_eq!(status, 201, "{body}");
    let named: Vec<wire::Service> = server
        .client()
        .services(&Filters::default(), true)
        .await
        .unwrap();
    assert!(
        named[0].spec.name.contains('_'),
        "a name was chosen: {}",
        named[0].spec.name
    );
    assert_eq!(named[0].service_status.as_ref().unwrap().running_tasks, 1);
}

#[tokio::test]
async fn ping_says_who_answers() {
    let server = TestServer::start();
    let (status, head, body) = raw(&server, "GET", "/_ping", "", "").await;
    assert_eq!((status, body.as_str()), (200, "OK"));
    for header in [
        "api-version: 1.51",
        "ostype: linux",
        "docker-experimental: false",
        "builder-version: 1",
        "swarm: inactive",
        "server: docker/",
        "cache-control: no-cache, no-store, must-revalidate",
    ] {
        assert!(head.contains(header), "{header} is not in\n{head}");
    }
    let (status, _, body) = raw(&server, "HEAD", "/v1.24/_ping", "", "").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert_eq!(raw(&server, "OPTIONS", "/anything", "", "").await.0, 200);
    let (status, _, body) = raw(&server, "GET", "/services", "", "").await;
    assert_eq!(status, 503);
    assert!(
        body.contains("This node is not a swarm manager. Use"),
        "{body}"
    );
}

#[tokio::test]
async fn a_node_without_volumes_lists_none_and_there_are_no_plugins() {
    let server = TestServer::start();
    let (status, _, body) = raw(&server, "GET", "/v1.51/volumes", "", "").await;
    assert_eq!(
        (status, body.trim_end()),
        (200, r#"{"Volumes":[],"Warnings":null}"#)
    );
    let (status, _, body) = raw(&server, "GET", "/v1.51/plugins", "", "").await;
    assert_eq!((status, body.trim_end()), (200, "[]"));
}

#[tokio::test]
async fn events_tell_what_changes_and_end_at_their_time() {
    let server = TestServer::swarm().await;
    let client = server.client();
    let options = EventOptions {
        filters: Filters::default().with("type", "service"),
        ..EventOptions::default()
    };
    let mut events = client.events(&options).await.unwrap();
    let spec = wire::ServiceSpec {
        name: "web".into(),
        task_template: wire::TaskSpec {
            container_spec: Some(wire::ContainerSpec {
                image: "x".into(),
                ..Default::default()
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    let id = client.create_service(&spec, None).await.unwrap().id;
    let event = events.next().await.unwrap().unwrap();
    assert_eq!(
        (event.kind.as_str(), event.action.as_str()),
        ("service", "create")
    );
    assert_eq!(
        (event.actor.id.as_str(), event.scope.as_str()),
        (id.as_str(), "swarm")
    );
    assert_eq!(event.actor.attributes["name"], "web");
    assert!(event.time > 1_700_000_000 && event.time == event.time_nano / 1_000_000_000);

    let service = client.service("web", false).await.unwrap();
    let mut scaled = service.spec.clone();
    scaled.mode.replicated = Some(wire::Replicated { replicas: Some(2) });
    client
        .update_service("web", service.version.index, &scaled, &Default::default())
        .await
        .unwrap();
    let updated = loop {
        let event = events.next().await.unwrap().unwrap();
        if event.actor.attributes.contains_key("replicas.new") {
            break event;
        }
    };
    assert_eq!(updated.actor.attributes["replicas.new"], "2");
    assert_eq!(updated.actor.attributes["replicas.old"], "1");

    let past = EventOptions {
        until: "1700000000".into(),
        ..EventOptions::default()
    };
    assert!(client.events(&past).await.unwrap().next().await.is_none());
}

#[tokio::test]
async fn streams_stop_their_work_when_the_client_goes_away() {
    let server = TestServer::swarm().await;
    let client = server.client();
    let pull = client.pull_image("endless", None).await.unwrap();
    let pulls = server.node.open_pulls.clone();
    assert_eq!(pulls.load(Ordering::SeqCst), 1);
    drop(pull);
    wait_for("the pull to be given up", || {
        pulls.load(Ordering::SeqCst) == 0
    })
    .await;

    let body = r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"x"}}}"#;
    raw(
        &server,
        "POST",
        "/services/create",
        "application/json",
        body,
    )
    .await;
    let options = LogOptions {
        stdout: true,
        stderr: true,
        follow: true,
        ..LogOptions::default()
    };
    let mut logs = client.service_logs("web", &options).await.unwrap();
    for expected in ["one\n", "two\n", "three\n"] {
        assert_eq!(logs.next().await.unwrap().unwrap().payload, expected);
    }
    let open = server.node.open_logs.clone();
    assert_eq!(open.load(Ordering::SeqCst), 1);
    // A task that comes to be while somebody follows is heard as well.
    let service = client.service("web", false).await.unwrap();
    let mut scaled = service.spec.clone();
    scaled.mode.replicated = Some(wire::Replicated { replicas: Some(2) });
    client
        .update_service("web", service.version.index, &scaled, &Default::default())
        .await
        .unwrap();
    assert_eq!(logs.next().await.unwrap().unwrap().payload, "one\n");
    assert!(open.load(Ordering::SeqCst) > 1);
    drop(logs);
    wait_for("the logs to be closed", || open.load(Ordering::SeqCst) == 0).await;
    server.shut_down().await;
}

#[tokio::test]
async fn progress_that_fails_late_is_told_in_the_stream() {
    let server = TestServer::start();
    let lines: Vec<_> = server
        .client()
        .pull_image("broken", None)
        .await
        .unwrap()
        .collect()
        .await;
    let last = lines.last().unwrap().as_ref().unwrap();
    assert_eq!(last.error, "the registry hung up");
    assert!(lines[0].as_ref().unwrap().status == "Downloading");
    let early = server
        .client()
        .pull_image("missing", None)
        .await
        .unwrap_err();
    assert!(early.is_not_found(), "{early}");
}

#[tokio::test]
async fn optimistic_writes_and_rollback_work_through_the_client() {
    let server = TestServer::swarm().await;
    let client = server.client();
    let body = r#"{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"x:1"}}}"#;
    raw(
        &server,
        "POST",
        "/services/create",
        "application/json",
        body,
    )
    .await;
    let old = client.service("web", false).await.unwrap();
    let mut spec = old.spec.clone();
    spec.task_template.container_spec.as_mut().unwrap().image = "x:2".into();
    client
        .update_service("web", old.version.index, &spec, &Default::default())
        .await
        .unwrap();
    let stale = client
        .update_service("web", old.version.index, &spec, &Default::default())
        .await;
    let stale = stale.unwrap_err();
    assert_eq!(
        stale.to_string(),
        "rpc error: code = Unknown desc = update out of sequence"
    );
    let now = client.service("web", false).await.unwrap();
    assert_eq!(now.previous_spec.as_ref(), Some(&old.spec));
    let filters = Filters::default()
        .with("service", "web")
        .with("_up-to-date", "true");
    let tasks = client.tasks(&filters).await.unwrap();
    assert_eq!(tasks.len(), 1);
    assert_eq!(tasks[0].spec.container_spec.as_ref().unwrap().image, "x:2");
    assert_eq!(
        client
            .tasks(&Filters::default().with("service", "web"))
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn what_is_wrong_on_the_node_is_told() {
    let server = TestServer::start();
    let diagnosis = server.client().doctor().await.unwrap();
    assert_eq!(
        diagnosis.findings,
        ["network n: route to 10.0.1.0/24 is missing"]
    );
    assert!(diagnosis.warnings.is_empty());
    let (status, _, body) = raw(&server, "GET", "/v1.44/doctor", "", "").await;
    assert_eq!(status, 200);
    assert!(body.contains(r#""Warnings":[]"#), "{body}");
}

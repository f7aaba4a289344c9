//! Lines that people type, good and bad, each by docker and by shoal against one daemon: the exit code, what is said,
//! and that what is refused changes nothing.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use cluster_tests::{
    Host,
    line::{docker, load_busybox, try_docker, try_shoal},
    wait_for,
};

/// A line, and words of the reason it is refused for.
type Refused = (&'static str, &'static str);

/// Refused by the client or the daemon, in words that name what is wrong.
const SERVICES: &[Refused] = &[
    ("service create", "requires at least 1 argument"),
    ("service create --bogus busybox:1", "unknown flag: --bogus"),
    (
        "service create --replicas -1 busybox:1",
        "\"--replicas\" flag",
    ),
    (
        "service create --mode global --replicas 2 busybox:1",
        "replicas can only be used with",
    ),
    ("service create --mode foo busybox:1", "Unknown mode: foo"),
    (
        "service create -d --name a.b busybox:1",
        "valid as a DNS name component",
    ),
    ("service create -d --name DUP busybox:1", "already exists"),
    ("service create -d BusyBox", "is not a valid repository/tag"),
    (
        "service create -d --limit-cpu 0.00001 busybox:1",
        "Must be at least 0.001",
    ),
    (
        "service create -d --limit-memory 1k busybox:1",
        "Must be at least 4MiB",
    ),
    (
        "service create --limit-memory 1x busybox:1",
        "invalid suffix: 'x'",
    ),
    (
        "service create -d --restart-delay -1s busybox:1",
        "restart-delay cannot be negative",
    ),
    (
        "service create -d --restart-condition foo busybox:1",
        "invalid RestartCondition: \"foo\"",
    ),
    (
        "service create -d --update-failure-action foo busybox:1",
        "unrecognized update failure action foo",
    ),
    (
        "service create -d --update-max-failure-ratio 2 busybox:1",
        "update-maxfailureratio",
    ),
    (
        "service create -d --endpoint-mode dnsrr -p 80:80 busybox:1",
        "can't be used with dnsrr mode",
    ),
    (
        "service create -d -p 80:80 -p 80:81 busybox:1",
        "duplicate published ports",
    ),
    ("service create -p 70000:80 busybox:1", "70000"),
    (
        "service create -d -p 8090:80 busybox:1",
        "port '8090' is already in use by service 'dup'",
    ),
    (
        "service create --mount type=bind,src=/a busybox:1",
        "target is required",
    ),
    (
        "service create -d --mount type=volume,src=v,dst=rel busybox:1",
        "must be an absolute path: rel",
    ),
    (
        "service create -d --network nope busybox:1",
        "network nope not found",
    ),
    (
        "service create -d --network host busybox:1",
        "publish ports with mode=host",
    ),
    (
        "service create -d --secret nope busybox:1",
        "secret not found: nope",
    ),
    (
        "service create -d --config nope busybox:1",
        "config not found: nope",
    ),
    (
        "service create -d --constraint node.id=x busybox:1",
        "expected one operator from ==, !=",
    ),
    (
        "service create -d --health-interval 1us busybox:1",
        "cannot be less than 1ms",
    ),
    (
        "service create -d --health-cmd x --no-healthcheck busybox:1",
        "conflicts with --health-* options",
    ),
    ("service update -d --image x nope", "nope not found"),
    (
        "service update -d --image UPPER dup",
        "is not a valid repository/tag",
    ),
    ("service update -d --replicas x dup", "\"--replicas\" flag"),
    (
        "service update -d --rollback dup",
        "does not have a previous spec",
    ),
    ("service scale -d dup=-1", "invalid replicas value -1"),
    ("service scale -d nope=1", "nope not found"),
    ("service ps nope", "no such service: nope"),
    ("service ls --filter foo=bar", "nvalid filter 'foo'"),
    ("service ps --filter foo=bar dup", "nvalid filter 'foo'"),
    ("service ls --format {{.Nope}}", "can't evaluate field Nope"),
    ("service logs nope", "nope"),
    ("service rm nope", "nope"),
];

const OTHERS: &[Refused] = &[
    ("network create -d foo back", "foo"),
    (
        "network create -d overlay kept",
        "network with name kept already exists",
    ),
    (
        "network create -d overlay --subnet 10.66.0.0/25 back",
        "overlaps",
    ),
    (
        "network create -d overlay --subnet 10.67.0.0/24 --gateway 1.2.3.4 back",
        "no matching subnet for gateway",
    ),
    ("network create -d overlay host", "predefined host network"),
    ("network create -d overlay none", "predefined none network"),
    ("network inspect host", "publish ports with mode=host"),
    (
        "network rm bridge",
        "is a pre-defined network and cannot be removed",
    ),
    ("network rm nope", "network nope not found"),
    ("network connect kept nope", "not supported by shoal yet"),
    ("network ls --filter foo=bar", "nvalid filter 'foo'"),
    (
        "network prune --force --filter until=soon",
        "failed to parse value as time or duration: \"soon\"",
    ),
    ("secret inspect nope", "nope not found"),
    ("secret rm nope", "secret nope not found"),
    ("config rm nope", "config nope not found"),
    ("volume rm nope", "get nope: no such volume"),
    ("volume create -d foo x", "plugin \"foo\" not found"),
    (
        "node update --availability drain nope",
        "node nope not found",
    ),
    ("node inspect nope", "node nope not found"),
    ("node rm nope", "node nope not found"),
    (
        "swarm update --cert-expiry 1m",
        "minimum certificate expiry time is",
    ),
    (
        "swarm join --token x 127.0.0.1:2377",
        "This node is already part of a swarm",
    ),
    ("swarm leave", "--force"),
    ("swarm join-token foo", "unknown role foo"),
    ("image inspect nope", "No such image: nope"),
    ("images --filter before=nope", "No such image: nope"),
    ("tag nope other:1", "No such image: nope"),
    ("rmi nope", "No such image: nope"),
    ("ps --filter since=nope", "No such container: nope"),
    ("ps --filter publish=x", "invalid port in a filter: \"x\""),
    ("ps --filter exited=x", "invalid filter 'exited=x'"),
    ("logs nope", "No such container: nope"),
    ("inspect nope", "o such object: nope"),
];

/// Everything that a refused line might have changed.
fn world(host: &Host) -> Vec<String> {
    [
        "service ls",
        "network ls --no-trunc",
        "secret ls --quiet",
        "config ls --quiet",
        "volume ls",
        "images --no-trunc --format {{.Repository}}:{{.Tag}}={{.ID}}",
        "node ls",
        "service inspect --format {{json .Spec}} dup",
    ]
    .map(|line| docker(host, line))
    .into()
}

#[test]
fn what_is_wrong_is_refused_with_the_reason_and_changes_nothing() {
    let host = Host::local();
    load_busybox(&host);
    docker(
        &host,
        "network create -d overlay --subnet 10.66.0.0/24 kept",
    );
    docker(
        &host,
        "service create --quiet -d --name dup --replicas 0 -p 8090:80 busybox:1",
    );
    let before = world(&host);
    let mut faults = Vec::new();
    for (line, reason) in SERVICES.iter().chain(OTHERS) {
        for (program, output) in [
            ("docker", try_docker(&host, line)),
            ("shoal", try_shoal(&host, line)),
        ] {
            if !matches!(output.status.code(), Some(1 | 125)) || !output.stderr.contains(reason) {
                faults.push(format!("{program} {line}: {output:?}"));
            }
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert_eq!(world(&host), before);
}

/// Lines that succeed and say nothing that changes: the same by both.
#[test]
fn what_scripts_ask_is_answered_alike() {
    let host = Host::local();
    load_busybox(&host);
    docker(
        &host,
        "service create --quiet -d --name web --mount type=volume,src=data,dst=/data \
         --limit-pids -1 --rollback-failure-action rollback -p 8091:80 busybox:1 sleep 1000",
    );
    host.wait_running("web", 1);
    for (line, wanted) in [
        ("version --format {{.Server.APIVersion}}", "1.51\n"),
        ("version --format {{.Server.Os}}", "linux\n"),
        ("ps --quiet --filter volume=nope", ""),
        ("ps --filter volume=data --format {{.Image}}", "busybox:1\n"),
        ("ps --filter volume=/data --format {{.Ports}}", "80/tcp\n"),
        ("ps --filter expose=80 --format {{.Image}}", "busybox:1\n"),
        ("ps --filter expose=81-90/udp --quiet", ""),
        ("ps --filter publish=8091 --quiet", ""),
        ("images --quiet --filter since=busybox:1 nothing", ""),
        ("images --filter before=busybox:1 --quiet busybox", ""),
        (
            "images --filter label!=nope=1 --format {{.Tag}} busybox",
            "1\n",
        ),
        (
            "service inspect --format {{.Spec.RollbackConfig.FailureAction}} web",
            "pause\n",
        ),
        ("network prune --force --filter until=24h", ""),
        (
            "image prune --force --filter until=24h",
            "Total reclaimed space: 0B\n",
        ),
        (
            "history --human=false --format {{.CreatedAt}} busybox:1",
            "",
        ),
    ] {
        let by = [try_docker(&host, line), try_shoal(&host, line)];
        for output in &by {
            assert!(output.status.success(), "{line}: {output:?}");
            assert!(output.stdout.ends_with(wanted), "{line}: {output:?}");
            assert!(
                !wanted.is_empty() || output.stdout.is_empty(),
                "{line}: {output:?}"
            );
        }
        assert_eq!(by[0].stdout, by[1].stdout, "{line}");
    }
    // What is gone already is no reason to stop for.
    let gone = try_docker(&host, "rm --force nope");
    assert!(gone.status.success(), "{gone:?}");
    // What crontabs of Docker's hosts hold.
    for line in [
        "system prune --force",
        "system prune --all --force --filter until=24h",
        "container prune --force",
        "builder prune --force",
    ] {
        let pruned = docker(&host, line);
        assert!(
            pruned.contains("Total reclaimed space: "),
            "{line}: {pruned}"
        );
    }
    assert_eq!(host.wait_running("web", 1).len(), 1);
}

/// A client that sends more than is read gets the answer all the same.
#[test]
fn an_answer_comes_however_much_is_sent() {
    let host = Host::new().unwrap();
    let mut host = host;
    host.start();
    for size in [100, 8 << 20] {
        let mut stream = UnixStream::connect(host.path("shoal.sock")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let head = format!(
            "POST /v1.43/containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Content-Length: {size}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![b' '; size]).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 501 "), "{answer}");
        assert!(answer.contains("not supported by shoal yet"), "{answer}");
    }
}

/// What cannot be prepared is tried again after the delay, not as fast as it fails.
#[test]
fn a_task_that_cannot_be_prepared_waits_for_the_restart_delay() {
    let host = Host::local();
    load_busybox(&host);
    docker(
        &host,
        "service create --quiet -d --name web --restart-delay 1h \
         --mount type=bind,src=/does/not/exist,dst=/x busybox:1",
    );
    let rejected = |tasks: &Vec<serde_json::Value>| {
        let is = |task: &&serde_json::Value| task["Status"]["State"] == "rejected";
        tasks.iter().filter(is).count()
    };
    // The first starts at once; its successor is prepared ahead, and then the delay is waited for.
    wait_for(
        "two attempts",
        || host.tasks("web"),
        |tasks| rejected(tasks) == 2,
    );
    docker(
        &host,
        "service create --quiet -d --name other busybox:1 sleep 1000",
    );
    host.wait_running("other", 1);
    assert_eq!(host.tasks("web").len(), 2);
}

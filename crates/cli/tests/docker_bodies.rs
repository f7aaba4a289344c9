//! The same words given to the docker CLI and to ours must reach the daemon as the same request bodies.
//!
//! A small server on a unix socket answers what both clients ask for and keeps every body that is posted. Without a
//! docker CLI on this machine there is nothing to compare with, and the tests fail.

#![expect(clippy::unwrap_used, reason = "helpers of a test fail by panicking")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};

/// A request that changes something: its path with the query, and its body.
#[derive(Debug, Clone, PartialEq)]
struct Posted {
    target: String,
    body: Value,
}

struct Recorder {
    socket: PathBuf,
    posted: Arc<Mutex<Vec<Posted>>>,
    _dir: tempfile::TempDir,
}

impl Recorder {
    fn start(service: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("api.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let posted = Arc::new(Mutex::new(Vec::new()));
        let record = posted.clone();
        // Ends with the process: nothing outlives a test but this thread, which owns no resource of the machine.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (record, service) = (record.clone(), service.clone());
                thread::spawn(move || serve(stream, &record, &service));
            }
        });
        Self {
            socket,
            posted,
            _dir: dir,
        }
    }

    fn take(&self) -> Vec<Posted> {
        std::mem::take(&mut *self.posted.lock().unwrap())
    }

    fn run(&self, program: &Path, words: &[&str]) -> Output {
        Command::new(program)
            .arg("-H")
            .arg(format!("unix://{}", self.socket.display()))
            .args(words)
            .env("DOCKER_CONFIG", self.socket.parent().unwrap())
            .env("DOCKER_API_VERSION", "1.50")
            .env("FROM_ENV", "value")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }
}

fn serve(stream: UnixStream, record: &Mutex<Vec<Posted>>, service: &Value) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let (method, target) = (method.to_owned(), target.to_owned());
        let mut length = 0;
        let mut chunked = false;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).unwrap();
            let header = header.trim().to_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            chunked |= header == "transfer-encoding: chunked";
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        while chunked {
            let mut size = String::new();
            reader.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).unwrap();
            body.extend_from_slice(&chunk[..size]);
            chunked = size > 0;
        }
        // `/v1.50/path` and `/path` are the same.
        let bare = match target.strip_prefix("/v1.") {
            Some(rest) => format!("/{}", rest.split_once('/').map_or("", |(_, path)| path)),
            None => target.clone(),
        };
        if matches!(method.as_str(), "POST" | "DELETE") {
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            record.lock().unwrap().push(Posted {
                target: bare.clone(),
                body,
            });
        }
        let (status, answer) = answer(&bare, service);
        let answer = if method == "HEAD" {
            String::new()
        } else {
            answer.to_string()
        };
        let reply = format!(
            "HTTP/1.1 {status} X\r\nApi-Version: 1.50\r\nOstype: linux\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{answer}",
            answer.len()
        );
        if stream.write_all(reply.as_bytes()).is_err() {
            return;
        }
    }
}

fn answer(target: &str, service: &Value) -> (u16, Value) {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["_ping"] => (200, json!("OK")),
        ["services", "create"] => (201, json!({"ID": "serviceid"})),
        ["services", _, "update"] => (200, json!({"Warnings": null})),
        ["services", _] => (200, service.clone()),
        ["networks", "create"] => (201, json!({"Id": "networkid", "Warning": ""})),
        ["networks", name] => (
            200,
            json!({"Id": format!("id-of-{name}"), "Name": name, "Scope": "swarm"}),
        ),
        [kind @ ("secrets" | "configs")] => {
            // Every name that was asked for exists.
            let query = query
                .replace("%22", "\"")
                .replace("%7B", "{")
                .replace("%7D", "}");
            let query = query.replace("%3A", ":").replace("%2C", ",");
            let filters: Value =
                serde_json::from_str(query.strip_prefix("filters=").unwrap()).unwrap();
            let names = filters["name"].as_object().unwrap().keys();
            let items: Vec<Value> = names
                .map(|name| json!({"ID": format!("{kind}-{name}"), "Spec": {"Name": name, "Labels": {}}}))
                .collect();
            (200, items.into())
        }
        ["distribution", "pinned" | "pinned:1", ..] => (
            200,
            json!({"Descriptor": {"mediaType": "m", "digest": format!("sha256:{}", "a".repeat(64)), "size": 1},
                   "Platforms": [{"architecture": "amd64", "os": "linux"}, {"architecture": "arm", "os": "linux"}]}),
        ),
        ["secrets" | "configs", "create"] => (201, json!({"ID": "objectid"})),
        ["swarm", "init"] => (200, json!("nodeid")),
        ["swarm", "join" | "leave" | "update"] | ["nodes", _, "update"] => (200, Value::Null),
        ["swarm", "unlockkey"] => (200, json!({"UnlockKey": ""})),
        ["swarm"] => (200, swarm()),
        ["info"] => (
            200,
            json!({"Swarm": {"NodeID": "nodeid", "LocalNodeState": "active", "ControlAvailable": false}}),
        ),
        ["nodes", name] => (200, node(name)),
        _ => (404, json!({"message": format!("no such thing: {target}")})),
    }
}

fn swarm() -> Value {
    json!({
        "ID": "swarmid", "Version": {"Index": 7},
        "CreatedAt": "2026-01-01T00:00:00Z", "UpdatedAt": "2026-01-01T00:00:00Z",
        "Spec": {
            "Name": "default", "Labels": {"a": "b"},
            "Orchestration": {"TaskHistoryRetentionLimit": 5},
            "Raft": {"SnapshotInterval": 10000, "KeepOldSnapshots": 0, "LogEntriesForSlowFollowers": 500,
                     "ElectionTick": 10, "HeartbeatTick": 1},
            "Dispatcher": {"HeartbeatPeriod": 5_000_000_000_i64},
            "CAConfig": {"NodeCertExpiry": 7_776_000_000_000_000_i64},
            "TaskDefaults": {}, "EncryptionConfig": {"AutoLockManagers": false}
        },
        "TLSInfo": {"TrustRoot": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
        "RootRotationInProgress": false,
        "JoinTokens": {"Worker": "SWMTKN-1-a-w", "Manager": "SWMTKN-1-a-m"}
    })
}

/// Whose name begins with `m` is a manager, and so is the one that answers.
fn node(name: &str) -> Value {
    let manages = name.starts_with('m') || name == "nodeid";
    let mut node = json!({
        "ID": name, "Version": {"Index": 3}, "CreatedAt": "2026-01-02T03:04:05.678Z",
        "Spec": {"Labels": {"old": "1"}, "Role": if manages { "manager" } else { "worker" },
                 "Availability": "active"},
        "Description": {
            "Hostname": "host", "Platform": {"Architecture": "x86_64", "OS": "linux"},
            "Resources": {"NanoCPUs": 2_000_000_000_i64, "MemoryBytes": 4_294_967_296_i64},
            "Engine": {"EngineVersion": "0.1.0"}
        },
        "Status": {"State": "ready", "Addr": "1.2.3.4"}
    });
    if manages {
        node["ManagerStatus"] = json!({"Reachability": "reachable", "Addr": "1.2.3.4:2377"});
    }
    node
}

/// A service as Docker's own types write it, so that passing through them changes nothing.
fn service() -> Value {
    json!({
        "ID": "serviceid", "Version": {"Index": 42},
        "CreatedAt": "2026-01-01T00:00:00Z", "UpdatedAt": "2026-01-01T00:00:00Z",
        "Spec": {
            "Name": "web", "Labels": {"tier": "front", "old": "1"},
            "TaskTemplate": {
                "ContainerSpec": {
                    "Image": "nginx:1", "Labels": {"c": "1"}, "Args": ["x"], "Env": ["A=1", "B=2"],
                    "Init": false, "Hosts": ["1.1.1.1 one uno", "2.2.2.2 two"], "DNSConfig": {"Nameservers": ["9.9.9.9"]},
                    "Mounts": [{"Type": "volume", "Source": "v", "Target": "/v"}],
                    "Isolation": "default", "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["CAP_CHOWN"],
                    "Secrets": [{"File": {"Name": "db", "UID": "0", "GID": "0", "Mode": 292}, "SecretID": "s1", "SecretName": "db"}],
                    "Ulimits": [{"Name": "nofile", "Hard": 20, "Soft": 10}],
                    "Sysctls": {"net.a": "1"}, "Groups": ["g1"],
                    "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 1_000_000_000},
                    "Configs": [{"File": {"Name": "/c", "UID": "0", "GID": "0", "Mode": 292}, "ConfigID": "c1", "ConfigName": "c"}]
                },
                "Resources": {"Limits": {"MemoryBytes": 1_048_576}, "Reservations": {"GenericResources": [
                    {"DiscreteResourceSpec": {"Kind": "GPU", "Value": 1}}]}},
                "Placement": {"Constraints": ["node.role==worker"], "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.a"}}]},
                "Networks": [{"Target": "id-of-front"}],
                "ForceUpdate": 3, "Runtime": "container"
            },
            "Mode": {"Replicated": {"Replicas": 2}},
            "EndpointSpec": {"Mode": "vip", "Ports": [
                {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"}]}
        },
        "Endpoint": {"Spec": {}}
    })
}

const LINES: &[&str] = &[
    "service create -d alpine",
    "service create -d --name web --replicas 3 --publish 8080:80 nginx:1.27",
    "service create -d pinned",
    "service create -d --no-resolve-image pinned:1 sh -c true",
    "service create -d --name g --mode global -l a=1 -l b --container-label c=2 registry.local:5000/a/b",
    "service create -d -p 53:53/udp -p published=443,target=8443,mode=host -p 9000-9002:9000-9002 alpine",
    "service create -d -p 7000-7001:70 -p 81 alpine",
    "service create -d --mount type=bind,src=/a,dst=/b,ro --mount type=tmpfs,dst=/t,tmpfs-size=1m,tmpfs-mode=1777 alpine",
    "service create -d --mount source=v,target=/d,volume-driver=local,volume-opt=type=nfs,volume-label=a=b,volume-nocopy alpine",
    "service create -d --mount type=bind,src=/a,dst=/b,bind-propagation=rshared,bind-recursive=disabled alpine",
    "service create -d -e A=1 -e FROM_ENV -e NOT_SET -e A=2 --hostname h{{.Task.Slot}} -u 1:1 -w /w alpine",
    "service create -d --env-file ENVFILE -e A=9 alpine",
    "service create -d --limit-cpu 0.5 --limit-memory 64m --limit-pids 10 --reserve-cpu 1/4 --reserve-memory 1.5g alpine",
    "service create -d --generic-resource GPU=2 --constraint node.role==worker --constraint a!=b --placement-pref spread=node.labels.dc --replicas-max-per-node 2 alpine",
    "service create -d --restart-condition on-failure --restart-delay 1s --restart-max-attempts 3 --restart-window 1m alpine",
    "service create -d --restart-max-attempts 0 alpine",
    "service create -d --update-parallelism 2 --update-delay 10s --update-failure-action rollback --update-monitor 1m --update-max-failure-ratio .2 --update-order start-first alpine",
    "service create -d --rollback-parallelism 0 --rollback-delay 0s --rollback-order stop-first alpine",
    "service create -d --health-cmd true --health-interval 1s --health-timeout 2s --health-retries 3 --health-start-period 4s --health-start-interval 5s alpine",
    "service create -d --no-healthcheck --stop-signal SIGINT --stop-grace-period 0s --init --tty --read-only alpine",
    "service create -dp8080:80 -eA=1 -t=false --name a --name b alpine ls -la --name c -- -x",
    "service create -dtp=81 --detach=true -- alpine -x",
    "service create -d --network front --network name=back,alias=x,alias=y,driver-opt=k=v alpine",
    "service create -d --secret db --secret source=tls,target=/tls,uid=1,gid=2,mode=0400 alpine",
    "service create -d --config c --config source=d,target=/d,mode=0440 alpine",
    "service create -d --dns 1.1.1.1 --dns-option ndots:1 --dns-search example.com --host a:1.2.3.4 --host b:::1 alpine",
    "service create -d --cap-add net_admin --cap-drop ALL --ulimit nofile=10:20 --ulimit core=-1 --sysctl net.a=1 --group wheel alpine",
    "service create -d --log-driver json-file --log-opt max-size=1m --endpoint-mode dnsrr --entrypoint sh\\ -c --oom-score-adj 5 alpine",
    "service create -d --mode replicated-job --replicas 5 --max-concurrent 2 alpine",
    "service create -d --mode global-job --isolation default --credential-spec file://x alpine",
    "service create -d --credential-spec config://cred alpine",
    "service update -d web",
    "service update -d --image nginx:2 --no-resolve-image web",
    "service update -d --image pinned:1 --force web",
    "service update -d --replicas 5 --args a\\ b --entrypoint sh web",
    "service update -d --label-add x=1 --label-rm old --container-label-add d=2 --container-label-rm c web",
    "service update -d --env-add A=9 --env-add C=3 --env-rm B web",
    "service update -d --publish-add 8081:81 --publish-rm 80 web",
    "service update -d --publish-add 8080:80 --publish-add target=90,mode=host web",
    "service update -d --mount-add type=bind,src=/a,dst=/b --mount-rm /v web",
    "service update -d --constraint-add a==b --constraint-rm node.role==worker --placement-pref-add spread=b --placement-pref-rm spread=node.labels.a --replicas-max-per-node 3 web",
    "service update -d --network-add name=back,alias=z --network-rm front web",
    "service update -d --secret-add tls --secret-rm db --config-add n --config-rm c web",
    "service update -d --host-add x:3.3.3.3 --host-rm uno --host-rm two:2.2.2.2 web",
    "service update -d --dns-add 1.1.1.1 --dns-rm 9.9.9.9 --dns-search-add a.b --dns-option-add x:1 web",
    "service update -d --cap-add chown --cap-drop net_admin --cap-drop kill web",
    "service update -d --limit-cpu 2 --reserve-memory 1g --generic-resource-add SSD=1 --generic-resource-rm GPU web",
    "service update -d --health-interval 5s --health-retries 2 --stop-grace-period 3s --tty --read-only --init web",
    "service update -d --no-healthcheck --ulimit-add core=1 --ulimit-rm nofile --sysctl-add net.b=2 --sysctl-rm net.a --group-add g2 --group-rm g1 web",
    "service update -d --update-order start-first --rollback-monitor 9s --restart-delay 2s --endpoint-mode dnsrr --log-driver local web",
    "service update -d --rollback web",
    "service rollback -d web",
    "service scale -d web=7",
    "network create -d overlay --attachable --subnet 10.5.0.0/24 -o encrypted ov",
    "network create n",
    "network create --internal --ipv6 --label a=b --subnet 10.6.0.0/16,fd00::/64 --gateway 10.6.0.1 --ip-range 10.6.1.0/24 --aux-address x=10.6.0.9 --ipam-opt k=v n",
    "network create --config-only --scope local --ipv4=false n",
    "network create --config-from base --ingress n",
    "swarm init",
    "swarm init --advertise-addr 1.2.3.4 --listen-addr :4000 --availability drain --default-addr-pool 10.1.2.3/16 --default-addr-pool-mask-length 26 --task-history-limit 2 --cert-expiry 24h --dispatcher-heartbeat 2s --snapshot-interval 5 --max-snapshots 1 --data-path-port 5000",
    "swarm init --force-new-cluster --data-path-addr eth1",
    "swarm join --token t 10.0.0.1:2377",
    "swarm join --token t --advertise-addr eth0:99 --listen-addr 10.0.0.2 --data-path-addr eth1 --availability pause m:1",
    "swarm leave",
    "swarm leave -f",
    "swarm join-token --rotate worker",
    "swarm join-token -q --rotate manager",
    "swarm update --cert-expiry 48h",
    "swarm update --task-history-limit 9 --dispatcher-heartbeat 7s --max-snapshots 2 --snapshot-interval 9",
    "swarm update --autolock=false",
    "node promote w1 w2",
    "node demote m1",
    "node promote m1 w1",
    "node update --role manager --availability drain --label-add a=1 --label-add b --label-rm old w1",
    "node rm w1 w2",
    "node rm --force w1",
    "secret create -l a=b s DATAFILE",
    "config create --template-driver golang c DATAFILE",
];

/// Splits on spaces; `\ ` is a space inside a word.
fn split(line: &str) -> Vec<String> {
    line.replace("\\ ", "\u{1}")
        .split(' ')
        .map(|word| word.replace('\u{1}', " "))
        .collect()
}

/// Docker writes some lists in the order of a Go map, which is random: those are compared sorted. `1` and `1.0` are the
/// same number in JSON.
fn normalized(mut posted: Posted) -> Posted {
    fn walk(key: &str, value: &mut Value) {
        match value {
            Value::Object(map) => map.iter_mut().for_each(|(key, value)| walk(key, value)),
            Value::Array(items) => {
                for item in items.iter_mut() {
                    walk("", item);
                }
                if matches!(
                    key,
                    "Env" | "Secrets" | "Configs" | "Ports" | "Config" | "GenericResources"
                ) {
                    items.sort_by_key(ToString::to_string);
                }
            }
            Value::Number(number) => {
                if let Some(float) = number.as_f64() {
                    *value = json!(float);
                }
            }
            _ => {}
        }
    }
    walk("", &mut posted.body);
    let (path, query) = posted
        .target
        .split_once('?')
        .unwrap_or((&posted.target, ""));
    // A parameter that is off may as well be left out.
    let is_on = |parameter: &&str| !parameter.ends_with("=false");
    let mut query: Vec<&str> = query.split('&').filter(is_on).collect();
    query.sort_unstable();
    posted.target = format!("{path}?{}", query.join("&"));
    posted
}

fn docker() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("docker"))
        .find(|program| program.is_file())
        .expect("there is no docker CLI to compare with: tests/run.sh --prepare installs it")
}

#[test]
fn the_same_words_make_the_same_requests() {
    let docker = docker();
    let shoal = PathBuf::from(env!("CARGO_BIN_EXE_shoal"));
    let recorder = Recorder::start(service());
    let dir = recorder.socket.parent().unwrap();
    let (env_file, data) = (dir.join("env"), dir.join("data"));
    std::fs::write(
        &env_file,
        "# note\nA=1\nB = x\nFROM_ENV\nMISSING\nC=3\n".replace("B = x\n", "B=x y\n"),
    )
    .unwrap();
    std::fs::write(&data, b"content\n").unwrap();
    let mut differences = Vec::new();
    for line in LINES {
        let line = line
            .replace("ENVFILE", env_file.to_str().unwrap())
            .replace("DATAFILE", data.to_str().unwrap());
        let words = split(&line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let theirs = recorder.run(&docker, &words);
        let expected: Vec<Posted> = recorder.take().into_iter().map(normalized).collect();
        let ours = recorder.run(&shoal, &words);
        let actual: Vec<Posted> = recorder.take().into_iter().map(normalized).collect();
        if expected.is_empty() || expected != actual || theirs.status.code() != ours.status.code() {
            let show = |output: &Output, posted: &[Posted]| {
                let bodies: Vec<String> = posted
                    .iter()
                    .map(|posted| format!("{} {}", posted.target, posted.body))
                    .collect();
                format!(
                    "{:?} {}{}\n    {}",
                    output.status.code(),
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr),
                    bodies.join("\n    ")
                )
            };
            differences.push(format!(
                "{line}\n  docker: {}\n  shoal:  {}",
                show(&theirs, &expected),
                show(&ours, &actual)
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {} lines differ:\n{}",
        differences.len(),
        LINES.len(),
        differences.join("\n")
    );
}

const REFUSED: &[&str] = &[
    "service create --mode global --replicas 2 a",
    "service create --mode frob a",
    "service create --max-concurrent 2 a",
    "service create --mode global --replicas-max-per-node 2 a",
    "service create --mode global-job --update-order start-first a",
    "service create --no-healthcheck --health-cmd x a",
    "service create --mount type=bind,src=/a a",
    "service create --publish a:b:c:d a",
    "service create --publish target=x a",
    "service create --secret target=x a",
    "service create --env =x a",
    "service create --label =x a",
    "service create --ulimit nofile=5:1 a",
    "service create --placement-pref x a",
    "service create --generic-resource x a",
    "service create --generic-resource GPU=U1 a",
    "service create --credential-spec x a",
    "service create --limit-memory 1y a",
    "service create --env-file /does/not/exist a",
    "service create --dns x a",
    "service create --dns-search -x a",
    "service create --secret a --secret a a",
    "service update --replicas 2 --rollback web",
    "service update --generic-resource-rm none web",
    "service update --network-add front web",
    "service scale web",
    "service scale web=x",
    "network create --gateway 10.0.0.1 n",
    "network create --subnet 10.0.0.0/8 --subnet 10.1.0.0/16 n",
    "network create --subnet 10.0.0.0/24 --gateway 10.1.0.1 n",
    "swarm init --availability x",
    "swarm join-token frob",
    "swarm join --token t --availability x h:1",
    "swarm join",
    "swarm unlock",
    "swarm unlock-key",
    "swarm ca --cert-expiry 2h",
    "swarm ca --rotate --external-ca protocol=cfssl,url=https://x",
    "swarm update --cert-expiry x",
    "node update --label-rm nope w1",
    "node ls extra",
    "secret inspect",
];

/// The first line of an error, with the program's name taken out.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().next().unwrap_or("").replace("docker", "shoal")
}

#[test]
fn the_same_words_are_refused_for_the_same_reason() {
    let docker = docker();
    let shoal = PathBuf::from(env!("CARGO_BIN_EXE_shoal"));
    let recorder = Recorder::start(service());
    let mut differences = Vec::new();
    for line in REFUSED {
        let words = split(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let theirs = recorder.run(&docker, &words);
        let ours = recorder.run(&shoal, &words);
        assert_eq!(
            recorder.take(),
            [],
            "{line}: a refused command must change nothing"
        );
        let (expected, actual) = (complaint(&theirs), complaint(&ours));
        if expected != actual || theirs.status.code() != ours.status.code() || ours.status.success()
        {
            differences.push(format!(
                "{line}\n  docker: {:?} {expected}\n  shoal:  {:?} {actual}",
                theirs.status.code(),
                ours.status.code()
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {} lines differ:\n{}",
        differences.len(),
        REFUSED.len(),
        differences.join("\n")
    );
}

/// What is printed is Docker's, but for the name of the program.
const SAID: &[&str] = &[
    "swarm init",
    "swarm join --token t 10.0.0.1:2377",
    "swarm leave",
    "swarm join-token worker",
    "swarm join-token manager",
    "swarm join-token -q manager",
    "swarm join-token --rotate worker",
    "swarm update --cert-expiry 48h",
    "swarm ca",
    "node promote w1",
    "node promote m1",
    "node demote m1",
    "node demote w1",
    "node update --availability drain w1",
    "node rm w1 w2",
    "node inspect --pretty w1",
    "node inspect --pretty self",
    "node inspect --format {{.Spec.Role}} m1 w1",
];

#[test]
fn the_same_words_are_answered_in_the_same_words() {
    let docker = docker();
    let shoal = PathBuf::from(env!("CARGO_BIN_EXE_shoal"));
    let recorder = Recorder::start(service());
    let said = |output: &Output| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace("docker", "shoal");
        let out = text(&output.stdout);
        // Docker sets the values of pages off with tabs.
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let lines: Vec<String> = out.trim_end().lines().map(words).collect();
        (
            output.status.code(),
            lines.join("\n"),
            text(&output.stderr).trim().to_owned(),
        )
    };
    let mut differences = Vec::new();
    for line in SAID {
        let words = split(line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let expected = said(&recorder.run(&docker, &words));
        let actual = said(&recorder.run(&shoal, &words));
        if expected != actual || expected.0 != Some(0) {
            differences.push(format!(
                "{line}\n  docker: {expected:?}\n  shoal:  {actual:?}"
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {} lines differ:\n{}",
        differences.len(),
        SAID.len(),
        differences.join("\n")
    );
}

#[test]
fn a_missing_daemon_is_named_with_the_way_out() {
    let output = Command::new(env!("CARGO_BIN_EXE_shoal"))
        .args(["-H", "unix:///nonexistent/shoal.sock", "service", "ls"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "Cannot connect to the Shoal daemon at unix:///nonexistent/shoal.sock. Is the daemon running? Start it with: shoal daemon\n"
    );
}

#[test]
fn completion_scripts_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(env!("CARGO_BIN_EXE_shoal"))
            .args(["completion", shell])
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("service"));
    }
}

//! Both directions against each other, and against what the docker command line sends.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use serde_json::Value;
use shoal_types::{
    NetworkId, SecretId,
    spec::{
        Bind, ContainerSpec, EndpointMode, EndpointSpec, FailureAction, FileReference,
        GenericResource, HealthCheck, LogDriver, Mount, MountKind, NetworkAttachmentSpec,
        Placement, Platform, PortConfig, Privileges, Protocol, PublishMode, Resources,
        RestartCondition, RestartPolicy, SeccompMode, ServiceMode, ServiceSpec, TaskSpec, Tmpfs,
        Ulimit, UpdateConfig, UpdateOrder,
    },
};

use super::{service_out::service_spec_out, *};
use crate::wire::{self, json};

/// Knows one network by a name and every network by its id.
struct Networks;

impl Resolve for Networks {
    fn network(&self, reference: &str) -> Option<NetworkId> {
        match reference {
            "netid123" => Some(NetworkId::from_random([7; 17])),
            other => other.parse().ok(),
        }
    }
}

fn parse(body: &str) -> Result<ServiceSpec> {
    service_spec(
        json::from_slice(body.as_bytes()).expect("valid JSON"),
        None,
        &Networks,
    )
}

/// Fails unless everything in `sent` is in `shown` too.
fn assert_contains(shown: &Value, sent: &Value, path: &str) {
    match (shown, sent) {
        (Value::Object(shown), Value::Object(sent)) => {
            for (key, value) in sent {
                let path = format!("{path}.{key}");
                let found = shown
                    .get(key)
                    .unwrap_or_else(|| panic!("{path} is not shown"));
                assert_contains(found, value, &path);
            }
        }
        _ => assert_eq!(shown, sent, "{path}"),
    }
}

#[test]
fn a_service_of_the_docker_command_line_is_shown_as_it_was_sent() {
    let body = include_str!("../../testdata/02_services_create.json");
    let spec = parse(body).expect("the service is accepted");
    let shown = serde_json::to_value(service_spec_out(&spec, true)).unwrap();
    let mut sent: Value = serde_json::from_str(body).unwrap();
    // The name of the network comes back as its id.
    sent["TaskTemplate"]["Networks"][0]["Target"] = NetworkId::from_random([7; 17]).as_str().into();
    assert_contains(&shown, &sent, "spec");
}

#[test]
fn the_other_bodies_of_the_docker_command_line_are_understood() {
    let network: wire::NetworkCreate =
        json::from_slice(include_bytes!("../../testdata/03_networks_create.json")).unwrap();
    // Not silently unencrypted.
    let refused = network_spec(network.clone()).unwrap_err();
    assert!(
        refused
            .to_string()
            .starts_with("Options.encrypted is not supported"),
        "{refused}"
    );
    let plain = wire::NetworkCreate {
        options: wire::Map::new(),
        ..network
    };
    let spec = network_spec(plain).unwrap();
    assert_eq!((spec.name.as_str(), spec.attachable), ("ov", true));
    assert_eq!(spec.ipam.subnet, Some("10.5.0.0/24".parse().unwrap()));

    let secret = json::from_slice(include_bytes!("../../testdata/04_secrets_create.json")).unwrap();
    assert_eq!(secret_spec(secret).unwrap().data, b"s\n");

    let init: wire::InitRequest =
        json::from_slice(include_bytes!("../../testdata/05_swarm_init.json")).unwrap();
    assert_eq!(
        (init.listen_addr.as_str(), init.subnet_size),
        ("0.0.0.0:2377", 24)
    );
}

#[test]
fn an_empty_service_gets_dockers_defaults() {
    let spec = parse(r#"{"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}"#).unwrap();
    assert_eq!(spec.mode, ServiceMode::Replicated { replicas: 1 });
    assert_eq!(spec.update, UpdateConfig::default());
    assert_eq!(spec.task.restart, RestartPolicy::default());
    assert_eq!(spec.task.container, ContainerSpec::new("x"));
    let job = parse(
        r#"{"Mode":{"ReplicatedJob":{"MaxConcurrent":3}},"TaskTemplate":{"ContainerSpec":{"Image":"x"}}}"#,
    );
    let mode = ServiceMode::ReplicatedJob {
        max_concurrent: 3,
        total_completions: 3,
    };
    assert_eq!(job.unwrap().mode, mode);
}

/// Changes one place of a valid service.
fn refused(path: &str, value: Value) -> String {
    let mut body =
        serde_json::json!({"Name": "x", "TaskTemplate": {"ContainerSpec": {"Image": "x"}}});
    let mut place = &mut body;
    for key in path.split('.') {
        place = place
            .as_object_mut()
            .unwrap()
            .entry(key)
            .or_insert_with(|| serde_json::json!({}));
    }
    *place = value;
    parse(&body.to_string()).expect_err(path).to_string()
}

#[test]
fn bad_services_are_refused_in_dockers_words_with_the_field() {
    let c = "TaskTemplate.ContainerSpec";
    let cases = [
        (
            "Name".into(),
            "a.b".into(),
            "name must be valid as a DNS name component (Name)",
        ),
        (
            format!("{c}.Image"),
            "".into(),
            "ContainerSpec: image reference must be provided (TaskTemplate.ContainerSpec.Image)",
        ),
        (
            "TaskTemplate.Resources.Limits.NanoCPUs".into(),
            1.into(),
            "invalid cpu value 0.000000001: Must be at least 0.001 (TaskTemplate.Resources.Limits.NanoCPUs)",
        ),
        (
            "TaskTemplate.Resources.Reservations.MemoryBytes".into(),
            (-1).into(),
            "invalid memory value -1: Must be at least 4MiB (TaskTemplate.Resources.Reservations.MemoryBytes)",
        ),
        (
            "TaskTemplate.RestartPolicy.Condition".into(),
            "always".into(),
            "invalid RestartCondition: \"always\" (TaskTemplate.RestartPolicy.Condition)",
        ),
        (
            "UpdateConfig.MaxFailureRatio".into(),
            2.into(),
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1 (UpdateConfig.MaxFailureRatio)",
        ),
        (
            "EndpointSpec".into(),
            serde_json::json!({"Mode": "dnsrr", "Ports": [{"TargetPort": 80}]}),
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode (EndpointSpec.Ports[0])",
        ),
        (
            "EndpointSpec.Ports".into(),
            serde_json::json!([
                {"TargetPort": 80, "PublishedPort": 1}, {"TargetPort": 81, "PublishedPort": 1}
            ]),
            "EndpointSpec: duplicate published ports provided (EndpointSpec.Ports[1])",
        ),
        (
            "Mode".into(),
            serde_json::json!({"Global": {}, "Replicated": {}}),
            "must specify only one service mode (Mode)",
        ),
        (
            format!("{c}.Mounts"),
            serde_json::json!([{"Type": "volume", "Target": "/a"}, {"Type": "tmpfs", "Target": "/a"}]),
            "ContainerSpec: duplicate mount point: /a (TaskTemplate.ContainerSpec.Mounts[1].Target)",
        ),
        (
            format!("{c}.Healthcheck.Interval"),
            5.into(),
            "ContainerSpec: Interval in HealthConfig cannot be less than 1ms (TaskTemplate.ContainerSpec.Healthcheck.Interval)",
        ),
        (
            "TaskTemplate.Networks".into(),
            serde_json::json!([{"Target": "nope"}]),
            "network nope not found (TaskTemplate.Networks[0].Target)",
        ),
        (
            "TaskTemplate.Runtime".into(),
            "plugin".into(),
            "TaskTemplate.Runtime is not supported: only containers can be run, not plugins",
        ),
        (
            "TaskTemplate.LogDriver".into(),
            serde_json::json!({"Name": "syslog"}),
            "logger: no log driver named 'syslog' is registered: there are json-file, local and none (TaskTemplate.LogDriver.Name)",
        ),
        (
            "TaskTemplate.LogDriver".into(),
            serde_json::json!({"Name": "json-file", "Options": {"max-size": "1m", "tag": "x"}}),
            "unknown log opt 'tag' for json-file log driver: there are max-size and max-file (TaskTemplate.LogDriver.Options.tag)",
        ),
        (
            "TaskTemplate.LogDriver".into(),
            serde_json::json!({"Name": "local", "Options": {"max-file": "0"}}),
            "log opt max-file=0: max-file must be a number and cannot be less than 1 (TaskTemplate.LogDriver.Options.max-file)",
        ),
        (
            format!("{c}.Privileges.CredentialSpec.Config"),
            "x".into(),
            "TaskTemplate.ContainerSpec.Privileges.CredentialSpec is not supported: credential specs are for Windows containers",
        ),
        (
            format!("{c}.Mounts"),
            serde_json::json!([{"Type": "cluster", "Target": "/a"}]),
            "TaskTemplate.ContainerSpec.Mounts[0].Type is not supported: mounts of type cluster cannot be made",
        ),
    ];
    for (path, value, message) in cases {
        assert_eq!(refused(&path, value), message, "{path}");
    }
}

fn text() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,6}"
}

fn map() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(text(), text(), 0..3)
}

fn seconds() -> impl Strategy<Value = Duration> {
    (0u64..100).prop_map(Duration::from_secs)
}

fn update() -> impl Strategy<Value = UpdateConfig> {
    (
        0u64..5,
        seconds(),
        any::<bool>(),
        1u64..9,
        0u8..=4,
        any::<bool>(),
    )
        .prop_map(
            |(parallelism, delay, go_on, monitor, ratio, start_first)| UpdateConfig {
                parallelism,
                delay,
                failure_action: if go_on {
                    FailureAction::Continue
                } else {
                    FailureAction::Pause
                },
                monitor: Duration::from_secs(monitor),
                max_failure_ratio: f32::from(ratio) / 4.0,
                order: if start_first {
                    UpdateOrder::StartFirst
                } else {
                    UpdateOrder::StopFirst
                },
            },
        )
}

fn mount_kind() -> impl Strategy<Value = MountKind> {
    prop_oneof![
        (text(), any::<bool>(), any::<bool>()).prop_map(|(path, non_recursive, create)| {
            MountKind::Bind(Bind {
                source: format!("/{path}").into(),
                propagation: "rshared".into(),
                non_recursive,
                create_mountpoint: create,
            })
        }),
        (text(), any::<bool>(), map(), map()).prop_map(
            |(name, no_copy, labels, driver_options)| {
                MountKind::Volume {
                    name,
                    no_copy,
                    labels,
                    driver_options,
                }
            }
        ),
        (0u64..1 << 40, 0u32..0o1777)
            .prop_map(|(size_bytes, mode)| MountKind::Tmpfs(Tmpfs { size_bytes, mode })),
    ]
}

fn container() -> impl Strategy<Value = ContainerSpec> {
    let texts = || proptest::collection::vec(text(), 0..3);
    let health = (texts(), seconds(), 0u32..9).prop_map(|(test, interval, retries)| HealthCheck {
        test,
        interval,
        timeout: interval,
        start_period: Duration::ZERO,
        start_interval: Duration::ZERO,
        retries,
    });
    let seccomp = prop_oneof![
        Just(SeccompMode::Default),
        Just(SeccompMode::Unconfined),
        Just(SeccompMode::Custom(b"{}".to_vec())),
    ];
    let first = (
        map(),
        texts(),
        texts(),
        text(),
        proptest::option::of(any::<bool>()),
        seconds(),
    );
    let second = (
        proptest::collection::vec((mount_kind(), any::<bool>()), 0..3),
        proptest::option::of(health),
        (seccomp, any::<bool>(), any::<bool>()),
        -1000i32..=1000,
        (any::<bool>(), any::<bool>()),
        proptest::collection::vec(text(), 0..2),
    );
    (first, second).prop_map(
        |(
            (labels, command, env, user, init, stop_grace),
            (mounts, health, privileges, oom, flags, secrets),
        )| {
            let mounts = mounts
                .into_iter()
                .enumerate()
                .map(|(n, (kind, read_only))| Mount {
                    kind,
                    target: format!("/m{n}").into(),
                    read_only,
                });
            let secrets = secrets
                .into_iter()
                .enumerate()
                .map(|(n, name)| FileReference {
                    id: SecretId::from_random([u8::try_from(n).unwrap(); 17]),
                    name,
                    target: format!("t{n}"),
                    uid: "0".into(),
                    gid: "1".into(),
                    mode: 0o444,
                });
            ContainerSpec {
                labels,
                args: command.clone(),
                command,
                env,
                user,
                init,
                stop_grace,
                mounts: mounts.collect(),
                health,
                privileges: Privileges {
                    seccomp: privileges.0,
                    no_new_privileges: privileges.1,
                    apparmor_disabled: privileges.2,
                },
                oom_score_adj: oom,
                tty: flags.0,
                read_only: flags.1,
                secrets: secrets.collect(),
                ulimits: vec![Ulimit {
                    name: "nofile".into(),
                    soft: -1,
                    hard: 10,
                }],
                ..ContainerSpec::new("nginx:1")
            }
        },
    )
}

prop_compose! {
    fn specs()(
        name in text(),
        labels in map(),
        container in container(),
        replicas in 0u64..1000,
        mode in 0u8..4,
        update in update(),
        rollback in update(),
        limits in (prop_oneof![Just(0u64), 1_000_000..u64::from(u32::MAX)], prop_oneof![Just(0u64), (4u64 << 20)..1 << 40], 0u64..100),
        generic in 0u64..3,
        restart in (0u8..3, seconds(), 0u64..9, seconds()),
        constraints in proptest::collection::vec(text(), 0..3),
        networks in 0u8..3,
        published in proptest::collection::btree_set(1u16..=65535, 0..3),
        force_update in 0u64..8,
    ) -> ServiceSpec {
        let job = mode > 1;
        let update = if job { UpdateConfig::default() } else { update };
        let rollback = if job { UpdateConfig::default() } else { rollback };
        ServiceSpec {
            name,
            labels,
            mode: match mode {
                0 => ServiceMode::Replicated { replicas },
                1 => ServiceMode::Global,
                2 => ServiceMode::ReplicatedJob { max_concurrent: replicas, total_completions: 7 },
                _ => ServiceMode::GlobalJob,
            },
            update,
            rollback,
            endpoint: EndpointSpec {
                mode: EndpointMode::Vip,
                ports: published.into_iter().map(|published| PortConfig {
                    name: String::new(),
                    protocol: if published % 2 == 0 { Protocol::Tcp } else { Protocol::Udp },
                    target: published,
                    published,
                    mode: if published % 3 == 0 { PublishMode::Host } else { PublishMode::Ingress },
                }).collect(),
            },
            task: TaskSpec {
                container,
                limits: Resources { nano_cpus: limits.0, memory_bytes: limits.1, pids: limits.2, generic: vec![] },
                reservations: Resources {
                    nano_cpus: limits.0,
                    memory_bytes: limits.1,
                    pids: 0,
                    generic: (1..=generic).map(|count| GenericResource::Discrete { kind: "gpu".into(), count }).collect(),
                },
                restart: RestartPolicy {
                    condition: [RestartCondition::None, RestartCondition::OnFailure, RestartCondition::Any][usize::from(restart.0)],
                    delay: restart.1,
                    max_attempts: restart.2,
                    window: restart.3,
                },
                placement: Placement {
                    spread: constraints.clone(),
                    constraints,
                    max_replicas_per_node: generic,
                    platforms: vec![Platform { architecture: "amd64".into(), os: "linux".into() }],
                },
                networks: (0..networks).map(|n| NetworkAttachmentSpec {
                    network: NetworkId::from_random([n; 17]),
                    aliases: vec![format!("a{n}")],
                }).collect(),
                force_update,
                log_driver: (force_update % 2 == 0).then(|| LogDriver {
                    name: ["", "json-file", "local", "none"][usize::try_from(force_update / 2 % 4).unwrap()].into(),
                    options: [("max-size".into(), format!("{}k", force_update.max(1)))].into(),
                }),
            }.into(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_shown_is_accepted_back_unchanged(spec in specs(), defaults in any::<bool>()) {
        let shown = json::to_bytes(&service_spec_out(&spec, defaults));
        let again = service_spec(json::from_slice(&shown).unwrap(), None, &Networks);
        prop_assert_eq!(again.as_ref(), Ok(&spec), "{}", String::from_utf8_lossy(&shown));
    }
}

#[test]
fn what_of_a_network_is_otherwise_than_asked_for_is_said() {
    let made = |driver: &str, attachable, options: &[(&str, &str)]| {
        let options = options.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        let request = wire::NetworkCreate {
            name: "n".into(),
            driver: driver.into(),
            attachable,
            options: options.collect(),
            ..wire::NetworkCreate::default()
        };
        let warning = super::network_warnings(&request);
        network_spec(request).map(|spec| (spec.driver.clone(), spec.mtu(), warning))
    };
    let overlay = "overlay".to_owned();
    let mtu = shoal_types::spec::NetworkSpec::MTU;
    assert_eq!(
        made("overlay", false, &[(mtu, "1400")]).unwrap(),
        (overlay.clone(), Some(1400), String::new())
    );
    assert_eq!(
        made("overlay", false, &[(mtu, "0")]).unwrap(),
        (overlay.clone(), None, String::new())
    );
    for driver in ["", "bridge"] {
        let (driver, mtu, warning) = made(driver, true, &[("color", "blue")]).unwrap();
        assert_eq!((driver, mtu), (overlay.clone(), None));
        for part in ["driver overlay and", "no option color", "attachable has no"] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
    }
    for wrong in ["-1", "67", "65536", "x", ""] {
        let error = made("overlay", false, &[(mtu, wrong)]).unwrap_err();
        assert!(error.to_string().contains("invalid MTU value"), "{error}");
    }
    assert!(made("macvlan", false, &[]).is_err());
}

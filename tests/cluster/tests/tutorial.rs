//! docs/tutorial.md does what it says: every command of it is run here, as it stands there, in its order.

use std::{env, fs};

use cluster_tests::{Host, Registry, Runbook};

/// Each block of the page: the heading above it, its first line, and what its output shows.
const BLOCKS: &[(&str, &str, &[&str])] = &[
    (
        "A cluster of one",
        "starts the daemon, and makes this machine the first manager",
        &["is now a manager.", "Ready     Active         Leader"],
    ),
    (
        "The first service",
        "three replicas behind one port",
        &[
            "overall progress: 3 out of 3 tasks",
            "3/3",
            "*:8080->80/tcp",
            "web.3",
            "hostname: ",
        ],
    ),
    (
        "The first service",
        "fewer and more",
        &[
            "web scaled to 1\n",
            "web scaled to 4\n",
            "overall progress: 4 out of 4 tasks",
        ],
    ),
    (
        "An image of a registry",
        "fetches an image",
        &[
            "Status: Downloaded newer image for localhost:5000/team/app:1\n",
            "shoal/hello",
        ],
    ),
    (
        "Two services on a network",
        "a network, and a service that asks another",
        &["overall progress: 2 out of 2 tasks", "till.1.", "    | "],
    ),
    (
        "Two services on a network",
        "takes them away again",
        &["till\nstock\n", "shop\n"],
    ),
    (
        "A stack",
        "writes the file",
        &[
            "    image: localhost:5000/team/app:1\n",
            "      - CMD-SHELL\n",
            "        published: 8090\n",
        ],
    ),
    (
        "A stack",
        "deploys it by docker, which finds the daemon by its socket",
        &[
            "Creating network shop_default\n",
            "Creating secret shop_password\n",
            "Creating service shop_api\n",
            "shop_page",
            "2/2",
            "shop_watch.1",
        ],
    ),
    (
        "A stack",
        "deploys the same by shoal",
        &[
            "Updating service shop_api (id: ",
            "NAME      SERVICES\nshop      3\n",
            "*:8090->80/tcp",
            "hostname: ",
        ],
    ),
    (
        "An update that takes itself back",
        "updates to something that does not work",
        &["rollback: rollback completed\n", "unhealthy container"],
    ),
    (
        "A secret is rotated",
        "a service with a secret",
        &["overall progress: 1 out of 1 tasks"],
    ),
    (
        "A secret is rotated",
        "the next secret in its place",
        &["password-1\n", "password-2"],
    ),
    (
        "What happens, and what was said",
        "logs, and events of the last minutes",
        &[
            "    | it is second\n",
            " service create ",
            " service update ",
            "(name=vault",
        ],
    ),
    (
        "Maintenance",
        "empties the node",
        &["vault.1", "Pending", "no suitable node"],
    ),
    ("Maintenance", "and takes it back", &[]),
    (
        "Clean up",
        "takes away what was made",
        &[
            "Removing service shop_api\n",
            "Removing network shop_default\n",
            "password-2\n",
            "Total reclaimed space: ",
            "Node left the swarm.\n",
        ],
    ),
];

#[test]
fn every_command_of_the_tutorial_does_what_the_page_says() {
    let page = Runbook::read("docs/tutorial.md").unwrap();
    assert_eq!(page.len(), BLOCKS.len(), "every block is run");
    let mut host = Host::new().unwrap();
    let registry = Registry::start(&host, false);
    registry.push("team/app", "1");
    // What an operator finds beside shoal.
    let path = env::var_os("PATH").unwrap();
    let docker = env::split_paths(&path).map(|dir| dir.join("docker"));
    let docker = docker.into_iter().find(|docker| docker.exists()).unwrap();
    host.operate("true", &[]);
    fs::copy(docker, host.dir().join("bin-of-shoal/docker")).unwrap();

    for (heading, place, shown) in BLOCKS {
        let printed = host.operate(page.block(heading, place), &[]);
        for part in *shown {
            assert!(
                printed.contains(part),
                "{part:?} is not in what {place:?} printed:\n{printed}"
            );
        }
    }
}

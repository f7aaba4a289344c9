"""Docker's Python SDK against the daemon whose socket is in DOCKER_HOST; argv: an archive with busybox:sdk."""

import sys
import time

import docker
from docker.types import EndpointSpec, RestartPolicy, ServiceMode

client = docker.from_env()
assert client.ping()
info = client.info()
assert info["Swarm"]["LocalNodeState"] == "active", info["Swarm"]
assert client.version()["Platform"]["Name"] == "Shoal"

with open(sys.argv[1], "rb") as archive:
    loaded = client.images.load(archive.read())
assert [image.tags for image in loaded] == [["busybox:sdk"]], loaded
assert client.images.get("busybox:sdk").id == loaded[0].id

network = client.networks.create("back", driver="overlay", labels={"by": "sdk"})
assert [found.id for found in client.networks.list(filters={"label": "by=sdk"})] == [network.id]

service = client.services.create(
    "busybox:sdk",
    ["sh", "-c", "trap 'exit 0' TERM; echo hello $WHO; while :; do sleep 0.1; done"],
    name="talk",
    env=["WHO=python"],
    labels={"by": "sdk"},
    networks=["back"],
    mode=ServiceMode("replicated", replicas=2),
    restart_policy=RestartPolicy(condition="any", delay=0),
    endpoint_spec=EndpointSpec(ports={8085: (80, "tcp")}),
    stop_grace_period=1_000_000_000,
)
assert [found.name for found in client.services.list(filters={"name": "talk"})] == ["talk"]


def wait(what, look):
    for _ in range(200):
        if look():
            return
        time.sleep(0.05)
    raise AssertionError(f"gave up waiting for {what}: {service.tasks()}")


def running():
    tasks = service.tasks(filters={"desired-state": "running"})
    return [task for task in tasks if task["Status"]["State"] == "running"]


def lines():
    return b"".join(service.logs(stdout=True)).splitlines()


wait("two tasks", lambda: len(running()) == 2)
wait("their output", lambda: lines() == [b"hello python"] * 2)
containers = client.containers.list(filters={"label": "com.docker.swarm.service.name=talk"})
assert {c.id for c in containers} == {t["Status"]["ContainerStatus"]["ContainerID"] for t in running()}
assert all(c.logs() == b"hello python\n" and c.status == "running" for c in containers)

# The manager has given it addresses since it was created.
service.reload()
assert service.scale(3)
wait("three tasks", lambda: len(running()) == 3)
service.reload()
assert service.attrs["Spec"]["Labels"] == {"by": "sdk"}, service.attrs
assert service.update(env=["WHO=again"])
wait("the update", lambda: lines().count(b"hello again") == 3)

service.remove()
try:
    client.services.get("talk")
    raise AssertionError("the service is still there")
except docker.errors.NotFound:
    pass
wait("the containers to go", lambda: not client.containers.list(all=True, ignore_removed=True))
network.remove()
client.images.remove("busybox:sdk")
print("done")

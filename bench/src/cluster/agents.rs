//! Many agents on three managers: daemons whose tasks run in memory only, so that managers alone are measured.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::{Plan, failover::accepted, machines::Machines, millis, node::Side, tasks};
use crate::{
    deadline::Deadline,
    http::Engine,
    process,
    stats::{Series, Unit},
    swarm::daemon::text,
};

const MANAGERS: usize = 3;
const SERVICE: &str = "agents";
/// Of the agents, so many are killed at once.
const SHARE_KILLED: usize = 10;
const TASKS_EACH: usize = 10;
/// An agent takes less, and the managers the rest.
const AGENT_MEBIBYTES: f64 = 60.0;
/// Idle managers are watched for so long, and nodes after a change of leader: longer than a new leader is patient.
const WATCH: Duration = Duration::from_secs(12);
/// Between looks at thousands of tasks.
const LOOK: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_mins(3);

/// Agents join, get tasks, and are lost; so is the leader.
pub(crate) async fn measure(plan: &Plan, side: &Side) -> (Result<()>, Vec<Series>) {
    let (agents, rounds) = if plan.quick { (40, 1) } else { (200, 3) };
    let mut taken = Taken::new(agents);
    let result = taken.take(plan, side, rounds).await;
    (result, taken.series())
}

struct Taken {
    agents: usize,
    join: Series,
    create: Series,
    create_cpu: Series,
    lost: Series,
    write: Series,
    restarted: Series,
    given_up: Series,
    idle_cpu: Series,
    empty_memory: Series,
    full_memory: Series,
    agent_memory: Series,
}

impl Taken {
    fn new(agents: usize) -> Self {
        let tasks = agents * TASKS_EACH;
        let killed = agents / SHARE_KILLED;
        let with = |what: &str, unit| Series::new(format!("{agents} agents: {what}"), unit);
        Self {
            agents,
            join: with("first asks to join → all ready", Unit::Millis),
            create: with(
                &format!("{tasks} replicas created → all running"),
                Unit::Millis,
            ),
            create_cpu: with(
                &format!("processor time of the managers for {tasks} replicas"),
                Unit::Seconds,
            ),
            lost: with(
                &format!("{killed} daemons killed → their tasks running elsewhere"),
                Unit::Millis,
            ),
            write: with(
                "leader killed → write accepted through any other manager",
                Unit::Millis,
            ),
            restarted: with("tasks restarted because the leader was killed", Unit::Tasks),
            given_up: with("agents given up because the leader was killed", Unit::Nodes),
            idle_cpu: with("processor of the leader, nothing to do", Unit::Percent),
            empty_memory: with("memory of the leader (RSS), no tasks", Unit::Mebibytes),
            full_memory: with(
                &format!("memory of the leader (RSS), {tasks} tasks"),
                Unit::Mebibytes,
            ),
            agent_memory: with("memory of an agent (PSS)", Unit::Mebibytes),
        }
    }

    fn series(self) -> Vec<Series> {
        vec![
            self.join,
            self.create,
            self.create_cpu,
            self.lost,
            self.write,
            self.restarted,
            self.given_up,
            self.idle_cpu,
            self.empty_memory,
            self.full_memory,
            self.agent_memory,
        ]
    }

    async fn take(&mut self, plan: &Plan, side: &Side, rounds: usize) -> Result<()> {
        let needed = AGENT_MEBIBYTES * f64::from(u32::try_from(self.agents)?);
        let free = available_memory()?;
        ensure!(
            free > needed,
            "{} agents may need {needed} MiB, and {free:.0} are free",
            self.agents
        );
        let dir = plan.dir.join("agents");
        let mut machines = Machines::managers_only(side, &dir, MANAGERS).await?;
        let took = machines.add_agents(&dir, self.agents).await?;
        self.join.samples.push(millis(took));
        let leader = machines.settled().await?;
        self.empty_memory
            .samples
            .push(memory(&mut machines, leader)?.rss);
        let (mut samples, some) = (Vec::new(), MANAGERS..MANAGERS + 10);
        for number in some {
            samples.push(memory(&mut machines, number)?.pss);
        }
        self.agent_memory.samples = samples;

        let tasks = self.agents * TASKS_EACH;
        for round in 0..rounds {
            let leader = machines.settled().await?;
            let mut engine = machines.engine(leader);
            if round > 0 {
                engine.delete(&format!("/services/{SERVICE}")).await?;
                let none = |tasks: &[Value]| tasks.is_empty();
                wait_tasks(&mut engine, none).await?;
            }
            let before = processor_time(&mut machines)?;
            let started = Instant::now();
            engine.post("/services/create", &spec(tasks)).await?;
            wait_running(&mut engine, tasks).await?;
            self.create.samples.push(millis(started.elapsed()));
            let spent = processor_time(&mut machines)?.saturating_sub(before);
            self.create_cpu.samples.push(spent.as_secs_f64());
        }
        for _ in 0..rounds {
            let took = self.kill_some(&mut machines, tasks).await?;
            self.lost.samples.push(millis(took));
        }
        let leader = machines.settled().await?;
        self.full_memory
            .samples
            .push(memory(&mut machines, leader)?.rss);
        let daemon = machines.nodes[leader].sandbox()?.daemon()?.as_raw();
        let before = process::processor_time(u32::try_from(daemon)?)?;
        tokio::time::sleep(WATCH).await;
        let spent = process::processor_time(u32::try_from(daemon)?)?.saturating_sub(before);
        let percent = 100.0 * spent.as_secs_f64() / WATCH.as_secs_f64();
        self.idle_cpu.samples.push(percent);
        for _ in 0..rounds {
            self.kill_leader(&mut machines, tasks).await?;
        }
        Ok(())
    }

    /// Until as many as before run on the agents that are left; then the others are back.
    async fn kill_some(&self, machines: &mut Machines, tasks: usize) -> Result<Duration> {
        let leader = machines.settled().await?;
        let mut engine = machines.engine(leader);
        let killed = MANAGERS..MANAGERS + self.agents / SHARE_KILLED;
        let ids: BTreeSet<String> = machines.nodes[killed.clone()]
            .iter()
            .map(|node| node.id.clone())
            .collect();
        let mut daemons = Vec::new();
        for number in killed.clone() {
            daemons.push(machines.nodes[number].sandbox()?.daemon()?);
        }
        let started = Instant::now();
        for daemon in daemons {
            kill(daemon, Signal::SIGKILL).context("kill an agent")?;
        }
        let elsewhere = |running: &[Value]| {
            let lives = |task: &&Value| !ids.contains(text(&task["NodeID"]));
            running.iter().filter(lives).count() == tasks
        };
        wait_tasks(&mut engine, elsewhere).await?;
        let took = started.elapsed();
        for number in killed {
            let node = &mut machines.nodes[number];
            node.sandbox()?.start_again()?;
            node.answers().await?;
        }
        Ok(took)
    }

    /// A write goes through another manager; then the tasks and nodes of before are looked for.
    async fn kill_leader(&mut self, machines: &mut Machines, tasks: usize) -> Result<()> {
        let leader = machines.settled().await?;
        let mut engine = machines.engine(leader);
        wait_running(&mut engine, tasks).await?;
        let before = ids(&tasks::running(&mut engine, SERVICE).await?);
        let other = (leader + 1) % MANAGERS;
        let daemon = machines.nodes[leader].sandbox()?.daemon()?;
        let started = Instant::now();
        kill(daemon, Signal::SIGKILL).context("kill the leader's daemon")?;
        let took = accepted(machines.engine(other), SERVICE.to_owned(), started).await?;
        self.write.samples.push(millis(took));
        let mut given_up = BTreeSet::new();
        let watched = Deadline::after(WATCH);
        while !watched.passed() {
            let nodes = machines.engine(other).get("/nodes").await?;
            let down = nodes.as_array().into_iter().flatten();
            let down = down.filter(|node| {
                node["Status"]["State"] == "down" && node["Spec"]["Role"] == "worker"
            });
            given_up.extend(down.map(|node| text(&node["ID"]).to_owned()));
            tokio::time::sleep(LOOK).await;
        }
        self.given_up.samples.push(count(given_up.len())?);
        let node = &mut machines.nodes[leader];
        node.sandbox()?.start_again()?;
        node.answers().await?;
        let leader = machines.settled().await?;
        let mut engine = machines.engine(leader);
        let after = ids(&tasks::running(&mut engine, SERVICE).await?);
        self.restarted
            .samples
            .push(count(before.difference(&after).count())?);
        Ok(())
    }
}

/// Tasks for agents; there is nothing that they would run.
fn spec(replicas: usize) -> Value {
    let mut spec = tasks::sleepers(SERVICE, "none", replicas);
    spec["TaskTemplate"]["Placement"] = json!({ "Constraints": ["node.role==worker"] });
    spec
}

fn ids(tasks: &[Value]) -> BTreeSet<String> {
    tasks
        .iter()
        .map(|task| text(&task["ID"]).to_owned())
        .collect()
}

fn count(number: usize) -> Result<f64> {
    Ok(f64::from(u32::try_from(number)?))
}

/// Waits until the running tasks are as `good` wants them.
async fn wait_tasks(engine: &mut Engine, good: impl Fn(&[Value]) -> bool) -> Result<()> {
    let limit = Deadline::after(LIMIT);
    loop {
        let running = tasks::running(engine, SERVICE).await?;
        if good(&running) {
            return Ok(());
        }
        if limit.passed() {
            bail!(
                "{} tasks run, and they are not as they should be",
                running.len()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until `count` tasks run, by the manager's own count: a list of them all would keep it from working.
async fn wait_running(engine: &mut Engine, count: usize) -> Result<()> {
    let limit = Deadline::after(LIMIT);
    loop {
        let services = engine.get("/services?status=true").await?;
        let mut services = services.as_array().into_iter().flatten();
        let ours = services.find(|service| service["Spec"]["Name"] == SERVICE);
        let running = ours.and_then(|ours| ours["ServiceStatus"]["RunningTasks"].as_u64());
        if running == Some(u64::try_from(count)?) {
            return Ok(());
        }
        if limit.passed() {
            bail!("{running:?} of {count} tasks run");
        }
        tokio::time::sleep(tasks::POLL).await;
    }
}

/// What a node's daemon has in memory.
fn memory(machines: &mut Machines, number: usize) -> Result<process::Memory> {
    let daemon = machines.nodes[number].sandbox()?.daemon()?.as_raw();
    Ok(process::memory(&[u32::try_from(daemon)?]))
}

/// What the managers' daemons have spent together.
fn processor_time(machines: &mut Machines) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for number in machines.managers() {
        let daemon = machines.nodes[number].sandbox()?.daemon()?.as_raw();
        sum += process::processor_time(u32::try_from(daemon)?)?;
    }
    Ok(sum)
}

/// In MiB.
fn available_memory() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| {
        line.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<f64>()
            .ok()
    });
    Ok(kib.context("MemAvailable")? / 1024.0)
}

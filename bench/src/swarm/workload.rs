//! What is asked of a daemon, and how long the answers take.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::daemon::{Daemon, text};
use crate::{
    deadline::Deadline,
    http::{Engine, filters},
    stats::{Series, Unit, per_second},
};

/// The network all services are attached to.
pub(super) const NETWORK: &str = "shoal-bench";

/// How long after the time for samples a change may still end before it counts as failed.
const GRACE: Duration = Duration::from_secs(30);

/// Between looks at a state; the resolution of every figure that waits for one.
const POLL: Duration = Duration::from_millis(20);

/// How long a daemon at rest is watched: a hundredth of a second, in which the kernel counts, is then 0.05 % of a processor.
const REST: Duration = Duration::from_secs(20);

/// How much is measured.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Numbers of replicas, with the number of samples of each.
    pub(crate) sizes: Vec<(usize, usize)>,
    pub(crate) kills: usize,
    /// Clients at once, services that are created, repetitions.
    pub(crate) creates: Vec<(usize, usize, usize)>,
    pub(crate) deadline: Deadline,
}

/// Takes every measurement of `plan`; returns also what failed. A case that fails keeps the samples it has.
pub(crate) async fn measure(daemon: &mut Daemon, plan: &Plan) -> (Vec<Series>, Vec<String>) {
    let mut series = Vec::new();
    let mut failed = Vec::new();
    let mut keep = |what: String, result: Result<()>| {
        if let Err(error) = result {
            failed.push(format!("{what}: {error:#}"));
        }
    };

    let mut memory = idle_memory(0);
    for _ in 0..3 {
        let taken = take_memory(daemon, &mut memory).await;
        keep("memory at rest".to_owned(), taken);
    }
    series.extend(memory);
    let mut processor = idle_processor(0);
    let taken = take_processor(daemon, &mut processor).await;
    keep("processor at rest".to_owned(), taken);
    series.push(processor);

    // The time left is shared by what costs most: starting many tasks.
    let starts = plan.deadline.share(0.7);
    let limit = plan.deadline.plus(GRACE);
    for (replicas, samples) in &plan.sizes {
        let (result, measured) = up_and_down(daemon, *replicas, *samples, starts, limit).await;
        keep(format!("{replicas} replicas"), result);
        series.extend(measured);
    }

    let mut kills = Series::new("kill -9 of a task → replacement running", Unit::Millis);
    let deadline = plan.deadline.share(0.6);
    let result = killed_tasks(daemon, plan.kills, deadline, limit, &mut kills).await;
    keep(kills.case.clone(), result);
    series.push(kills);

    for (clients, services, samples) in &plan.creates {
        let case = format!("services created a second, {clients} at once");
        let mut rate = Series::new(case, Unit::PerSecond);
        let result = creates(
            daemon,
            *clients,
            *services,
            *samples,
            plan.deadline,
            &mut rate,
        )
        .await;
        keep(rate.case.clone(), result);
        series.push(rate);
    }
    (series, failed)
}

/// Create to all running, remove to no containers, and memory between, for one number of replicas.
async fn up_and_down(
    daemon: &mut Daemon,
    replicas: usize,
    samples: usize,
    deadline: Deadline,
    limit: Deadline,
) -> (Result<()>, Vec<Series>) {
    let mut up = Series::new(
        format!("service create → all running, N = {replicas}"),
        Unit::Millis,
    );
    let mut down = Series::new(
        format!("service rm → no containers, N = {replicas}"),
        Unit::Millis,
    );
    let mut memory = idle_memory(replicas);
    let mut processor = idle_processor(replicas);
    let mut taken = 0;
    let result = async {
        while deadline.allows(taken, samples) {
            let name = format!("up-{replicas}-{taken}");
            let started = Instant::now();
            create(daemon, &service(&name, &daemon.image, replicas)).await?;
            let done = |tasks: &[Value]| tasks.len() >= replicas;
            let running = wait_running(&mut daemon.engine, &name, limit, done).await?;
            up.samples.push(millis(started.elapsed()));
            // Whoever says "running" has something that runs.
            let pids = running.iter().map(pid).collect::<Result<Vec<_>>>()?;
            daemon.sandbox.check_alive(&pids)?;
            if replicas >= 10 {
                take_memory(daemon, &mut memory).await?;
                if taken == 0 {
                    take_processor(daemon, &mut processor).await?;
                }
            }
            let started = Instant::now();
            remove(&mut daemon.engine, &name, limit).await?;
            down.samples.push(millis(started.elapsed()));
            taken += 1;
        }
        Ok(())
    }
    .await;
    if result.is_err() {
        // So that the next case meets a daemon at rest, if that is still possible.
        let name = format!("up-{replicas}-{taken}");
        drop(remove(&mut daemon.engine, &name, limit).await);
    }
    let mut series = vec![up, down];
    series.extend(
        memory
            .into_iter()
            .chain([processor])
            .filter(|series| !series.samples.is_empty()),
    );
    (result, series)
}

async fn killed_tasks(
    daemon: &mut Daemon,
    samples: usize,
    deadline: Deadline,
    limit: Deadline,
    series: &mut Series,
) -> Result<()> {
    let name = "kill";
    create(daemon, &service(name, &daemon.image, 3)).await?;
    let result = async {
        let tasks = |tasks: &[Value]| tasks.len() >= 3;
        while deadline.allows(series.samples.len(), samples) {
            let running = wait_running(&mut daemon.engine, name, limit, tasks).await?;
            // At rest, so that what the last replacement left to do is not measured.
            tokio::time::sleep(Duration::from_secs(1)).await;
            let victim = running.first().context("a task runs")?;
            let pid = pid(victim)?;
            let (id, slot) = (text(&victim["ID"]).to_owned(), victim["Slot"].clone());
            let started = Instant::now();
            daemon.sandbox.kill(pid)?;
            wait_running(&mut daemon.engine, name, limit, |tasks| {
                tasks
                    .iter()
                    .any(|task| task["Slot"] == slot && text(&task["ID"]) != id)
            })
            .await?;
            series.samples.push(millis(started.elapsed()));
        }
        Ok(())
    }
    .await;
    let removed = remove(&mut daemon.engine, name, limit).await;
    result.and(removed)
}

/// Services of no replicas, so that only the API and the replicated log are measured.
async fn creates(
    daemon: &mut Daemon,
    clients: usize,
    services: usize,
    samples: usize,
    deadline: Deadline,
    series: &mut Series,
) -> Result<()> {
    while deadline.allows(series.samples.len(), samples) {
        let image = daemon.image.clone();
        let round = series.samples.len();
        let started = Instant::now();
        let ids = many(
            &daemon.engine,
            clients,
            services,
            move |mut engine, number| {
                let name = format!("create-{clients}-{round}-{number}");
                let spec = service(&name, &image, 0);
                async move {
                    let created = engine.post("/services/create", &spec).await;
                    let id = created.map(|created| text(&created["ID"]).to_owned());
                    (engine, id)
                }
            },
        )
        .await;
        let took = started.elapsed();
        let (ids, error) = ids;
        let made = ids.len();
        let ids = Arc::new(ids);
        let (_, left) = many(&daemon.engine, 8, made, move |mut engine, number| {
            let path = format!("/services/{}", ids[number]);
            async move {
                let deleted = engine.delete(&path).await;
                (engine, deleted)
            }
        })
        .await;
        match error.or(left) {
            Some(error) => return Err(error),
            None => series.samples.push(per_second(made, took)),
        }
    }
    Ok(())
}

/// Runs `work` for each number below `count`, from `clients` connections; the results, and the first error.
async fn many<T, F, W>(
    engine: &Engine,
    clients: usize,
    count: usize,
    work: W,
) -> (Vec<T>, Option<anyhow::Error>)
where
    T: Send + 'static,
    F: Future<Output = (Engine, Result<T>)> + Send,
    W: Fn(Engine, usize) -> F + Clone + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..clients {
        let (mut engine, next, work) = (engine.another(), Arc::clone(&next), work.clone());
        workers.spawn(async move {
            let mut results = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return (results, None);
                }
                let result;
                (engine, result) = work(engine, number).await;
                match result {
                    Ok(result) => results.push(result),
                    Err(error) => return (results, Some(error)),
                }
            }
        });
    }
    let mut all = Vec::new();
    let mut first = None;
    for (results, error) in workers.join_all().await {
        all.extend(results);
        first = first.or(error);
    }
    (all, first)
}

fn idle_memory(tasks: usize) -> [Series; 2] {
    let case = |kind| format!("memory of daemon and helpers, {tasks} tasks ({kind})");
    [
        Series::new(case("PSS"), Unit::Mebibytes),
        Series::new(case("RSS"), Unit::Mebibytes),
    ]
}

async fn take_memory(daemon: &mut Daemon, [pss, rss]: &mut [Series; 2]) -> Result<()> {
    // What was only needed to get here may be given back first.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let memory = daemon.sandbox.memory()?;
    pss.samples.push(memory.pss);
    rss.samples.push(memory.rss);
    Ok(())
}

fn idle_processor(tasks: usize) -> Series {
    let case = format!("processor of daemon and helpers, {tasks} tasks, nothing to do");
    Series::new(case, Unit::Percent)
}

async fn take_processor(daemon: &mut Daemon, series: &mut Series) -> Result<()> {
    let (before, began) = (daemon.sandbox.processor_time()?, Instant::now());
    tokio::time::sleep(REST).await;
    let spent = daemon.sandbox.processor_time()?.saturating_sub(before);
    let share = spent.as_secs_f64() / began.elapsed().as_secs_f64();
    series.samples.push(share * 100.0);
    Ok(())
}

/// The same for both daemons. SIGKILL to stop, because a shell's `sleep` as the first process of a container ignores
/// SIGTERM, and the ten seconds of grace would be all that is measured.
fn service(name: &str, image: &str, replicas: usize) -> Value {
    json!({
        "Name": name,
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": image,
                "Command": ["sleep", "1000000"],
                "StopSignal": "SIGKILL",
            },
            "RestartPolicy": { "Condition": "any", "Delay": 0 },
            "Networks": [{ "Target": NETWORK }],
        },
        "Mode": { "Replicated": { "Replicas": replicas } },
    })
}

/// The process of a running task, as the daemon numbers it.
fn pid(task: &Value) -> Result<u32> {
    let pid = task["Status"]["ContainerStatus"]["PID"].as_u64();
    let pid = pid.and_then(|pid| u32::try_from(pid).ok());
    pid.with_context(|| format!("a running task has no pid: {task}"))
}

async fn create(daemon: &mut Daemon, spec: &Value) -> Result<()> {
    daemon.engine.post("/services/create", spec).await.map(drop)
}

/// Polls until the running tasks of `service` satisfy `done`, and returns them.
async fn wait_running(
    engine: &mut Engine,
    service: &str,
    limit: Deadline,
    done: impl Fn(&[Value]) -> bool,
) -> Result<Vec<Value>> {
    let query = filters(&[("service", service), ("desired-state", "running")]);
    loop {
        let tasks = engine.get(&format!("/tasks?{query}")).await?;
        let tasks = tasks.as_array().cloned().unwrap_or_default();
        let is_running = |task: &Value| task["Status"]["State"] == "running";
        let (running, others): (Vec<_>, Vec<_>) = tasks.into_iter().partition(is_running);
        if done(&running) {
            return Ok(running);
        }
        if limit.passed() {
            let other = others.first().map_or(&Value::Null, |task| &task["Status"]);
            bail!(
                "time is over: {} tasks of {service} run, {} do not: {other}",
                running.len(),
                others.len()
            );
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Removes a service and polls until none of its containers is listed.
async fn remove(engine: &mut Engine, service: &str, limit: Deadline) -> Result<()> {
    engine.delete(&format!("/services/{service}")).await?;
    let label = format!("com.docker.swarm.service.name={service}");
    let query = filters(&[("label", &label)]);
    loop {
        let containers = engine
            .get(&format!("/containers/json?all=1&{query}"))
            .await?;
        let left = containers.as_array().map_or(0, Vec::len);
        if left == 0 {
            return Ok(());
        }
        if limit.passed() {
            bail!("time is over: {left} containers of {service} are left");
        }
        tokio::time::sleep(POLL).await;
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

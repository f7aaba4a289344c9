//! Writes that are on the disks of a majority when they are acknowledged: how many a second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::JoinSet;

use super::{failover, machines::Machines, millis};
use crate::{
    http::Engine,
    stats::{Series, Unit, per_second},
    swarm::daemon::text,
};

/// How many clients there are at once.
pub(super) const CLIENTS: [usize; 3] = [1, 16, 100];

/// 256 bytes, as the API takes them.
fn data() -> String {
    format!("{}eA==", "eHh4".repeat(85))
}

/// How often, and for how long each time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Effort {
    pub(super) rounds: usize,
    pub(super) span: Duration,
}

/// What is created, each time under another name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Config,
    Service,
}

impl Kind {
    fn path(self) -> &'static str {
        match self {
            Self::Config => "/configs",
            Self::Service => "/services",
        }
    }

    fn cases(self, managers: usize, clients: usize) -> (String, String) {
        match self {
            Self::Config => write_cases(managers, clients),
            Self::Service => {
                let what = format!("{}, {clients} at once", managers_word(managers));
                (
                    format!("services created a second, {what}"),
                    format!("latency of a service's creation, {what}"),
                )
            }
        }
    }
}

/// The names of the rows that etcd has, too: a rate and a latency.
pub(super) fn write_cases(managers: usize, clients: usize) -> (String, String) {
    let what = format!("{}, {clients} at once", managers_word(managers));
    (
        format!("writes of 256 bytes a second, {what}"),
        format!("latency of a write of 256 bytes, {what}"),
    )
}

fn managers_word(managers: usize) -> String {
    match managers {
        1 => "1 manager".to_owned(),
        count => format!("{count} managers"),
    }
}

/// Creates objects through the leader's daemon, and takes them away again.
pub(super) async fn measure(
    machines: &mut Machines,
    kind: Kind,
    effort: Effort,
) -> (Result<()>, Vec<Series>) {
    let mut series = Vec::new();
    for clients in CLIENTS {
        let (rate, latency) = kind.cases(machines.managers().len(), clients);
        let mut rate = Series::new(rate, Unit::PerSecond);
        let mut latency = Series::new(latency, Unit::Millis);
        let mut result = Ok(());
        for round in 0..effort.rounds {
            result = one_round(machines, kind, (clients, round), effort.span, |r, l| {
                rate.samples.push(r);
                latency.samples.extend(l);
            })
            .await;
            if result.is_err() {
                break;
            }
        }
        series.extend([rate, latency]);
        if result.is_err() {
            return (result, series);
        }
    }
    (Ok(()), series)
}

async fn one_round(
    machines: &mut Machines,
    kind: Kind,
    (clients, round): (usize, usize),
    span: Duration,
    mut keep: impl FnMut(f64, Vec<f64>),
) -> Result<()> {
    let leader = machines.settled().await?;
    let engine = machines.engine(leader);
    let connections = (0..clients).map(|_| engine.another()).collect();
    let path = format!("{}/create", kind.path());
    let number = AtomicUsize::new(0);
    let number = Arc::new(number);
    let work = move |mut engine: Engine| {
        let (path, number) = (path.clone(), Arc::clone(&number));
        async move {
            let name = format!(
                "w-{clients}-{round}-{}",
                number.fetch_add(1, Ordering::Relaxed)
            );
            let body = match kind {
                Kind::Config => json!({ "Name": name, "Data": data() }),
                Kind::Service => failover::service(&name, 0),
            };
            let created = engine.post(&path, &body).await;
            let id = created.map(|created| text(&created["ID"]).to_owned());
            (engine, id)
        }
    };
    let done = for_a_while(connections, span, work).await;
    let ids: Vec<String> = done.results.iter().map(|(id, _)| id.clone()).collect();
    let removed = remove(&engine, kind, ids).await;
    if let Some(error) = done.error {
        return Err(error);
    }
    let latencies = done.results.iter().map(|(_, took)| millis(*took));
    keep(
        per_second(done.results.len(), done.took),
        latencies.collect(),
    );
    removed
}

/// Takes away what was created, with a few connections at once.
async fn remove(engine: &Engine, kind: Kind, ids: Vec<String>) -> Result<()> {
    let mut workers = JoinSet::new();
    for part in ids.chunks(ids.len().div_ceil(16).max(1)) {
        let (mut engine, part) = (engine.another(), part.to_vec());
        workers.spawn(async move {
            for id in part {
                engine.delete(&format!("{}/{id}", kind.path())).await?;
            }
            anyhow::Ok(())
        });
    }
    workers.join_all().await.into_iter().collect()
}

/// What several clients did.
#[derive(Debug)]
pub(super) struct Done<T> {
    /// With how long each took.
    pub(super) results: Vec<(T, Duration)>,
    pub(super) took: Duration,
    /// The first failure, which ends its client's work.
    pub(super) error: Option<anyhow::Error>,
}

/// Repeats `work` on each connection for `span`; what is begun is finished.
pub(super) async fn for_a_while<C, T, F, W>(connections: Vec<C>, span: Duration, work: W) -> Done<T>
where
    C: Send + 'static,
    T: Send + 'static,
    F: Future<Output = (C, Result<T>)> + Send,
    W: Fn(C) -> F + Clone + Send + 'static,
{
    let started = Instant::now();
    let mut workers = JoinSet::new();
    for mut connection in connections {
        let work = work.clone();
        workers.spawn(async move {
            let mut results = Vec::new();
            while started.elapsed() < span {
                let begun = Instant::now();
                let result;
                (connection, result) = work(connection).await;
                match result {
                    Ok(result) => results.push((result, begun.elapsed())),
                    Err(error) => return (results, Some(error)),
                }
            }
            (results, None)
        });
    }
    let mut done = Done {
        results: Vec::new(),
        took: Duration::ZERO,
        error: None,
    };
    while let Some(worker) = workers.join_next().await {
        match worker.context("a client") {
            Ok((results, error)) => {
                done.results.extend(results);
                done.error = done.error.or(error);
            }
            Err(error) => done.error = done.error.or(Some(error)),
        }
    }
    done.took = started.elapsed();
    done
}

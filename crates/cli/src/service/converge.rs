//! Waiting until a service is as asked: what to show of its tasks, decided from one look at them, and the loop that looks.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tokio::time::Instant;

use crate::{
    api::{Api, Request},
    error::{CliError, Result},
    json::{number, text},
    opts::Filters,
    output::{
        human,
        progress::{Board, Fraction, POLL},
    },
};

/// States in the order that a task takes them; its place is how far a task has come.
const STATES: [&str; 13] = [
    "new",
    "allocated",
    "pending",
    "assigned",
    "accepted",
    "preparing",
    "ready",
    "starting",
    "running",
    "complete",
    "shutdown",
    "failed",
    "rejected",
];
const RUNNING: u64 = 9;
const COMPLETE: u64 = 10;
/// With more tasks than this only their sum is shown.
const MAX_LINES: u64 = 20;
/// Tasks must stay running this long when the service names no time of its own (SwarmKit's default monitor).
const MONITOR: u64 = 5_000_000_000;

/// What one look at a service shows.
#[derive(Debug, PartialEq, Eq)]
struct View {
    lines: Vec<Line>,
    converged: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    name: String,
    text: String,
    fraction: Option<Fraction>,
}

impl Line {
    fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            fraction: None,
        }
    }
}

/// 1 to 13; 0 for a state that Docker's client does not know.
fn rank(state: &str) -> u64 {
    STATES
        .iter()
        .position(|known| *known == state)
        .map_or(0, |place| place as u64 + 1)
}

fn view(
    service: &Value,
    tasks: &[Value],
    active: &BTreeSet<String>,
    rollback: bool,
) -> Result<View> {
    let mode = &service["Spec"]["Mode"];
    if mode["Replicated"].is_object() {
        let replicas = number(mode, "/Replicated/Replicas");
        Ok(replicated(replicas, tasks, active, rollback))
    } else if mode["Global"].is_object() {
        Ok(global(tasks, active, rollback))
    } else if mode["ReplicatedJob"].is_object() || mode["GlobalJob"].is_object() {
        Ok(job(service, tasks))
    } else {
        Err(CliError::message("unrecognized service mode"))
    }
}

fn state(task: &Value) -> u64 {
    rank(text(task, "/Status/State"))
}

fn desired(task: &Value) -> u64 {
    rank(text(task, "/DesiredState"))
}

fn runs(task: &Value) -> bool {
    desired(task) <= RUNNING && state(task) == RUNNING
}

/// One task a key: the one that is to live longest, the furthest from done among equals (as with "start first").
fn current<K: Ord>(tasks: &[Value], key: impl Fn(&Value) -> K) -> BTreeMap<K, &Value> {
    let mut current: BTreeMap<K, &Value> = BTreeMap::new();
    for task in tasks {
        if desired(task) == 0 || state(task) == 0 {
            continue;
        }
        let better = current
            .get(&key(task))
            .is_none_or(|other| (desired(task), state(task)) < (desired(other), state(other)));
        if better {
            current.insert(key(task), task);
        }
    }
    current
}

fn overall(running: u64, wanted: u64, rollback: bool) -> Line {
    let what = if rollback {
        "rolling back update: "
    } else {
        ""
    };
    Line::new(
        "overall progress",
        format!("{what}{running} out of {wanted} tasks"),
    )
}

/// A task's line: why it is stuck, else its state and a bar; `None` when it has ended.
fn task_line(name: String, task: &Value, total: u64) -> Option<Line> {
    let error = text(task, "/Status/Err");
    if !error.is_empty() {
        return Some(Line::new(name, shorten(error)));
    }
    let rank = state(task);
    (desired(task) <= RUNNING && rank <= total).then(|| Line {
        name,
        text: format!("{:<9}", text(task, "/Status/State")),
        fraction: Some(Fraction {
            current: rank,
            total,
            counts: false,
        }),
    })
}

/// One line of at most 75 characters.
fn shorten(error: &str) -> String {
    let line = error.replace('\n', " ");
    if line.chars().count() > 75 {
        line.chars().take(74).chain(['…']).collect()
    } else {
        line
    }
}

fn replicated(replicas: u64, tasks: &[Value], active: &BTreeSet<String>, rollback: bool) -> View {
    let on_active = |task: &&Value| {
        let node = text(task, "/NodeID");
        node.is_empty() || active.contains(node)
    };
    let tasks: Vec<Value> = tasks.iter().filter(on_active).cloned().collect();
    let slots = current(&tasks, |task| number(task, "/Slot"));
    let running = slots.values().filter(|task| runs(task)).count() as u64;
    let mut lines = vec![overall(running, replicas, rollback)];
    if replicas <= MAX_LINES {
        // Slots may have gaps; lines have none.
        let mut slots = slots.values();
        for n in 1..=replicas {
            let name = format!("{n}/{replicas}");
            let line = slots
                .next()
                .and_then(|task| task_line(name.clone(), task, RUNNING));
            lines.push(line.unwrap_or_else(|| Line::new(name, " ")));
        }
    }
    View {
        lines,
        converged: running == replicas,
    }
}

fn global(tasks: &[Value], active: &BTreeSet<String>, rollback: bool) -> View {
    let nodes = current(tasks, |task| text(task, "/NodeID").to_owned());
    if nodes.is_empty() {
        return View {
            lines: vec![Line::new("overall progress", "waiting for new tasks")],
            converged: false,
        };
    }
    let wanted = nodes.len() as u64;
    let reachable = || nodes.iter().filter(|(node, _)| active.contains(*node));
    let running = reachable().filter(|(_, task)| runs(task)).count() as u64;
    let mut lines = vec![overall(running, wanted, rollback)];
    if wanted <= MAX_LINES {
        lines.extend(
            reachable().filter_map(|(node, task)| task_line(human::short_id(node), task, RUNNING)),
        );
    }
    View {
        lines,
        converged: running == wanted,
    }
}

fn job(service: &Value, tasks: &[Value]) -> View {
    let iteration = number(service, "/JobStatus/JobIteration/Index");
    let mine = |task: &&Value| number(task, "/JobIteration/Index") == iteration;
    let tasks: Vec<Value> = tasks.iter().filter(mine).cloned().collect();
    let replicated = &service["Spec"]["Mode"]["ReplicatedJob"];
    let by_slot = replicated.is_object();
    let current = current(&tasks, |task| {
        if by_slot {
            format!("{:020}", number(task, "/Slot"))
        } else {
            text(task, "/NodeID").to_owned()
        }
    });
    let complete = current
        .values()
        .filter(|task| state(task) == COMPLETE)
        .count() as u64;
    let going = current
        .values()
        .filter(|task| state(task) < COMPLETE)
        .count() as u64;
    let total = if by_slot {
        number(replicated, "/TotalCompletions")
    } else {
        current.len() as u64
    };
    if !by_slot && total == 0 {
        return View {
            lines: vec![Line::new("job progress", "waiting for tasks")],
            converged: false,
        };
    }
    let mut lines = vec![Line {
        name: "job progress".into(),
        text: format!("{complete} out of {total} complete"),
        fraction: Some(Fraction {
            current: complete,
            total,
            counts: false,
        }),
    }];
    if by_slot {
        let at_once = number(replicated, "/MaxConcurrent").min(total.saturating_sub(complete));
        lines.push(Line::new(
            "active tasks",
            format!("{going} out of {at_once} tasks"),
        ));
    }
    if total <= MAX_LINES {
        lines.extend(current.values().filter_map(|task| {
            let name = if by_slot {
                format!("{}/{total}", number(task, "/Slot") + 1)
            } else {
                text(task, "/NodeID").to_owned()
            };
            task_line(name, task, COMPLETE)
        }));
    }
    View {
        lines,
        converged: complete == total,
    }
}

/// Shows how `service` gets to what was asked, until it is there and stays there, or cannot get there.
pub(crate) async fn wait(api: &Api, service: &str, quiet: bool) -> Result {
    let mut board = Board::new(quiet);
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
        .map_err(CliError::file("SIGINT"))?;
    let mut converged_at: Option<Instant> = None;
    let mut rollback = false;
    let mut last_message = None;
    loop {
        let inspected = api.json(Request::get(&["services", service])).await?;
        let status = &inspected["UpdateStatus"];
        let message = text(status, "/Message");
        match text(status, "/State") {
            "updating" => rollback = false,
            "completed" if converged_at.is_none() => return Ok(()),
            "paused" => {
                return Err(CliError::message(format!(
                    "service update paused: {message}"
                )));
            }
            "rollback_started" => {
                if !rollback && !message.is_empty() {
                    board.show("rollback", message, None)?;
                }
                rollback = true;
            }
            "rollback_paused" => {
                return Err(CliError::message(format!(
                    "service rollback paused: {message}"
                )));
            }
            "rollback_completed" => {
                if converged_at.is_none() {
                    last_message = Some(message.to_owned());
                }
                rollback = true;
            }
            _ => {}
        }
        let monitor = match number(&inspected, "/Spec/UpdateConfig/Monitor") {
            0 => MONITOR,
            nanos => nanos,
        };
        let monitor = std::time::Duration::from_nanos(monitor);
        if converged_at.is_some_and(|since| since.elapsed() >= monitor) {
            board.show("verify", &format!("Service {service} converged"), None)?;
            if let Some(message) = last_message {
                board.show("rollback", &message, None)?;
            }
            return Ok(());
        }
        let filters = Filters::default()
            .with("service", text(&inspected, "/ID"))
            .with("_up-to-date", "true");
        let tasks = api.list(Request::get(&["tasks"]).filters(&filters)).await?;
        let active = active_nodes(api).await?;
        let view = view(&inspected, &tasks, &active, rollback)?;
        for line in &view.lines {
            board.show(&line.name, &line.text, line.fraction)?;
        }
        if !view.converged {
            if converged_at.take().is_some() {
                board.show("verify", "Detected task failure", None)?;
            }
        } else if inspected["JobStatus"].is_object() {
            return board.message("job complete");
        } else {
            let since = *converged_at.get_or_insert_with(now);
            let left = monitor.saturating_sub(since.elapsed()).as_secs() + 1;
            board.show(
                "verify",
                &format!("Waiting {left} seconds to verify that tasks are stable..."),
                None,
            )?;
        }
        // Both arms may be dropped at any time: the next look starts from nothing.
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = interrupt.recv() => {
                if converged_at.is_none() {
                    board.message("Operation continuing in background.")?;
                    board.message(&format!("Use `shoal service ps {service}` to check progress."))?;
                }
                return Ok(());
            }
        }
    }
}

fn now() -> Instant {
    Instant::now()
}

/// Nodes that are not down.
async fn active_nodes(api: &Api) -> Result<BTreeSet<String>> {
    let nodes = api.list(Request::get(&["nodes"])).await?;
    Ok(nodes
        .iter()
        .filter(|node| text(node, "/Status/State") != "down")
        .map(|node| text(node, "/ID").to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(slot: u64, node: &str, desired: &str, state: &str, error: &str) -> Value {
        json!({"Slot": slot, "NodeID": node, "DesiredState": desired,
               "Status": {"State": state, "Err": error}})
    }

    fn service(replicas: u64) -> Value {
        json!({"Spec": {"Mode": {"Replicated": {"Replicas": replicas}}}})
    }

    fn nodes() -> BTreeSet<String> {
        BTreeSet::from(["n1".to_owned()])
    }

    fn words(view: &View) -> Vec<String> {
        let lines = view.lines.iter();
        lines
            .map(|line| format!("{}: {}", line.name, line.text.trim()))
            .collect()
    }

    #[test]
    fn a_stuck_task_says_why() {
        let tasks = [
            task(1, "n1", "running", "running", ""),
            task(
                2,
                "",
                "running",
                "pending",
                "no suitable node\n(1 node not available)",
            ),
        ];
        let view = view(&service(3), &tasks, &nodes(), false).unwrap();
        assert!(!view.converged);
        assert_eq!(
            words(&view),
            [
                "overall progress: 1 out of 3 tasks",
                "1/3: running",
                "2/3: no suitable node (1 node not available)",
                "3/3: "
            ]
        );
    }

    #[test]
    fn the_task_that_is_to_live_counts_in_its_slot() {
        let tasks = [
            task(1, "n1", "shutdown", "failed", "boom"),
            task(1, "n1", "running", "running", ""),
        ];
        let view = view(&service(1), &tasks, &nodes(), true).unwrap();
        assert!(view.converged);
        assert_eq!(
            words(&view),
            [
                "overall progress: rolling back update: 1 out of 1 tasks",
                "1/1: running"
            ]
        );
    }

    #[test]
    fn tasks_of_lost_nodes_do_not_count() {
        let tasks = [task(1, "gone", "running", "running", "")];
        assert!(
            !view(&service(1), &tasks, &nodes(), false)
                .unwrap()
                .converged
        );
        let global = json!({"Spec": {"Mode": {"Global": {}}}});
        assert!(!view(&global, &tasks, &nodes(), false).unwrap().converged);
        assert!(!view(&global, &[], &nodes(), false).unwrap().converged);
        let here = [task(0, "n1", "running", "running", "")];
        assert!(view(&global, &here, &nodes(), false).unwrap().converged);
    }

    #[test]
    fn a_job_is_done_when_all_its_runs_are() {
        let service = json!({
            "JobStatus": {"JobIteration": {"Index": 7}},
            "Spec": {"Mode": {"ReplicatedJob": {"MaxConcurrent": 2, "TotalCompletions": 2}}},
        });
        let run = |slot: u64, state: &str| {
            let mut task = task(slot, "n1", "complete", state, "");
            task["JobIteration"] = json!({"Index": 7});
            task
        };
        let one = view(
            &service,
            &[run(0, "complete"), run(1, "running")],
            &nodes(),
            false,
        )
        .unwrap();
        assert!(!one.converged);
        assert_eq!(
            words(&one)[..2],
            [
                "job progress: 1 out of 2 complete",
                "active tasks: 1 out of 1 tasks"
            ]
        );
        let all = view(
            &service,
            &[run(0, "complete"), run(1, "complete")],
            &nodes(),
            false,
        )
        .unwrap();
        assert!(all.converged);
        let old = task(0, "n1", "complete", "complete", "");
        assert!(!view(&service, &[old], &nodes(), false).unwrap().converged);
    }

    #[test]
    fn more_than_twenty_tasks_show_as_a_sum() {
        assert_eq!(
            view(&service(21), &[], &nodes(), false)
                .unwrap()
                .lines
                .len(),
            1
        );
        assert_eq!(
            view(&service(20), &[], &nodes(), false)
                .unwrap()
                .lines
                .len(),
            21
        );
    }
}

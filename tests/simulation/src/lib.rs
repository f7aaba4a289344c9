//! Whole clusters in one thread and virtual time: managers, agents, users and failures drawn from one
//! seed, around the real decisions and the real replicated state.
//!
//! ```text
//! users ──► managers: real brain, liveness, dispatcher's sets, checks of requests, State::apply
//!              │  ▲       on a model of the replicated log
//!        sets  ▼  │  statuses, over modelled streams
//!           agents: real task machine, translation of sets, outbox
//!              │        on a modelled kernel
//! ```
//! What it keeps true: a seed always gives the same run, to the last event. While everything goes wrong
//! `invariants` watch every entry of the log, every start and every stop; then everything heals, and
//! `converged` says what must be so in the end. `mutants` are mistakes that must be noticed.

mod agent;
mod cluster;
mod converged;
mod faults;
mod invariants;
mod kernel;
mod log;
mod manager;
mod mutants;
mod network;
pub mod scale;
mod trace;
mod users;
mod world;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use shoal_types::TaskState;

pub use self::mutants::Mutant;
use self::{
    users::Tidy,
    world::{Event, START, World},
};

/// How long things go wrong.
const CHAOS: Duration = Duration::from_secs(25);
/// A healed cluster that has not come to rest by then never will.
const REST: Duration = Duration::from_mins(4);

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub mutant: Option<Mutant>,
    /// Keep the last events for a report.
    pub trace: bool,
    /// Print every event.
    pub verbose: bool,
}

/// Something that must hold, and did not.
#[derive(Debug, Clone)]
pub struct Violation {
    pub invariant: &'static str,
    pub detail: String,
}

/// A seed that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    pub seed: u64,
    pub violation: Violation,
    /// The last things that happened.
    pub events: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.events {
            writeln!(f, "{line}")?;
        }
        let Violation { invariant, detail } = &self.violation;
        writeln!(f, "seed {}: {invariant}: {detail}", self.seed)?;
        let seed = self.seed;
        write!(
            f,
            "replay: cargo run -p simulation --release -- --seed {seed} --verbose"
        )
    }
}

/// What a run was like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    pub events: u64,
    pub commits: u64,
    /// Of everything that happened, in order.
    pub digest: u64,
}

/// Runs one seed. A failing one is run again to tell what happened last.
pub fn run(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    match run_once(seed, options) {
        Err(_) if !options.trace => run_once(
            seed,
            Options {
                trace: true,
                ..options
            },
        ),
        result => result,
    }
}

fn run_once(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    let mut shape = StdRng::seed_from_u64(seed ^ 0x0005_1a9e);
    let managers = [1, 3, 3, 3, 5][shape.random_range(0..5)];
    let hosts = match shape.random_range(0..40) {
        0 => shape.random_range(12..=30),
        1..=6 => shape.random_range(6..=10),
        _ => shape.random_range(3..=5),
    };
    let mut world = World::new(seed, managers, hosts.max(managers), options);
    let outcome = catch_unwind(AssertUnwindSafe(|| chaos_then_rest(&mut world, &mut shape)));
    if let Err(panic) = outcome {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        world.violate("nothing panics", text.unwrap_or("a panic").to_owned());
    }
    finish(world, seed)
}

fn finish(world: World, seed: u64) -> Result<Summary, Box<Failure>> {
    match world.violation {
        Some(violation) => Err(Box::new(Failure {
            seed,
            violation,
            events: world.trace.lines.into(),
        })),
        None => Ok(Summary {
            events: world.events,
            commits: world.witness.state().version().0,
            digest: world.trace.digest,
        }),
    }
}

fn chaos_then_rest(world: &mut World, shape: &mut StdRng) {
    world.chaos = true;
    world.hiccups = shape.random_bool(0.7);
    let first = users::first(world.now);
    world.at(first, Event::User);
    world.at(first, Event::Fault);
    world.run_until(START.after(CHAOS));
    world.heal();
    // First with something that cannot run, which must be explained, then with all that can.
    for (tidy, quiet) in [(Tidy::AllButOne, 1), (Tidy::Everything, 3)] {
        world.users.tidy = Some(tidy);
        let begun = world.now;
        let mut rested = 0;
        while world.violation.is_none() && rested < quiet {
            let next = world.now.after(Duration::from_millis(1_500));
            world.run_until(next);
            let unsettled = match tidy {
                Tidy::AllButOne => world.unexplained(),
                Tidy::Everything => world.unsettled(),
            };
            rested = if unsettled.is_none() { rested + 1 } else { 0 };
            if let Some(why) = unsettled
                && world.now.since(begun) > REST
            {
                world.violate("healed clusters come to rest", why);
            }
        }
    }
    if world.violation.is_none()
        && let Some(undone) = world.undone()
    {
        world.violate("nothing is left to do", undone);
    }
    world.check_history();
}

/// Every machine is frozen or cut off for 5 s at default liveness, one long after the other and in every
/// phase of its heartbeat: nothing may be restarted.
pub fn pauses_restart_nothing(seed: u64, options: Options) -> Result<Summary, Box<Failure>> {
    let mut world = World::new(seed, 3, 5, options);
    let mut shape = StdRng::seed_from_u64(seed);
    world.add_services();
    world.run_until(START.after(Duration::from_secs(20)));
    if let Some(why) = world.unsettled() {
        world.violate("a calm cluster comes to rest", why);
    }
    let before = world
        .witness
        .state()
        .tasks()
        .map(|task| task.id)
        .collect::<Vec<_>>();
    for host in 0..5 {
        let length = Duration::from_secs(5);
        if shape.random() {
            world.freeze(host, length);
        } else {
            for other in 0..5 {
                world.cut(host, other, length);
                world.cut(other, host, length);
            }
        }
        let next = world
            .now
            .after(Duration::from_millis(20_000 + shape.random_range(0..1_000)));
        world.run_until(next);
    }
    let state = world.witness.state();
    let after: Vec<_> = state.tasks().map(|task| task.id).collect();
    let stopped = state
        .tasks()
        .find(|task| task.status.state != TaskState::Running);
    if before != after || stopped.is_some() {
        let text = format!(
            "{} tasks were there, now {}; {stopped:?}",
            before.len(),
            after.len()
        );
        world.violate("a pause of 5 s restarts nothing", text);
    }
    finish(world, seed)
}

/// Runs `seeds` on `threads` threads, each seed on one. Stops at the first that fails, unless told to go
/// on.
pub fn run_all(
    seeds: std::ops::Range<u64>,
    threads: usize,
    options: Options,
    go_on: bool,
) -> (Vec<Summary>, Vec<Failure>) {
    let next = Mutex::new(seeds);
    let results = Mutex::new((Vec::new(), Vec::new()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed)
                    && let Some(seed) = { lock(&next).next() }
                {
                    match run(seed, options) {
                        Ok(summary) => lock(&results).0.push(summary),
                        Err(failed) => {
                            stop.store(!go_on, Ordering::Relaxed);
                            lock(&results).1.push(*failed);
                        }
                    }
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

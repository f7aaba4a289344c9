//! Runs simulated clusters: `cargo run -p simulation --release -- --seeds 1000`.
#![expect(clippy::print_stdout, reason = "a tool talks to its user")]

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use simulation::{Options, pauses_restart_nothing, run, run_all, scale::measure};

#[derive(Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run this one alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Do not stop at the first that fails.
    #[arg(long)]
    go_on: bool,
    /// With a seed: the scenario of pauses of 5 s, in which nothing may be restarted.
    #[arg(long, requires = "seed")]
    pauses: bool,
    /// Print everything that happens.
    #[arg(long)]
    verbose: bool,
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, std::num::NonZero::get))]
    threads: usize,
    /// A cluster of 10,000 nodes and 1,000,000 tasks instead.
    #[arg(long)]
    scale: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let begun = Instant::now();
    if arguments.scale {
        let scale = measure(10_000, 1_000_000);
        for (tenth, rate) in scale.tenths.iter().enumerate() {
            println!("tenth {}: {rate:.0} placements/s", tenth + 1);
        }
        println!(
            "{} tasks on 10,000 nodes in {} MiB at most; {} tasks of a dead node elsewhere after {:?} \
             (processor time)",
            scale.tasks,
            scale.memory_bytes >> 20,
            scale.moved,
            scale.reschedule
        );
        return ExitCode::SUCCESS;
    }
    if let Some(seed) = arguments.seed {
        let options = Options {
            trace: true,
            verbose: arguments.verbose,
            ..Options::default()
        };
        let result = if arguments.pauses {
            pauses_restart_nothing(seed, options)
        } else {
            run(seed, options)
        };
        return match result {
            Ok(summary) => {
                println!("seed {seed} holds: {summary:?}, {:?}", begun.elapsed());
                ExitCode::SUCCESS
            }
            Err(failure) => {
                println!("{failure}");
                ExitCode::FAILURE
            }
        };
    }
    let seeds = arguments.first..arguments.first + arguments.seeds;
    let (held, failed) = run_all(
        seeds,
        arguments.threads,
        Options::default(),
        arguments.go_on,
    );
    if arguments.go_on {
        for failure in &failed {
            let violation = &failure.violation;
            println!(
                "seed {}: {}: {}",
                failure.seed, violation.invariant, violation.detail
            );
        }
    } else if let Some(failure) = failed.first() {
        println!("{failure}");
    }
    let events: u64 = held.iter().map(|summary| summary.events).sum();
    let commits: u64 = held.iter().map(|summary| summary.commits).sum();
    println!(
        "{} seeds hold: {events} events, {commits} commits; {} fail; {:?}",
        held.len(),
        failed.len(),
        begun.elapsed()
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

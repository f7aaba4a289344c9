//! Simulated clusters, in CI: the seeds, their exact replay, and the mistakes that must be noticed.

use simulation::{Mutant, Options, pauses_restart_nothing, run, run_all};

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}

/// A thousand seeds, in parts that the test runner spreads over the processors.
fn part(number: u64) {
    const SEEDS: u64 = 125;
    let seeds = number * SEEDS..(number + 1) * SEEDS;
    let (held, failed) = run_all(seeds, 1, Options::default(), false);
    if let Some(failure) = failed.first() {
        panic!("{failure}");
    }
    assert_eq!(held.len() as u64, SEEDS);
}

macro_rules! clusters_hold_their_promises {
    ($($name:ident: $number:literal,)*) => {
        $(
            #[test]
            fn $name() {
                part($number);
            }
        )*
    };
}

clusters_hold_their_promises! {
    clusters_hold_their_promises_1_of_8: 0,
    clusters_hold_their_promises_2_of_8: 1,
    clusters_hold_their_promises_3_of_8: 2,
    clusters_hold_their_promises_4_of_8: 3,
    clusters_hold_their_promises_5_of_8: 4,
    clusters_hold_their_promises_6_of_8: 5,
    clusters_hold_their_promises_7_of_8: 6,
    clusters_hold_their_promises_8_of_8: 7,
}

/// Seeds that once found something.
#[test]
fn what_was_found_once_stays_found() {
    // A leader's clock set forward; a start-first update overtaken twice; an address that another
    // node's task has by now.
    for seed in [75, 89, 428, 47] {
        if let Err(failure) = run(seed, Options::default()) {
            panic!("{failure}");
        }
    }
}

#[test]
fn a_seed_replays_exactly() {
    for seed in 0..8 {
        let once = run(seed, Options::default()).expect("it holds");
        let again = Options {
            trace: true,
            ..Options::default()
        };
        assert_eq!(run(seed, again).expect("it holds"), once, "seed {seed}");
    }
}

#[test]
fn a_pause_of_five_seconds_restarts_nothing() {
    for seed in 0..20 {
        if let Err(failure) = pauses_restart_nothing(seed, Options::default()) {
            panic!("{failure}");
        }
    }
}

/// So many seeds must be enough to notice any of the mistakes.
const SEEDS: u64 = 120;

#[test]
fn mutants_are_noticed() {
    let mut missed = Vec::new();
    for mutant in Mutant::ALL {
        let options = Options {
            mutant: Some(mutant),
            ..Options::default()
        };
        let (held, failed) = run_all(0..SEEDS, threads(), options, false);
        match failed.first() {
            Some(failure) => println!(
                "{mutant:?}: seed {}, after {} that held: {}",
                failure.seed,
                held.len(),
                failure.violation.invariant
            ),
            None => missed.push(mutant),
        }
    }
    assert!(missed.is_empty(), "nobody noticed {missed:?}");
}

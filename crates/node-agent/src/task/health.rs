//! Whether a container is healthy, by Docker's rules (moby `daemon/health.go`): what to run, when, and what a result means.
//! Pure; the monitor at the end runs the probes, one at a time.

use std::{collections::VecDeque, time::Duration};

use shoal_image::{DockerFields, Healthcheck};
use shoal_runtime::{ExecError, ExecOutcome, ExecSpec, OperationError, Runtime};
use shoal_types::{ContainerId, Timestamp, spec::HealthCheck};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{self, Instant},
};
use tracing::{info, warn};

use crate::{clock, error_chain};

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;

/// How much of a probe's output is kept (`maxOutputLen`): its beginning, as in Docker.
const OUTPUT_LIMIT: usize = 4096;

/// How many results are kept (`maxLogEntries`).
const LOG: usize = 5;

/// Pause before a probe that could not be made, for reasons of the node, is made again.
const AGAIN: Duration = Duration::from_secs(1);

/// A health check with nothing left open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) start_period: Duration,
    pub(crate) start_interval: Duration,
    /// Failures in a row that make a container unhealthy; at least 1.
    pub(crate) retries: u32,
}

impl Check {
    /// The service's check over the image's, each value that is unset being the image's, else Docker's default. `None`:
    /// there is none, or it is switched off.
    pub(crate) fn of(service: Option<&HealthCheck>, image: &DockerFields) -> Option<Self> {
        let image_check = image.healthcheck.as_ref();
        let test = service.map(|check| &check.test);
        let test = test
            .filter(|test| !test.is_empty())
            .or_else(|| image_check.map(|check| &check.test))?;
        let (kind, rest) = test.split_first()?;
        let command = match kind.as_str() {
            "CMD" => rest.to_vec(),
            "CMD-SHELL" => {
                let default = || ["/bin/sh", "-c"].map(str::to_owned).to_vec();
                let shell = image.shell.clone().filter(|shell| !shell.is_empty());
                [shell.unwrap_or_else(default).as_slice(), rest].concat()
            }
            // "NONE"; Docker takes any other word for none, too.
            _ => return None,
        };
        let time = |of_service: fn(&HealthCheck) -> Duration,
                    of_image: fn(&Healthcheck) -> Duration,
                    default: Duration| {
            let times = [service.map(of_service), image_check.map(of_image)];
            let set = times.into_iter().flatten().find(|time| !time.is_zero());
            set.unwrap_or(default)
        };
        let retries = [
            service.map(|check| check.retries),
            image_check.map(|check| check.retries),
        ];
        let retries = retries.into_iter().flatten().find(|count| *count > 0);
        Some(Self {
            command,
            interval: time(|c| c.interval, |c| c.interval, INTERVAL),
            timeout: time(|c| c.timeout, |c| c.timeout, TIMEOUT),
            start_period: time(|c| c.start_period, |c| c.start_period, Duration::ZERO),
            start_interval: time(|c| c.start_interval, |c| c.start_interval, START_INTERVAL),
            retries: retries.unwrap_or(RETRIES),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthStatus {
    /// No probe has succeeded yet.
    Starting,
    Healthy,
    Unhealthy,
}

/// The result of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub start: Timestamp,
    pub end: Timestamp,
    /// 0: healthy; -1: it could not be run, or took too long.
    pub exit_code: i32,
    pub output: String,
}

/// What is known of a container's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub status: HealthStatus,
    pub failing_streak: u32,
    /// The last results, oldest first; five at most.
    pub log: VecDeque<Probe>,
}

impl Health {
    /// Of a container that has just been started; or, when it `was_healthy` for an agent before this one, of one that is
    /// taken to be so until it fails often enough.
    pub(crate) fn new(was_healthy: bool) -> Self {
        let status = if was_healthy {
            HealthStatus::Healthy
        } else {
            HealthStatus::Starting
        };
        Self {
            status,
            failing_streak: 0,
            log: VecDeque::new(),
        }
    }

    /// How long to wait before the next probe of a container that runs for `age`.
    pub(crate) fn pause(&self, check: &Check, age: Duration) -> Duration {
        if age < check.start_period && self.status == HealthStatus::Starting {
            check.start_interval
        } else {
            check.interval
        }
    }

    /// Takes the result of a probe that began when the container ran for `age`.
    pub(crate) fn probed(&mut self, check: &Check, age: Duration, probe: Probe) {
        let healthy = probe.exit_code == 0;
        self.log.push_back(probe);
        while self.log.len() > LOG {
            self.log.pop_front();
        }
        if healthy {
            self.failing_streak = 0;
            self.status = HealthStatus::Healthy;
            return;
        }
        // Only until the first success: a container that was healthy may fail at any age.
        if self.status == HealthStatus::Starting && age < check.start_period {
            return;
        }
        self.failing_streak = self.failing_streak.saturating_add(1);
        if self.failing_streak >= check.retries {
            self.status = HealthStatus::Unhealthy;
        }
    }
}

/// Probes one container for as long as it is kept.
pub(crate) struct Monitor {
    pub(crate) health: watch::Receiver<Health>,
    work: JoinHandle<()>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl Monitor {
    /// `age`: for how long the container has run.
    pub(crate) fn start(
        runtime: Runtime,
        container: ContainerId,
        check: Check,
        age: Duration,
        health: Health,
    ) -> Self {
        let started = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
        let (sender, receiver) = watch::channel(health.clone());
        let work = async move {
            let mut health = health;
            let mut pause = health.pause(&check, started.elapsed());
            loop {
                time::sleep(pause).await;
                let age = started.elapsed();
                let Some(probe) = probe(&runtime, container, &check).await else {
                    pause = AGAIN.min(check.interval);
                    continue;
                };
                let before = health.status;
                health.probed(&check, age, probe);
                if health.status != before {
                    info!(from = ?before, to = ?health.status, "container health changed");
                }
                if sender.send(health.clone()).is_err() {
                    return;
                }
                pause = health.pause(&check, started.elapsed());
            }
        };
        Self {
            health: receiver,
            work: tokio::spawn(work),
        }
    }
}

/// Runs a probe. `None`: it says nothing of the container.
async fn probe(runtime: &Runtime, container: ContainerId, check: &Check) -> Option<Probe> {
    let start = clock::now();
    let spec = ExecSpec {
        args: check.command.clone(),
        timeout: Some(check.timeout),
        output_limit: OUTPUT_LIMIT,
        ..ExecSpec::default()
    };
    let result = runtime.exec(container.as_str(), spec).await;
    let (exit_code, output) = match result {
        Ok(outcome) => judge(outcome, check.timeout),
        Err(
            error @ (ExecError::Interrupted
            | ExecError::Operation(
                OperationError::NotFound(_)
                | OperationError::State(_)
                | OperationError::Supervisor(_),
            )),
        ) => {
            warn!(error = error_chain(&error), "a health check was not made");
            return None;
        }
        Err(error @ ExecError::Start { .. }) => (
            -1,
            format!(
                "OCI runtime exec failed: exec failed: unable to start container process: {error}: unknown"
            ),
        ),
        Err(error) => (-1, error_chain(&error)),
    };
    Some(Probe {
        start,
        end: clock::now(),
        exit_code,
        output,
    })
}

/// Exit code and text, in Docker's words.
fn judge(outcome: ExecOutcome, timeout: Duration) -> (i32, String) {
    let mut text = String::from_utf8_lossy(&outcome.output).into_owned();
    if outcome.truncated {
        text.push_str("...");
    }
    if !outcome.timed_out {
        return (outcome.status, text);
    }
    let exceeded = format!("Health check exceeded timeout ({})", go_duration(timeout));
    let text = if text.is_empty() {
        exceeded
    } else {
        format!("{exceeded}: {text}")
    };
    (-1, text)
}

/// A duration of at least a millisecond as Go writes it.
fn go_duration(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        return format!("{}ms", time.as_secs_f64() * 1000.0);
    }
    let (minutes, seconds) = (time.as_secs() / 60, time.as_secs() % 60);
    let fraction = Duration::new(seconds, time.subsec_nanos()).as_secs_f64();
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{fraction}s"),
        (0, minutes) => format!("{minutes}m{fraction}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn service(test: &[&str]) -> HealthCheck {
        HealthCheck {
            test: words(test),
            interval: Duration::ZERO,
            timeout: Duration::ZERO,
            start_period: Duration::ZERO,
            start_interval: Duration::ZERO,
            retries: 0,
        }
    }

    fn image(test: &[&str]) -> DockerFields {
        DockerFields {
            healthcheck: Some(Healthcheck {
                test: words(test),
                interval: Duration::from_secs(7),
                retries: 9,
                ..Healthcheck::default()
            }),
            ..DockerFields::default()
        }
    }

    fn probe(exit_code: i32) -> Probe {
        Probe {
            start: Timestamp::EPOCH,
            end: Timestamp::EPOCH,
            exit_code,
            output: String::new(),
        }
    }

    #[test]
    fn the_services_values_go_over_the_images_and_the_defaults() {
        let none = DockerFields::default();
        assert_eq!(Check::of(None, &none), None);
        assert_eq!(Check::of(Some(&service(&[])), &none), None);
        let check = Check::of(Some(&service(&["CMD", "a", "b"])), &none).expect("a check");
        let expected = Check {
            command: words(&["a", "b"]),
            interval: INTERVAL,
            timeout: TIMEOUT,
            start_period: Duration::ZERO,
            start_interval: START_INTERVAL,
            retries: RETRIES,
        };
        assert_eq!(check, expected);
        let of_image = image(&["CMD-SHELL", "curl x"]);
        let check = Check::of(None, &of_image).expect("the image's");
        assert_eq!(check.command, words(&["/bin/sh", "-c", "curl x"]));
        assert_eq!((check.interval.as_secs(), check.retries), (7, 9));
        let mut own = service(&[]);
        own.retries = 2;
        let check = Check::of(Some(&own), &of_image).expect("both");
        assert_eq!((check.interval.as_secs(), check.retries), (7, 2));
        assert_eq!(Check::of(Some(&service(&["NONE"])), &of_image), None);
        assert_eq!(Check::of(None, &image(&["NONE"])), None);
        let with_shell = DockerFields {
            shell: Some(words(&["/bin/bash", "-xc"])),
            ..of_image
        };
        let check = Check::of(None, &with_shell).expect("a check");
        assert_eq!(check.command, words(&["/bin/bash", "-xc", "curl x"]));
    }

    #[test]
    fn results_are_told_in_dockers_words() {
        let outcome = |text: &str, truncated, timed_out| ExecOutcome {
            status: 137,
            output: text.as_bytes().to_vec(),
            truncated,
            timed_out,
        };
        let judge = |outcome| judge(outcome, Duration::from_millis(1500));
        assert_eq!(judge(outcome("x", true, false)), (137, "x...".to_owned()));
        let text = "Health check exceeded timeout (1.5s)";
        assert_eq!(judge(outcome("", false, true)), (-1, text.to_owned()));
        assert_eq!(judge(outcome("y", false, true)), (-1, format!("{text}: y")));
        assert_eq!(go_duration(Duration::from_millis(250)), "250ms");
        assert_eq!(go_duration(Duration::from_secs(90)), "1m30s");
    }

    proptest! {
        /// What Docker's documentation says of a series of results, told in another way.
        #[test]
        fn a_series_of_results_gives_the_documented_state(
            was_healthy: bool,
            retries in 1u32..5,
            start_period in 0u64..20,
            results in prop::collection::vec((0u64..3, any::<bool>()), 0..40),
        ) {
            let mut check = Check::of(Some(&service(&["CMD", "x"])), &DockerFields::default())
                .expect("a check");
            check.retries = retries;
            check.start_period = Duration::from_secs(start_period);
            let mut health = Health::new(was_healthy);
            let (mut age, mut seen) = (0, Vec::new());
            for (pause, good) in results {
                age += pause;
                health.probed(&check, Duration::from_secs(age), probe(i32::from(!good)));
                seen.push((age, good));

                let succeeded = seen.iter().any(|(_, good)| *good);
                let bad = seen.iter().rev().take_while(|(_, good)| !good);
                let counted = bad.filter(|(age, _)| {
                    was_healthy || succeeded || *age >= start_period
                });
                let streak = u32::try_from(counted.count()).expect("few");
                prop_assert_eq!(health.failing_streak, streak);
                let expected = if streak >= retries {
                    HealthStatus::Unhealthy
                } else if succeeded && health.log.back().is_some_and(|last| last.exit_code == 0) {
                    HealthStatus::Healthy
                } else {
                    health.status
                };
                prop_assert_eq!(health.status, expected);
                let never = !succeeded && !was_healthy;
                prop_assert_eq!(
                    health.status == HealthStatus::Starting,
                    never && streak < retries
                );
                prop_assert!(health.log.len() == seen.len().min(LOG));
            }
        }

        #[test]
        fn probes_come_more_often_only_while_a_container_starts(
            age in 0u64..100,
            start_period in 0u64..100,
            code in prop::option::of(0..2),
        ) {
            let mut check = Check::of(Some(&service(&["CMD", "x"])), &DockerFields::default())
                .expect("a check");
            check.start_period = Duration::from_secs(start_period);
            check.retries = 1;
            let age = Duration::from_secs(age);
            let mut health = Health::new(false);
            if let Some(code) = code {
                health.probed(&check, age, probe(code));
            }
            let starting = health.status == HealthStatus::Starting && age < check.start_period;
            let expected = if starting { START_INTERVAL } else { INTERVAL };
            prop_assert_eq!(health.pause(&check, age), expected);
        }
    }
}

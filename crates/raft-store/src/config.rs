//! What a store is opened with.

use std::{path::PathBuf, time::Duration};

use openraft::{Config, SnapshotPolicy};
use shoal_types::RaftId;

use crate::key::DataKey;

/// Where a member keeps its state, and who it is.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// Belongs to this member alone; created with mode 0700 if need be.
    pub dir: PathBuf,
    /// Never used twice in a group, not even after its member was removed.
    pub raft: RaftId,
    pub tuning: RaftTuning,
    /// What all files are sealed under. A directory that was written with another one does not open.
    pub key: DataKey,
    /// Keys that files may still be sealed under from before. Nothing new is, and what there is goes
    /// with the next snapshots (see `Store::needs_older_keys`).
    pub older_keys: Vec<DataKey>,
}

/// Times and sizes. The defaults suit managers in one region with ordinary disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftTuning {
    /// Between a leader's signs of life. They wait for no disk.
    pub heartbeat: Duration,
    /// A follower that hears nothing of a leader for `election_max`, and then for another random time
    /// between the two, stands for election. So a leader may be silent for their sum at least; with
    /// the defaults a dead one is replaced in 0.6 to 0.9 seconds.
    pub election_min: Duration,
    /// Also how long a leader may rely on its followers not having elected another, and the time one
    /// message with entries may take: disks whose flushes take up to 90 ms under load need it to be far
    /// above that.
    pub election_max: Duration,
    /// Entries between snapshots.
    pub snapshot_after: u64,
    /// Entries kept behind a snapshot, so that a follower that is a little late needs none.
    pub keep_entries: u64,
    /// How long a snapshot transfer may stand still.
    pub snapshot_idle: Duration,
    /// Size of a log file. Two exist at least.
    pub segment_bytes: u64,
    /// Memory for the newest entries of the log.
    pub cache_bytes: usize,
    /// A larger command is refused.
    pub max_command_bytes: usize,
    /// Commands that are being proposed may take this much together; further ones wait.
    pub in_flight_bytes: usize,
    /// How long a proposal or a linearizable read may take.
    pub propose_timeout: Duration,
    /// Commits that `changes_since` remembers.
    pub feed_commits: usize,
}

impl Default for RaftTuning {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(150),
            election_max: Duration::from_millis(450),
            snapshot_after: 10_000,
            keep_entries: 1_000,
            snapshot_idle: Duration::from_secs(10),
            segment_bytes: 16 << 20,
            cache_bytes: 16 << 20,
            max_command_bytes: 4 << 20,
            in_flight_bytes: 64 << 20,
            propose_timeout: Duration::from_secs(10),
            feed_commits: 4096,
        }
    }
}

/// Why a [`RaftTuning`] cannot work.
#[derive(Debug, thiserror::Error)]
pub enum TuningError {
    #[error(
        "raft times must satisfy heartbeat < election_min < election_max, \
         not {heartbeat:?}, {min:?}, {max:?}"
    )]
    Times {
        heartbeat: Duration,
        min: Duration,
        max: Duration,
    },
    #[error("{what} must be at least {least}, not {given}")]
    TooSmall {
        what: &'static str,
        least: u64,
        given: u64,
    },
    #[error("max_command_bytes must be at most {most}, not {given}")]
    CommandBytes { most: usize, given: usize },
}

impl RaftTuning {
    /// What openraft makes of it, when it makes sense.
    pub(crate) fn check(&self) -> Result<Config, TuningError> {
        /// A segment holds its own header and records of ordinary size.
        const MIN_SEGMENT: u64 = 4096;
        if self.heartbeat.is_zero()
            || millis(self.heartbeat) >= millis(self.election_min)
            || millis(self.election_min) >= millis(self.election_max)
        {
            return Err(TuningError::Times {
                heartbeat: self.heartbeat,
                min: self.election_min,
                max: self.election_max,
            });
        }
        for (what, least, given) in [
            ("snapshot_after", 1, self.snapshot_after),
            ("segment_bytes", MIN_SEGMENT, self.segment_bytes),
            ("feed_commits", 1, self.feed_commits as u64),
            (
                "in_flight_bytes",
                self.max_command_bytes as u64,
                self.in_flight_bytes as u64,
            ),
        ] {
            if given < least {
                return Err(TuningError::TooSmall { what, least, given });
            }
        }
        // An entry in a message has to fit what the codec allows.
        let most = shoal_transport::codec::MAX_ENCODED_BYTES / 4;
        if self.max_command_bytes > most {
            return Err(TuningError::CommandBytes {
                most,
                given: self.max_command_bytes,
            });
        }
        let election_max = millis(self.election_max);
        let config = Config {
            cluster_name: "shoal".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: election_max,
            // The transfer is limited by `snapshot_idle`, not as a whole.
            install_snapshot_timeout: millis(Duration::from_hours(24)),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_after),
            max_in_snapshot_log_to_keep: self.keep_entries,
            replication_lag_threshold: self.snapshot_after.saturating_mul(2),
            // Purging costs one record in the log, whatever the number of entries.
            purge_batch_size: 64,
            enable_pre_vote: Some(true),
            // A leader that restarts stands for election like everyone else. openraft would let it go
            // on where it was, but its mark of what is committed reaches the disk late, so that it
            // could show an older state than it has shown before.
            enable_leader_restore: Some(false),
            // A leader without a quorum falls silent, so that whoever has one is elected.
            quorum_loss_probe_interval: Some(2 * election_max),
            ..Config::default()
        };
        config.validate().map_err(|_error| TuningError::Times {
            heartbeat: self.heartbeat,
            min: self.election_min,
            max: self.election_max,
        })
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuning_that_cannot_work_is_refused_with_the_reason() {
        assert!(RaftTuning::default().check().is_ok());
        let tuning = RaftTuning {
            election_min: Duration::from_millis(50),
            ..RaftTuning::default()
        };
        assert!(matches!(tuning.check(), Err(TuningError::Times { .. })));
        let tuning = RaftTuning {
            segment_bytes: 1,
            ..RaftTuning::default()
        };
        let error = tuning.check().expect_err("a byte is too small");
        assert_eq!(
            error.to_string(),
            "segment_bytes must be at least 4096, not 1"
        );
    }
}

//! Mistakes that can be switched on, each in the shell around the real code, to see that they are
//! noticed.

/// One mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// `apply` takes a plan that was made on an older spec.
    StalePlan,
    /// `apply` takes a user's write on an older version.
    LostUpdate,
    /// A plan's new tasks are made a second time.
    PlanTwice,
    /// Nodes are given up after half the silence.
    HalfSilence,
    /// Agents take any set, also an older one.
    OlderGeneration,
    /// A container is stopped before it has left the balancing.
    StopBeforeRemoval,
    /// A successor starts without waiting for the end of the one before.
    StartAtOnce,
    /// Followers and leaders count what is not on disk yet.
    CountUnflushed,
    /// A write is acknowledged when the leader has it.
    AckEarly,
    /// The leader does not hear what agents report of ended tasks until they come back.
    ForgetReports,
    /// What a forgotten task left is not swept away.
    NoSweep,
    /// An agent forgets what it has sent when a session breaks.
    NoResend,
    /// A deposed leader goes on with its sessions, and takes the state back to what it was.
    StatusDown,
    /// The leader reads without asking the others.
    StaleRead,
    /// The leader's brain does not see that nodes change.
    BlindToNodes,
}

impl Mutant {
    pub const ALL: [Self; 15] = [
        Self::StalePlan,
        Self::LostUpdate,
        Self::PlanTwice,
        Self::HalfSilence,
        Self::OlderGeneration,
        Self::StopBeforeRemoval,
        Self::StartAtOnce,
        Self::CountUnflushed,
        Self::AckEarly,
        Self::ForgetReports,
        Self::NoSweep,
        Self::NoResend,
        Self::StatusDown,
        Self::StaleRead,
        Self::BlindToNodes,
    ];
}

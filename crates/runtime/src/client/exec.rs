//! Processes run in containers beside their own.

use std::time::Duration;

use super::error::{ExecError, OperationError};
use super::runtime::{Runtime, unexpected};
use crate::plan::ExecPlan;
use crate::protocol::{Failure, Reply, Request};

/// A process to be run in a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`, over the container's environment.
    pub env: Vec<String>,
    /// Docker's user words; `None`: the container's user.
    pub user: Option<String>,
    /// An absolute path in the container; `None`: the container's working directory.
    pub cwd: Option<String>,
    /// After this the process and all that it started are killed; `None`: never.
    pub timeout: Option<Duration>,
    /// How many bytes of output are kept: the first ones, of both streams as they were written. 16 MiB at most.
    pub output_limit: usize,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Its exit code, or 128 and the number of the signal that ended it.
    pub status: i32,
    /// What it wrote.
    pub output: Vec<u8>,
    /// It wrote more than was to be kept.
    pub truncated: bool,
    /// It took too long and was killed.
    pub timed_out: bool,
}

impl Runtime {
    /// Runs a process in a running container, with everything the container's first process has: namespaces, cgroups,
    /// root, environment, capabilities, filter, limits. Returns when it and all that it started has ended.
    ///
    /// It is killed when this runtime's process ends, when the supervisor is replaced ([`ExecError::Interrupted`]) and when
    /// the container ends. A caller that stops waiting does not end it: its timeout does.
    pub async fn exec(&self, container: &str, spec: ExecSpec) -> Result<ExecOutcome, ExecError> {
        let plan = plan(spec)?;
        if !self.can_exec().await.map_err(OperationError::from)? {
            let text = "the supervisor is of an earlier version, which runs no commands in containers, and could not be \
                        upgraded"
                .to_owned();
            return Err(OperationError::Step(text).into());
        }
        let request = Request::Exec {
            id: container.to_owned(),
            plan,
        };
        match self
            .ask_once(&request)
            .await
            .map_err(OperationError::from)?
        {
            Some(Reply::Executed(executed)) => Ok(ExecOutcome {
                status: executed.code,
                output: executed.output,
                truncated: executed.truncated,
                timed_out: executed.timed_out,
            }),
            None | Some(Reply::Failed(Failure::Interrupted)) => Err(ExecError::Interrupted),
            Some(Reply::Failed(Failure::Start { message, exit_code })) => {
                Err(ExecError::Start { message, exit_code })
            }
            Some(other) => Err(unexpected(container, other).into()),
        }
    }
}

fn plan(spec: ExecSpec) -> Result<ExecPlan, ExecError> {
    let texts = spec.args.iter().chain(&spec.env);
    let mut texts = texts.chain(&spec.user).chain(&spec.cwd);
    if spec.args.first().is_none_or(String::is_empty) {
        return Err(ExecError::Invalid("no command specified"));
    }
    if texts.any(|text| text.contains('\0')) {
        return Err(ExecError::Invalid("it contains a NUL character"));
    }
    if spec.cwd.as_ref().is_some_and(|cwd| !cwd.starts_with('/')) {
        return Err(ExecError::Invalid(
            "the working directory is no absolute path",
        ));
    }
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(ExecPlan {
        args: spec.args,
        env: spec.env,
        user: spec.user,
        cwd: spec.cwd,
        timeout_ms: spec.timeout.map(milliseconds),
        output_limit: spec.output_limit,
    })
}

//! Programs that are run to their end.

use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};

/// What a command printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// What it printed; fails the test when the command failed.
    #[track_caller]
    pub fn success(self, command: &str) -> String {
        assert!(self.status.success(), "{command} failed: {self:#?}");
        self.stdout
    }

    /// What it said; fails the test when the command succeeded.
    #[track_caller]
    pub fn refusal(self, command: &str) -> String {
        assert!(!self.status.success(), "{command} succeeded: {self:#?}");
        self.stderr
    }
}

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    Output {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) fn ok(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

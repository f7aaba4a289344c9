//! The last steps: finding the program and becoming it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;

use super::user::User;
use super::{ChildFailure, describe, init};
use crate::plan::ProcessPlan;
use crate::sys::process;

pub(super) fn become_program(
    plan: &ProcessPlan,
    user: &User,
    report: &mut fs::File,
) -> Result<Infallible, ChildFailure> {
    let mut env = plan.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home));
    }
    let name = &plan.args[0];
    let path = find(name, &env)?;
    let c_string = |text: &String| {
        CString::new(text.as_str())
            .expect("the plan refuses NUL characters in arguments and environment")
    };
    let args: Vec<CString> = plan.args.iter().map(c_string).collect();
    let env: Vec<CString> = env.iter().map(c_string).collect();
    let c_path = c_string(&path);

    process::block_signals();
    if plan.init {
        // Before there is a program that could look: see `init`. The program's exec makes its own process dumpable again.
        process::set_not_dumpable().map_err(|error| {
            ChildFailure::new(format!("hide init's executable: {}", describe(&error)))
        })?;
    }
    if plan.init
        && let Some(program) = process::fork().map_err(|error| {
            ChildFailure::new(format!("fork the program from init: {}", describe(&error)))
        })?
    {
        init::run(program);
    }
    process::reset_signals();
    let closed = process::cloexec_from(3);
    let error = match closed {
        Ok(()) => process::execve(&c_path, &args, &env),
        Err(error) => error,
    };
    let failure = exec_failure(&path, &error);
    if plan.init {
        // We are not the container's first process: say it here, and let init pass the code on.
        let _ = report.write_all(&serde_json::to_vec(&failure).unwrap_or_default());
        process::exit_now(failure.exit_code);
    }
    Err(failure)
}

/// Finds the program as a shell would; errors in the words of Go's `exec.LookPath`, which Docker's users know.
fn find(name: &str, env: &[String]) -> Result<String, ChildFailure> {
    let missing = |message: String| ChildFailure {
        message,
        exit_code: 127,
    };
    if name.contains('/') {
        return match check(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing(format!(
                "exec: {name:?}: stat {name}: {}",
                describe(&error)
            ))),
            Err(error) => Err(not_executable(&format!("exec: {name:?}"), &error)),
        };
    }
    let path = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    let mut denied = None;
    for directory in path.split(':') {
        let directory = if directory.is_empty() { "." } else { directory };
        let candidate = format!("{}/{name}", directory.trim_end_matches('/'));
        match check(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = Some(error),
            Err(_) => {}
        }
    }
    match denied {
        Some(error) => Err(not_executable(&format!("exec: {name:?}"), &error)),
        None => Err(missing(format!(
            "exec: {name:?}: executable file not found in $PATH"
        ))),
    }
}

fn check(path: &str) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(())
}

fn not_executable(what: &str, error: &io::Error) -> ChildFailure {
    ChildFailure {
        message: format!("{what}: {}", describe(error)),
        exit_code: 126,
    }
}

fn exec_failure(path: &str, error: &io::Error) -> ChildFailure {
    let mut failure = not_executable(&format!("exec {path}"), error);
    if error.kind() == io::ErrorKind::NotFound {
        failure.exit_code = 127;
    }
    failure
}

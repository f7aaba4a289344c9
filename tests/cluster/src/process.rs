//! Processes of the machine, as /proc shows them.

use std::fs;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Pids of the processes whose command line `wanted` picks.
pub(crate) fn processes(wanted: impl Fn(&[String]) -> bool) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let cmdline = fs::read(entry.path().join("cmdline")).ok()?;
            let cmdline: Vec<String> = cmdline
                .split(|byte| *byte == 0)
                .map(|arg| String::from_utf8_lossy(arg).into_owned())
                .collect();
            wanted(&cmdline).then_some(pid)
        })
        .collect()
}

/// The fourth field of `proc_pid_stat`(5); the second, in parentheses, may hold anything.
pub(crate) fn parent_of(pid: u32) -> u32 {
    stat_fields(pid)
        .get(1)
        .and_then(|ppid| ppid.parse().ok())
        .unwrap_or(0)
}

/// Whether there is such a process, and it is no zombie.
pub fn is_alive(pid: u32) -> bool {
    stat_fields(pid)
        .first()
        .is_some_and(|state| !["Z", "X"].contains(&state.as_str()))
}

/// When the process was started, in clock ticks since boot: with its pid it names a process for good.
pub fn start_time(pid: u32) -> Option<u64> {
    stat_fields(pid).get(19)?.parse().ok()
}

fn stat_fields(pid: u32) -> Vec<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
    after_name.split_whitespace().map(str::to_owned).collect()
}

/// Sends a signal; one to a process that has gone is no error.
pub fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid)
        && pid > 0
    {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

//! Processes as /proc shows them to the outermost pid namespace.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result};

/// One process's `/proc` directory.
fn proc(pid: u32, file: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{file}"))
}

/// All pids.
fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The processes right in the pid namespace of `init`: not those of namespaces below it, and not `init` itself.
pub(crate) fn in_namespace_of(init: u32) -> Result<Vec<u32>> {
    let wanted = fs::read_link(proc(init, "ns/pid")).context("the sandbox runs")?;
    Ok(all()
        .filter(|pid| *pid != init)
        .filter(|pid| fs::read_link(proc(*pid, "ns/pid")).is_ok_and(|found| found == wanted))
        .collect())
}

/// The first child of `pid`, once it has one.
pub(crate) fn first_child(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(proc(pid, &format!("task/{pid}/children"))).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// What `init`'s namespace calls all processes in it and below.
pub(crate) fn inner_pids(init: u32) -> BTreeSet<u32> {
    all()
        .filter_map(|pid| {
            let status = fs::read_to_string(proc(pid, "status")).ok()?;
            let inner = namespace_pids(&status).nth(1)?;
            descends_from(pid, init).then_some(inner)
        })
        .collect()
}

/// The outer pid of what `init`'s namespace calls `inner`.
pub(crate) fn outer_pid(init: u32, inner: u32) -> Option<u32> {
    all().find(|pid| {
        let Ok(status) = fs::read_to_string(proc(*pid, "status")) else {
            return false;
        };
        // Outermost first (proc_pid_status(5)); the sandbox is the second level.
        namespace_pids(&status).nth(1) == Some(inner) && descends_from(*pid, init)
    })
}

fn namespace_pids(status: &str) -> impl Iterator<Item = u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.into_iter()
        .flat_map(str::split_whitespace)
        .filter_map(|pid| pid.parse().ok())
}

fn descends_from(pid: u32, ancestor: u32) -> bool {
    let mut at = pid;
    while at > 1 {
        if at == ancestor {
            return true;
        }
        let Ok(status) = fs::read_to_string(proc(at, "status")) else {
            return false;
        };
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        at = parent.and_then(|pid| pid.trim().parse().ok()).unwrap_or(0);
    }
    false
}

/// What a process has had of processors.
pub(crate) fn processor_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(proc(pid, "stat")).with_context(|| format!("{pid} runs"))?;
    ticks(&stat)
        .map(|ticks| Duration::from_millis(ticks * 10))
        .context("processor time")
}

/// User and system time (fields 14 and 15 of proc_pid_stat(5)), in hundredths of a second, which `USER_HZ` is everywhere.
fn ticks(stat: &str) -> Option<u64> {
    // The second, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// What some processes have had of processors together; one that has ended counts as nothing.
pub(crate) fn processor_time_of(pids: &[u32]) -> Duration {
    pids.iter()
        .filter_map(|pid| processor_time(*pid).ok())
        .sum()
}

/// Memory of some processes together, in MiB.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Memory {
    /// Pages counted once a process.
    pub(crate) rss: f64,
    /// Pages counted once, shared between those that map them.
    pub(crate) pss: f64,
}

/// A process that ends meanwhile counts as nothing.
pub(crate) fn memory(pids: &[u32]) -> Memory {
    pids.iter().fold(Memory::default(), |sum, pid| {
        let rollup = fs::read_to_string(proc(*pid, "smaps_rollup")).unwrap_or_default();
        Memory {
            rss: sum.rss + mebibytes(&rollup, "Rss:"),
            pss: sum.pss + mebibytes(&rollup, "Pss:"),
        }
    })
}

fn mebibytes(rollup: &str, name: &str) -> f64 {
    let line = rollup.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| {
        line.trim()
            .trim_end_matches("kB")
            .trim()
            .parse::<f64>()
            .ok()
    });
    kib.unwrap_or(0.0) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_pids_are_read_outermost_first() {
        let status = "Name:\tsleep\nPPid:\t1\nNSpid:\t1234\t56\t1\nThreads:\t1\n";
        assert_eq!(namespace_pids(status).collect::<Vec<_>>(), [1234, 56, 1]);
        assert_eq!(namespace_pids("Name:\tx\n").count(), 0);
    }

    #[test]
    fn processor_time_is_that_of_user_and_system() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 9 9 20 0 1 0 100 1 1";
        assert_eq!(ticks(stat), Some(300));
        assert!(processor_time(std::process::id()).is_ok());
        assert!(processor_time(u32::MAX).is_err());
    }

    #[test]
    fn own_memory_is_seen_and_a_process_that_is_gone_counts_nothing() {
        let own = memory(&[std::process::id()]);
        assert!(own.rss >= own.pss && own.pss > 0.0, "{own:?}");
        assert_eq!(memory(&[u32::MAX]), Memory::default());
    }

    #[test]
    fn own_process_descends_from_its_parent() {
        let parent = std::os::unix::process::parent_id();
        assert!(descends_from(std::process::id(), parent));
        assert!(!descends_from(parent, std::process::id()));
    }
}

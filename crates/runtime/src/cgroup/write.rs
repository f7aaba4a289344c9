//! Limits into the files of both cgroup versions.

use std::fs;
use std::io;
use std::path::Path;

use super::{CgroupError, failed};
use crate::plan::{Limits, ThrottleKind};

/// Writes what v2 controllers `has` are for.
pub(super) fn v2(
    group: &Path,
    limits: &Limits,
    has: impl Fn(&str) -> bool,
) -> Result<(), CgroupError> {
    let put = |file: &str, text: String| put(group, file, &text);
    let bytes = |value: i64| {
        if value < 0 {
            "max".to_owned()
        } else {
            value.to_string()
        }
    };
    if has("memory") {
        if let Some(limit) = limits.memory {
            put("memory.max", bytes(limit))?;
        }
        if let Some(reservation) = limits.memory_reservation {
            put("memory.low", bytes(reservation))?;
        }
        if let Some(swap) = limits.swap {
            // v2 counts swap alone; kernels without swap accounting have no such file.
            let alone = if swap < 0 {
                -1
            } else {
                swap - limits.memory.unwrap_or(0).max(0)
            };
            optional(put("memory.swap.max", bytes(alone)))?;
        }
    }
    if has("cpu") {
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let quota = bytes(limits.cpu_quota.unwrap_or(-1));
            put(
                "cpu.max",
                format!("{quota} {}", limits.cpu_period.unwrap_or(100_000)),
            )?;
        }
        if let Some(shares) = limits.cpu_shares {
            put("cpu.weight", shares_to_weight(shares).to_string())?;
        }
    }
    if let (true, Some(pids)) = (has("pids"), limits.pids) {
        put("pids.max", bytes(pids))?;
    }
    if has("cpuset") {
        for (file, list) in [
            ("cpuset.cpus", &limits.cpuset_cpus),
            ("cpuset.mems", &limits.cpuset_mems),
        ] {
            if let Some(list) = list {
                put(file, list.clone())?;
            }
        }
    }
    if has("io") {
        if let Some(weight) = limits.blkio_weight {
            // 10..=1000 onto 1..=10000 (runc's conversion).
            let weight = 1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990;
            optional(put("io.weight", weight.to_string()))?;
        }
        for throttle in &limits.throttles {
            let key = match throttle.kind {
                ThrottleKind::ReadBytes => "rbps",
                ThrottleKind::WriteBytes => "wbps",
                ThrottleKind::ReadOperations => "riops",
                ThrottleKind::WriteOperations => "wiops",
            };
            put(
                "io.max",
                format!(
                    "{}:{} {key}={}",
                    throttle.major, throttle.minor, throttle.rate
                ),
            )?;
        }
    }
    for (file, value) in &limits.unified {
        put(file, value.clone())?;
    }
    Ok(())
}

/// Writes what the v1 controller `controller` is for.
pub(super) fn v1(controller: &str, group: &Path, limits: &Limits) -> Result<(), CgroupError> {
    let put = |file: &str, text: String| put(group, file, &text);
    match controller {
        "memory" => {
            if let Some(limit) = limits.memory {
                put("memory.limit_in_bytes", limit.to_string())?;
            }
            if let Some(reservation) = limits.memory_reservation {
                put("memory.soft_limit_in_bytes", reservation.to_string())?;
            }
            if let Some(swap) = limits.swap {
                optional(put("memory.memsw.limit_in_bytes", swap.to_string()))?;
            }
            if let Some(swappiness) = limits.swappiness {
                put("memory.swappiness", swappiness.to_string())?;
            }
            if limits.disable_oom_killer {
                put("memory.oom_control", "1".to_owned())?;
            }
        }
        "cpu" => {
            if let Some(shares) = limits.cpu_shares {
                put("cpu.shares", shares.to_string())?;
            }
            if let Some(period) = limits.cpu_period {
                put("cpu.cfs_period_us", period.to_string())?;
            }
            if let Some(quota) = limits.cpu_quota {
                put("cpu.cfs_quota_us", quota.to_string())?;
            }
        }
        "pids" => {
            if let Some(pids) = limits.pids {
                put(
                    "pids.max",
                    if pids < 0 {
                        "max".to_owned()
                    } else {
                        pids.to_string()
                    },
                )?;
            }
        }
        "cpuset" => {
            let parent = group.parent().expect("a container's group has a parent");
            for (file, list) in [
                ("cpuset.cpus", &limits.cpuset_cpus),
                ("cpuset.mems", &limits.cpuset_mems),
            ] {
                // A v1 cpuset is empty, and takes no process, until it is filled from above.
                inherit(parent, file)?;
                match list {
                    Some(list) => put(file, list.clone())?,
                    None => inherit(group, file)?,
                }
            }
        }
        "blkio" => {
            if let Some(weight) = limits.blkio_weight {
                optional(put("blkio.weight", weight.to_string()))?;
            }
            for throttle in &limits.throttles {
                let file = match throttle.kind {
                    ThrottleKind::ReadBytes => "blkio.throttle.read_bps_device",
                    ThrottleKind::WriteBytes => "blkio.throttle.write_bps_device",
                    ThrottleKind::ReadOperations => "blkio.throttle.read_iops_device",
                    ThrottleKind::WriteOperations => "blkio.throttle.write_iops_device",
                };
                put(
                    file,
                    format!("{}:{} {}", throttle.major, throttle.minor, throttle.rate),
                )?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// v1 shares (2 to 262144) as a v2 weight (1 to 10000); runc's conversion.
fn shares_to_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn inherit(group: &Path, file: &str) -> Result<(), CgroupError> {
    let own = group.join(file);
    let text = fs::read_to_string(&own).map_err(failed("read", &own))?;
    if !text.trim().is_empty() {
        return Ok(());
    }
    let above = group
        .parent()
        .expect("a container's group has a parent")
        .join(file);
    let text = fs::read_to_string(&above).map_err(failed("read", &above))?;
    put(group, file, text.trim())
}

/// A file that some kernels lack: the limit has no meaning there.
fn optional(result: Result<(), CgroupError>) -> Result<(), CgroupError> {
    match result {
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn put(group: &Path, file: &str, text: &str) -> Result<(), CgroupError> {
    let path = group.join(file);
    // Never create: a file that is not there is a controller that is not there.
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|source| CgroupError {
            operation: "write a limit to",
            path,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_map_onto_the_whole_weight_range() {
        assert_eq!(shares_to_weight(2), 1);
        assert_eq!(shares_to_weight(1024), 39);
        assert_eq!(shares_to_weight(262_144), 10_000);
    }
}

//! `linux.resources` into limits and device rules.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources};

use super::prepare::InvalidSpec;
use super::{DeviceKind, DeviceRule, Limits, Throttle, ThrottleKind};

pub(super) fn limits(resources: &LinuxResources) -> Result<Limits, InvalidSpec> {
    let unsupported = |field| Err(InvalidSpec::unsupported(field));
    if resources
        .hugepage_limits()
        .as_ref()
        .is_some_and(|limits| !limits.is_empty())
    {
        return unsupported("linux.resources.hugepageLimits");
    }
    if resources.network().is_some() {
        return unsupported("linux.resources.network");
    }
    if resources
        .rdma()
        .as_ref()
        .is_some_and(|rdma| !rdma.is_empty())
    {
        return unsupported("linux.resources.rdma");
    }
    let mut limits = Limits::default();
    if let Some(memory) = resources.memory() {
        if memory.kernel_tcp().is_some() {
            return unsupported("linux.resources.memory.kernelTCP");
        }
        limits.memory = memory.limit().filter(|bytes| *bytes != 0);
        limits.memory_reservation = memory.reservation().filter(|bytes| *bytes != 0);
        limits.swap = memory.swap().filter(|bytes| *bytes != 0);
        limits.swappiness = memory.swappiness();
        limits.disable_oom_killer = memory.disable_oom_killer() == Some(true);
        if let (Some(memory), Some(swap)) = (limits.memory, limits.swap)
            && swap != -1
            && swap < memory
        {
            return Err(InvalidSpec::invalid(
                "linux.resources.memory.swap",
                format!(
                    "{swap} is memory and swap together and must be at least the memory limit {memory}"
                ),
            ));
        }
        if limits.swappiness.is_some_and(|value| value > 100) {
            return Err(InvalidSpec::invalid(
                "linux.resources.memory.swappiness",
                "must be 0 to 100".to_owned(),
            ));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if cpu.realtime_period().is_some_and(|value| value != 0)
            || cpu.realtime_runtime().is_some_and(|value| value != 0)
        {
            return unsupported("linux.resources.cpu.realtimePeriod/realtimeRuntime");
        }
        if cpu.idle().is_some() || cpu.burst().is_some() {
            return unsupported("linux.resources.cpu.idle/burst");
        }
        limits.cpu_shares = cpu.shares().filter(|value| *value != 0);
        limits.cpu_quota = cpu.quota().filter(|value| *value != 0);
        limits.cpu_period = cpu.period().filter(|value| *value != 0);
        limits.cpuset_cpus = cpu.cpus().clone().filter(|list| !list.is_empty());
        limits.cpuset_mems = cpu.mems().clone().filter(|list| !list.is_empty());
    }
    limits.pids = resources
        .pids()
        .map(|pids| pids.limit())
        .filter(|limit| *limit != 0);
    if let Some(block_io) = resources.block_io() {
        if block_io.leaf_weight().is_some()
            || block_io
                .weight_device()
                .as_ref()
                .is_some_and(|list| !list.is_empty())
        {
            return unsupported("linux.resources.blockIO.leafWeight/weightDevice");
        }
        limits.blkio_weight = block_io.weight().filter(|weight| *weight != 0);
        for (list, kind) in [
            (block_io.throttle_read_bps_device(), ThrottleKind::ReadBytes),
            (
                block_io.throttle_write_bps_device(),
                ThrottleKind::WriteBytes,
            ),
            (
                block_io.throttle_read_iops_device(),
                ThrottleKind::ReadOperations,
            ),
            (
                block_io.throttle_write_iops_device(),
                ThrottleKind::WriteOperations,
            ),
        ] {
            limits
                .throttles
                .extend(list.iter().flatten().map(|device| Throttle {
                    major: device.major(),
                    minor: device.minor(),
                    rate: device.rate(),
                    kind,
                }));
        }
    }
    if let Some(unified) = resources.unified() {
        for (file, value) in unified {
            if file.contains('/') {
                return Err(InvalidSpec::invalid(
                    "linux.resources.unified",
                    format!("{file:?} is not the name of a cgroup file"),
                ));
            }
            limits.unified.push((file.clone(), value.clone()));
        }
        limits.unified.sort();
    }
    Ok(limits)
}

pub(super) fn device_rule(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, InvalidSpec> {
    let invalid = |why: String| InvalidSpec::invalid("linux.resources.devices", why);
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(DeviceKind::Block),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(DeviceKind::Character),
        Some(LinuxDeviceType::P) => return Err(invalid("a FIFO is no device".to_owned())),
    };
    let number = |value: Option<i64>| match value {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| invalid(format!("{value} is no device number"))),
    };
    let access = rule
        .access()
        .as_deref()
        .filter(|access| !access.is_empty())
        .unwrap_or("rwm");
    if let Some(unknown) = access.chars().find(|letter| !"rwm".contains(*letter)) {
        return Err(invalid(format!("access {unknown:?} is none of r, w, m")));
    }
    Ok(DeviceRule {
        allow: rule.allow(),
        kind,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    })
}

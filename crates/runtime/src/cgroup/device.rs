//! Device rules: as an eBPF program for v2, as lines for the v1 controller.

use std::fs;
use std::path::Path;

use super::{CgroupError, failed};
use crate::plan::{DeviceKind, DeviceRule};

/// Access bits of `struct bpf_cgroup_dev_ctx` (`<linux/bpf.h>`).
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// Compiles the rules; the last one that matches decides, and what none matches is allowed (as in a fresh v1 group).
///
/// An allowing rule matches when it covers all of the access asked for, a denying one when it covers any of it.
pub(super) fn program(rules: &[DeviceRule]) -> Vec<u64> {
    // r1 = context; r2 = access, r3 = type, r4 = major, r5 = minor, r6 = scratch, r0 = result.
    let mut code = vec![
        instruction(0x61, 2, 1, 0, 0),      // r2 = ctx->access_type
        instruction(0xbf, 3, 2, 0, 0),      // r3 = r2
        instruction(0x57, 3, 0, 0, 0xffff), // r3 &= 0xffff
        instruction(0x77, 2, 0, 0, 16),     // r2 >>= 16
        instruction(0x61, 4, 1, 4, 0),      // r4 = ctx->major
        instruction(0x61, 5, 1, 8, 0),      // r5 = ctx->minor
    ];
    for rule in rules.iter().rev() {
        let block = block(rule);
        let unconditional = block.len() == 2;
        code.extend(block);
        // What follows an unconditional rule can never run, which the verifier refuses.
        if unconditional {
            return code;
        }
    }
    code.extend(verdict(true));
    code
}

fn block(rule: &DeviceRule) -> Vec<u64> {
    const JNE: u8 = 0x55;
    const JEQ: u8 = 0x15;
    let bits = [(rule.mknod, MKNOD), (rule.read, READ), (rule.write, WRITE)];
    let access = bits
        .iter()
        .filter(|(on, _)| *on)
        .fold(0, |mask, (_, bit)| mask | bit);
    // Tests as (instructions before the jump, jump code, register, value); each jumps to the end of the block.
    let mut tests: Vec<(Vec<u64>, u8, u8, u32)> = Vec::new();
    if let Some(kind) = rule.kind {
        let kind = match kind {
            DeviceKind::Block => 1,
            DeviceKind::Character => 2,
        };
        tests.push((Vec::new(), JNE, 3, kind));
    }
    if access != ALL {
        let (mask, jump) = if rule.allow {
            (ALL & !access, JNE)
        } else {
            (access, JEQ)
        };
        let masked = vec![
            instruction(0xbf, 6, 2, 0, 0),
            instruction(0x57, 6, 0, 0, mask),
        ];
        tests.push((masked, jump, 6, 0));
    }
    if let Some(major) = rule.major {
        tests.push((Vec::new(), JNE, 4, major));
    }
    if let Some(minor) = rule.minor {
        tests.push((Vec::new(), JNE, 5, minor));
    }
    let mut code = verdict(rule.allow);
    for (before, jump, register, value) in tests.into_iter().rev() {
        let over = i16::try_from(code.len()).expect("a rule has at most a dozen instructions");
        let mut test = before;
        test.push(instruction(jump, register, 0, over, value));
        test.extend(code);
        code = test;
    }
    code
}

fn verdict(allow: bool) -> Vec<u64> {
    vec![
        instruction(0xb7, 0, 0, 0, u32::from(allow)),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

/// Packs a `struct bpf_insn` as it lies in memory of a little-endian machine.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, value: u32) -> u64 {
    let [o0, o1] = offset.to_le_bytes();
    let [v0, v1, v2, v3] = value.to_le_bytes();
    u64::from_le_bytes([code, source << 4 | destination, o0, o1, v0, v1, v2, v3])
}

/// Writes the rules to `devices.allow` and `devices.deny`.
pub(super) fn write_v1(group: &Path, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    for rule in rules {
        let file = group.join(if rule.allow {
            "devices.allow"
        } else {
            "devices.deny"
        });
        fs::write(&file, line(rule)).map_err(failed("write a device rule to", &file))?;
    }
    Ok(())
}

fn line(rule: &DeviceRule) -> String {
    let number = |value: Option<u32>| value.map_or_else(|| "*".to_owned(), |n| n.to_string());
    let letters = [(rule.read, 'r'), (rule.write, 'w'), (rule.mknod, 'm')];
    let access: String = letters
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, letter)| *letter)
        .collect();
    let kind = match rule.kind {
        None => return "a".to_owned(),
        Some(DeviceKind::Block) => 'b',
        Some(DeviceKind::Character) => 'c',
    };
    format!(
        "{kind} {}:{} {access}",
        number(rule.major),
        number(rule.minor)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unconditional_rule_ends_the_program() {
        let deny_all = DeviceRule {
            allow: false,
            kind: None,
            major: None,
            minor: None,
            read: true,
            write: true,
            mknod: true,
        };
        let null = DeviceRule {
            allow: true,
            kind: Some(DeviceKind::Character),
            major: Some(1),
            minor: Some(3),
            ..deny_all
        };
        assert_eq!(program(&[deny_all]).len(), 8);
        assert_eq!(program(&[deny_all, null]).len(), 6 + 5 + 2);
        assert_eq!(line(&deny_all), "a");
        assert_eq!(line(&null), "c 1:3 rwm");
    }
}

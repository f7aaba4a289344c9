//! Rules to classic BPF: a binary search over intervals of call numbers.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxSeccompOperator as Operator;

use super::{Action, Condition, Rule, table};

/// Instruction codes (`<linux/bpf_common.h>`).
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JEQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// From here on numbers are of the x32 ABI (`__X32_SYSCALL_BIT` in `<asm/unistd.h>`), which has the architecture of x86-64.
const X32_BIT: u32 = 0x4000_0000;

/// What happens to one call: its conditional rules in order, then the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Behaviour {
    conditional: Vec<(Vec<Condition>, Action)>,
    otherwise: Action,
}

/// Compiles rules into a filter that answers everything else with `default`.
///
/// A rule without conditions decides its call; otherwise the call's rules are tried in order. Numbers beyond the newest
/// call the profile names get `ENOSYS` (as runc does), unless the default is to allow.
pub(super) fn compile(rules: &[Rule], default: Action) -> Vec<u64> {
    let enosys = Action::errno(libc::ENOSYS as u32);
    let mut program = vec![
        instruction(LOAD, 0, 0, OFFSET_ARCH),
        instruction(JEQ, 1, 0, table::AUDIT_ARCH),
        instruction(RETURN, 0, 0, enosys.0),
        instruction(LOAD, 0, 0, OFFSET_NUMBER),
    ];
    program.extend(search(&segments(rules, default, enosys)));
    program
}

/// The behaviour of every number: each segment begins at its number and ends where the next begins.
fn segments(rules: &[Rule], default: Action, beyond: Action) -> Vec<(u32, Behaviour)> {
    let plain = |action| Behaviour {
        conditional: Vec::new(),
        otherwise: action,
    };
    let mut calls: BTreeMap<u32, Behaviour> = BTreeMap::new();
    for rule in rules {
        let behaviour = calls.entry(rule.number).or_insert_with(|| plain(default));
        if rule.conditions.is_empty() {
            *behaviour = plain(rule.action);
        } else if behaviour.otherwise == default {
            behaviour
                .conditional
                .push((rule.conditions.clone(), rule.action));
        }
    }
    let newest = calls.keys().next_back().copied();
    let mut segments: Vec<(u32, Behaviour)> = vec![(0, plain(default))];
    let mut push = |start: u32, behaviour: Behaviour| {
        let last = segments.last_mut().expect("it begins with one segment");
        if last.0 == start {
            last.1 = behaviour;
        } else if last.1 != behaviour {
            segments.push((start, behaviour));
        }
    };
    for (number, behaviour) in calls {
        push(number, behaviour);
        push(number + 1, plain(default));
    }
    // A segment whose start was overwritten may now equal its predecessor; that costs an instruction, not correctness.
    if let (Some(newest), true) = (newest, default != Action::ALLOW) {
        push(newest + 1, plain(beyond));
    }
    if cfg!(target_arch = "x86_64") {
        // The same calls under other numbers: rules name the usual ones, so nothing may pass by these, whatever the default.
        push(X32_BIT, plain(beyond));
    }
    segments.dedup_by(|later, earlier| later.1 == earlier.1);
    segments
}

/// A binary search over the segments; the accumulator holds the call's number.
fn search(segments: &[(u32, Behaviour)]) -> Vec<u64> {
    if let [(_, only)] = segments {
        return answer(only);
    }
    let middle = segments.len() / 2;
    let (left, right) = (search(&segments[..middle]), search(&segments[middle..]));
    let start = segments[middle].0;
    let mut code = if let Ok(distance) = u8::try_from(left.len()) {
        vec![instruction(JGE, distance, 0, start)]
    } else {
        // A conditional jump reaches 255 instructions, an unconditional one any distance.
        let distance = u32::try_from(left.len()).expect("a filter is below 2^32 instructions");
        vec![
            instruction(JGE, 0, 1, start),
            instruction(JUMP, 0, 0, distance),
        ]
    };
    code.extend(left);
    code.extend(right);
    code
}

fn answer(behaviour: &Behaviour) -> Vec<u64> {
    let mut code = Vec::new();
    for (conditions, action) in &behaviour.conditional {
        code.extend(guarded(conditions, *action));
    }
    code.push(instruction(RETURN, 0, 0, behaviour.otherwise.0));
    code
}

/// `if all conditions hold, return action`; falls through otherwise.
fn guarded(conditions: &[Condition], action: Action) -> Vec<u64> {
    // Built back to front, so that each test knows how far the end is.
    let mut code = vec![instruction(RETURN, 0, 0, action.0)];
    for condition in conditions.iter().rev() {
        let end =
            u8::try_from(code.len()).expect("six conditions of nine instructions are below 255");
        let mut test = test(*condition, end);
        test.extend(code);
        code = test;
    }
    code
}

/// The upper and the lower 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the lower half is what is wanted"
)]
fn halves(value: u64) -> (u32, u32) {
    ((value >> 32) as u32, value as u32)
}

/// Tests one 64-bit argument in halves. Falls through when it holds and jumps over `end` more instructions when not.
fn test(condition: Condition, end: u8) -> Vec<u64> {
    let low_offset = OFFSET_ARGS + condition.argument * 8;
    let high_offset = low_offset + 4;
    let load = |offset| instruction(LOAD, 0, 0, offset);
    let (high, low) = halves(condition.value);
    // Layout: load high; compare high; (compare high again;) load low; compare low. `end` counts from after the last.
    match condition.operator {
        Operator::ScmpCmpEq => vec![
            load(high_offset),
            instruction(JEQ, 0, end + 2, high),
            load(low_offset),
            instruction(JEQ, 0, end, low),
        ],
        Operator::ScmpCmpNe => vec![
            load(high_offset),
            instruction(JEQ, 0, 2, high),
            load(low_offset),
            instruction(JEQ, end, 0, low),
        ],
        Operator::ScmpCmpMaskedEq => {
            let (wanted_high, wanted_low) = halves(condition.masked);
            vec![
                load(high_offset),
                instruction(AND, 0, 0, high),
                instruction(JEQ, 0, end + 3, wanted_high),
                load(low_offset),
                instruction(AND, 0, 0, low),
                instruction(JEQ, 0, end, wanted_low),
            ]
        }
        Operator::ScmpCmpGe | Operator::ScmpCmpGt => {
            let code = if condition.operator == Operator::ScmpCmpGe {
                JGE
            } else {
                JGT
            };
            vec![
                load(high_offset),
                instruction(JGT, 3, 0, high),
                instruction(JEQ, 0, end + 2, high),
                load(low_offset),
                instruction(code, 0, end, low),
            ]
        }
        Operator::ScmpCmpLt | Operator::ScmpCmpLe => {
            let code = if condition.operator == Operator::ScmpCmpLt {
                JGE
            } else {
                JGT
            };
            vec![
                load(high_offset),
                instruction(JGT, end + 3, 0, high),
                instruction(JEQ, 0, 2, high),
                load(low_offset),
                instruction(code, end, 0, low),
            ]
        }
    }
}

/// Packs a `struct sock_filter { u16 code; u8 jt; u8 jf; u32 k; }` as it lies in memory.
fn instruction(code: u16, jump_true: u8, jump_false: u8, k: u32) -> u64 {
    let [c0, c1] = code.to_ne_bytes();
    let [k0, k1, k2, k3] = k.to_ne_bytes();
    u64::from_ne_bytes([c0, c1, jump_true, jump_false, k0, k1, k2, k3])
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs a filter as the kernel does.
    pub(crate) fn run(program: &[u64], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let word = |offset: u32| match offset {
            OFFSET_NUMBER => number,
            OFFSET_ARCH => arch,
            _ => {
                let index = (offset - OFFSET_ARGS) as usize;
                halves(args[index / 8] >> (index % 8 * 8)).1
            }
        };
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let bytes = program[at].to_ne_bytes();
            let k = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            let (if_true, if_false) = (usize::from(bytes[2]), usize::from(bytes[3]));
            let mut jump = |holds: bool| at += 1 + if holds { if_true } else { if_false };
            match u16::from_ne_bytes([bytes[0], bytes[1]]) {
                LOAD => {
                    accumulator = word(k);
                    at += 1;
                }
                AND => {
                    accumulator &= k;
                    at += 1;
                }
                JUMP => at += 1 + k as usize,
                JEQ => jump(accumulator == k),
                JGT => jump(accumulator > k),
                JGE => jump(accumulator >= k),
                RETURN => return k,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    fn holds(condition: &Condition, args: [u64; 6]) -> bool {
        let argument = args[condition.argument as usize];
        match condition.operator {
            Operator::ScmpCmpNe => argument != condition.value,
            Operator::ScmpCmpLt => argument < condition.value,
            Operator::ScmpCmpLe => argument <= condition.value,
            Operator::ScmpCmpEq => argument == condition.value,
            Operator::ScmpCmpGe => argument >= condition.value,
            Operator::ScmpCmpGt => argument > condition.value,
            Operator::ScmpCmpMaskedEq => argument & condition.value == condition.masked,
        }
    }

    fn conditions() -> impl Strategy<Value = Vec<Condition>> {
        let operator = prop::sample::select(vec![
            Operator::ScmpCmpNe,
            Operator::ScmpCmpLt,
            Operator::ScmpCmpLe,
            Operator::ScmpCmpEq,
            Operator::ScmpCmpGe,
            Operator::ScmpCmpGt,
            Operator::ScmpCmpMaskedEq,
        ]);
        let value = prop_oneof![0_u64..4, Just(1 << 32), Just((1 << 32) + 1), Just(u64::MAX)];
        let condition = (0_u32..2, operator, value.clone(), value).prop_map(
            |(argument, operator, value, masked)| Condition {
                argument,
                operator,
                value,
                masked,
            },
        );
        prop::collection::vec(condition, 0..3)
    }

    proptest! {
        #[test]
        fn filter_agrees_with_the_rules_read_one_by_one(
            rules in prop::collection::vec((0_u32..40, 0_u32..3, conditions()), 1..80),
            number in 0_u32..45,
            a in prop_oneof![0_u64..4, Just(1 << 32), Just(u64::MAX)],
            b in prop_oneof![0_u64..4, Just((1 << 32) + 1)],
        ) {
            let rules: Vec<Rule> = rules
                .into_iter()
                .map(|(number, errno, conditions)| Rule {
                    number,
                    action: if errno == 0 { Action::ALLOW } else { Action::errno(errno + 50) },
                    conditions,
                })
                .collect();
            let default = Action::errno(1);
            let args = [a, b, 0, 0, 0, 0];
            let of_call = || rules.iter().filter(|rule| rule.number == number);
            let newest = rules.iter().map(|rule| rule.number).max().expect("at least one rule");
            let expected = of_call()
                .rfind(|rule| rule.conditions.is_empty())
                .or_else(|| of_call().find(|rule| rule.conditions.iter().all(|c| holds(c, args))))
                .map_or(if number > newest { Action::errno(38) } else { default }, |rule| rule.action);
            let program = compile(&rules, default);
            prop_assert_eq!(run(&program, table::AUDIT_ARCH, number, args), expected.0);
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn x32_calls_get_enosys_whatever_the_default_is() {
        let refused = Rule {
            number: 40,
            action: Action::errno(1),
            conditions: Vec::new(),
        };
        for default in [Action::ALLOW, Action::errno(1)] {
            let program = compile(std::slice::from_ref(&refused), default);
            for number in [X32_BIT, X32_BIT + 40, u32::MAX] {
                let action = run(&program, table::AUDIT_ARCH, number, [0; 6]);
                assert_eq!(action, Action::errno(38).0);
            }
            let action = run(&program, table::AUDIT_ARCH, 40, [0; 6]);
            assert_eq!(action, Action::errno(1).0);
        }
    }

    #[test]
    fn foreign_architectures_get_enosys() {
        let program = compile(&[], Action::ALLOW);
        assert_eq!(run(&program, 0x4000_0003, 1, [0; 6]), Action::errno(38).0);
    }
}

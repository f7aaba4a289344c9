//! Rules of policy routing (`linux/fib_rules.h`).

use std::net::IpAddr;

use super::{
    Batch, KernelError, Received, Socket,
    ip::{AF_INET, AF_INET6, family, octets, width},
    message::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL},
    route::RTPROT_SHOAL,
};

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const FR_ACT_TO_TBL: u8 = 1;

/// Packets of this kind use `table`. Priorities go from 0, first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rule {
    /// Of IPv6 packets; otherwise of those of IPv4.
    pub(crate) is_v6: bool,
    pub(crate) priority: u32,
    pub(crate) from: Option<String>,
    pub(crate) mark: Option<u32>,
    pub(crate) table: u32,
}

impl Batch {
    pub(crate) fn add_rule(&mut self, rule: &Rule) {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.rule(format!("rule {rule:?}"), RTM_NEWRULE, flags, rule);
    }

    pub(crate) fn delete_rule(&mut self, rule: &Rule) {
        self.rule(format!("delete {rule:?}"), RTM_DELRULE, NLM_F_ACK, rule);
    }

    fn rule(&mut self, label: String, kind: u16, flags: u16, rule: &Rule) {
        let family = if rule.is_v6 { AF_INET6 } else { AF_INET };
        let fixed = [family, 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        self.message(label, kind, flags, &fixed)
            .attr_u32(6, rule.priority)
            .attr_u32(15, rule.table);
        if kind == RTM_NEWRULE {
            self.attr(21, &[RTPROT_SHOAL]);
        }
        if let Some(from) = &rule.from {
            self.attr_str(3, from);
        }
        if let Some(mark) = rule.mark {
            self.attr_u32(10, mark).attr_u32(16, u32::MAX);
        }
    }

    /// Packets from `addr` use `table`.
    pub(crate) fn add_source_rule(&mut self, addr: IpAddr, table: u32) {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let (family, bits) = (family(addr), width(addr));
        let fixed = [family, 0, bits, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
        self.message(
            format!("rule for packets from {addr}"),
            RTM_NEWRULE,
            flags,
            &fixed,
        )
        .attr(2, &octets(addr))
        .attr_u32(6, table)
        .attr_u32(15, table);
    }
}

impl Socket {
    /// The rules that we made.
    pub(crate) fn rules(&mut self) -> Result<Vec<Rule>, KernelError> {
        let answers = self.query(|batch| {
            batch.message("list of rules", RTM_GETRULE, NLM_F_DUMP, &[0; 12]);
        })?;
        Ok(answers.iter().filter_map(parse).collect())
    }
}

fn parse(answer: &Received) -> Option<Rule> {
    let fixed = answer.payload.get(..12)?;
    let attrs = answer.attrs(12);
    (attrs.array(21) == Some([RTPROT_SHOAL])).then(|| Rule {
        is_v6: fixed[0] == AF_INET6,
        priority: attrs.u32(6).unwrap_or(0),
        from: attrs.text(3).map(str::to_owned),
        // A mark of 0 is not shown, only its mask is.
        mark: attrs.u32(16).map(|_| attrs.u32(10).unwrap_or(0)),
        table: attrs.u32(15).unwrap_or_else(|| u32::from(fixed[4])),
    })
}

//! One question: answered from the zones, or to be forwarded. Pure but for the shuffling.

use std::{net::Ipv4Addr, sync::Arc};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, PTR},
    },
};
use rand::seq::SliceRandom;

use super::zone::{Asker, Zone};

/// Seconds a program may remember an answer. Addresses of tasks come and go with deployments, and
/// asking again costs some tens of microseconds.
const TTL: u32 = 5;
/// What a UDP answer may hold without EDNS (RFC 1035 section 2.3.4), and at most with it.
const PLAIN_UDP: u16 = 512;
const LARGEST_UDP: u16 = 4096;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Send this.
    Message(Vec<u8>),
    /// No network of the asker knows the name.
    Forward,
    /// Not a question; says nothing.
    Nothing,
}

/// Answers `question`, which came over UDP if `datagram`.
pub(super) fn answer(
    question: &[u8],
    asker: &Asker,
    zones: &[Arc<Zone>],
    datagram: bool,
) -> Answer {
    let Ok(message) = Message::from_vec(question) else {
        return malformed(question);
    };
    if message.metadata.message_type != MessageType::Query {
        return Answer::Nothing;
    }
    let [query] = &message.queries[..] else {
        return finish(&message, ResponseCode::FormErr, Vec::new(), datagram);
    };
    if message.metadata.op_code != OpCode::Query {
        return finish(&message, ResponseCode::NotImp, Vec::new(), datagram);
    }
    match look_up(query, asker, zones) {
        Some((code, records)) => finish(&message, code, records, datagram),
        None if zones.iter().any(|zone| zone.forwards) => Answer::Forward,
        // Only internal networks: no question leaves the node.
        None => finish(&message, ResponseCode::NXDomain, Vec::new(), datagram),
    }
}

/// The answer when no upstream gave one.
pub(super) fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(question).ok()?;
    match finish(&message, ResponseCode::ServFail, Vec::new(), false) {
        Answer::Message(bytes) => Some(bytes),
        _ => None,
    }
}

fn look_up(
    query: &Query,
    asker: &Asker,
    zones: &[Arc<Zone>],
) -> Option<(ResponseCode, Vec<Record>)> {
    if query.query_class() != DNSClass::IN {
        return None;
    }
    let name = query.name();
    let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    if let Some(addr) = reverse(&text) {
        let known = zones.iter().find_map(|zone| zone.name(addr))?;
        let target = Some(known).filter(|known| !known.is_empty());
        let target = target.and_then(|known| Name::from_ascii(format!("{known}.")).ok());
        let is_asked = matches!(query.query_type(), RecordType::PTR | RecordType::ANY);
        return Some(match target {
            None => (ResponseCode::NXDomain, Vec::new()),
            Some(_) if !is_asked => (ResponseCode::NoError, Vec::new()),
            Some(target) => {
                let record = Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)));
                (ResponseCode::NoError, vec![record])
            }
        });
    }
    let private = asker.names.get(&text).map(Vec::as_slice);
    let addrs = private.or_else(|| zones.iter().find_map(|zone| zone.addresses(&text)))?;
    if !matches!(query.query_type(), RecordType::A | RecordType::ANY) {
        // The name exists, with nothing of the type that was asked for.
        return Some((ResponseCode::NoError, Vec::new()));
    }
    let mut addrs = addrs.to_vec();
    addrs.shuffle(&mut rand::rng());
    let record = |addr: Ipv4Addr| Record::from_rdata(name.clone(), TTL, RData::A(A(addr)));
    Some((
        ResponseCode::NoError,
        addrs.into_iter().map(record).collect(),
    ))
}

/// The address that `d.c.b.a.in-addr.arpa` asks about.
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let mut parts = name
        .strip_suffix(".in-addr.arpa")?
        .split('.')
        .map(str::parse::<u8>);
    let mut next = || parts.next()?.ok();
    let (d, c, b, a) = (next()?, next()?, next()?, next()?);
    next().is_none().then(|| Ipv4Addr::new(a, b, c, d))
}

fn finish(question: &Message, code: ResponseCode, records: Vec<Record>, datagram: bool) -> Answer {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries.clone_from(&question.queries);
    message.answers = records;
    let mut room = usize::from(u16::MAX);
    if datagram {
        room = PLAIN_UDP.into();
    }
    if let Some(edns) = &question.edns {
        let mut ours = hickory_proto::op::Edns::new();
        ours.set_max_payload(LARGEST_UDP);
        message.edns = Some(ours);
        if datagram {
            room = edns.max_payload().clamp(PLAIN_UDP, LARGEST_UDP).into();
        }
    }
    loop {
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= room => return Answer::Message(bytes),
            _ if message.answers.is_empty() => return Answer::Nothing,
            _ => {
                // The asker comes again over TCP; over TCP there is nothing larger to offer.
                message.metadata.truncation = true;
                message.answers.truncate(message.answers.len() / 2);
            }
        }
    }
}

/// FORMERR with the question's id, if that much can be read and it is a question.
fn malformed(question: &[u8]) -> Answer {
    match question {
        [a, b, flags, _, ..] if question.len() >= 12 && flags & 0x80 == 0 => {
            let id = u16::from_be_bytes([*a, *b]);
            let message = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            message.to_vec().map_or(Answer::Nothing, Answer::Message)
        }
        _ => Answer::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::NetworkState;

    fn zone(internal: bool, names: &[(&str, &[[u8; 4]])]) -> Arc<Zone> {
        Arc::new(Zone::new(Arc::new(NetworkState {
            id: "n".to_owned(),
            subnet: "10.0.1.0/24".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, 1, 1),
            internal,
            ingress: false,
            mtu: None,
            ipv6: false,
            vips: Vec::new(),
            published: Vec::new(),
            names: names
                .iter()
                .map(|(name, addrs)| {
                    (
                        (*name).to_owned(),
                        addrs.iter().map(|a| Ipv4Addr::from(*a)).collect(),
                    )
                })
                .collect(),
            overlay: None,
        })))
    }

    fn ask(name: &str, kind: RecordType, zones: &[Arc<Zone>]) -> Option<Message> {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        match answer(
            &message.to_vec().unwrap(),
            &Asker::of_network("n"),
            zones,
            true,
        ) {
            Answer::Message(bytes) => Some(Message::from_vec(&bytes).unwrap()),
            _ => None,
        }
    }

    #[test]
    fn case_does_not_matter_and_the_first_network_answers() {
        let zones = [
            zone(false, &[("web", &[[10, 0, 1, 2]])]),
            zone(false, &[("web", &[[10, 0, 2, 2]])]),
        ];
        let message = ask("WeB.", RecordType::A, &zones).unwrap();
        assert_eq!(message.answers.len(), 1);
        assert_eq!(
            message.answers[0].data,
            RData::A(A(Ipv4Addr::new(10, 0, 1, 2)))
        );
        assert_eq!(message.queries[0].name().to_ascii(), "WeB.");
    }

    #[test]
    fn other_types_of_a_known_name_are_empty_and_not_missing() {
        let zones = [zone(false, &[("web", &[[10, 0, 1, 2]])])];
        let message = ask("web.", RecordType::AAAA, &zones).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        assert!(message.answers.is_empty());
    }

    #[test]
    fn addresses_have_the_fullest_name_of_their_own() {
        let zones = [zone(
            false,
            &[
                ("web", &[[10, 0, 1, 2], [10, 0, 1, 3]]),
                ("web.1.x", &[[10, 0, 1, 2]]),
            ],
        )];
        let message = ask("2.1.0.10.in-addr.arpa.", RecordType::PTR, &zones).unwrap();
        assert_eq!(message.answers[0].data.to_string(), "web.1.x.");
        let unknown = ask("9.1.0.10.in-addr.arpa.", RecordType::PTR, &zones).unwrap();
        assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
        assert!(
            ask("8.8.8.8.in-addr.arpa.", RecordType::PTR, &zones).is_none(),
            "forwarded"
        );
    }

    #[test]
    fn only_internal_networks_keep_questions_to_themselves() {
        let message = ask("example.com.", RecordType::A, &[zone(true, &[])]).unwrap();
        assert_eq!(message.metadata.response_code, ResponseCode::NXDomain);
        assert!(
            ask(
                "example.com.",
                RecordType::A,
                &[zone(true, &[]), zone(false, &[])]
            )
            .is_none()
        );
    }

    #[test]
    fn long_answers_are_cut_for_udp_and_say_so() {
        let addrs: Vec<[u8; 4]> = (1..=200).map(|n| [10, 0, 1, n]).collect();
        let zones = [zone(false, &[("tasks.web", &addrs)])];
        let message = ask("tasks.web.", RecordType::A, &zones).unwrap();
        assert!(message.metadata.truncation && !message.answers.is_empty());
        assert!(message.to_vec().unwrap().len() <= 512);
    }

    #[test]
    fn junk_gets_no_answer_or_a_format_error() {
        let asker = Asker {
            networks: Vec::new(),
            names: BTreeMap::new(),
            upstreams: None,
        };
        assert_eq!(answer(&[1, 2, 3], &asker, &[], true), Answer::Nothing);
        let Answer::Message(bytes) =
            answer(&[0, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 99], &asker, &[], true)
        else {
            panic!("no answer");
        };
        let message = Message::from_vec(&bytes).unwrap();
        assert_eq!(
            (message.metadata.id, message.metadata.response_code),
            (9, ResponseCode::FormErr)
        );
        let mut response = Message::response(1, OpCode::Query);
        response.add_query(Query::query(Name::root(), RecordType::A));
        assert_eq!(
            answer(&response.to_vec().unwrap(), &asker, &[], true),
            Answer::Nothing
        );
    }
}

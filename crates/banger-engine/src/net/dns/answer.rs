//! From the bytes of a query to what is done with it: answered from the zone, forwarded, or ignored. Knows no sockets.
//!
//! The zone is authoritative for `vm.` and for the reverse names of the bridge's network (RFC 1034, 4.3.2), and there are
//! no delegations, no wildcards and no aliases in it: a name has an address or it does not exist. Negative answers carry
//! the SOA that says how long to believe them (RFC 2308).
//!
//! Built on NLnet Labs' `domain` rather than on `hickory-proto`: it parses on the message's own bytes, and brings three
//! crates where the other brings fifty (internationalised names for URLs among them).

use std::net::Ipv4Addr;

use domain::base::iana::{Class, Opcode, OptRcode, Rcode};
use domain::base::message_builder::{AnswerBuilder, AuthorityBuilder};
use domain::base::name::{Label, ToLabelIter};
use domain::base::{Message, MessageBuilder, Name, ParsedName, Rtype, Serial, StaticCompressor, Ttl};
use domain::rdata::{A, Ns, Ptr, Soa};

use super::lookup::{Asker, Lookup, ZONE};

/// How long an answer may be kept. A machine keeps its address for life, but its name may go over to another: short
/// enough that nobody waits for it, long enough that a build which asks a thousand times asks once.
const TTL: Ttl = Ttl::from_secs(5);

/// How long it may be kept that there is no such name: a machine that is waited for is there in a moment.
const NEGATIVE: Ttl = Ttl::from_secs(1);

/// What the server is called in its own records.
const SERVER: &str = "ns.vm";

/// What we can receive by UDP (RFC 6891, 6.2.3; the value of DNS flag day 2020).
const PAYLOAD: u16 = 1232;

/// What is to be done with a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask the host's servers.
    Forward,
    /// Nothing: it is no query, so an answer could only go round in circles.
    Ignore,
}

/// Decides on a query. Its size is the caller's to bound.
pub(crate) fn answer(zone: &Lookup, asker: Asker, query: &[u8]) -> Action {
    let Ok(query) = Message::from_slice(query) else {
        return Action::Ignore;
    };
    let header = query.header();
    if header.qr() {
        return Action::Ignore;
    }
    if header.opcode() != Opcode::QUERY {
        return bare(query, Rcode::NOTIMP);
    }
    // One question a query (RFC 9619), and nothing that cannot be read: what is forwarded goes on as it is.
    let question = match query.sole_question() {
        Ok(question) if readable(query) => question,
        Ok(_) | Err(_) => return bare(query, Rcode::FORMERR),
    };
    // A reply always fits into its buffer, which grows, and all of its names are short.
    let or_nothing = |reply: Option<Vec<u8>>| reply.map_or(Action::Ignore, Action::Reply);
    // A version of EDNS that we do not know (RFC 6891, 6.1.3).
    if query.opt().is_some_and(|opt| opt.version() != 0) {
        return or_nothing(refuse(query, OptRcode::BADVERS));
    }
    let place = place(question.qname(), zone);
    if matches!(place, Place::Plain) && matches!(question.qtype(), Rtype::A | Rtype::AAAA) {
        return or_nothing(refuse(query, OptRcode::NXDOMAIN));
    }
    if matches!(place, Place::Elsewhere | Place::Plain)
        && question.qclass() == Class::IN
        && zone.forwards(asker)
    {
        return Action::Forward;
    }
    // Nobody has anything in other classes, zone transfers (RFC 5936) are nobody's business, and who is shut in learns of
    // nothing outside.
    if question.qclass() != Class::IN
        || matches!(place, Place::Elsewhere | Place::Plain)
        || matches!(question.qtype(), Rtype::AXFR | Rtype::IXFR)
    {
        return or_nothing(refuse(query, OptRcode::REFUSED));
    }
    let facts = facts(zone, asker, &place, question.qtype());
    or_nothing(say(query, &place, question.qname(), &facts))
}

/// Whether all that the message says it has can be read.
fn readable(query: &Message<[u8]>) -> bool {
    let Ok(sections) = query.answer() else {
        return false;
    };
    let mut sections = Some(sections);
    while let Some(mut section) = sections {
        if section.by_ref().any(|record| record.is_err()) {
            return false;
        }
        sections = match section.next_section() {
            Ok(next) => next,
            Err(_) => return false,
        };
    }
    true
}

/// Where a name is.
enum Place {
    /// Not ours.
    Elsewhere,
    /// Not ours, and a single label: no host has an address by that in the world's DNS, so nobody is told of it or waited
    /// for. Guests ask such things: whatever logs who has come by ssh asks for the address of `UNKNOWN`.
    Plain,
    /// In `vm.`, or that itself; the label, where there is exactly one that can be a name of ours.
    Names { apex: bool, label: Option<String> },
    /// The reverse name of an address of the network.
    Address(Ipv4Addr),
}

fn place(name: &ParsedName<&[u8]>, zone: &Lookup) -> Place {
    let labels: Vec<&Label> = name.iter_labels().collect();
    // The last is the root's, which is empty.
    let Some((_, labels)) = labels.split_last() else {
        return Place::Elsewhere;
    };
    let is = |label: &Label, text: &str| label.as_slice().eq_ignore_ascii_case(text.as_bytes());
    match labels {
        [zone] if is(zone, ZONE) => Place::Names {
            apex: true,
            label: None,
        },
        [_] => Place::Plain,
        [below @ .., zone] if is(zone, ZONE) => {
            let label = match below {
                [one] => std::str::from_utf8(one.as_slice()).ok().map(str::to_owned),
                _ => None,
            };
            Place::Names { apex: false, label }
        }
        [d, c, b, a, in_addr, arpa] if is(in_addr, "in-addr") && is(arpa, "arpa") => {
            let octet = |label: &Label| {
                let text = std::str::from_utf8(label.as_slice()).ok()?;
                // As the numbers are written there: no sign, no leading zero.
                let number: u8 = text.parse().ok()?;
                (number.to_string() == text).then_some(number)
            };
            match (octet(a), octet(b), octet(c), octet(d)) {
                (Some(a), Some(b), Some(c), Some(d)) => {
                    let address = Ipv4Addr::new(a, b, c, d);
                    match zone.owns(address) {
                        true => Place::Address(address),
                        false => Place::Elsewhere,
                    }
                }
                _ => Place::Elsewhere,
            }
        }
        _ => Place::Elsewhere,
    }
}

/// What is said.
enum Facts {
    Address(Ipv4Addr),
    Pointer(String),
    NameServer,
    Authority,
    /// The name is there, and has nothing of that type.
    Nothing,
    NoSuchName,
}

fn facts(zone: &Lookup, asker: Asker, place: &Place, wanted: Rtype) -> Facts {
    let wants = |rtype| wanted == rtype || wanted == Rtype::ANY;
    match place {
        Place::Elsewhere | Place::Plain => Facts::NoSuchName,
        Place::Names { apex: true, .. } if wants(Rtype::SOA) => Facts::Authority,
        Place::Names { apex: true, .. } if wants(Rtype::NS) => Facts::NameServer,
        Place::Names { apex: true, .. } => Facts::Nothing,
        Place::Names { apex: false, label } => {
            let address = label.as_deref().and_then(|label| zone.address_of(label, asker));
            match address {
                Some(address) if wants(Rtype::A) => Facts::Address(address),
                Some(_) => Facts::Nothing,
                None => Facts::NoSuchName,
            }
        }
        Place::Address(address) => match zone.name_of(*address, asker) {
            Some(name) if wants(Rtype::PTR) => Facts::Pointer(format!("{name}.{ZONE}.")),
            Some(_) => Facts::Nothing,
            None => Facts::NoSuchName,
        },
    }
}

type Target = StaticCompressor<Vec<u8>>;

/// A header alone: the question, where there is one, is not to be repeated.
fn bare(query: &Message<[u8]>, rcode: Rcode) -> Action {
    let mut reply = MessageBuilder::new_vec();
    let header = reply.header_mut();
    header.set_id(query.header().id());
    header.set_qr(true);
    header.set_opcode(query.header().opcode());
    header.set_rd(query.header().rd());
    header.set_ra(true);
    header.set_rcode(rcode);
    Action::Reply(reply.finish())
}

fn refuse(query: &Message<[u8]>, rcode: OptRcode) -> Option<Vec<u8>> {
    finish(query, begin(query, rcode.rcode())?.authority(), rcode)
}

fn say(query: &Message<[u8]>, place: &Place, asked: &ParsedName<&[u8]>, facts: &Facts) -> Option<Vec<u8>> {
    let rcode = match facts {
        Facts::NoSuchName => Rcode::NXDOMAIN,
        Facts::Address(_) | Facts::Pointer(_) | Facts::NameServer | Facts::Authority | Facts::Nothing => {
            Rcode::NOERROR
        }
    };
    let mut answer = begin(query, rcode)?;
    answer.header_mut().set_aa(true);
    match facts {
        Facts::Address(address) => answer.push((asked, TTL, A::new(*address))).ok()?,
        Facts::Pointer(to) => answer.push((asked, TTL, Ptr::new(name(to)?))).ok()?,
        Facts::NameServer => answer.push((asked, TTL, Ns::new(name(SERVER)?))).ok()?,
        Facts::Authority => answer.push((asked, TTL, authority()?)).ok()?,
        Facts::Nothing | Facts::NoSuchName => {
            let mut denial = answer.authority();
            // Its own time to live is that of the denial (RFC 2308, 3).
            denial.push((apex(place)?, NEGATIVE, authority()?)).ok()?;
            return finish(query, denial, OptRcode::NOERROR);
        }
    }
    finish(query, answer.authority(), OptRcode::NOERROR)
}

fn begin(query: &Message<[u8]>, rcode: Rcode) -> Option<AnswerBuilder<Target>> {
    let message = MessageBuilder::from_target(StaticCompressor::new(Vec::with_capacity(512))).ok()?;
    let mut answer = message.start_answer(query, rcode).ok()?;
    answer.header_mut().set_ra(true);
    Some(answer)
}

/// Adds EDNS where the query has it (RFC 6891, 6.1.1).
fn finish(query: &Message<[u8]>, reply: AuthorityBuilder<Target>, rcode: OptRcode) -> Option<Vec<u8>> {
    let mut additional = reply.additional();
    if query.opt().is_some() {
        additional
            .opt(|opt| {
                opt.set_udp_payload_size(PAYLOAD);
                opt.set_rcode(rcode);
                Ok(())
            })
            .ok()?;
    }
    Some(additional.finish().into_target())
}

fn name(text: &str) -> Option<Name<Vec<u8>>> {
    text.parse().ok()
}

/// The zone's own name. Of a reverse name the one above it will do: nothing is denied but below it.
fn apex(place: &Place) -> Option<Name<Vec<u8>>> {
    match place {
        Place::Elsewhere | Place::Plain => None,
        Place::Names { .. } => name(ZONE),
        Place::Address(address) => {
            let [a, b, c, _] = address.octets();
            name(&format!("{c}.{b}.{a}.in-addr.arpa"))
        }
    }
}

fn authority() -> Option<Soa<Name<Vec<u8>>>> {
    Some(Soa::new(
        name(SERVER)?,
        name(&format!("hostmaster.{ZONE}"))?,
        // Nobody transfers the zone, so nobody compares it, nor waits for anything of what follows but the last.
        Serial(1),
        Ttl::from_secs(3600),
        Ttl::from_secs(600),
        Ttl::from_secs(86400),
        NEGATIVE,
    ))
}

#[cfg(test)]
mod tests {
    use super::super::lookup::tests::lookup;
    use super::*;
    use domain::base::iana::Opcode;
    use domain::rdata::AllRecordData;
    use proptest::prelude::*;

    const WEB: Asker = Asker::Guest(Ipv4Addr::new(10, 209, 0, 3));
    const ALONE: Asker = Asker::Guest(Ipv4Addr::new(10, 209, 0, 2));

    fn query(of: &str, rtype: Rtype) -> Vec<u8> {
        let mut query = MessageBuilder::new_vec();
        query.header_mut().set_id(0x1234);
        query.header_mut().set_rd(true);
        let mut query = query.question();
        query.push((name(of).unwrap(), rtype)).unwrap();
        query.finish()
    }

    fn with_edns(of: &str, version: u8) -> Vec<u8> {
        let query = Message::from_octets(query(of, Rtype::A)).unwrap();
        let mut message = MessageBuilder::new_vec();
        message.header_mut().set_id(query.header().id());
        let mut message = message.question();
        message.push(query.sole_question().unwrap()).unwrap();
        let mut message = message.additional();
        message
            .opt(|opt| {
                opt.set_udp_payload_size(4096);
                opt.set_version(version);
                Ok(())
            })
            .unwrap();
        message.finish()
    }

    fn reply(asker: Asker, query: &[u8]) -> Message<Vec<u8>> {
        match answer(&lookup(), asker, query) {
            Action::Reply(reply) => Message::from_octets(reply).unwrap(),
            other @ (Action::Forward | Action::Ignore) => panic!("{other:?}"),
        }
    }

    /// Code, and every record of answer and authority as text.
    fn said(asker: Asker, of: &str, rtype: Rtype) -> (Rcode, Vec<String>) {
        let reply = reply(asker, &query(of, rtype));
        assert_eq!(reply.header().id(), 0x1234);
        assert!(reply.header().qr() && reply.header().rd() && reply.header().ra());
        let records = |section: domain::base::message::RecordSection<'_, Vec<u8>>| {
            section
                .limit_to::<AllRecordData<_, _>>()
                .map(|record| record.unwrap().to_string())
                .collect::<Vec<_>>()
        };
        let mut all = records(reply.answer().unwrap());
        all.extend(records(reply.authority().unwrap()));
        (reply.header().rcode(), all)
    }

    #[test]
    fn no_host_of_the_world_has_a_single_label() {
        for rtype in [Rtype::A, Rtype::AAAA] {
            assert_eq!(said(WEB, "UNKNOWN", rtype), (Rcode::NXDOMAIN, Vec::new()));
            assert_eq!(
                answer(&lookup(), WEB, &query("unknown.example", rtype)),
                Action::Forward
            );
        }
        // A zone of the root's has more than hosts.
        for rtype in [Rtype::NS, Rtype::DS] {
            assert_eq!(answer(&lookup(), WEB, &query("org", rtype)), Action::Forward);
        }
    }

    #[test]
    fn names_have_addresses_and_addresses_names() {
        let (code, records) = said(Asker::Host, "db.vm", Rtype::A);
        assert_eq!(
            (code, &*records),
            (Rcode::NOERROR, &["db.vm. 5 IN A 10.209.0.4".to_owned()][..])
        );
        // The question's case comes back, which is how some resolvers tell answers from forgeries.
        assert_eq!(said(WEB, "dB.Vm", Rtype::A).1, ["dB.Vm. 5 IN A 10.209.0.4"]);
        assert_eq!(said(WEB, "db.vm", Rtype::ANY).1, ["db.vm. 5 IN A 10.209.0.4"]);
        let (_, records) = said(Asker::Host, "3.0.209.10.in-addr.arpa", Rtype::PTR);
        assert_eq!(records, ["3.0.209.10.in-addr.arpa. 5 IN PTR web.vm."]);
        let (_, records) = said(Asker::Host, "vm", Rtype::SOA);
        assert_eq!(records, ["vm. 5 IN SOA ns.vm. hostmaster.vm. 1 3600 600 86400 1"]);
        assert_eq!(said(Asker::Host, "vm", Rtype::NS).1, ["vm. 5 IN NS ns.vm."]);
    }

    #[test]
    fn what_is_not_there_is_denied_with_its_authority() {
        let soa = |apex: &str| {
            vec![format!(
                "{apex}. 1 IN SOA ns.vm. hostmaster.vm. 1 3600 600 86400 1"
            )]
        };
        for (asker, of) in [
            (Asker::Host, "nobody.vm"),
            (Asker::Host, "below.db.vm"),
            (ALONE, "db.vm"),
            (WEB, "alone.vm"),
        ] {
            assert_eq!(said(asker, of, Rtype::A), (Rcode::NXDOMAIN, soa("vm")), "{of}");
        }
        // It is there, and has none.
        assert_eq!(
            said(Asker::Host, "db.vm", Rtype::AAAA),
            (Rcode::NOERROR, soa("vm"))
        );
        assert_eq!(said(Asker::Host, "vm", Rtype::A), (Rcode::NOERROR, soa("vm")));
        assert_eq!(
            said(ALONE, "4.0.209.10.in-addr.arpa", Rtype::PTR),
            (Rcode::NXDOMAIN, soa("0.209.10.in-addr.arpa"))
        );
    }

    #[test]
    fn the_rest_of_the_world_is_forwarded() {
        for of in [
            "example.com",
            "vm.example.com",
            "1.0.0.127.in-addr.arpa",
            "03.0.209.10.in-addr.arpa",
            "in-addr.arpa",
            ".",
        ] {
            let query = query(of, Rtype::A);
            for asker in [WEB, Asker::Host] {
                assert_eq!(answer(&lookup(), asker, &query), Action::Forward, "{of}");
            }
            // Shut in, or nobody that we know.
            for asker in [ALONE, Asker::Guest(Ipv4Addr::new(10, 209, 9, 9))] {
                assert_eq!(reply(asker, &query).header().rcode(), Rcode::REFUSED, "{of}");
            }
        }
    }

    #[test]
    fn what_is_no_query_of_ours_is_refused_or_ignored() {
        let mut update = query("db.vm", Rtype::A);
        Message::from_octets(&mut update[..])
            .unwrap()
            .header_mut()
            .set_opcode(Opcode::UPDATE);
        assert_eq!(reply(WEB, &update).header().rcode(), Rcode::NOTIMP);
        let mut response = query("db.vm", Rtype::A);
        Message::from_octets(&mut response[..])
            .unwrap()
            .header_mut()
            .set_qr(true);
        assert_eq!(answer(&lookup(), WEB, &response), Action::Ignore);
        assert_eq!(answer(&lookup(), WEB, &response[..11]), Action::Ignore);
        assert_eq!(
            reply(WEB, &query("vm", Rtype::AXFR)).header().rcode(),
            Rcode::REFUSED
        );

        let mut two = query("db.vm", Rtype::A);
        two[5] = 2;
        assert_eq!(reply(WEB, &two).header().rcode(), Rcode::FORMERR);
        let cut = query("db.vm", Rtype::A);
        assert_eq!(reply(WEB, &cut[..cut.len() - 1]).header().rcode(), Rcode::FORMERR);
        // It says that a record follows.
        let mut more = query("example.com", Rtype::A);
        more[11] = 1;
        assert_eq!(reply(WEB, &more).header().rcode(), Rcode::FORMERR);
    }

    #[test]
    fn edns_is_answered_by_edns() {
        let good = reply(WEB, &with_edns("db.vm", 0));
        assert_eq!(good.opt().unwrap().udp_payload_size(), PAYLOAD);
        assert_eq!(good.header().rcode(), Rcode::NOERROR);
        let newer = reply(WEB, &with_edns("db.vm", 1));
        assert_eq!(newer.opt().unwrap().rcode(newer.header()), OptRcode::BADVERS);
        assert!(reply(WEB, &query("db.vm", Rtype::A)).opt().is_none());
    }

    proptest! {
        /// Whatever comes, what goes out is a readable reply to it, and short enough for anybody.
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            check(&bytes)?;
        }

        /// The same of queries with a few bytes changed.
        #[test]
        fn damaged_queries_are_survived(
            of in "[a-z]{1,8}\\.vm",
            changes in prop::collection::vec((0_usize..40, any::<u8>()), 0..6),
        ) {
            let mut query = with_edns(&of, 0);
            for (at, byte) in changes {
                let at = at % query.len();
                query[at] = byte;
            }
            check(&query)?;
        }
    }

    fn check(query: &[u8]) -> Result<(), TestCaseError> {
        if let Action::Reply(reply) = answer(&lookup(), WEB, query) {
            prop_assert!(reply.len() <= 512, "{}", reply.len());
            prop_assert_eq!(&reply[..2], &query[..2]);
            let reply = Message::from_octets(reply).unwrap();
            prop_assert!(reply.header().qr());
            prop_assert!(reply.iter().all(|record| record.is_ok()));
        }
        Ok(())
    }
}

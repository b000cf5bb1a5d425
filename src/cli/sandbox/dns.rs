//! Names in a sandbox: each has an address, and it is nobody's.
//!
//! Owns the answers. Nothing is looked up: where a connection goes is told by its ClientHello, and the address only
//! has to lead to the listener of the sandbox. IPv6 addresses, services and encrypted hellos do not exist.

use std::net::Ipv4Addr;

/// Bytes of a message's head (RFC 1035 §4.1.1).
const HEAD: usize = 12;
const RECURSION_DESIRED: u8 = 1;
const ANSWER: u8 = 0x80;
const RECURSION_AVAILABLE: u8 = 0x80;
const NOT_IMPLEMENTED: u8 = 4;
const OPCODE: u8 = 0x78;
const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;
/// Seconds; the address of a name does not change.
const TTL: u32 = 60;
/// A name in the answer: the one of the question, which follows the head (RFC 1035 §4.1.4).
const SAME_NAME: [u8; 2] = [0xc0, 12];

/// The answer to `query`, or `None` when it is no question.
pub(super) fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let head: &[u8; HEAD] = query.first_chunk()?;
    let [id0, id1, flags, _, count0, count1, ..] = *head;
    if flags & ANSWER != 0 {
        return None;
    }
    let asks = flags & OPCODE == 0 && [count0, count1] == [0, 1];
    let question = question(&query[HEAD..]).filter(|_| asks);
    let Some((name, kind, class, len)) = question else {
        return Some(vec![id0, id1, ANSWER | flags & OPCODE, NOT_IMPLEMENTED, 0, 0, 0, 0, 0, 0, 0, 0]);
    };
    let answers = u8::from((kind, class) == (TYPE_A, CLASS_IN));
    let flags = ANSWER | (flags & RECURSION_DESIRED);
    let mut out = vec![id0, id1, flags, RECURSION_AVAILABLE, 0, 1, 0, answers, 0, 0, 0, 0];
    out.extend_from_slice(&query[HEAD..HEAD + len]);
    if answers == 1 {
        out.extend_from_slice(&SAME_NAME);
        out.extend_from_slice(
            &[&TYPE_A.to_be_bytes()[..], &CLASS_IN.to_be_bytes(), &TTL.to_be_bytes(), &[0, 4]].concat(),
        );
        out.extend_from_slice(&address(&name).octets());
    }
    Some(out)
}

/// Name, type and class of the question, and its bytes.
fn question(bytes: &[u8]) -> Option<(Vec<u8>, u16, u16, usize)> {
    let mut name = Vec::new();
    let mut at = 0;
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        // Longer ones are pointers, which a question has no use for.
        let label = bytes.get(at..at + len).filter(|_| len < 64)?;
        name.extend_from_slice(label);
        name.push(b'.');
        at += len;
    }
    let rest: &[u8; 4] = bytes.get(at..)?.first_chunk()?;
    let [a, b, c, d] = *rest;
    name.make_ascii_lowercase();
    Some((name, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), at + 4))
}

/// Of the network for benchmarks (RFC 2544), by the name: two names seldom share one, as clients that keep a
/// connection for an address expect.
fn address(name: &[u8]) -> Ipv4Addr {
    let [a, b, ..] = *blake3::hash(name).as_bytes();
    // 198.18.0.0/16; the other half is the sandbox's own.
    Ipv4Addr::new(198, 18, a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![7, 8, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            out.push(u8::try_from(label.len()).unwrap());
            out.extend_from_slice(label.as_bytes());
        }
        out.push(0);
        out.extend_from_slice(&[&kind.to_be_bytes()[..], &[0, 1]].concat());
        out
    }

    #[test]
    fn answers() {
        let asked = query("api.OpenAI.com", TYPE_A);
        let got = answer(&asked).unwrap();
        assert_eq!(got[..8], [7, 8, 0x81, 0x80, 0, 1, 0, 1]);
        assert_eq!(got[HEAD..asked.len()], asked[HEAD..]);
        let [.., a, b, _, _] = got[..] else { panic!("{got:?}") };
        assert_eq!([a, b], [198, 18]);
        assert_eq!(got[got.len() - 4..], answer(&query("api.openai.com", TYPE_A)).unwrap()[got.len() - 4..]);
        for (name, bytes, want) in [
            ("aaaa", query("a.b", 28), Some([0x81, 0x80, 0])),
            ("https", query("a.b", 65), Some([0x81, 0x80, 0])),
            ("an answer", [&[0, 0, ANSWER][..], &[0; 20]].concat(), None),
            ("cut in the head", query("a", TYPE_A)[..11].to_vec(), None),
            ("cut in the name", query("a.bcd", TYPE_A)[..15].to_vec(), Some([0x80, NOT_IMPLEMENTED, 0])),
            ("a pointer", [&query("a", TYPE_A)[..HEAD], &[0xc0, 12, 0, 1, 0, 1]].concat(), Some([0x80, 4, 0])),
            ("an update", [&[0, 0, 0x28][..], &query("a", TYPE_A)[3..]].concat(), Some([0xa8, NOT_IMPLEMENTED, 0])),
        ] {
            let got = answer(&bytes);
            assert_eq!(got.as_ref().map(|got| [got[2], got[3], got[7]]), want, "{name}");
        }
    }
}

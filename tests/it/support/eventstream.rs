//! AWS event-stream frames, for fixtures.

use serde_json::Value;

/// One message: string headers and a JSON payload.
pub(crate) fn frame(headers: &Value, payload: &Value) -> Vec<u8> {
    let mut lines = vec![];
    for (name, value) in headers.as_object().expect("headers are an object") {
        let value = value.as_str().expect("a header is a string");
        lines.push(u8::try_from(name.len()).expect("a short name"));
        lines.extend_from_slice(name.as_bytes());
        // Type 7: a string with a length of two bytes.
        lines.push(7);
        lines.extend_from_slice(&u16::try_from(value.len()).expect("a short value").to_be_bytes());
        lines.extend_from_slice(value.as_bytes());
    }
    let payload = payload.to_string();
    let word = |n: usize| u32::try_from(n).expect("a small frame").to_be_bytes();
    let mut out = vec![];
    out.extend(word(12 + lines.len() + payload.len() + 4));
    out.extend(word(lines.len()));
    out.extend(crc32(&out).to_be_bytes());
    out.extend(lines);
    out.extend_from_slice(payload.as_bytes());
    out.extend(crc32(&out).to_be_bytes());
    out
}

/// The messages of a body: headers' bytes and payload's, without checks.
pub(crate) fn split(mut body: &[u8]) -> Vec<(&[u8], &[u8])> {
    let word = |bytes: &[u8]| usize::try_from(u32::from_be_bytes(bytes.try_into().expect("four bytes"))).expect("fits");
    let mut frames = vec![];
    while body.len() >= 16 {
        let (total, headers) = (word(&body[..4]), word(&body[4..8]));
        frames.push((&body[..total], &body[12 + headers..total - 4]));
        body = &body[total..];
    }
    frames
}

/// CRC-32 as zlib computes it, bit by bit: the data is small.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn the_checksum_is_the_usual_one() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

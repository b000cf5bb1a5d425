//! Until when a certificate is good (RFC 5280 §4.1.2.5).
//!
//! Owns reading that one date; whether a certificate is any good is for rustls to say.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use yasna::tags::{TAG_GENERALIZEDTIME, TAG_UTCTIME};
use yasna::{ASN1Result, BERReader, BERReaderSeq, Tag, parse_der};

use crate::clock::parse_rfc3339;

/// When the first certificate of a PEM file ends, wall time in milliseconds; `None` when it does not say.
#[must_use]
pub fn file_ends_ms(path: &Path) -> Option<u64> {
    ends_ms(&CertificateDer::from_pem_file(path).ok()?)
}

/// The same of a certificate in DER.
fn ends_ms(certificate: &[u8]) -> Option<u64> {
    let (tag, text) = parse_der(certificate, |reader| {
        reader.read_sequence(|reader| {
            let end = reader.next().read_sequence(not_after)?;
            rest(reader)?;
            Ok(end)
        })
    })
    .ok()?;
    let text = std::str::from_utf8(&text).ok()?.strip_suffix('Z')?;
    let full = match (tag, text.get(..2)?.parse::<u8>().ok()?) {
        (TAG_UTCTIME, 0..50) => format!("20{text}"),
        (TAG_UTCTIME, _) => format!("19{text}"),
        (TAG_GENERALIZEDTIME, _) => text.to_owned(),
        _ => return None,
    };
    let part = |from: usize, to: usize| full.get(from..to);
    let date = [part(0, 4)?, part(4, 6)?, part(6, 8)?].join("-");
    let time = [part(8, 10)?, part(10, 12)?, part(12, 14)?].join(":");
    parse_rfc3339(&format!("{date}T{time}Z")).ok()
}

/// The end of a `TBSCertificate`, as it is written.
fn not_after(reader: &mut BERReaderSeq<'_, '_>) -> ASN1Result<(Tag, Vec<u8>)> {
    let version = |reader: BERReader<'_, '_>| reader.read_tagged(Tag::context(0), |reader| reader.read_der());
    reader.read_optional(version)?;
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        reader.next().read_der()?;
    }
    let end = reader.next().read_sequence(|reader| {
        reader.next().read_der()?;
        reader.next().read_tagged_der()
    })?;
    rest(reader)?;
    Ok((end.tag(), end.value().to_vec()))
}

/// What stands behind, and is none of our business.
fn rest(reader: &mut BERReaderSeq<'_, '_>) -> ASN1Result<()> {
    while reader.read_optional(|reader| reader.read_der())?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_certificates() {
        // In the one form until 2049, in the other from then on.
        for (year, want) in
            [(2027, "2027-03-04T00:00:00Z"), (2049, "2049-03-04T00:00:00Z"), (2077, "2077-03-04T00:00:00Z")]
        {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 3, 4);
            let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            assert_eq!(ends_ms(made.der()), parse_rfc3339(want).ok(), "{year}");
        }
    }

    #[test]
    fn what_is_none_has_no_end() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let whole = made.cert.der();
        for len in [0, 1, 10, 50, whole.len() - 1] {
            assert_eq!(ends_ms(&whole[..len]), None, "{len}");
        }
        assert_eq!(file_ends_ms(Path::new("/nowhere")), None);
    }
}

//! Trust stores that Java reads: certificates in PKCS #12 (RFC 7292), without encryption and without a MAC, since
//! nothing in them is secret.
//!
//! Owns that one form. Java takes a certificate for trusted only when its bag carries the attribute of Oracle's below.

use rustls::pki_types::CertificateDer;
use yasna::models::ObjectIdentifier;
use yasna::tags::TAG_BMPSTRING;
use yasna::{DERWriter, Tag, construct_der};

const DATA: &[u64] = &[1, 2, 840, 113_549, 1, 7, 1];
const CERT_BAG: &[u64] = &[1, 2, 840, 113_549, 1, 12, 10, 1, 3];
const X509_CERTIFICATE: &[u64] = &[1, 2, 840, 113_549, 1, 9, 22, 1];
const FRIENDLY_NAME: &[u64] = &[1, 2, 840, 113_549, 1, 9, 20];
/// Oracle's `TrustedKeyUsage`.
const TRUSTED: &[u64] = &[2, 16, 840, 1, 113_894, 746_875, 1, 1];
const ANY_USAGE: &[u64] = &[2, 5, 29, 37, 0];

/// A trust store of these certificates. Readers may give any password, or none.
#[must_use]
pub fn trust_store<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'a>>) -> Vec<u8> {
    let bags = construct_der(|writer| {
        writer.write_sequence_of(|writer| {
            for (number, certificate) in certificates.into_iter().enumerate() {
                bag(writer.next(), number, certificate);
            }
        });
    });
    let safe = construct_der(|writer| writer.write_sequence_of(|writer| content(writer.next(), &bags)));
    construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_u8(3);
            content(writer.next(), &safe);
        });
    })
}

fn content(writer: DERWriter<'_>, bytes: &[u8]) {
    writer.write_sequence(|writer| {
        oid(writer.next(), DATA);
        writer.next().write_tagged(Tag::context(0), |writer| writer.write_bytes(bytes));
    });
}

fn bag(writer: DERWriter<'_>, number: usize, certificate: &[u8]) {
    writer.write_sequence(|writer| {
        oid(writer.next(), CERT_BAG);
        writer.next().write_tagged(Tag::context(0), |writer| {
            writer.write_sequence(|writer| {
                oid(writer.next(), X509_CERTIFICATE);
                writer.next().write_tagged(Tag::context(0), |writer| writer.write_bytes(certificate));
            });
        });
        writer.next().write_set_of(|writer| {
            // Of two entries with one name Java keeps one.
            let name: Vec<u8> = format!("{number}").encode_utf16().flat_map(u16::to_be_bytes).collect();
            attribute(writer.next(), FRIENDLY_NAME, |writer| {
                writer.write_tagged_implicit(TAG_BMPSTRING, |writer| writer.write_bytes(&name));
            });
            attribute(writer.next(), TRUSTED, |writer| oid(writer, ANY_USAGE));
        });
    });
}

fn attribute(writer: DERWriter<'_>, kind: &[u64], value: impl FnOnce(DERWriter<'_>)) {
    writer.write_sequence(|writer| {
        oid(writer.next(), kind);
        writer.next().write_set_of(|writer| value(writer.next()));
    });
}

fn oid(writer: DERWriter<'_>, parts: &[u64]) {
    writer.write_oid(&ObjectIdentifier::from_slice(parts));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_form() {
        let certificate = CertificateDer::from(vec![0x30, 0x01, 0x07]);
        let store = trust_store([&certificate, &certificate]);
        // A sequence of the length it says, version 3 first.
        assert_eq!((store[0], usize::from(store[1]) & 0x80), (0x30, 0x80));
        let (inner, ()) = yasna::parse_der(&store, |reader| {
            reader.read_sequence(|reader| {
                assert_eq!(reader.next().read_u8()?, 3);
                let inner = reader.next().read_sequence(|reader| {
                    reader.next().read_oid()?;
                    reader.next().read_tagged(Tag::context(0), |reader| reader.read_bytes())
                })?;
                Ok((inner, ()))
            })
        })
        .unwrap();
        assert_eq!(inner.windows(3).filter(|three| *three == [0x30, 0x01, 0x07]).count(), 2);
    }
}

//! Content codings, there and back.

use std::io::{Read, Write};

use bytes::Bytes;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Br,
    /// With zlib's wrapper, as RFC 9110 says.
    Deflate,
    Gzip,
    /// Deflate without a wrapper, as some servers send it.
    RawDeflate,
    Zstd,
}

impl Encoding {
    /// Those that are re-encoded to.
    pub(crate) const ALL: [Self; 4] = [Self::Br, Self::Deflate, Self::Gzip, Self::Zstd];

    /// The value of `content-encoding`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Br => "br",
            Self::Deflate | Self::RawDeflate => "deflate",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// By a name of index or fixture.
    pub(crate) fn parse(name: &str) -> Self {
        match name {
            "br" => Self::Br,
            "deflate" => Self::Deflate,
            "gzip" => Self::Gzip,
            "raw-deflate" => Self::RawDeflate,
            "zstd" => Self::Zstd,
            other => panic!("unknown encoding {other}"),
        }
    }

    pub(crate) fn encode(self, plain: &[u8]) -> Bytes {
        let level = flate2::Compression::default();
        let out = match self {
            Self::Br => {
                let mut writer = brotli::CompressorWriter::new(vec![], 4096, 5, 20);
                writer.write_all(plain).and_then(|()| writer.flush()).expect("memory");
                Ok(writer.into_inner())
            }
            Self::Deflate => through(flate2::write::ZlibEncoder::new(vec![], level), plain, |w| w.finish()),
            Self::Gzip => through(flate2::write::GzEncoder::new(vec![], level), plain, |w| w.finish()),
            Self::RawDeflate => through(flate2::write::DeflateEncoder::new(vec![], level), plain, |w| w.finish()),
            Self::Zstd => zstd::encode_all(plain, 3),
        };
        out.expect("writing to memory").into()
    }

    pub(crate) fn decode(self, coded: &[u8]) -> Bytes {
        let mut out = vec![];
        let read = match self {
            Self::Br => brotli_decompressor::Decompressor::new(coded, 4096).read_to_end(&mut out),
            Self::Deflate => flate2::read::ZlibDecoder::new(coded).read_to_end(&mut out),
            Self::Gzip => flate2::read::MultiGzDecoder::new(coded).read_to_end(&mut out),
            Self::RawDeflate => flate2::read::DeflateDecoder::new(coded).read_to_end(&mut out),
            Self::Zstd => zstd::stream::read::Decoder::new(coded).and_then(|mut decoder| decoder.read_to_end(&mut out)),
        };
        read.expect("well-formed test data");
        out.into()
    }
}

fn through<W: Write>(
    mut writer: W,
    plain: &[u8],
    finish: impl FnOnce(W) -> std::io::Result<Vec<u8>>,
) -> std::io::Result<Vec<u8>> {
    writer.write_all(plain)?;
    finish(writer)
}

#[test]
fn every_coding_returns() {
    let plain = b"data: {\"n\": 1}\n\n".repeat(500);
    for encoding in Encoding::ALL.into_iter().chain([Encoding::RawDeflate]) {
        assert_eq!(encoding.decode(&encoding.encode(&plain)), plain, "{encoding:?}");
    }
}

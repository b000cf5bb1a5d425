//! Content decoding for the tally's copy: gzip (any number of members), deflate (zlib or raw), br, zstd, and chains.
//!
//! Owns decoders and the caps that make a bomb harmless; leaves what the bytes say to others. A decoder is made when its
//! first byte comes and gives out what it can at once. Damage and excess end the decoding, never the stream: the bytes
//! that went by were a copy.

use std::fmt;

use brotli_decompressor::reader::StandardAlloc;
use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation, OutBuffer};

/// The most a stream may decode to.
pub const MAX_OUTPUT: u64 = 1 << 30;
/// The most it may grow by, counted once it passes [`FREE_OUTPUT`].
pub const MAX_RATIO: u64 = 300;
/// Below this much output the ratio does not matter.
pub const FREE_OUTPUT: u64 = 4 << 20;
/// More codings than this in one header are not decoded.
pub const MAX_CHAIN: usize = 3;
/// zstd frames that ask for a window above 2^23 bytes are refused, as RFC 9659 lets us.
const ZSTD_WINDOW_LOG: u32 = 23;
const BUFFER: usize = 8 * 1024;

/// A content coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// `br`
    Brotli,
    /// `deflate`: zlib by the book, raw deflate by some servers.
    Deflate,
    /// `gzip` or `x-gzip`
    Gzip,
    /// `zstd`
    Zstd,
}

/// Reads `Content-Encoding` values, in the order applied. `None` when one is unknown or there are too many.
///
/// ```
/// use sidekey::scan::decode::{Coding, codings};
/// assert_eq!(codings(["gzip, br"]), Some(vec![Coding::Gzip, Coding::Brotli]));
/// assert_eq!(codings(["identity"]), Some(vec![]));
/// assert_eq!(codings(["compress"]), None);
/// ```
pub fn codings<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<Vec<Coding>> {
    let mut found = Vec::new();
    for name in values.into_iter().flat_map(|value| value.split(',')) {
        let name = name.trim();
        if name.is_empty() || name.eq_ignore_ascii_case("identity") {
            continue;
        }
        found.push(match name.to_ascii_lowercase().as_str() {
            "gzip" | "x-gzip" => Coding::Gzip,
            "deflate" => Coding::Deflate,
            "br" => Coding::Brotli,
            "zstd" => Coding::Zstd,
            _ => return None,
        });
    }
    (found.len() <= MAX_CHAIN).then_some(found)
}

/// Why decoding stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The data is not what its header says.
    #[error("compressed response is damaged")]
    Corrupt,
    /// It decodes to more than the caps allow.
    #[error("compressed response grows beyond the decoder's caps")]
    TooLarge,
}

/// The decoder of one body: feed it, and it passes on plain bytes.
#[derive(Debug)]
pub struct Decoder {
    /// In the order of decoding: last applied first.
    stages: Vec<Stage>,
    input: u64,
    output: u64,
    failed: Option<Error>,
}

impl Decoder {
    /// A decoder for `codings`, in the order applied, as [`codings`] gives them.
    #[must_use]
    pub fn new(codings: &[Coding]) -> Self {
        let stages = codings.iter().rev().map(|&coding| Stage::new(coding)).collect();
        Self { stages, input: 0, output: 0, failed: None }
    }

    /// What ended the decoding, if anything did.
    #[must_use]
    pub fn failed(&self) -> Option<Error> {
        self.failed
    }

    /// Takes the next bytes; hands plain ones to `sink` as soon as they can be known. After a fault it does nothing.
    pub fn feed(&mut self, chunk: &[u8], sink: &mut dyn FnMut(&[u8])) {
        if self.failed.is_some() || chunk.is_empty() {
            return;
        }
        self.input += chunk.len() as u64;
        let mut meter = Meter { input: self.input, output: &mut self.output, sink };
        if let Err(error) = run(&mut self.stages, chunk, &mut meter) {
            self.failed = Some(error);
            self.stages = Vec::new();
        }
    }
}

struct Meter<'a> {
    input: u64,
    output: &'a mut u64,
    sink: &'a mut dyn FnMut(&[u8]),
}

impl Meter<'_> {
    fn count(&mut self, bytes: usize) -> Result<(), Error> {
        *self.output += bytes as u64;
        let excess = *self.output > FREE_OUTPUT && *self.output / MAX_RATIO > self.input;
        if excess || *self.output > MAX_OUTPUT { Err(Error::TooLarge) } else { Ok(()) }
    }
}

/// Runs `chunk` through the stages, at most [`MAX_CHAIN`] deep. The meter counts what every stage gives out.
fn run(stages: &mut [Stage], chunk: &[u8], meter: &mut Meter<'_>) -> Result<(), Error> {
    let Some((first, rest)) = stages.split_first_mut() else {
        (meter.sink)(chunk);
        return Ok(());
    };
    first.feed(chunk, &mut |plain| {
        meter.count(plain.len())?;
        run(rest, plain, meter)
    })
}

type Brotli = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

/// One coding's decoder, made when its first bytes are here.
struct Stage {
    coding: Coding,
    /// The first bytes, until there are enough to know zlib from raw deflate, or gzip from no gzip at all.
    first: [u8; 4],
    held: usize,
    engine: Engine,
}

enum Engine {
    Unmade,
    Flate {
        inflate: Box<Decompress>,
        members: bool,
        ended: bool,
    },
    Brotli {
        state: Box<Brotli>,
        ended: bool,
    },
    Zstd(Box<ZstdDecoder<'static>>),
    /// The header promised a coding that the bytes do not have: some proxies decode and forget to say so.
    Plain,
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("coding", &self.coding).finish_non_exhaustive()
    }
}

type Emit<'a> = dyn FnMut(&[u8]) -> Result<(), Error> + 'a;

impl Stage {
    fn new(coding: Coding) -> Self {
        Self { coding, first: [0; 4], held: 0, engine: Engine::Unmade }
    }

    fn feed(&mut self, mut chunk: &[u8], emit: &mut Emit<'_>) -> Result<(), Error> {
        if matches!(self.engine, Engine::Unmade) {
            let wanted = match self.coding {
                Coding::Brotli => 0,
                Coding::Deflate | Coding::Gzip => 2,
                Coding::Zstd => 4,
            };
            while self.held < wanted {
                let Some((&byte, rest)) = chunk.split_first() else { return Ok(()) };
                self.first[self.held] = byte;
                self.held += 1;
                chunk = rest;
            }
            self.engine = self.make()?;
            let first = self.first;
            self.decode(&first[..wanted], emit)?;
        }
        self.decode(chunk, emit)
    }

    fn make(&self) -> Result<Engine, Error> {
        let flate = |inflate, members| Engine::Flate { inflate: Box::new(inflate), members, ended: false };
        let [a, b, ..] = self.first;
        Ok(match self.coding {
            Coding::Gzip if [a, b] != [0x1f, 0x8b] => Engine::Plain,
            Coding::Gzip => flate(Decompress::new_gzip(15), true),
            Coding::Deflate => {
                let zlib = a & 0x0f == 8 && (u16::from(a) << 8 | u16::from(b)) % 31 == 0;
                flate(Decompress::new(zlib), false)
            }
            Coding::Brotli => {
                let alloc = StandardAlloc::default;
                Engine::Brotli { state: Box::new(BrotliState::new(alloc(), alloc(), alloc())), ended: false }
            }
            Coding::Zstd if !zstd_magic(self.first) => Engine::Plain,
            Coding::Zstd => {
                let mut decoder = ZstdDecoder::new().map_err(|_| Error::Corrupt)?;
                decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(|_| Error::Corrupt)?;
                Engine::Zstd(Box::new(decoder))
            }
        })
    }

    fn decode(&mut self, chunk: &[u8], emit: &mut Emit<'_>) -> Result<(), Error> {
        if chunk.is_empty() {
            return Ok(());
        }
        let mut buffer = [0; BUFFER];
        match &mut self.engine {
            Engine::Unmade => Ok(()),
            Engine::Plain => emit(chunk),
            Engine::Flate { inflate, members, ended } => flate(inflate, *members, ended, chunk, &mut buffer, emit),
            Engine::Brotli { state, ended } => brotli(state, ended, chunk, &mut buffer, emit),
            Engine::Zstd(decoder) => zstandard(decoder, chunk, &mut buffer, emit),
        }
    }
}

/// A frame's magic number, or a skippable frame's.
fn zstd_magic(first: [u8; 4]) -> bool {
    let magic = u32::from_le_bytes(first);
    magic == 0xfd2f_b528 || (magic & 0xffff_fff0) == 0x184d_2a50
}

fn flate(
    inflate: &mut Decompress,
    members: bool,
    ended: &mut bool,
    mut chunk: &[u8],
    buffer: &mut [u8],
    emit: &mut Emit<'_>,
) -> Result<(), Error> {
    loop {
        if *ended {
            // After the last member there may be padding, which is nobody's data.
            if !members || chunk.first() != Some(&0x1f) {
                return Ok(());
            }
            *inflate = Decompress::new_gzip(15);
            *ended = false;
        }
        let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
        let status = inflate.decompress(chunk, buffer, FlushDecompress::None).map_err(|_| Error::Corrupt)?;
        // Both differences are bounded by the slices' lengths.
        let used = (inflate.total_in() - before_in) as usize;
        let made = (inflate.total_out() - before_out) as usize;
        chunk = &chunk[used..];
        if made > 0 {
            emit(&buffer[..made])?;
        }
        *ended = status == Status::StreamEnd;
        let stuck = used == 0 && made == 0;
        if !*ended && (stuck || (chunk.is_empty() && made < buffer.len())) {
            return Ok(());
        }
    }
}

fn brotli(
    state: &mut Brotli,
    ended: &mut bool,
    chunk: &[u8],
    buffer: &mut [u8],
    emit: &mut Emit<'_>,
) -> Result<(), Error> {
    let (mut left, mut at, mut total) = (chunk.len(), 0, 0);
    while !*ended {
        let (mut room, mut made) = (buffer.len(), 0);
        let result = BrotliDecompressStream(&mut left, &mut at, chunk, &mut room, &mut made, buffer, &mut total, state);
        if made > 0 {
            emit(&buffer[..made])?;
        }
        match result {
            BrotliResult::ResultSuccess => *ended = true,
            BrotliResult::NeedsMoreInput => return Ok(()),
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::ResultFailure => return Err(Error::Corrupt),
        }
    }
    Ok(())
}

fn zstandard(
    decoder: &mut ZstdDecoder<'static>,
    chunk: &[u8],
    buffer: &mut [u8],
    emit: &mut Emit<'_>,
) -> Result<(), Error> {
    let mut input = InBuffer::around(chunk);
    loop {
        let mut output = OutBuffer::around(&mut *buffer);
        decoder.run(&mut input, &mut output).map_err(|_| Error::Corrupt)?;
        let made = output.pos();
        if made > 0 {
            emit(&buffer[..made])?;
        }
        if input.pos() == chunk.len() && made < buffer.len() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use proptest::prelude::*;

    use super::*;

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(plain: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn raw(plain: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn br(plain: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        brotli::CompressorWriter::new(&mut packed, 4096, 5, 20).write_all(plain).unwrap();
        packed
    }

    fn zst(plain: &[u8]) -> Vec<u8> {
        zstd::encode_all(plain, 1).unwrap()
    }

    fn decoded(codings: &[Coding], packed: &[u8], size: usize) -> (Vec<u8>, Option<Error>) {
        let mut plain = Vec::new();
        let mut decoder = Decoder::new(codings);
        for chunk in packed.chunks(size) {
            decoder.feed(chunk, &mut |bytes| plain.extend_from_slice(bytes));
        }
        (plain, decoder.failed())
    }

    #[test]
    fn every_coding_comes_back() {
        let plain: Vec<u8> = (0..60_000u32).flat_map(|n| (n * n).to_string().into_bytes()).collect();
        let twice = [gzip(&plain), gzip(b"more")].concat();
        let with_more = [&plain[..], b"more"].concat();
        for (name, codings, packed, want) in [
            ("gzip", &[Coding::Gzip][..], gzip(&plain), &plain),
            ("members", &[Coding::Gzip], twice, &with_more),
            ("padding", &[Coding::Gzip], [gzip(&plain), vec![0; 9]].concat(), &plain),
            ("zlib", &[Coding::Deflate], zlib(&plain), &plain),
            ("raw", &[Coding::Deflate], raw(&plain), &plain),
            ("br", &[Coding::Brotli], br(&plain), &plain),
            ("zstd", &[Coding::Zstd], zst(&plain), &plain),
            ("frames", &[Coding::Zstd], [zst(&plain), zst(b"more")].concat(), &with_more),
            ("chain", &[Coding::Gzip, Coding::Brotli, Coding::Zstd], zst(&br(&gzip(&plain))), &plain),
            ("not gzip at all", &[Coding::Gzip], plain.clone(), &plain),
            ("none", &[], plain.clone(), &plain),
        ] {
            for size in [1, 100, 1 << 20] {
                let (got, failed) = decoded(codings, &packed, size);
                assert_eq!(failed, None, "{name} {size}");
                assert!(got == *want, "{name} {size}: {} bytes for {}", got.len(), want.len());
            }
        }
    }

    #[test]
    fn a_flushed_event_is_seen_at_once() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        let mut decoder = Decoder::new(&[Coding::Gzip]);
        let mut sent = 0;
        for event in ["data: one\n\n", "data: two\n\n"] {
            encoder.write_all(event.as_bytes()).unwrap();
            encoder.flush().unwrap();
            let mut seen = Vec::new();
            decoder.feed(&encoder.get_ref()[sent..], &mut |bytes| seen.extend_from_slice(bytes));
            sent = encoder.get_ref().len();
            assert_eq!(seen, event.as_bytes());
        }
    }

    #[test]
    fn bombs_and_damage_are_given_up() {
        let zeros = vec![0; 64 << 20];
        for (name, coding, packed) in [
            ("gzip", Coding::Gzip, gzip(&zeros)),
            ("br", Coding::Brotli, br(&zeros)),
            ("zstd", Coding::Zstd, zst(&zeros)),
        ] {
            let mut seen = 0;
            let mut decoder = Decoder::new(&[coding]);
            decoder.feed(&packed, &mut |bytes| seen += bytes.len());
            assert_eq!(decoder.failed(), Some(Error::TooLarge), "{name}");
            assert!(seen < 40 << 20, "{name}: {seen}");
            let mut bad = packed.clone();
            let at = bad.len() / 2;
            bad[at..].fill(0xa5);
            let mut decoder = Decoder::new(&[coding]);
            decoder.feed(&bad, &mut |_| ());
            assert!(decoder.failed().is_some(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..300), which in 0usize..4, size in 1usize..40) {
            let coding = [Coding::Gzip, Coding::Deflate, Coding::Brotli, Coding::Zstd][which];
            let whole = decoded(&[coding], &bytes, 1000);
            let pieces = decoded(&[coding], &bytes, size);
            prop_assert_eq!(whole.1, pieces.1);
            let magic: &[u8] = if coding == Coding::Zstd { &[0x28, 0xb5, 0x2f, 0xfd] } else { &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3] };
            decoded(&[coding], &[magic, &bytes].concat(), size);
        }
    }
}

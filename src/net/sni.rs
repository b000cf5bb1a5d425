//! A client's first words in TLS, read before anything is decided: the server it names, and every byte, to be passed on
//! or taken up.
//!
//! Owns taking a ClientHello together from records and segments of any size, within bounds; leaves what the name means
//! to `ingress`, and the handshake to rustls. Its own reader, and not rustls' acceptor: what is none of ours passes
//! through even where rustls would not speak with it.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A ClientHello may have this many bytes, its record headers included; the largest seen in the field are some 2 KB.
pub const MAX_HELLO: usize = 64 * 1024;
/// A client has this long to send it.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// The first byte of a TLS record that carries a handshake (RFC 8446 §5.1).
pub const HANDSHAKE: u8 = 22;

const READ: usize = 4 * 1024;
const RECORD_HEAD: usize = 5;
const MAX_RECORD: usize = 1 << 14;
const CLIENT_HELLO: u8 = 1;
const MESSAGE_HEAD: usize = 4;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const ENCRYPTED_CLIENT_HELLO: u16 = 0xfe0d;

/// What a ClientHello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The server it names (RFC 6066 §3): lower case, without a dot at its end.
    pub server_name: Option<Box<str>>,
    /// The name is a cover: the true one is encrypted (RFC 9849).
    pub encrypted: bool,
}

/// Why there is no [`Hello`]. The bytes are there all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHello {
    /// The client left before its end.
    #[error("the client left before its ClientHello was whole")]
    Ended,
    /// It is no TLS, or malformed.
    #[error("not a ClientHello: {0}")]
    Malformed(&'static str),
    /// It did not come in time.
    #[error("no whole ClientHello within {} s", HELLO_TIMEOUT.as_secs())]
    Slow,
    /// It is longer than [`MAX_HELLO`].
    #[error("a ClientHello of more than {MAX_HELLO} bytes")]
    TooLong,
}

/// What a client said first.
#[derive(Debug)]
pub struct Greeting {
    /// All that was read, for whoever the connection goes to.
    pub bytes: Vec<u8>,
    /// What it says.
    pub hello: Result<Hello, NoHello>,
}

/// Reads until the ClientHello is whole; `held` is what was read of it before. Not cancel safe: what was read is lost.
pub async fn greet<R: AsyncRead + Unpin>(io: &mut R, held: &[u8]) -> Greeting {
    greet_within(io, held, HELLO_TIMEOUT).await
}

async fn greet_within<R: AsyncRead + Unpin>(io: &mut R, held: &[u8], limit: Duration) -> Greeting {
    let mut reader = Reader::default();
    reader.bytes.extend_from_slice(held);
    let hello = match tokio::time::timeout(limit, reader.read(io)).await {
        Ok(hello) => hello,
        Err(_) => Err(NoHello::Slow),
    };
    Greeting { bytes: reader.bytes, hello }
}

/// A ClientHello on its way.
#[derive(Debug, Default)]
struct Reader {
    /// As received.
    bytes: Vec<u8>,
    /// Where the next record begins.
    next: usize,
    /// The handshake message, without record headers.
    message: Vec<u8>,
}

impl Reader {
    async fn read<R: AsyncRead + Unpin>(&mut self, io: &mut R) -> Result<Hello, NoHello> {
        loop {
            if let Some(hello) = self.advance()? {
                return Ok(hello);
            }
            if self.bytes.len() >= MAX_HELLO {
                return Err(NoHello::TooLong);
            }
            self.bytes.reserve(READ);
            let mut room = (&mut *io).take((MAX_HELLO - self.bytes.len()) as u64);
            match room.read_buf(&mut self.bytes).await {
                Ok(0) => return Err(NoHello::Ended),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(NoHello::Ended),
            }
        }
    }

    /// Takes in the records that are whole.
    fn advance(&mut self) -> Result<Option<Hello>, NoHello> {
        loop {
            if let Some(len) = message_len(&self.message)?
                && let Some(body) = self.message.get(MESSAGE_HEAD..MESSAGE_HEAD + len)
            {
                return parse(body).map(Some).ok_or(NoHello::Malformed("its fields do not fit"));
            }
            let rest = &self.bytes[self.next..];
            let Some(len) = record_len(rest)? else { return Ok(None) };
            let Some(payload) = rest.get(RECORD_HEAD..RECORD_HEAD + len) else { return Ok(None) };
            self.message.extend_from_slice(payload);
            self.next += RECORD_HEAD + len;
        }
    }
}

/// The length of the record that begins here, as soon as it can be seen; what is no such record shows at its first byte.
fn record_len(rest: &[u8]) -> Result<Option<usize>, NoHello> {
    match rest {
        [kind, ..] if *kind != HANDSHAKE => return Err(NoHello::Malformed("no handshake record")),
        [_, major, ..] if *major != 3 => return Err(NoHello::Malformed("no version of TLS")),
        _ => {}
    }
    let Some(&[_, _, _, high, low]) = rest.first_chunk() else { return Ok(None) };
    match usize::from(u16::from_be_bytes([high, low])) {
        0 => Err(NoHello::Malformed("an empty record")),
        len if len > MAX_RECORD => Err(NoHello::Malformed("a record that is too long")),
        len => Ok(Some(len)),
    }
}

fn message_len(message: &[u8]) -> Result<Option<usize>, NoHello> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(NoHello::Malformed("another message of the handshake"));
    }
    let Some(&[_, a, b, c]) = message.first_chunk() else { return Ok(None) };
    let len = u32::from_be_bytes([0, a, b, c]) as usize;
    if len > MAX_HELLO { Err(NoHello::TooLong) } else { Ok(Some(len)) }
}

/// Reads the body of a ClientHello (RFC 8446 §4.1.2); `None` when it is malformed.
fn parse(body: &[u8]) -> Option<Hello> {
    let mut fields = Fields(body);
    fields.take(2 + 32)?;
    fields.vector8()?;
    fields.vector16()?;
    fields.vector8()?;
    let mut hello = Hello::default();
    if fields.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Fields(fields.vector16()?);
    let mut named = false;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let content = extensions.vector16()?;
        match kind {
            // Two of them: two readers could go by different ones.
            SERVER_NAME if named => return None,
            SERVER_NAME => {
                named = true;
                hello.server_name = Some(host_name(content)?);
            }
            ENCRYPTED_CLIENT_HELLO => hello.encrypted = true,
            _ => {}
        }
    }
    Some(hello)
}

/// The one host name of the extension.
fn host_name(content: &[u8]) -> Option<Box<str>> {
    let mut content = Fields(content);
    let mut list = Fields(content.vector16()?);
    let kind = list.take(1)?;
    let name = std::str::from_utf8(list.vector16()?).ok()?;
    let whole = content.0.is_empty() && list.0.is_empty() && kind == [HOST_NAME];
    let name = name.strip_suffix('.').unwrap_or(name);
    let formed = !name.is_empty() && name.bytes().all(|c| c.is_ascii_graphic());
    (whole && formed).then(|| name.to_ascii_lowercase().into())
}

/// What is left to read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let taken = self.take(2)?;
        Some(u16::from_be_bytes([taken[0], taken[1]]))
    }

    fn vector8(&mut self) -> Option<&'a [u8]> {
        let len = self.take(1)?[0];
        self.take(usize::from(len))
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What rustls would send, in one record.
    fn real(name: &str, sni: bool) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
        config.enable_sni = sni;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        connection.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same message in records of at most `len` bytes.
    fn in_records(hello: &[u8], len: usize) -> Vec<u8> {
        let record = |piece: &[u8]| {
            let [high, low] = u16::try_from(piece.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE, 3, 1, high, low], piece].concat()
        };
        hello[RECORD_HEAD..].chunks(len).flat_map(record).collect()
    }

    /// A ClientHello with these extensions.
    fn with_extensions(extensions: &[u8]) -> Vec<u8> {
        let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0]].concat();
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend_from_slice(extensions);
        let [_, a, b, c] = u32::try_from(body.len()).unwrap().to_be_bytes();
        let message = [&[CLIENT_HELLO, a, b, c], &body[..]].concat();
        in_records(&[&[0; RECORD_HEAD], &message[..]].concat(), MAX_RECORD)
    }

    fn sni(name: &[u8]) -> Vec<u8> {
        let len = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
        [&[0, 0], &len(name.len() + 5)[..], &len(name.len() + 3), &[0], &len(name.len()), name].concat()
    }

    /// Sends pieces, each in a write of its own; then ends.
    async fn sent(pieces: Vec<Vec<u8>>) -> Greeting {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        let sending = async move {
            for piece in pieces {
                if theirs.write_all(&piece).await.is_err() {
                    break;
                }
            }
        };
        let reading = async move {
            let greeting = greet(&mut ours, &[]).await;
            // A sender that has more to say is not to wait.
            drop(ours);
            greeting
        };
        tokio::join!(reading, sending).0
    }

    #[tokio::test]
    async fn names() {
        let many: Vec<u8> = (0..200).flat_map(|n| [0x5a, n, 0, 200].into_iter().chain([n; 200])).collect();
        for (name, bytes, want) in [
            ("rustls", real("api.openai.com", true), Ok(Some("api.openai.com"))),
            ("without", real("api.openai.com", false), Ok(None)),
            ("an address", real("127.0.0.1", true), Ok(None)),
            ("upper case and a dot", with_extensions(&sni(b"API.OpenAI.com.")), Ok(Some("api.openai.com"))),
            ("no extensions", with_extensions(&[]), Ok(None)),
            ("40 KB", with_extensions(&[many.clone(), sni(b"a.example")].concat()), Ok(Some("a.example"))),
            ("twice", with_extensions(&[sni(b"a.example"), sni(b"b.example")].concat()), Err("fields")),
            ("empty", with_extensions(&sni(b"")), Err("fields")),
            ("a space", with_extensions(&sni(b"a b")), Err("fields")),
            ("cut", with_extensions(&sni(b"a.example")[..9]), Err("fields")),
            ("http", b"GET / HTTP/1.1\r\n\r\n".to_vec(), Err("no handshake record")),
            ("tls 9", vec![HANDSHAKE, 9, 0, 0, 1, 1], Err("no version")),
            ("an empty record", vec![HANDSHAKE, 3, 1, 0, 0], Err("an empty record")),
            ("a server's hello", vec![HANDSHAKE, 3, 1, 0, 4, 2, 0, 0, 0], Err("another message")),
            ("too long", [&[HANDSHAKE, 3, 1, 0, 4, 1, 255, 0, 0][..]].concat(), Err("more than 65536")),
            ("broken off", real("a.example", true)[..20].to_vec(), Err("the client left")),
            ("silence", vec![], Err("the client left")),
        ] {
            let greeting = sent(vec![bytes.clone()]).await;
            assert!(bytes.starts_with(&greeting.bytes) && (want.is_err() || greeting.bytes == bytes), "{name}");
            match (greeting.hello, want) {
                (Ok(hello), Ok(want)) => assert_eq!(hello.server_name.as_deref(), want, "{name}"),
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{name}: {error}"),
                (got, want) => panic!("{name}: {got:?}, not {want:?}"),
            }
        }
        let cover = [&sni(b"cover.example")[..], &[0xfe, 0x0d, 0, 1, 0]].concat();
        assert!(sent(vec![with_extensions(&cover)]).await.hello.unwrap().encrypted);
    }

    #[tokio::test]
    async fn bytes_beyond_it_are_kept() {
        let bytes = [real("a.example", true), vec![7; 100]].concat();
        let greeting = greet(&mut tokio::io::empty(), &bytes).await;
        assert_eq!((greeting.hello.is_ok(), greeting.bytes), (true, bytes));
    }

    #[tokio::test]
    async fn endless_ones_end() {
        let unended = [vec![HANDSHAKE, 3, 1, 0, 4, 1, 0, 255, 255], [HANDSHAKE, 3, 1, 0, 1, 0].repeat(12_000)].concat();
        let greeting = sent(vec![unended]).await;
        assert_eq!((greeting.hello, greeting.bytes.len()), (Err(NoHello::TooLong), MAX_HELLO));
    }

    #[tokio::test]
    async fn slow_ones_end() {
        let (mut ours, _theirs) = tokio::io::duplex(64);
        let greeting = greet_within(&mut ours, &[HANDSHAKE], Duration::from_millis(20)).await;
        assert_eq!((greeting.hello, greeting.bytes), (Err(NoHello::Slow), vec![HANDSHAKE]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_cut_is_the_same(record in 1_usize..2_000, cuts in proptest::collection::vec(1_usize..400, 1..40)) {
            let whole = in_records(&real("api.anthropic.com", true), record);
            let (mut rest, mut pieces) = (&whole[..], Vec::new());
            for cut in cuts.iter().cycle() {
                let (piece, left) = rest.split_at((*cut).min(rest.len()));
                pieces.push(piece.to_vec());
                rest = left;
                if rest.is_empty() {
                    break;
                }
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let greeting = runtime.block_on(sent(pieces));
            let hello = greeting.hello.unwrap();
            prop_assert_eq!(hello.server_name.as_deref(), Some("api.anthropic.com"));
            prop_assert_eq!(greeting.bytes, whole);
        }

        #[test]
        fn no_bytes_are_a_panic(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
        ) {
            let mut bytes = real("api.anthropic.com", true);
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            for bytes in [noise, bytes] {
                let mut reader = Reader { bytes, ..Reader::default() };
                let _ = reader.advance();
            }
        }
    }
}

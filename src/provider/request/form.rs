//! The fields `model` and `stream` of a `multipart/form-data` body, as audio and picture endpoints take.
//!
//! Owns just these fields, read in the most lenient way a server could, so that none is overlooked; leaves the files in
//! the body alone.

use memchr::memmem;

use super::{Asked, BadRequest, ModelAt, VALUE_CAP};

/// Longest head of a part that is read.
const HEAD_CAP: usize = 8 * 1024;

/// True for a multipart content type, which is read in one piece.
#[must_use]
pub fn is_multipart(content_type: &str) -> bool {
    const KIND: &str = "multipart/";
    let start = content_type.trim_start().get(..KIND.len());
    start.is_some_and(|start| start.eq_ignore_ascii_case(KIND))
}

/// The boundary of a multipart content type; `None` for other types.
pub(super) fn boundary(content_type: &str) -> Result<Option<String>, BadRequest> {
    if !is_multipart(content_type) {
        return Ok(None);
    }
    let (_, params) = content_type.split_once(';').unwrap_or((content_type, ""));
    let mut found = parameters(params).filter(|(name, _)| name.eq_ignore_ascii_case("boundary"));
    match (found.next(), found.next()) {
        (Some((_, boundary)), None) if !boundary.is_empty() && boundary.len() <= 200 => Ok(Some(boundary)),
        (Some(_), Some(_)) => Err(bad("the content type names two boundaries; send one")),
        _ => Err(bad("the content type names no boundary; send multipart/form-data; boundary=…")),
    }
}

fn bad(message: &str) -> BadRequest {
    BadRequest { param: None, message: message.to_owned() }
}

/// `; name=value; name="quoted value"`.
fn parameters(text: &str) -> impl Iterator<Item = (&str, String)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start_matches([';', ' ', '\t', '\r', '\n']);
            if rest.is_empty() {
                return None;
            }
            let end = rest.find([';', '=']).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            let Some(value) = after.strip_prefix('=') else {
                rest = after;
                continue;
            };
            let (value, after) = value_of(value.trim_start());
            rest = after;
            return Some((name.trim(), value));
        }
    })
}

/// A token, or a quoted string with its escapes; and what follows.
fn value_of(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            _ => value.push(c),
        }
    }
    (value, "")
}

/// Reads the fields. A body without parts asks for nothing.
pub(super) fn read(boundary: &str, body: &[u8]) -> Result<Asked, BadRequest> {
    let delimiter = format!("--{boundary}");
    let mut starts = memmem::find_iter(body, delimiter.as_bytes()).filter(|at| *at == 0 || body[at - 1] == b'\n');
    let mut asked = Asked::default();
    let Some(mut at) = starts.next() else { return Ok(asked) };
    loop {
        let next = starts.next();
        let from = at + delimiter.len();
        field(&body[from..next.unwrap_or(body.len())], from, &mut asked)?;
        let Some(next) = next else { return Ok(asked) };
        at = next;
    }
}

/// One part, which begins at `from` of the body: a head, an empty line, a value that a line's end precedes the next delimiter of.
fn field(part: &[u8], from: usize, asked: &mut Asked) -> Result<(), BadRequest> {
    let Some((head, start, value)) = split_head(part) else { return Ok(()) };
    let Some(name) = name_of(head) else { return Ok(()) };
    match name.as_str() {
        "model" => {
            let at = from + start..from + start + value.len();
            // Of one that is cut off here nobody knows the whole.
            asked.model_at = (value.len() <= VALUE_CAP).then_some(ModelAt { at, quoted: false });
            let value = value.get(..VALUE_CAP).unwrap_or(value);
            let text = std::str::from_utf8(value).map_err(|_| BadRequest::of("model", "`model` is not UTF-8"))?;
            if asked.model.replace(text.to_owned()).is_some() {
                return Err(BadRequest::twice("model"));
            }
        }
        "stream" => {
            let truth = ["true", "1", "yes", "on"].iter().any(|word| value.eq_ignore_ascii_case(word.as_bytes()));
            if asked.stream.replace(truth).is_some() {
                return Err(BadRequest::twice("stream"));
            }
        }
        _ => {}
    }
    Ok(())
}

/// The head, where the value begins, and the value.
fn split_head(part: &[u8]) -> Option<(&str, usize, &[u8])> {
    let window = &part[..part.len().min(HEAD_CAP)];
    let crlf = memmem::find(window, b"\r\n\r\n").map(|at| (at, at + 4));
    let lf = memmem::find(window, b"\n\n").map(|at| (at, at + 2));
    let (end, from) = crlf.into_iter().chain(lf).min()?;
    let value = &part[from..];
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    // A name that is not UTF-8 is none of ours.
    Some((std::str::from_utf8(&part[..end]).ok()?, from, value))
}

/// The field's name in `content-disposition`, also in the form `name*=UTF-8''model`.
fn name_of(head: &str) -> Option<String> {
    let disposition = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-disposition").then_some(value)
    })?;
    parameters(disposition.split_once(';')?.1).find_map(|(name, value)| {
        if name.eq_ignore_ascii_case("name") {
            Some(value)
        } else if name.eq_ignore_ascii_case("name*") {
            value.rsplit_once('\'').map(|(_, value)| value.to_owned())
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(parts: &[(&str, &str)]) -> Vec<u8> {
        let mut text: String = parts.iter().map(|(head, value)| format!("--b\r\n{head}\r\n\r\n{value}\r\n")).collect();
        text.push_str("--b--\r\n");
        text.into_bytes()
    }

    #[test]
    fn boundaries() {
        for (content_type, want) in [
            ("multipart/form-data; boundary=abc", Ok(Some("abc"))),
            ("Multipart/Form-Data; charset=x; BOUNDARY=\"a;b\"", Ok(Some("a;b"))),
            ("application/json; boundary=x", Ok(None)),
            ("multipart/form-data", Err(())),
            ("multipart/form-data; boundary=a; boundary=b", Err(())),
        ] {
            let got = boundary(content_type);
            assert_eq!(got.as_ref().map(Option::as_deref).map_err(|_| ()), want, "{content_type}");
        }
    }

    #[test]
    fn fields_are_found_however_they_are_written() {
        for head in [
            "Content-Disposition: form-data; name=\"model\"",
            "content-disposition:form-data;name=model",
            "Content-Type: text/plain\r\nContent-Disposition: form-data; name=\"mod\\el\"",
            "Content-Disposition: form-data; name*=UTF-8''model",
            "X: y\r\nCONTENT-DISPOSITION: form-data; filename=\"a;name=\\\"x\\\"\"; name=\"model\"",
        ] {
            let file = ("Content-Disposition: form-data; name=\"file\"; filename=\"a\"", "\u{0}--b not a delimiter");
            let asked = read("b", &body(&[file, (head, "whisper-1")])).unwrap();
            assert_eq!(asked.model.as_deref(), Some("whisper-1"), "{head}");
        }
        let streams = read("b", &body(&[("Content-Disposition: form-data; name=stream", "True")])).unwrap();
        assert_eq!(streams.stream, Some(true));
        assert_eq!(read("b", b"[omitted]").unwrap(), Asked::default());
        assert_eq!(read("b", b"").unwrap(), Asked::default());
        let unix = b"--b\nContent-Disposition: form-data; name=model\n\nm\n--b--\n";
        assert_eq!(read("b", unix).unwrap().model.as_deref(), Some("m"));
    }

    #[test]
    fn a_second_model_is_refused() {
        let head = "Content-Disposition: form-data; name=\"model\"";
        let error = read("b", &body(&[(head, "a"), (head, "b")])).unwrap_err();
        assert_eq!(error.param, Some("model"));
    }
}

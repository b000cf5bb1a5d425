//! The web console: its pages, as files in the program.
//!
//! Owns which files there are and what kind each is; leaves serving them to `control::pages`, and everything they show to
//! the admin API, which they ask like any other client. The files in `ui/` are served as they are: what is read in a review is
//! what runs in the browser.

use crate::control::pages::Asset;

/// Files of `ui/`, each with its path below `/ui/`.
macro_rules! files {
    ($($path:literal)*) => { &[$(($path, include_bytes!(concat!("ui/", $path)))),*] };
}

const FILES: &[(&str, &[u8])] = files! {
    "api.js"
    "app.css"
    "app.js"
    "chart.js"
    "copy.js"
    "csv.js"
    "dialog.js"
    "dom.js"
    "failure.js"
    "focus.js"
    "form.js"
    "format.js"
    "icon.svg"
    "icons.js"
    "index.html"
    "login.js"
    "menu.js"
    "message.js"
    "names.js"
    "pages.js"
    "pages/audit.js"
    "pages/key-actions.js"
    "pages/key-forms.js"
    "pages/key.js"
    "pages/keys.js"
    "pages/overview.js"
    "pages/pool-forms.js"
    "pages/pools.js"
    "pages/provider-forms.js"
    "pages/provider-key.js"
    "pages/providers.js"
    "pages/settings.js"
    "pages/usage.js"
    "paging.js"
    "parts.js"
    "policy.js"
    "router.js"
    "routes.js"
    "session.js"
    "table.js"
    "theme.js"
};

/// Finds a file of the console by its path below `/ui/`.
#[must_use]
pub fn pages(path: &str) -> Option<Asset> {
    let (_, bytes) = FILES.iter().find(|(name, _)| *name == path)?;
    let content_type = match path.rsplit_once('.')?.1 {
        "css" => "text/css; charset=utf-8",
        "html" => "text/html; charset=utf-8",
        "js" => "text/javascript; charset=utf-8",
        "svg" => "image/svg+xml",
        _ => return None,
    };
    Some(Asset { bytes, content_type, encoding: None })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::{Path, PathBuf};

    use super::*;

    /// All files together, compressed.
    const MAX_GZIP: usize = 150_000;

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/console/ui")
    }

    /// Paths of all files below, as they are asked for.
    fn found(folder: &Path, within: &str, paths: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{within}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                found(&entry.path(), &format!("{path}/"), paths);
            } else {
                paths.push(path);
            }
        }
    }

    fn texts() -> impl Iterator<Item = (&'static str, &'static str)> {
        FILES.iter().map(|(path, bytes)| (*path, std::str::from_utf8(bytes).unwrap()))
    }

    #[test]
    fn every_file_is_served_as_what_it_is() {
        let mut paths = Vec::new();
        found(&folder(), "", &mut paths);
        paths.sort();
        let served: Vec<&str> = FILES.iter().map(|(path, _)| *path).collect();
        assert_eq!(served, paths, "FILES lists the files of ui/, in order");
        for path in paths {
            let asset = pages(&path).unwrap_or_else(|| panic!("{path} has no kind"));
            assert_eq!(asset.bytes, fs::read(folder().join(&path)).unwrap(), "{path}");
        }
        for path in ["", "none.js", "index", "../mod.rs", "pages", "pages/", "/index.html", "INDEX.HTML"] {
            assert!(pages(path).is_none(), "{path:?}");
        }
    }

    /// What stands between quotes after each `mark`.
    fn quoted<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
        text.match_indices(mark).filter_map(move |(at, _)| text[at + mark.len()..].split('"').next())
    }

    /// A path, as seen from a file.
    fn resolved(from: &str, to: &str) -> String {
        let mut parts: Vec<&str> = from.split('/').collect();
        parts.pop();
        for part in to.split('/') {
            match part {
                "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        parts.join("/")
    }

    #[test]
    fn every_import_leads_to_a_file() {
        let mut imports = 0;
        for (path, text) in texts().filter(|(path, _)| path.ends_with(".js")) {
            for mark in ["from \"", "import(\"", "import \""] {
                for to in quoted(text, mark) {
                    assert!(to.starts_with("./") || to.starts_with("../"), "{path} imports {to:?}: not a file of ours");
                    assert!(pages(&resolved(path, to)).is_some(), "{path} imports {to:?}, which is not there");
                    imports += 1;
                }
            }
        }
        assert!(imports > 20, "the imports are not seen: {imports}");
        let (_, index) = texts().find(|(path, _)| *path == "index.html").unwrap();
        for mark in ["src=\"", "href=\""] {
            for to in quoted(index, mark).filter(|to| !to.starts_with('#')) {
                let path = to.strip_prefix("/ui/").unwrap_or_else(|| panic!("{to:?} is not below /ui/"));
                assert!(pages(path).is_some(), "index.html wants {to:?}");
            }
        }
    }

    /// The first thing in a text that could turn a string into markup or code, or that the policy would block.
    fn forbidden(text: &str) -> Option<String> {
        let words = [
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "style=",
            "createContextualFragment",
            "DOMParser",
            "setHTML",
            "srcdoc",
            "javascript:",
            "http://",
            "https://",
        ];
        if let Some(word) = words.into_iter().find(|word| text.contains(word)) {
            return Some(word.to_owned());
        }
        // A listener in an attribute, or set as a property: `onclick="…"`, `.onclick = …`.
        for (at, _) in text.match_indices("on") {
            let before = text[..at].chars().next_back();
            let word: String = text[at..].chars().take_while(char::is_ascii_lowercase).collect();
            let rest = &text[at + word.len()..];
            let attribute = before.is_none_or(|c| c.is_whitespace() || "\"'`<".contains(c)) && rest.starts_with('=');
            let property =
                before == Some('.') && rest.trim_start().starts_with('=') && !rest.trim_start().starts_with("==");
            if word.len() > 3 && (attribute || property) {
                return Some(word);
            }
        }
        None
    }

    #[test]
    fn nothing_turns_a_string_into_markup() {
        for (text, want) in [
            ("x.innerHTML = y", Some("innerHTML")),
            ("<p onclick=\"x\">", Some("onclick")),
            ("node.onload = f", Some("onload")),
            ("<p style=\"x\">", Some("style=")),
            ("const one = 1; if (x.only === 2) on(); let action = 3", None),
        ] {
            assert_eq!(forbidden(text).as_deref(), want, "{text}");
        }
        for (path, text) in texts() {
            // The one name of a namespace that looks like an address.
            let text = text.replace("http://www.w3.org/2000/svg", "");
            assert_eq!(forbidden(&text), None, "{path}");
        }
    }

    #[test]
    fn all_of_it_is_small() {
        let mut gzip = 0;
        for (_, bytes) in FILES {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(bytes).unwrap();
            gzip += encoder.finish().unwrap().len();
        }
        assert!(gzip <= MAX_GZIP, "{gzip} bytes, {MAX_GZIP} at most");
    }
}

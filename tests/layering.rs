//! The house's one rule of imports: a `crate::` path points to a lower layer or stays in its own module.

use std::fs;
use std::path::{Path, PathBuf};

/// Module and layer, lowest first. Modules of one layer do not import each other; a layer of its own therefore
/// orders what the names alone leave open: `limit` reads a virtual key's limits, a dialect fills a `tally`.
const LAYERS: &[(&str, u8)] = &[
    ("id", 0),
    ("unit", 0),
    ("secret", 0),
    ("clock", 0),
    ("metrics", 0),
    ("live", 0),
    ("audit", 1),
    ("event", 1),
    ("policy", 1),
    ("virtual_key", 10),
    ("provider_key", 10),
    ("route", 10),
    ("entry", 10),
    ("pricing", 10),
    ("scan", 10),
    ("tokens", 10),
    ("access", 11),
    ("activity", 11),
    ("limit", 11),
    ("span", 11),
    ("owner", 11),
    ("plan", 11),
    ("pool", 11),
    ("tally", 20),
    ("provider", 21),
    ("storage", 30),
    ("net", 30),
    ("explain", 35),
    ("lease", 35),
    ("proxy", 40),
    ("control", 40),
    ("console", 45),
    ("ingress", 50),
    ("config", 60),
    ("app", 70),
    ("cli", 80),
];

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The names right after each `crate::`, with the byte where each path begins; groups give several.
fn imports(code: &str) -> Vec<(usize, String)> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = vec![];
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push((at, word(rest)));
            continue;
        };
        let mut depth = 1;
        let mut start = 0;
        for (end, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 || (depth == 1 && c == ',') {
                found.push((at, word(group[start..end].trim_start())));
                start = end + 1;
            }
            if depth == 0 {
                break;
            }
        }
    }
    found.retain(|(_, name)| !name.is_empty());
    found
}

#[test]
fn imports_point_downward() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    rust_files(&src, &mut files);
    let mut faults = vec![];
    for path in &files {
        let shown = path.strip_prefix(&src).expect("found below src").to_string_lossy().replace('\\', "/");
        let module = shown.split(['/', '.']).next().expect("a path has a first part");
        if module == "lib" || module == "main" {
            continue;
        }
        let Some(own) = layer(module) else {
            faults.push(format!("src/{shown}: module {module} is not in the table of layers"));
            continue;
        };
        let text = fs::read_to_string(path).expect("src is readable");
        // Comments may point anywhere; their lines stay, so that line numbers do.
        let code: Vec<_> =
            text.lines().map(|line| if line.trim_start().starts_with("//") { "" } else { line }).collect();
        let code = code.join("\n");
        for (at, name) in imports(&code) {
            let line = code[..at].matches('\n').count() + 1;
            match layer(&name) {
                _ if name == module => {}
                Some(below) if below < own => {}
                Some(_) => faults.push(format!("src/{shown}:{line}: {module} must not import crate::{name}")),
                None => faults.push(format!("src/{shown}:{line}: crate::{name} is not in the table of layers")),
            }
        }
    }
    assert!(files.len() > 1, "no sources found in {}", src.display());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_groups() {
    let code = "use crate::id::X;\nuse crate::{unit::{A, B}, secret, clock::{C}};\nfn f() { crate::net::g() }";
    let names: Vec<_> = imports(code).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["id", "unit", "secret", "clock", "net"]);
}

//! The one writer: data to standard output, talk to standard error.
//!
//! Owns formats and what a closed pipe means: the reader has had enough, so it is a success.

use std::io::{self, IsTerminal, Write};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

use crate::cli::args::Format;

/// Where a command's answer goes.
#[derive(Clone, Copy, Debug)]
pub struct Out {
    /// How it is printed.
    pub format: Format,
}

impl Out {
    /// Text as it is.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn text(self, text: &str) -> io::Result<()> {
        write_all(text.as_bytes())
    }

    /// One JSON document: on one line for `jsonl`, indented otherwise.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn json(self, value: &impl Serialize) -> io::Result<()> {
        let text = if self.format == Format::Jsonl {
            serde_json::to_string(value)
        } else {
            serde_json::to_string_pretty(value)
        };
        write_all(format!("{}\n", text?).as_bytes())
    }

    /// One thing: its JSON, or what `table` makes of it.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn one(self, value: &Value, table: impl FnOnce(&Value) -> String) -> io::Result<()> {
        match self.format {
            Format::Csv | Format::Table => write_all(table(value).as_bytes()),
            Format::Json | Format::Jsonl => self.json(value),
        }
    }

    /// Many things: one document, one line each, or a table with a row each.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn many(self, document: &Value, items: &[Value], columns: &[Column<'_>]) -> io::Result<()> {
        match self.format {
            Format::Csv => write_all(&csv(items, columns)?),
            Format::Json => self.json(document),
            Format::Jsonl => {
                let lines: Result<Vec<String>, _> = items.iter().map(serde_json::to_string).collect();
                write_all(lines?.iter().map(|line| format!("{line}\n")).collect::<String>().as_bytes())
            }
            Format::Table => write_all(table(items, columns).as_bytes()),
        }
    }
}

/// A column: its head, and where its value stands in an item.
pub type Column<'a> = (&'a str, &'a str);

/// Items as a table without lines, one row each; an empty list says so on standard error.
#[must_use]
pub fn table(items: &[Value], columns: &[Column<'_>]) -> String {
    if items.is_empty() {
        say("nothing here yet");
        return String::new();
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(head, _)| *head));
    for item in items {
        table.add_row(columns.iter().map(|(_, path)| cell(item.pointer(path))));
    }
    lines_of(&table)
}

/// Items as CSV, the columns' names in small letters first; what is absent or null is empty.
fn csv(items: &[Value], columns: &[Column<'_>]) -> io::Result<Vec<u8>> {
    let mut rows = csv::Writer::from_writer(Vec::new());
    rows.write_record(columns.iter().map(|(head, _)| head.to_lowercase().replace(' ', "_")))?;
    for item in items {
        let value = |path| item.pointer(path).filter(|value| !value.is_null());
        rows.write_record(
            columns.iter().map(|(_, path)| value(path).map_or_else(String::new, |value| cell(Some(value)))),
        )?;
    }
    rows.into_inner().map_err(|error| io::Error::other(error.to_string()))
}

/// One thing as names and values, in the order of its fields.
#[must_use]
pub fn card(value: &Value) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in value.as_object().into_iter().flatten() {
        table.add_row([name.as_str(), &cell(Some(value))]);
    }
    lines_of(&table)
}

fn lines_of(table: &Table) -> String {
    table.lines().map(|line| format!("{}\n", line.trim())).collect()
}

/// A value for people: absent and null are a dash, lists have commas.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) if items.is_empty() => "-".to_owned(),
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(","),
        Some(Value::Object(fields)) => {
            let said = fields.iter().filter(|(_, value)| !value.is_null());
            let text: Vec<String> = said.map(|(name, value)| format!("{name}={}", cell(Some(value)))).collect();
            if text.is_empty() { "-".to_owned() } else { text.join(" ") }
        }
        Some(other) => other.to_string(),
    }
}

/// Says something to the person: one line on standard error. A closed one is nobody listening.
pub fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// True when a person can be asked: standard input and error are a terminal.
#[must_use]
pub fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

fn write_all(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn csv_quotes_what_it_must() {
        let items = [json!({"id": "a,\"b\"", "n": 1}), json!({"id": "line\nline", "n": null})];
        let text = String::from_utf8(csv(&items, &[("THE ID", "/id"), ("N", "/n")]).unwrap()).unwrap();
        assert_eq!(text, "the_id,n\n\"a,\"\"b\"\"\",1\n\"line\nline\",\n");
    }

    #[test]
    fn tables_and_cards() {
        let items = [json!({"id": "a", "limits": {"rpm": 60, "tpm": null}}), json!({"id": "bb", "models": ["x", "y"]})];
        let text = table(&items, &[("ID", "/id"), ("RPM", "/limits/rpm"), ("MODELS", "/models")]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words, [["ID", "RPM", "MODELS"], ["a", "60", "-"], ["bb", "-", "x,y"]]);
        let text = card(&items[0]);
        let words: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(words, [["id", "a"], ["limits", "rpm=60"]]);
    }
}

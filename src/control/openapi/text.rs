//! The text of the file: JSON in which what fits on a line stands on one.

use serde_json::Value;

const WIDTH: usize = 120;

/// The text of `value`, which begins at this column.
pub(super) fn write(value: &Value, indent: usize) -> String {
    let line = value.to_string();
    let inner = " ".repeat(indent + 1);
    let (open, close, lines): (char, char, Vec<String>) = match value {
        _ if line.len() + indent < WIDTH => return line,
        Value::Array(items) => ('[', ']', items.iter().map(|item| inner.clone() + &write(item, indent + 1)).collect()),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| {
                format!("{inner}{}: {}", Value::from(name.as_str()), write(value, indent + 1))
            };
            ('{', '}', fields.iter().map(field).collect())
        }
        _ => return line,
    };
    format!("{open}\n{}\n{}{close}", lines.join(",\n"), " ".repeat(indent))
}

#[test]
fn it_is_json_in_short_lines() {
    let value = serde_json::json!({"a": vec!["word"; 40], "b": {"c": [1, 2], "d": null}});
    let text = write(&value, 0);
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
    assert!(text.contains("\n \"b\": {\"c\":[1,2],\"d\":null}\n"), "{text}");
}

//! The JSON Schema of `gatepost.toml`, made from the table of keys, for editors and for programs that write the file.

use serde_json::{Map, Value, json};

use super::keys::{self, Groups, NAME_PATTERN, Need, Shape};
use super::resources::CPUS_MAX;
use super::units::{DURATION_PATTERN, SIZE_PATTERN};

/// The schema as text, indented.
pub(crate) fn schema() -> String {
    let mut root = object(keys::ROOT);
    root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    root.insert("title".to_owned(), json!("gatepost.toml"));
    format!("{:#}", Value::Object(root))
}

fn object(groups: Groups) -> Map<String, Value> {
    let property = |key: &keys::Key| {
        let mut value = value(key.shape);
        value.insert("description".to_owned(), json!(key.help));
        (key.name.to_owned(), Value::Object(value))
    };
    let properties: Map<String, Value> = keys::all(groups).map(property).collect();
    let required: Vec<&str> =
        keys::all(groups).filter(|key| key.need == Need::Required).map(|key| key.name).collect();
    let mut object =
        members(json!({ "type": "object", "additionalProperties": false, "properties": properties }));
    if !required.is_empty() {
        object.insert("required".to_owned(), json!(required));
    }
    object
}

fn value(shape: Shape) -> Map<String, Value> {
    let text = json!({ "type": "string", "minLength": 1 });
    members(match shape {
        Shape::Text(None) => text,
        Shape::Text(Some(pattern)) => json!({ "type": "string", "pattern": pattern }),
        Shape::Texts => json!({ "type": "array", "items": text }),
        Shape::Argv => json!({ "oneOf": [text, { "type": "array", "items": text, "minItems": 1 }] }),
        Shape::Truth => json!({ "type": "boolean" }),
        Shape::Duration => json!({ "type": "string", "pattern": DURATION_PATTERN }),
        Shape::Size => json!({ "type": "string", "pattern": SIZE_PATTERN }),
        Shape::Count { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Shape::Cpus => json!({ "type": "number", "minimum": 0.01, "maximum": CPUS_MAX }),
        Shape::Choice(choices) => json!({ "enum": choices }),
        Shape::Choices(choices) => json!({ "type": "array", "items": { "enum": choices }, "minItems": 1 }),
        Shape::Table(groups) => return object(groups),
        Shape::Tables(groups) => json!({ "type": "array", "items": object(groups) }),
        Shape::Named(groups) => json!({
            "type": "object",
            "propertyNames": { "pattern": NAME_PATTERN },
            "additionalProperties": object(groups),
        }),
        Shape::Free => json!({ "type": "object" }),
    })
}

/// The members of a literal that is an object.
fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}

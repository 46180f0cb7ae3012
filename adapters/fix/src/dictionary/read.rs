//! Reads a dictionary's file: `<fix type major minor servicepack>` with `<header>`, `<trailer>`, `<messages>`,
//! `<components>` and `<fields>`, as QuickFIX and its kin write it.
//!
//! Sizes are bounded before and while anything is read; a document type, and so every entity of its own, is refused.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use roxmltree::{Document, Node, ParsingOptions};

use crate::data_fields::DataFields;
use crate::dictionary::{
    Condition, Dictionary, DictionaryError, FieldDef, Layer, Layout, MessageDef, Slot, Type,
};
use crate::message::Tag;
use crate::version::{ApplVerId, BeginString};

/// Largest file. FIX 5.0 SP2 with all extension packs has less than two million bytes.
pub const DICTIONARY_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Elements and texts between them. The same has less than a hundred thousand.
const NODES_MAX: u32 = 500_000;
/// Groups and components within each other.
const DEPTH_MAX: usize = 32;
/// Fields of all layouts together, once components are dissolved: they might name each other so that it doubles each time.
const SLOTS_MAX: usize = 500_000;
/// Tags have up to nine digits.
const TAG_MAX: Tag = 999_999_999;
/// Of a name or value that is quoted in a fault.
const QUOTED_CHARS_MAX: usize = 64;

impl Dictionary {
    /// Reads a file.
    pub fn load(file: &Path) -> Result<Self, DictionaryError> {
        let whole = |fault: String| DictionaryError { file: file.to_owned(), line: 0, fault };
        let mut bytes = Vec::new();
        let opened =
            std::fs::File::open(file).map_err(|error| whole(format!("cannot be opened: {error}")))?;
        opened
            .take(DICTIONARY_BYTES_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| whole(format!("cannot be read: {error}")))?;
        if bytes.len() as u64 > DICTIONARY_BYTES_MAX {
            return Err(whole(format!("is larger than {DICTIONARY_BYTES_MAX} bytes")));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            whole(format!("is not UTF-8 from byte {} on", error.utf8_error().valid_up_to()))
        })?;
        Self::parse(&text).map_err(|fault| DictionaryError {
            file: file.to_owned(),
            line: fault.line,
            fault: fault.what,
        })
    }

    /// Reads the text of a file.
    pub(crate) fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() as u64 > DICTIONARY_BYTES_MAX {
            return Err(Fault { line: 0, what: format!("is larger than {DICTIONARY_BYTES_MAX} bytes") });
        }
        let options =
            ParsingOptions { allow_dtd: false, nodes_limit: NODES_MAX, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options).map_err(|error| Fault {
            line: error.pos().row,
            what: format!("is not XML as it has to be: {error}"),
        })?;
        Reader::new(&document)?.dictionary()
    }
}

/// What is wrong, and in which line, from 1; 0 for the whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) line: u32,
    pub(crate) what: String,
}

fn fault<T>(node: Node<'_, '_>, what: String) -> Result<T, Fault> {
    Err(Fault { line: node.document().text_pos_at(node.range().start).row, what })
}

fn quoted(text: &str) -> String {
    let short: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    format!("\"{}\"{}", short.escape_debug(), if short.len() < text.len() { "…" } else { "" })
}

fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str, Fault> {
    match node.attribute(name) {
        Some(value) if !value.is_empty() => Ok(value),
        _ => fault(node, format!("<{}> has no {name}", quoted_name(node))),
    }
}

fn quoted_name(node: Node<'_, '_>) -> String {
    node.tag_name().name().chars().take(QUOTED_CHARS_MAX).collect()
}

fn elements<'a, 'i>(node: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(Node::is_element)
}

/// A component, dissolved: what it brings into whatever names it.
#[derive(Default)]
struct Part {
    slots: Vec<Slot>,
    required: Vec<Tag>,
    conditions: Vec<Arc<Condition>>,
}

struct Reader<'a, 'i> {
    root: Node<'a, 'i>,
    layer: Layer,
    fields: HashMap<Tag, FieldDef>,
    tags: HashMap<String, Tag>,
    components: HashMap<&'a str, Node<'a, 'i>>,
    dissolved: HashMap<&'a str, Rc<Part>>,
    slots: usize,
}

impl<'a, 'i> Reader<'a, 'i> {
    fn new(document: &'a Document<'i>) -> Result<Self, Fault> {
        let root = document.root_element();
        if root.tag_name().name() != "fix" {
            return fault(root, format!("the root is <{}> and ought to be <fix>", quoted_name(root)));
        }
        Ok(Self {
            root,
            layer: layer(root)?,
            fields: HashMap::new(),
            tags: HashMap::new(),
            components: HashMap::new(),
            dissolved: HashMap::new(),
            slots: 0,
        })
    }

    fn dictionary(mut self) -> Result<Dictionary, Fault> {
        if let Some(section) = self.section("fields")? {
            for node in elements(section) {
                self.field(node)?;
            }
        }
        if self.fields.is_empty() {
            return fault(self.root, "there is no <fields> with a <field> in it".to_owned());
        }
        if let Some(section) = self.section("components")? {
            for node in elements(section) {
                expect(node, &["component"])?;
                let name = attribute(node, "name")?;
                if self.components.insert(name, node).is_some() {
                    return fault(node, format!("there are two components {}", quoted(name)));
                }
            }
        }
        let header = self.section("header")?.map(|node| self.layout(node, 0)).transpose()?;
        let trailer = self.section("trailer")?.map(|node| self.layout(node, 0)).transpose()?;
        let messages = self.messages()?;
        let data_fields = self.data_fields();
        Ok(Dictionary {
            layer: self.layer,
            fields: self.fields,
            tags: self.tags,
            header: header.unwrap_or_default(),
            trailer: trailer.unwrap_or_default(),
            messages,
            data_fields,
        })
    }

    fn section(&self, name: &str) -> Result<Option<Node<'a, 'i>>, Fault> {
        let mut sections = elements(self.root).filter(|node| node.tag_name().name() == name);
        let first = sections.next();
        match sections.next() {
            Some(second) => fault(second, format!("there are two <{name}>")),
            None => Ok(first),
        }
    }

    fn field(&mut self, node: Node<'a, 'i>) -> Result<(), Fault> {
        expect(node, &["field"])?;
        let number = attribute(node, "number")?;
        let tag = match number.parse::<Tag>() {
            Ok(tag) if (1..=TAG_MAX).contains(&tag) => tag,
            _ => return fault(node, format!("the number {} is no tag, 1 to {TAG_MAX}", quoted(number))),
        };
        let name = attribute(node, "name")?;
        let version = match self.layer {
            Layer::Both(version) => Some(version),
            Layer::Transport | Layer::Application(_) => None,
        };
        let kind = Type::by_name(attribute(node, "type")?, version);
        let mut values = HashMap::new();
        for value in elements(node).filter(|child| child.tag_name().name() == "value") {
            let meaning = value.attribute("description").unwrap_or_default();
            values.insert(attribute(value, "enum")?.as_bytes().to_vec(), meaning.to_owned());
        }
        // Listed for people, with others allowed: what QuickFIX/J calls open.
        if node.attribute("allowOtherValues").is_some_and(is_yes) {
            values.clear();
        }
        if self.tags.insert(name.to_owned(), tag).is_some() {
            return fault(node, format!("there are two fields named {}", quoted(name)));
        }
        if self.fields.insert(tag, FieldDef { name: name.to_owned(), kind, values }).is_some() {
            return fault(node, format!("there are two fields with the number {tag}"));
        }
        Ok(())
    }

    fn messages(&mut self) -> Result<HashMap<Vec<u8>, MessageDef>, Fault> {
        let mut messages = HashMap::new();
        let Some(section) = self.section("messages")? else { return Ok(messages) };
        for node in elements(section) {
            expect(node, &["message"])?;
            let msg_type = attribute(node, "msgtype")?;
            let name = attribute(node, "name")?.to_owned();
            let body = self.layout(node, 0)?;
            if messages.insert(msg_type.as_bytes().to_vec(), MessageDef { name, body }).is_some() {
                return fault(node, format!("there are two messages with the msgtype {}", quoted(msg_type)));
            }
        }
        Ok(messages)
    }

    fn layout(&mut self, node: Node<'a, 'i>, depth: usize) -> Result<Arc<Layout>, Fault> {
        let part = self.part(node, depth)?;
        Ok(Arc::new(Layout::new(part.slots, part.required, part.conditions)))
    }

    /// The fields, groups and components within an element.
    fn part(&mut self, node: Node<'a, 'i>, depth: usize) -> Result<Part, Fault> {
        if depth > DEPTH_MAX {
            return fault(
                node,
                format!("groups and components lie more than {DEPTH_MAX} deep in each other"),
            );
        }
        let mut part = Part::default();
        let mut seen = HashSet::new();
        for child in elements(node) {
            expect(child, &["field", "group", "component"])?;
            let name = attribute(child, "name")?;
            let required = child.attribute("required").is_some_and(is_yes);
            if child.tag_name().name() == "component" {
                let component = self.component(child, name, depth)?;
                for slot in component.slots.iter().filter(|slot| seen.insert(slot.tag)) {
                    part.slots.push(slot.clone());
                }
                part.conditions.extend(component.conditions.iter().cloned());
                if required {
                    part.required.extend(&component.required);
                } else if !component.required.is_empty() {
                    let fields = component.slots.iter().map(|slot| slot.tag).collect();
                    part.conditions
                        .push(Arc::new(Condition { fields, required: component.required.clone() }));
                }
            } else {
                let tag = match self.tags.get(name) {
                    Some(tag) => *tag,
                    None => return fault(child, format!("the field {} is not among <fields>", quoted(name))),
                };
                let group = match child.tag_name().name() {
                    "group" => Some(self.layout(child, depth + 1)?),
                    _ => None,
                };
                if group.as_ref().is_some_and(|group| group.slots.is_empty()) {
                    return fault(child, format!("the group {} has no fields", quoted(name)));
                }
                let repeats = child.attribute("repeating").is_some_and(is_yes);
                if seen.insert(tag) {
                    part.slots.push(Slot { tag, group, repeats });
                }
                if required {
                    part.required.push(tag);
                }
            }
            let grown = part.slots.len();
            if self.slots + grown > SLOTS_MAX {
                return fault(child, format!("all messages together have more than {SLOTS_MAX} fields"));
            }
        }
        self.slots += part.slots.len();
        Ok(part)
    }

    fn component(&mut self, named: Node<'a, 'i>, name: &'a str, depth: usize) -> Result<Rc<Part>, Fault> {
        if let Some(part) = self.dissolved.get(name) {
            return Ok(Rc::clone(part));
        }
        let Some(node) = self.components.get(name).copied() else {
            return fault(named, format!("the component {} is not among <components>", quoted(name)));
        };
        let part = Rc::new(self.part(node, depth + 1)?);
        self.dissolved.insert(name, Rc::clone(&part));
        Ok(part)
    }

    /// A field of type DATA has its length in the field of type LENGTH that is named after it.
    fn data_fields(&self) -> DataFields {
        let mut data_fields = DataFields::default();
        for (tag, field) in self.fields.iter().filter(|(_, field)| field.kind == Type::Data) {
            let length = ["Len", "Length"]
                .iter()
                .find_map(|ending| self.tags.get(&format!("{}{ending}", field.name)).copied());
            if let (Some(length), None) = (length, data_fields.length_of(*tag)) {
                data_fields.add(length, *tag);
            }
        }
        data_fields
    }
}

fn is_yes(value: &str) -> bool {
    value.eq_ignore_ascii_case("y") || value == "true"
}

fn expect(node: Node<'_, '_>, names: &[&str]) -> Result<(), Fault> {
    if names.contains(&node.tag_name().name()) {
        return Ok(());
    }
    fault(node, format!("<{}> stands where only <{}> may", quoted_name(node), names.join(">, <")))
}

/// What the root says that the dictionary is of.
fn layer(root: Node<'_, '_>) -> Result<Layer, Fault> {
    let major = attribute(root, "major")?;
    let minor = attribute(root, "minor")?;
    let pack = root.attribute("servicepack").unwrap_or("0");
    let kind = root.attribute("type").unwrap_or("FIX");
    let pack = if pack.is_empty() || pack == "0" { String::new() } else { format!("SP{pack}") };
    let name = format!("{kind}.{major}.{minor}{pack}");
    if name == Layer::Transport.name() {
        return Ok(Layer::Transport);
    }
    if let Some(version) = BeginString::parse(name.as_bytes()) {
        return Ok(Layer::Both(version));
    }
    match ApplVerId::from_name(&name) {
        Some(version) if version >= ApplVerId::Fix50 => Ok(Layer::Application(version)),
        _ => fault(
            root,
            format!("there is no version {}; FIX.4.0 to FIX.5.0SP2 and FIXT.1.1 are known", quoted(&name)),
        ),
    }
}

#[cfg(test)]
mod tests;

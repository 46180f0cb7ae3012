//! `[[routes]]`: compiled here, so that a broken condition is a fault of the file and not of a message.

use gatepost_core::routing::{Condition, Route, Routes};

use super::UNROUTED;
use super::fault::{Report, suggestion};
use super::names::Names;
use super::section::{Item, Section};
use super::shape::is_name;

pub(super) fn read(root: &Section<'_>, names: &Names<'_>, report: &mut Report<'_>) -> Routes {
    let mut routes: Vec<Route> = Vec::new();
    for section in root.tables("routes") {
        let name = name(&section, &routes, report);
        let from = section.text("from");
        if let Some(from) = &from
            && !names.senders().any(|sender| sender == from.value)
        {
            let near = suggestion(from.value, names.senders());
            report.add(&from.spot, format!("no app or adapter `{}`: {near}", from.value));
        }
        let condition = section.text("when").and_then(|when| condition(&when, report));
        let to = section.texts("to");
        if let Some(to) = &to {
            destinations(&section, to, names, report);
        }
        routes.push(Route {
            name,
            from: from.map_or_else(String::new, |from| from.value.to_owned()),
            condition,
            to: to.unwrap_or_default().iter().map(|to| to.value.to_owned()).collect(),
        });
    }
    Routes::new(routes)
}

fn name(section: &Section<'_>, earlier: &[Route], report: &mut Report<'_>) -> String {
    let Some(name) = section.text("name") else { return section.spot.key.clone() };
    if !is_name(name.value) {
        report.add(&name.spot, "not a name: use 1 to 64 of a-z, 0-9, `-` and `_`");
    } else if earlier.iter().any(|route| route.name == name.value) {
        report.add(&name.spot, "another route has this name: errors could not tell them apart");
    }
    name.value.to_owned()
}

fn condition(when: &Item<&str>, report: &mut Report<'_>) -> Option<Condition> {
    match Condition::compile(when.value) {
        Ok(condition) => Some(condition),
        Err(error) => {
            report.add(&when.spot, one_line(&error.to_string()));
            None
        }
    }
}

/// Of the parser's text, the first fault and its place; the drawing under the source is for a terminal.
fn one_line(text: &str) -> String {
    text.lines().next().unwrap_or(text).replace("ERROR: <input>:", "at ")
}

fn destinations(section: &Section<'_>, to: &[Item<&str>], names: &Names<'_>, report: &mut Report<'_>) {
    if to.is_empty()
        && section.value("to").is_some_and(|to| to.value.as_array().is_some_and(|to| to.is_empty()))
    {
        let spot = section.value("to").map_or_else(|| section.spot.clone(), |to| to.spot);
        report.add(&spot, "leads nowhere: name an adapter or an inbox");
    }
    for unknown in to.iter().filter(|to| !names.destinations().any(|known| known == to.value)) {
        let why = if unknown.value == UNROUTED {
            "the built-in queue takes what no route takes; it is no destination".to_owned()
        } else {
            format!(
                "no adapter or inbox `{}`: {}",
                unknown.value,
                suggestion(unknown.value, names.destinations())
            )
        };
        report.add(&unknown.spot, why);
    }
}

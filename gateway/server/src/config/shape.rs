//! The first pass over a file: every key is known, every value has its key's shape, every required key is there. What comes
//! after may read values without asking again; a value of the wrong shape then counts as absent, so that nothing is
//! reported twice.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Report, Spot, suggestion};
use super::keys::{self, Groups, Need, Shape};
use super::path::{child, element};
use super::resources::{CPUS_MAX, Cpus};
use super::rules::{self, Rule};
use super::settings::names_a_secret;
use super::units;

type Value<'a> = Spanned<DeValue<'a>>;

/// Checks the whole document.
pub(super) fn check(root: &DeTable<'_>, report: &mut Report<'_>) {
    check_table(root, keys::ROOT, &Spot { offset: 0, key: String::new() }, report);
}

fn check_table(table: &DeTable<'_>, groups: Groups, at: &Spot, report: &mut Report<'_>) {
    for (name, value) in table.iter() {
        let spot = Spot::new(&name.span(), child(&at.key, name.get_ref()));
        match keys::find(groups, name.get_ref()) {
            Some(key) => {
                check_value(value, key.shape, &Spot::new(&value_start(name, value), spot.key), report)
            }
            None => unknown_key(name.get_ref(), groups, &spot, report),
        }
    }
    for key in keys::all(groups).filter(|key| key.need == Need::Required && !table.contains_key(key.name)) {
        let why = format!("`{}` is missing: {}", key.name, key.help);
        match key.name {
            "client_ca" => report.refuse(Rule::TcpWithoutCertificates, at, why),
            _ => report.add(at, why),
        }
    }
}

/// Where a fault of a value is shown: at the value, or for tables at their name, since a table's span begins at its header.
fn value_start(name: &Spanned<std::borrow::Cow<'_, str>>, value: &Value<'_>) -> std::ops::Range<usize> {
    match value.get_ref() {
        DeValue::Table(_) | DeValue::Array(_) => name.span(),
        _ => value.span(),
    }
}

fn unknown_key(name: &str, groups: Groups, spot: &Spot, report: &mut Report<'_>) {
    let rule = rules::of_unknown_key(&spot.key, name);
    let why = if names_a_secret(name) {
        "unknown key, and a secret must not stand in this file: tokens are given as `token_sha256`, \
         other secrets as the path of a file"
            .to_owned()
    } else if rule == Rule::UnknownKey {
        format!("unknown key: {}", suggestion(name, keys::all(groups).map(|key| key.name)))
    } else {
        format!("unknown key: {}", rule.facts().advice)
    };
    report.refuse(rule, spot, why);
}

fn check_value(value: &Value<'_>, shape: Shape, spot: &Spot, report: &mut Report<'_>) {
    match shape {
        Shape::Text(_) => {
            text(value, "a string", spot, report);
        }
        Shape::Texts => each_text(value, spot, report, |_, _, _| {}),
        Shape::Argv => match value.get_ref() {
            DeValue::Array(items) if items.is_empty() => report.add(spot, "must name a program"),
            DeValue::Array(_) => each_text(value, spot, report, |_, _, _| {}),
            _ => {
                text(value, "a string or an array of strings", spot, report);
            }
        },
        Shape::Truth => {
            if value.get_ref().as_bool().is_none() {
                let found = article(value.get_ref().type_str());
                let key = spot.key.rsplit('.').next().unwrap_or_default();
                let secret = if names_a_secret(key) { "; a secret must not stand in this file" } else { "" };
                report.add(spot, format!("expected true or false, found {found}{secret}"));
            }
        }
        Shape::Duration => quantity(value, units::duration, "a duration such as \"30s\"", spot, report),
        Shape::Size => quantity(value, units::size, "a size such as \"64MiB\"", spot, report),
        Shape::Count { min, max } => count(value, min, max, spot, report),
        Shape::Cpus => {
            let wanted = format!("a number from 0.01 to {CPUS_MAX} with at most two decimals, such as 1.5");
            let value = value.get_ref();
            if !(value.is_integer() || value.is_float()) {
                report.add(spot, format!("expected {wanted}, found {}", article(value.type_str())));
            } else if Cpus::of(value).is_none() {
                report.add(spot, format!("must be {wanted}"));
            }
        }
        Shape::Choice(choices) => {
            if let Some(text) = text(value, "a string", spot, report) {
                choice(text, choices, spot, report);
            }
        }
        Shape::Choices(choices) => {
            if value.get_ref().as_array().is_some_and(|items| items.is_empty()) {
                report.add(spot, format!("must name at least one of {}", list(choices)));
            }
            each_text(value, spot, report, |text, spot, report| choice(text, choices, spot, report));
        }
        Shape::Table(groups) => {
            if let Some(table) = expect(value, DeValue::as_table, "a table", spot, report) {
                check_table(table, groups, spot, report);
            }
        }
        Shape::Tables(groups) => tables(value, groups, spot, report),
        Shape::Named(groups) => named(value, groups, spot, report),
        Shape::Free => {
            expect(value, DeValue::as_table, "a table", spot, report);
        }
    }
}

fn tables(value: &Value<'_>, groups: Groups, spot: &Spot, report: &mut Report<'_>) {
    let wanted = format!("an array of tables: write [[{}]]", spot.key);
    let Some(items) = expect(value, DeValue::as_array, &wanted, spot, report) else { return };
    for (index, item) in items.iter().enumerate() {
        let spot = Spot::new(&item.span(), element(&spot.key, index));
        if let Some(table) = expect(item, DeValue::as_table, "a table", &spot, report) {
            check_table(table, groups, &spot, report);
        }
    }
}

fn named(value: &Value<'_>, groups: Groups, spot: &Spot, report: &mut Report<'_>) {
    let wanted = format!("tables with names: write [{}.NAME]", spot.key);
    let Some(entries) = expect(value, DeValue::as_table, &wanted, spot, report) else { return };
    for (name, value) in entries.iter() {
        let spot = Spot::new(&name.span(), child(&spot.key, name.get_ref()));
        if !is_name(name.get_ref()) {
            report.add(
                &spot,
                format!("not a name: use 1 to {} of a-z, 0-9, `-` and `_`", keys::NAME_CHARS_MAX),
            );
        }
        if let Some(table) = expect(value, DeValue::as_table, "a table", &spot, report) {
            check_table(table, groups, &spot, report);
        }
    }
}

fn expect<'v, 'a, T: ?Sized>(
    value: &'v Value<'a>,
    cast: impl Fn(&'v DeValue<'a>) -> Option<&'v T>,
    wanted: &str,
    spot: &Spot,
    report: &mut Report<'_>,
) -> Option<&'v T> {
    let found = cast(value.get_ref());
    if found.is_none() {
        report.add(spot, format!("expected {wanted}, found {}", article(value.get_ref().type_str())));
    }
    found
}

fn text<'v>(value: &'v Value<'_>, wanted: &str, spot: &Spot, report: &mut Report<'_>) -> Option<&'v str> {
    let text = expect(value, DeValue::as_str, wanted, spot, report)?;
    if text.is_empty() {
        report.add(spot, "must not be empty");
    } else if text.contains('\0') {
        let why = "must not hold a NUL character";
        // The other way to write an abstract socket.
        if text.starts_with('\0') && spot.key.ends_with("].unix") {
            report.refuse(Rule::AbstractSocket, spot, why);
        } else {
            report.add(spot, why);
        }
    } else {
        return Some(text);
    }
    None
}

fn each_text<'t>(
    value: &Value<'_>,
    spot: &Spot,
    report: &mut Report<'t>,
    check: impl Fn(&str, &Spot, &mut Report<'t>),
) {
    let Some(items) = expect(value, DeValue::as_array, "an array of strings", spot, report) else { return };
    for (index, item) in items.iter().enumerate() {
        let spot = Spot::new(&item.span(), element(&spot.key, index));
        if let Some(text) = text(item, "a string", &spot, report) {
            check(text, &spot, report);
        }
    }
}

fn quantity<T>(
    value: &Value<'_>,
    parse: impl Fn(&str) -> Result<T, &'static str>,
    wanted: &str,
    spot: &Spot,
    report: &mut Report<'_>,
) {
    if let Some(text) = text(value, wanted, spot, report)
        && let Err(why) = parse(text)
    {
        report.add(spot, why);
    }
}

fn count(value: &Value<'_>, min: u64, max: u64, spot: &Spot, report: &mut Report<'_>) {
    let wanted = format!("a whole number from {min} to {max}");
    if let Some(integer) = expect(value, DeValue::as_integer, &wanted, spot, report) {
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        if number.is_none_or(|number| number < min || number > max) {
            report.add(spot, format!("must be {wanted}"));
        }
    }
}

fn choice(text: &str, choices: &[&'static str], spot: &Spot, report: &mut Report<'_>) {
    if !choices.contains(&text) {
        report.add(spot, format!("must be one of {}", list(choices)));
    }
}

fn list(choices: &[&str]) -> String {
    choices.iter().map(|choice| format!("\"{choice}\"")).collect::<Vec<_>>().join(", ")
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {kind}")
}

/// Whether `name` may name a principal, an adapter or an inbox.
pub(super) fn is_name(name: &str) -> bool {
    (1..=keys::NAME_CHARS_MAX).contains(&name.len())
        && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

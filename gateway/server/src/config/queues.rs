//! `[adapters]` and `[inboxes]`: the destinations and how their deliveries are treated.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use gatepost_core::policy::BacklogLimit;
use gatepost_core::{Level, OnDead, OnDoubt, Order, QueuePolicy, RetryPolicy};
use toml::de::DeValue;

use super::fault::Report;
use super::files::{Base, Files};
use super::limits;
use super::listens;
use super::principals::{self, Claims};
use super::rules::Rule;
use super::sandbox;
use super::section::{Item, Section};
use super::settings::{self, is_a_secret, names_a_secret};
use super::units::duration_text;
use super::{Adapter, AdapterProcess, Inbox, Nodes, Program, Run};
use crate::supervise::SearchPath;

/// A backlog limit above both of these is taken for none.
const BACKLOG_MESSAGES_SANE: u64 = 100_000_000;
const BACKLOG_BYTES_SANE: u64 = 1 << 40;

pub(super) fn adapters(
    root: &Section<'_>,
    files: &Files<'_>,
    report: &mut Report<'_>,
) -> BTreeMap<String, Arc<Adapter>> {
    let mut claims = Claims::default();
    let mut adapters = BTreeMap::new();
    let external_served = listens::serve_adapters(root);
    for (name, section) in root.named("adapters") {
        let process = if section.has("run") {
            supervised(&section, files, report)
        } else {
            Some(external(&section, external_served, &mut claims, report))
        };
        let mut policy = policy(&section, report);
        policy.confirm = Some(section.choice("confirm", Level::from_name).unwrap_or_default());
        let settings = section.value("settings").and_then(|item| item.try_map(DeValue::as_table));
        let settings =
            settings.map(|item| settings::read(item.value, &item.spot.key, report)).unwrap_or_default();
        let nodes = section.choice("nodes", Nodes::from_name).unwrap_or_default();
        let send = principals::send(&section);
        let sandbox = sandbox::read(&section, files.base, report);
        if let Some(process) = process {
            let limits = limits::read(&section, report);
            let name = name.to_owned();
            let adapter = Adapter { name, process, send, policy, limits, nodes, sandbox, settings };
            adapters.insert(adapter.name.clone(), Arc::new(adapter));
        }
    }
    adapters
}

pub(super) fn inboxes(root: &Section<'_>, report: &mut Report<'_>) -> BTreeMap<String, Inbox> {
    let inbox = |(name, section): (&str, Section<'_>)| {
        let policy = QueuePolicy { confirm: None, ..policy(&section, report) };
        (name.to_owned(), Inbox { name: name.to_owned(), policy })
    };
    root.named("inboxes").into_iter().map(inbox).collect()
}

impl Nodes {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Each => "each",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::One, Self::Each].into_iter().find(|nodes| nodes.as_str() == name)
    }
}

fn external(
    section: &Section<'_>,
    served: bool,
    claims: &mut Claims,
    report: &mut Report<'_>,
) -> AdapterProcess {
    let advice =
        "add run = \"PROGRAM\" so that the gateway starts it, or user, group or spiffe if somebody else does";
    let selector = principals::selector(section, advice, report);
    claims.add(section, &selector, report);
    principals::warn_of_root(section, &selector, report);
    if !served && !selector.is_empty() {
        let why = "has no `run`, so it must connect by itself, but no [[listen]] has serves = \"adapters\": add one, or add `run`";
        report.add(&section.spot, why);
    }
    AdapterProcess::External(selector)
}

fn supervised(section: &Section<'_>, files: &Files<'_>, report: &mut Report<'_>) -> Option<AdapterProcess> {
    for spot in principals::selector_keys(section) {
        report.add(&spot, "only for an adapter without `run`: the gateway knows the process that it starts");
    }
    let argv = match section.text("run") {
        Some(program) => {
            if program.value.contains(char::is_whitespace) {
                let why = "is one program, never a shell line: write run = [\"program\", \"argument\", …]";
                report.add(&program.spot, why);
            }
            vec![program]
        }
        None => section.texts("run")?,
    };
    let (program, args) = argv.split_first()?;
    for arg in args.iter().filter(|arg| shows_a_secret(arg.value)) {
        report.add(
            &arg.spot,
            "a secret must not stand in this file, and every user can see arguments: name a file instead",
        );
    }
    let args = args.iter().map(|arg| arg.value.to_owned()).collect();
    let run = Run { program: self::program(program, files.base, report), args };
    if let Ok(command) = SearchPath::of_this_process().resolve(&run) {
        files.owners.check_program(&command.file, &program.spot, report);
    }
    Some(AdapterProcess::Supervised(run))
}

fn program(program: &Item<&str>, base: Base<'_>, report: &mut Report<'_>) -> Program {
    if Path::new(program.value).components().count() == 1 && !program.value.contains('/') {
        Program::Name(program.value.to_owned())
    } else {
        Program::File(base.existing(program, report))
    }
}

fn shows_a_secret(arg: &str) -> bool {
    is_a_secret(arg)
        || arg.split_once('=').is_some_and(|(key, value)| !value.is_empty() && names_a_secret(key))
}

fn policy(section: &Section<'_>, report: &mut Report<'_>) -> QueuePolicy {
    let default = QueuePolicy::default();
    let small = |key, default| {
        section.count(key).and_then(|count| u32::try_from(count.value).ok()).unwrap_or(default)
    };
    let policy = QueuePolicy {
        order: section.choice("order", Order::from_name).unwrap_or_default(),
        on_doubt: section.choice("on_doubt", OnDoubt::from_name).unwrap_or_default(),
        on_dead: section.choice("on_dead", OnDead::from_name).unwrap_or_default(),
        confirm: default.confirm,
        retry: section.table("retry").map(|section| retry(&section, report)).unwrap_or_default(),
        window: small("window", default.window),
        max_in_flight: small("max_in_flight", default.max_in_flight),
        max_backlog: section.table("max_backlog").and_then(|section| limits::backlog(&section, report)),
    };
    warn_of_backlog(section, policy.max_backlog, report);
    if let Some(window) = section.count("window") {
        if policy.window > 1 && policy.order == Order::None {
            report.add(&window.spot, "more than 1 needs lanes: add order = \"key\" or order = \"strict\"");
        } else if policy.window > policy.max_in_flight {
            report.add(&window.spot, format!("more than max_in_flight ({}): lower it", policy.max_in_flight));
        }
    }
    policy
}

/// A partner that is away for a weekend fills the disk, and then nobody's messages are taken.
fn warn_of_backlog(section: &Section<'_>, limit: Option<BacklogLimit>, report: &mut Report<'_>) {
    match limit {
        Some(limit) if limit.messages <= BACKLOG_MESSAGES_SANE || limit.bytes <= BACKLOG_BYTES_SANE => {}
        Some(_) => {
            let spot = section.table("max_backlog").map_or_else(|| section.spot.clone(), |table| table.spot);
            report.warn(Rule::NoBacklogLimit, &spot, "limits nothing that a disk could hold: lower it");
        }
        // A limit that is faulty is no missing one.
        None if section.has("max_backlog") => {}
        None => {
            let why = "has no limit: add max_backlog = { messages = …, bytes = \"…\" }, or a partner that is away fills the disk";
            report.warn(Rule::NoBacklogLimit, &section.spot, why);
        }
    }
}

fn retry(section: &Section<'_>, report: &mut Report<'_>) -> RetryPolicy {
    let default = RetryPolicy::default();
    let duration = |key, default| section.duration(key).map_or(default, |item| item.value);
    let attempts = section.count("attempts").and_then(|count| u32::try_from(count.value).ok());
    let initial = duration("initial", default.initial);
    let policy = RetryPolicy {
        initial,
        // A first pause above the default cap, with no cap given, is its own cap.
        max: duration("max", default.max.max(initial)),
        attempts: attempts.unwrap_or(default.attempts),
        give_up_after: duration("give_up_after", default.give_up_after),
    };
    if let Some(max) = section.duration("max")
        && policy.max < policy.initial
    {
        report.add(
            &max.spot,
            format!("shorter than the first pause ({}): raise it", duration_text(policy.initial)),
        );
    }
    policy
}

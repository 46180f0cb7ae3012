//! `[apps]` and `[operators]`, and the selectors by which all principals are recognised.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use gatepost_core::principal::{OperatorRight, OperatorRights, TypePatterns};

use super::fault::{Report, Spot, suggestion};
use super::identity::UNIT_KINDS;
use super::names::Names;
use super::rules::Rule;
use super::section::{Item, Section};
use super::spiffe::spiffe_fault;
use super::{App, Operator, Selector, accounts, limits};

/// What the kernel writes behind the path of a program whose file is gone.
pub(crate) const DELETED: &str = " (deleted)";
/// The keys that make a selector.
const SELECTOR_KEYS: [&str; 7] = ["user", "group", "spiffe", "exe", "unit", "cgroup", "token_sha256"];
const IDENTITY_ADVICE: &str = "add user = \"…\", group = \"…\", unit = \"…\" or spiffe = \"…\"";
/// Those that say by themselves who somebody is.
const IDENTIFYING_KEYS: [&str; 5] = ["user", "group", "spiffe", "unit", "cgroup"];
/// Those that are known of a process on a Unix socket.
const PROCESS_KEYS: [&str; 5] = ["user", "group", "exe", "unit", "cgroup"];

pub(super) fn apps(
    root: &Section<'_>,
    names: &Names<'_>,
    report: &mut Report<'_>,
) -> BTreeMap<String, Arc<App>> {
    let mut claims = Claims::default();
    let mut apps = BTreeMap::new();
    for (name, section) in root.named("apps") {
        let mut selector = selector(&section, IDENTITY_ADVICE, report);
        selector.token_issued = section.truth("token").unwrap_or_default();
        if let Some(digest) = section.value("token_sha256")
            && selector.token_issued
        {
            let why = "one or the other: with token = true, `gatepost token create` keeps the digests";
            report.add(&digest.spot, why);
        }
        claims.add(&section, &selector, report);
        warn_of_root(&section, &selector, report);
        if let Some(digest) = section.value("token_sha256") {
            report.warn(
                Rule::TokenWithoutEnd,
                &digest.spot,
                "never ends: token = true has `gatepost token create` keep one that does",
            );
        }
        let inboxes = section.texts("inbox").unwrap_or_default();
        for inbox in inboxes.iter().filter(|inbox| !names.inboxes.contains(&inbox.value)) {
            let known = names.inboxes.iter().copied();
            report
                .add(&inbox.spot, format!("no inbox `{}`: {}", inbox.value, suggestion(inbox.value, known)));
        }
        let app = App {
            name: name.to_owned(),
            selector,
            send: send(&section),
            inboxes: inboxes.iter().map(|inbox| inbox.value.to_owned()).collect(),
            limits: limits::read(&section, report),
        };
        apps.insert(name.to_owned(), Arc::new(app));
    }
    apps
}

pub(super) fn operators(root: &Section<'_>, report: &mut Report<'_>) -> BTreeMap<String, Arc<Operator>> {
    let mut claims = Claims::default();
    let mut operators = BTreeMap::new();
    for (name, section) in root.named("operators") {
        let selector = selector(&section, IDENTITY_ADVICE, report);
        claims.add(&section, &selector, report);
        let can = section.texts("can").unwrap_or_default();
        let rights = can.iter().filter_map(|right| OperatorRight::from_name(right.value)).collect();
        let operator = Operator { name: name.to_owned(), selector, rights: OperatorRights::new(rights) };
        operators.insert(name.to_owned(), Arc::new(operator));
    }
    operators
}

/// Root can do without the gateway's leave whatever this would allow it, and whoever is led astray as root has more to lose.
pub(super) fn warn_of_root(section: &Section<'_>, selector: &Selector, report: &mut Report<'_>) {
    if selector.user == Some(0) {
        let spot = section.text("user").map_or_else(|| section.spot.clone(), |user| user.spot);
        report.warn(Rule::RootIsAnApp, &spot, "is root: run it as a user of its own");
    }
}

/// What an app or an adapter may send.
pub(super) fn send(section: &Section<'_>) -> TypePatterns {
    TypePatterns::new(section.texts("send").unwrap_or_default().iter().map(|kind| kind.value))
}

/// Whether a table has any key of a selector.
pub(super) fn selector_keys<'a>(section: &Section<'a>) -> impl Iterator<Item = Spot> {
    SELECTOR_KEYS.iter().filter_map(|key| section.value(key)).map(|item| item.spot)
}

pub(super) fn selector(section: &Section<'_>, advice: &str, report: &mut Report<'_>) -> Selector {
    if !IDENTIFYING_KEYS.iter().any(|key| section.has(key)) && !section.has("exe") {
        let token = if section.has("token_sha256") { " (a token alone identifies nobody)" } else { "" };
        let why = format!("says nothing about who it is{token}: {advice}");
        report.refuse(Rule::NoSelector, &section.spot, why);
    }
    if let Some(spiffe) = section.value("spiffe")
        && PROCESS_KEYS.iter().any(|key| section.has(key))
    {
        let why = "`user`, `group`, `exe`, `unit` and `cgroup` are known on Unix sockets only, `spiffe` on TLS only: no peer has \
                   both; write two principals";
        report.add(&spiffe.spot, why);
    }
    if let Some(exe) = section.value("exe")
        && !section.has("user")
    {
        let why = "a program is an identity only together with the user that runs it: add user = \"…\"";
        report.add(&exe.spot, why);
    }
    Selector {
        user: account(section.text("user"), accounts::uid, report),
        group: account(section.text("group"), accounts::gid, report),
        spiffe: section.text("spiffe").map(|id| spiffe(&id, report)),
        exe: section.text("exe").map(|path| exe(&path, report)),
        unit: section.text("unit").map(|name| unit(&name, report)),
        cgroup: section.text("cgroup").map(|path| cgroup(&path, report)),
        token_sha256: section.text("token_sha256").and_then(|digest| token(&digest, report)),
        token_issued: false,
    }
}

/// The kernel names a program by its real path, so a link would match nobody.
fn exe(path: &Item<&str>, report: &mut Report<'_>) -> PathBuf {
    let exe = PathBuf::from(path.value);
    if !is_plain_path(path.value) || path.value.ends_with(DELETED) {
        report.add(&path.spot, "not the absolute path of a program: write it like \"/usr/bin/ehr\"");
    } else if let Ok(real) = std::fs::canonicalize(&exe)
        && real != exe
    {
        report.add(&path.spot, format!("leads over a link: write where it leads, \"{}\"", real.display()));
    }
    exe
}

fn unit(name: &Item<&str>, report: &mut Report<'_>) -> String {
    let known =
        UNIT_KINDS.iter().any(|kind| name.value.strip_suffix(kind).is_some_and(|name| !name.is_empty()));
    if !known || name.value.contains(['/', '*']) {
        report.add(&name.spot, "not a unit that processes run in: write it like \"ehr.service\"");
    }
    name.value.to_owned()
}

fn cgroup(path: &Item<&str>, report: &mut Report<'_>) -> String {
    if !is_plain_path(path.value) {
        let why = "not a control group: write it as in /proc/PID/cgroup, like \"/system.slice/ehr.service\"; every process is in \"/\"";
        report.add(&path.spot, why);
    }
    path.value.to_owned()
}

/// Absolute, not the root, and with one way to write it.
fn is_plain_path(path: &str) -> bool {
    path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")))
}

fn account(
    name: Option<Item<&str>>,
    look_up: impl Fn(&str) -> Result<u32, String>,
    report: &mut Report<'_>,
) -> Option<u32> {
    let name = name?;
    match look_up(name.value) {
        Ok(id) => Some(id),
        Err(why) => {
            report.add(&name.spot, why);
            None
        }
    }
}

fn spiffe(id: &Item<&str>, report: &mut Report<'_>) -> String {
    if spiffe_fault(id.value).is_some() {
        report
            .add(&id.spot, "not a SPIFFE id: write it like \"spiffe://example.org/ehr\", without wildcards");
    }
    id.value.to_owned()
}

fn token(digest: &Item<&str>, report: &mut Report<'_>) -> Option<[u8; 32]> {
    let decoded = decode_hex(digest.value);
    if decoded.is_none() {
        let why = "not a SHA-256: write 64 hex digits, the output of `printf %s \"$TOKEN\" | sha256sum`";
        report.add(&digest.spot, why);
    }
    decoded
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let pairs = text.as_bytes().chunks_exact(2);
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The selectors of one kind of principal. No connection may match two of them, unless their tokens tell them apart.
/// Selectors that overlap only for some peers (a user and a group it is in) show at run time.
#[derive(Default)]
pub(super) struct Claims {
    earlier: Vec<(String, Selector)>,
}

impl Claims {
    pub(super) fn add(&mut self, section: &Section<'_>, selector: &Selector, report: &mut Report<'_>) {
        if selector.is_empty() {
            return;
        }
        for (other_key, other) in &self.earlier {
            if !selector.covers(other) && !other.covers(selector) {
                continue;
            }
            if !selector.needs_token() || !other.needs_token() {
                let why = format!(
                    "the same peer would match {other_key} too: change a selector, or give both a token_sha256 of their own, or token = true"
                );
                report.refuse(Rule::OnePeerTwoPrincipals, &section.spot, why);
            } else if selector.token_sha256.is_some() && selector.token_sha256 == other.token_sha256 {
                let spot = section.value("token_sha256").map(|item| item.spot);
                let why = format!("the same token as {other_key}: give each its own");
                report.refuse(Rule::OnePeerTwoPrincipals, spot.as_ref().unwrap_or(&section.spot), why);
            }
        }
        self.earlier.push((section.spot.key.clone(), selector.clone()));
    }
}

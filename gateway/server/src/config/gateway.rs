//! `[gateway]`: the gateway's name, its directory and its limits.

use std::time::Duration;

use super::fault::Report;
use super::files::Base;
use super::section::{Item, Section};
use super::units::{duration_text, size_text};
use super::{Config, Gateway, RunAs, UNROUTED, sandbox};

/// Largest payload of one message, bytes; also the default.
pub(crate) const MESSAGE_BYTES_MAX: u64 = 64 << 20;
pub(crate) const DATA_DIR: &str = "/var/lib/gatepost";
const DEDUP_WINDOW: Duration = Duration::from_secs(8 * 86_400);
const RETENTION: Duration = Duration::from_secs(30 * 86_400);
const MAX_CONNECTIONS: u32 = 1024;
const GATEWAY_NAME_CHARS_MAX: usize = 64;

pub(super) fn read(root: &Section<'_>, base: Base<'_>, report: &mut Report<'_>) -> Gateway {
    let section = root.table("gateway");
    let section = section.as_ref();
    let max_message = section.and_then(|section| section.size("max_message"));
    if let Some(size) = &max_message
        && size.value > MESSAGE_BYTES_MAX
    {
        report.add(
            &size.spot,
            format!(
                "more than the largest message there is: the most is \"{}\"",
                size_text(MESSAGE_BYTES_MAX)
            ),
        );
    }
    let data_dir = section.and_then(|section| section.text("data_dir"));
    let user = section.and_then(|section| section.text("user"));
    let connections = section.and_then(|section| section.count("max_connections"));
    Gateway {
        name: section
            .and_then(|section| section.text("name"))
            .map_or_else(host_name, |name| named(name, report)),
        node: section
            .and_then(|section| section.text("node"))
            .map_or_else(host_name, |name| named(name, report)),
        user: user.and_then(|user| self::user(&user, report)),
        data_dir: data_dir.map_or_else(|| DATA_DIR.into(), |dir| base.resolve(&dir, report)),
        max_message: max_message.map_or(MESSAGE_BYTES_MAX, |size| size.value),
        dedup_window: dedup_window(section).map_or(DEDUP_WINDOW, |window| window.value),
        retention: section
            .and_then(|section| section.duration("retention"))
            .map_or(RETENTION, |age| age.value),
        max_connections: connections
            .and_then(|count| u32::try_from(count.value).ok())
            .unwrap_or(MAX_CONNECTIONS),
    }
}

fn user(user: &Item<&str>, report: &mut Report<'_>) -> Option<RunAs> {
    match sandbox::account(user.value) {
        Ok(account) if account.uid == 0 || account.gid == 0 => {
            let why = "is root, or of root's group: name a user that does nothing else, or leave the key out";
            report.add(&user.spot, why);
        }
        Ok(account) => return Some(account),
        Err(why) => report.add(&user.spot, why),
    }
    None
}

/// An idempotency key that is forgotten while its message is still tried would let the message in twice.
pub(super) fn check_dedup_window(root: &Section<'_>, config: &Config, report: &mut Report<'_>) {
    let window = config.gateway.dedup_window;
    let queues = config.queues().filter(|(name, _)| *name != UNROUTED);
    let Some((name, policy)) = queues.max_by_key(|(_, policy)| policy.retry.give_up_after) else { return };
    let longest = policy.retry.give_up_after;
    if longest <= window {
        return;
    }
    let kind = if config.adapters.contains_key(name) { "adapters" } else { "inboxes" };
    let spot = dedup_window(root.table("gateway").as_ref()).map(|window| window.spot).or_else(|| {
        let queue = root.table(kind)?.table(name)?;
        Some(queue.table("retry")?.duration("give_up_after")?.spot)
    });
    report.add(
        spot.as_ref().unwrap_or(&root.spot),
        format!(
            "dedup_window ({}) is shorter than give_up_after of {kind}.{name} ({}): raise [gateway] dedup_window, or give up sooner",
            duration_text(window),
            duration_text(longest),
        ),
    );
}

fn dedup_window(section: Option<&Section<'_>>) -> Option<Item<Duration>> {
    section.and_then(|section| section.duration("dedup_window"))
}

fn named(name: Item<&str>, report: &mut Report<'_>) -> String {
    if !is_gateway_name(name.value) {
        report.add(&name.spot, "not a name: use 1 to 64 letters, digits, `.`, `-` and `_`");
    }
    name.value.to_owned()
}

fn is_gateway_name(name: &str) -> bool {
    (1..=GATEWAY_NAME_CHARS_MAX).contains(&name.len()) && name.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

/// The host's name, made fit for the audit log's origin.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .filter(|char| u8::try_from(*char).is_ok_and(is_name_byte))
        .take(GATEWAY_NAME_CHARS_MAX)
        .collect();
    if name.is_empty() { "gatepost".to_owned() } else { name }
}

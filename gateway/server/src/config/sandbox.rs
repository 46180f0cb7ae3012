//! `[adapters.NAME] sandbox`, `run_as` and `[adapters.NAME.allow]`: what is taken from an adapter's process, and what it keeps.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use nix::unistd::{User, geteuid};
use serde::{Deserialize, Serialize};

use super::fault::Report;
use super::files::Base;
use super::resources::{self, Resources};
use super::rules::Rule;
use super::section::{Item, Section};
use super::{AdapterProcess, Config, accounts};

/// Entries of one list in `allow`: together they are one argument of a process, which the kernel bounds.
pub(crate) const ALLOWED_MAX: usize = 128;
/// Entries of `allow.connect`: only their ports are in that argument, and an adapter may have hundreds of partners.
pub(crate) const HOSTS_MAX: usize = 1024;
const HOST_BYTES_MAX: usize = 253;

/// How much is taken from an adapter's process. Each level but the last takes the same where the kernel can; they differ in what
/// must be taken, lest the program not be started at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// Another user than root and than the gateway started as root; files, ports, calls; no other program and no other process.
    Strict,
    /// Files and calls must be limited; ports and signals are where the kernel can.
    #[default]
    Standard,
    /// Calls must be limited; the rest is where the kernel can.
    Minimal,
    /// Nothing but what keeps processes tidy.
    Off,
}

/// Whether adapters may do without a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Safety {
    Required,
    /// `gatepost serve --insecure-dev`
    InsecureDev,
}

/// One adapter's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) level: Level,
    pub(crate) run_as: Option<RunAs>,
    pub(crate) allow: Access,
    pub(crate) resources: Resources,
}

/// The user of an adapter's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunAs {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// What a process may reach: given in the configuration, or implied by the adapter's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) connect: Vec<Connect>,
    pub(crate) bind: Vec<SocketAddr>,
    pub(crate) read: Vec<PathBuf>,
    pub(crate) write: Vec<PathBuf>,
    /// Whether it connects by itself, so that only ports can be enforced, or asks the gateway, which enforces hosts too.
    pub(crate) direct: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Connect {
    /// `*`
    Anywhere,
    To {
        host: Host,
        port: u16,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Address(std::net::IpAddr),
    /// To be resolved by whoever connects.
    Name(String),
}

impl Level {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Standard => "standard",
            Self::Minimal => "minimal",
            Self::Off => "off",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Strict, Self::Standard, Self::Minimal, Self::Off]
            .into_iter()
            .find(|level| level.as_str() == name)
    }
}

impl Connect {
    /// `*`, `host:port` or `[address]:port`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Anywhere);
        }
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|&port| port != 0)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(address) => Host::Address(address.parse::<std::net::Ipv6Addr>().ok()?.into()),
            None => match host.parse::<std::net::Ipv4Addr>() {
                Ok(address) => Host::Address(address.into()),
                Err(_) if is_host_name(host) => Host::Name(host.to_owned()),
                Err(_) => return None,
            },
        };
        Some(Self::To { host, port })
    }

    /// Whether who may connect to this may connect to `host` and `port`. Names are compared as they are written, but for their
    /// case: an address in other words is another host.
    pub(crate) fn covers(&self, host: &Host, port: u16) -> bool {
        match self {
            Self::Anywhere => true,
            Self::To { port: allowed, .. } if *allowed != port => false,
            Self::To { host: allowed, .. } => match (allowed, host) {
                (Host::Name(allowed), Host::Name(name)) => allowed.eq_ignore_ascii_case(name),
                (Host::Address(allowed), Host::Address(address)) => allowed == address,
                (Host::Name(_), Host::Address(_)) | (Host::Address(_), Host::Name(_)) => false,
            },
        }
    }

    /// Whether the address must be asked for on the network.
    pub(crate) fn needs_resolving(&self) -> bool {
        match self {
            Self::Anywhere => true,
            Self::To { host: Host::Name(name), .. } => name != "localhost",
            Self::To { host: Host::Address(_), .. } => false,
        }
    }
}

fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    name.len() <= HOST_BYTES_MAX && name.trim_end_matches('.').split('.').all(is_label)
}

pub(super) fn read(section: &Section<'_>, base: Base<'_>, report: &mut Report<'_>) -> Sandbox {
    if !section.has("run") {
        for key in ["sandbox", "run_as", "allow"].into_iter().filter(|key| section.has(key)) {
            if let Some(value) = section.value(key) {
                report.add(
                    &value.spot,
                    "only for an adapter with `run`: the gateway limits the processes that it starts",
                );
            }
        }
        return Sandbox::default();
    }
    let run_as = section.text("run_as").and_then(|user| match account(user.value) {
        Ok(account) => Some(account),
        Err(why) => {
            report.add(&user.spot, why);
            None
        }
    });
    let allow = section.table("allow");
    Sandbox {
        level: section.choice("sandbox", Level::from_name).unwrap_or_default(),
        run_as,
        resources: allow.as_ref().map(|allow| resources::read(allow, report)).unwrap_or_default(),
        allow: allow.map(|allow| self::allow(&allow, base, report)).unwrap_or_default(),
    }
}

/// A number that the user database does not know has a group of the same number.
pub(super) fn account(user: &str) -> Result<RunAs, String> {
    let uid = accounts::uid(user)?;
    let entry = User::from_uid(uid.into()).ok().flatten();
    Ok(RunAs { uid, gid: entry.map_or(uid, |entry| entry.gid.as_raw()) })
}

fn allow(section: &Section<'_>, base: Base<'_>, report: &mut Report<'_>) -> Access {
    let mut list = |key, most: usize| {
        let items = section.texts(key).unwrap_or_default();
        if let Some(beyond) = items.get(most) {
            report.add(&beyond.spot, format!("too many: {most} at most"));
        }
        items
    };
    let connect = list("connect", HOSTS_MAX);
    let [bind, read, write] = ["bind", "read", "write"].map(|key| list(key, ALLOWED_MAX));
    let connect = parsed(&connect, Connect::parse, "not `host:port`, `[address]:port` or `*`", report);
    let bind = parsed(
        &bind,
        |text| text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0),
        "not `address:port` with an address of this host, such as `127.0.0.1:2575` or `[::]:2575`",
        report,
    );
    let mut paths = |items: Vec<Item<&str>>| items.iter().map(|item| base.existing(item, report)).collect();
    Access { connect, bind, read: paths(read), write: paths(write), direct: section.truth("direct") }
}

fn parsed<T>(
    items: &[Item<&str>],
    parse: impl Fn(&str) -> Option<T>,
    wrong: &str,
    report: &mut Report<'_>,
) -> Vec<T> {
    let mut values = Vec::new();
    for item in items {
        match parse(item.value) {
            Some(value) => values.push(value),
            None => report.add(&item.spot, wrong),
        }
    }
    values
}

/// What only the whole configuration shows.
pub(super) fn check(root: &Section<'_>, config: &Config, report: &mut Report<'_>) {
    for (name, section) in root.named("adapters") {
        let Some(adapter) = config.adapters.get(name) else { continue };
        if !matches!(adapter.process, AdapterProcess::Supervised(_)) {
            continue;
        }
        let sandbox = &adapter.sandbox;
        if sandbox.level == Level::Off
            && config.safety == Safety::Required
            && let Some(level) = section.value("sandbox")
        {
            let why = "\"off\" lets the adapter do all that the gateway can: leave the key out, or use \"minimal\"; \
                       for trying something out there is `gatepost serve --insecure-dev`";
            report.refuse(Rule::SandboxOff, &level.spot, why);
        }
        if let (Some(run_as), Some(user)) = (sandbox.run_as, section.text("run_as")) {
            let gateway = config.gateway.user.map_or(geteuid().as_raw(), |user| user.uid);
            if run_as.uid == 0 || run_as.uid == gateway {
                let why =
                    "must be neither root nor the gateway's own user: name a user that does nothing else";
                report.refuse(Rule::AdapterIsGateway, &user.spot, why);
            } else if sandbox.level == Level::Off {
                report.add(&user.spot, "has no effect with sandbox = \"off\": remove one of the two");
            }
        }
        let Some(allow) = section.table("allow") else { continue };
        if sandbox.level == Level::Off {
            for limit in ["memory", "processes", "cpus"].iter().filter_map(|key| allow.value(key)) {
                report.add(&limit.spot, "has no effect with sandbox = \"off\": remove one of the two");
            }
        }
        for to in allow.texts("connect").unwrap_or_default().iter().filter(|to| to.value == "*") {
            report.warn(Rule::ConnectAnywhere, &to.spot, "lets it connect to any host: name its partners");
        }
        for key in ["read", "write"] {
            let (items, paths) = match key {
                "read" => (allow.texts(key), &sandbox.allow.read),
                _ => (allow.texts(key), &sandbox.allow.write),
            };
            for (item, path) in items.unwrap_or_default().iter().zip(paths) {
                if reaches(path, &config.gateway.data_dir) {
                    let why = "holds or lies in the gateway's data_dir, with its keys and messages: name something smaller, elsewhere";
                    report.add(&item.spot, why);
                }
            }
        }
    }
}

/// Whether who may reach `path` may reach something of the directory `kept`.
pub(crate) fn reaches(path: &Path, kept: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (path, kept) = (real(path), real(kept));
    path.starts_with(&kept) || kept.starts_with(&path)
}

/// Reading what a program says of itself: the same lists as in `allow`.
impl Access {
    pub(crate) fn of_lists(
        connect: &[String],
        bind: &[String],
        read: Vec<PathBuf>,
        write: Vec<PathBuf>,
        direct: Option<bool>,
    ) -> Option<Self> {
        let within = [bind.len(), read.len(), write.len()].into_iter().all(|length| length <= ALLOWED_MAX);
        let absolute = read.iter().chain(&write).all(|path| path.is_absolute());
        (within && connect.len() <= HOSTS_MAX && absolute).then_some(())?;
        Some(Self {
            // `*` is the operator's word alone.
            connect: connect
                .iter()
                .map(|text| Connect::parse(text).filter(|to| *to != Connect::Anywhere))
                .collect::<Option<_>>()?,
            bind: bind.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?,
            read,
            write,
            direct,
        })
    }

    /// Both together; whether it connects by itself is this one's to say first.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.connect.extend_from_slice(&other.connect);
        both.bind.extend_from_slice(&other.bind);
        both.read.extend_from_slice(&other.read);
        both.write.extend_from_slice(&other.write);
        both.direct = self.direct.or(other.direct);
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partner_is_a_host_and_a_port() {
        let to = |host, port| Some(Connect::To { host, port });
        assert_eq!(Connect::parse("lab.example.org:2575"), to(Host::Name("lab.example.org".into()), 2575));
        assert_eq!(Connect::parse("10.1.2.3:1"), to(Host::Address([10, 1, 2, 3].into()), 1));
        assert_eq!(Connect::parse("[::1]:443"), to(Host::Address(std::net::Ipv6Addr::LOCALHOST.into()), 443));
        assert_eq!(Connect::parse("*"), Some(Connect::Anywhere));
        for wrong in [
            "",
            "lab",
            "lab:",
            ":1",
            "lab:0",
            "lab:65536",
            "::1:443",
            "[10.1.2.3]:1",
            "a b:1",
            "https://lab:1",
            "*:1",
            "[lab]:1",
        ] {
            assert_eq!(Connect::parse(wrong), None, "{wrong}");
        }
        let needs = |text| Connect::parse(text).unwrap().needs_resolving();
        assert!(needs("lab:1") && needs("*") && !needs("localhost:1") && !needs("127.0.0.1:1"));
    }

    #[test]
    fn what_a_program_says_is_read_strictly() {
        let of = |connect: &[&str], read: &[&str]| {
            let connect: Vec<_> = connect.iter().map(|text| (*text).to_owned()).collect();
            Access::of_lists(&connect, &[], read.iter().map(PathBuf::from).collect(), Vec::new(), None)
        };
        assert!(of(&["lab:1"], &["/etc/lab"]).is_some());
        assert!(of(&["*"], &[]).is_none() && of(&[], &["etc/lab"]).is_none() && of(&["x"], &[]).is_none());
        assert!(of(&[], &["/x"; ALLOWED_MAX]).is_some() && of(&[], &["/x"; ALLOWED_MAX + 1]).is_none());
        assert!(of(&["lab:1"; HOSTS_MAX], &[]).is_some() && of(&["lab:1"; HOSTS_MAX + 1], &[]).is_none());
    }
}

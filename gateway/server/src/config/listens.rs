//! `[[listen]]`: Unix sockets that are files, and TCP with TLS and client certificates. Never an abstract socket, which any
//! process could squat, and never TCP in the clear.

use std::net::SocketAddr;

use super::fault::Report;
use super::files::{Files, Purpose};
use super::rules::Rule;
use super::section::{Item, Section};
use super::{Listen, ListenAt, Serves, TcpListen, TlsFiles, UnixListen, accounts};

/// Longest path of a Unix socket, bytes: what a socket address holds, without its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;
const WRITABLE_BY_ALL: u32 = 0o002;
const MODE_OF_OWNER: u32 = 0o600;
const MODE_OF_GROUP: u32 = 0o660;

pub(super) fn read(root: &Section<'_>, files: &mut Files<'_>, report: &mut Report<'_>) -> Vec<Listen> {
    let sections = root.tables("listen");
    if sections.is_empty() && !root.has("listen") {
        report.add(&root.spot, "no [[listen]]: nobody could connect; add one with `serves` and `unix`");
    }
    let mut listens: Vec<Listen> = Vec::new();
    for section in &sections {
        let Some(at) = address(section, files, report) else { continue };
        if let Some(earlier) = listens.iter().position(|earlier| same_place(&earlier.at, &at)) {
            let what = if section.has("unix") { "unix" } else { "tcp" };
            let spot = section.text(what).map_or_else(|| section.spot.clone(), |item| item.spot);
            report.add(&spot, format!("already used by listen[{}]: give each listener its own", earlier + 1));
        }
        if let Some(serves) = section.choice("serves", Serves::from_name) {
            listens.push(Listen { serves, at });
        }
    }
    listens
}

impl Serves {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Apps => "apps",
            Self::Operators => "operators",
            Self::Adapters => "adapters",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Apps, Self::Operators, Self::Adapters].into_iter().find(|serves| serves.as_str() == name)
    }
}

fn address(section: &Section<'_>, files: &mut Files<'_>, report: &mut Report<'_>) -> Option<ListenAt> {
    match (section.has("unix"), section.has("tcp")) {
        (true, false) => {
            refuse(
                section,
                &["tls"],
                "only for `tcp`: a Unix socket knows its peers from the kernel",
                report,
            );
            unix(section, files, report).map(ListenAt::Unix)
        }
        (false, true) => {
            refuse(section, &["mode", "group"], "only for `unix`: remove it", report);
            tcp(section, files, report).map(ListenAt::Tcp)
        }
        (true, true) => {
            report.add(&section.spot, "has both `unix` and `tcp`: write two [[listen]] tables");
            None
        }
        (false, false) => {
            report.add(&section.spot, "needs `unix = \"/path/of.sock\"`, or `tcp = \"IP:PORT\"` with `tls`");
            None
        }
    }
}

fn refuse(section: &Section<'_>, keys: &[&str], why: &str, report: &mut Report<'_>) {
    for item in keys.iter().filter_map(|key| section.value(key)) {
        report.add(&item.spot, why);
    }
}

fn unix(section: &Section<'_>, files: &Files<'_>, report: &mut Report<'_>) -> Option<UnixListen> {
    let group = section.text("group").and_then(|group| match accounts::gid(group.value) {
        Ok(gid) => Some(gid),
        Err(why) => {
            report.add(&group.spot, why);
            None
        }
    });
    let fallback = if section.has("group") { MODE_OF_GROUP } else { MODE_OF_OWNER };
    let mode = section.text("mode").map_or(fallback, |mode| permissions(&mode, report));
    let path = section.text("unix")?;
    if path.value.starts_with('@') {
        let why = "an abstract socket has no permissions: write the path of a file";
        report.refuse(Rule::AbstractSocket, &path.spot, why);
        return None;
    }
    let resolved = files.socket(&path, report);
    let bytes = resolved.as_os_str().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        report.add(
            &path.spot,
            format!("too long for a socket: {bytes} bytes, the most is {SOCKET_PATH_BYTES_MAX}"),
        );
    }
    Some(UnixListen { path: resolved, mode, group })
}

fn permissions(mode: &Item<&str>, report: &mut Report<'_>) -> u32 {
    let octal = mode.value.bytes().all(|byte| matches!(byte, b'0'..=b'7')) && mode.value.len() <= 4;
    match u32::from_str_radix(mode.value, 8) {
        Ok(bits) if octal && bits <= 0o777 => {
            if bits & WRITABLE_BY_ALL != 0 {
                report.add(&mode.spot, "lets everybody connect: use \"0660\" with `group`, or \"0600\"");
            }
            bits
        }
        _ => {
            report.add(&mode.spot, "not permissions: write three octal digits, such as \"0660\"");
            MODE_OF_OWNER
        }
    }
}

fn tcp(section: &Section<'_>, files: &mut Files<'_>, report: &mut Report<'_>) -> Option<TcpListen> {
    let tls = tls(section, files, report);
    let tcp = section.text("tcp")?;
    match tcp.value.parse::<SocketAddr>() {
        Ok(address) => {
            if address.ip().is_unspecified() {
                let why = "every address of this host: write the one that its peers need";
                report.warn(Rule::AllAddresses, &tcp.spot, why);
            }
            Some(TcpListen { address, tls: tls? })
        }
        Err(_) => {
            report.add(
                &tcp.spot,
                "not an IP address and port: write it like \"0.0.0.0:7443\" or \"[::]:7443\"",
            );
            None
        }
    }
}

fn tls(section: &Section<'_>, files: &mut Files<'_>, report: &mut Report<'_>) -> Option<TlsFiles> {
    if !section.has("tls") {
        let spot = section.value("tcp").map_or_else(|| section.spot.clone(), |tcp| tcp.spot);
        let why = "TCP needs TLS: add tls = { cert = \"…\", key = \"…\", client_ca = \"…\" }";
        report.refuse(Rule::TcpWithoutCertificates, &spot, why);
    }
    let named = section.table("tls")?;
    let cert = named.text("cert").map(|path| files.public(&path, report));
    let key = named.text("key").map(|path| files.secret(&path, Purpose::Tls, report));
    let client_ca = named.text("client_ca").map(|path| files.public(&path, report));
    let crl = match named.text("crl") {
        Some(one) => vec![one],
        None => named.texts("crl").unwrap_or_default(),
    };
    let crl = crl.iter().map(|path| files.public(path, report)).collect();
    Some(TlsFiles { cert: cert?, key: key?, client_ca: client_ca?, crl })
}

/// Port 0 is another port each time.
fn same_place(one: &ListenAt, other: &ListenAt) -> bool {
    match (one, other) {
        (ListenAt::Unix(one), ListenAt::Unix(other)) => one.path == other.path,
        (ListenAt::Tcp(one), ListenAt::Tcp(other)) => one.address == other.address && one.address.port() != 0,
        (ListenAt::Unix(_), ListenAt::Tcp(_)) | (ListenAt::Tcp(_), ListenAt::Unix(_)) => false,
    }
}

/// Whether some listener serves external adapters, or might once its own fault is mended.
pub(super) fn serve_adapters(root: &Section<'_>) -> bool {
    let might = |section: &Section<'_>| {
        section.choice("serves", Serves::from_name).is_none_or(|serves| serves == Serves::Adapters)
    };
    root.tables("listen").iter().any(might)
}

//! What a server's own words mean for a gateway. Pure.

use super::ServerFinding;
use super::engine::{self, Engine};
use super::facts::{Clocks, Facts};
use crate::open::Engines;

/// The oldest major version that will do.
const MAJOR_MIN: u32 = 14;
/// The newest that this program knows.
const MAJOR_KNOWN: u32 = 18;
/// Between a major version and the next, in the server's number.
const MAJOR_STEP: u32 = 10_000;
/// Connections that a node uses: its writer, its readers, the sequencer, the watch and the probe's two.
const CONNECTIONS: i64 = 9;
/// Clocks that are further apart are worth a word, microseconds.
const CLOCKS_APART_MAX_MICROS: i64 = 5_000_000;

const SESSION: &str = "each session of the gateway asks for it, so something in between, perhaps a pooler, drops that: \
    name the server itself in the address";

pub(super) fn judge(facts: &Facts, engines: Engines) -> Vec<ServerFinding> {
    let engine = engine::name(facts);
    let mut found = Vec::new();
    found.extend(like(&engine, engines));
    if engine == Engine::Postgres {
        found.extend(version(facts.number));
    }
    found.extend(durable(facts, &engine));
    found.extend(standby(facts));
    found.extend(waits(facts));
    found.extend(checksums(facts));
    found.extend(room(facts));
    found.extend(facts.clocks.as_ref().and_then(clocks));
    found
}

fn like(engine: &Engine, engines: Engines) -> Option<ServerFinding> {
    const WHAT: &str = "engine";
    let Engine::Like(name) = engine else { return None };
    Some(match engines {
        Engines::Postgres => ServerFinding::refused(
            WHAT,
            format!("{name}, which is not PostgreSQL"),
            "its locks and its durability are not tested; use PostgreSQL, or try it with `experimental = true` beside \
             `url_file` of [store] postgres",
        ),
        Engines::Alike => ServerFinding::warning(
            WHAT,
            format!("{name}, which is not PostgreSQL"),
            "it is tried because of `experimental = true`: nothing that the gateway promises is tested on it",
        ),
    })
}

fn version(number: Option<u32>) -> Option<ServerFinding> {
    const WHAT: &str = "version";
    let Some(number) = number else {
        return Some(ServerFinding::refused(WHAT, "not told", "use PostgreSQL 14 or newer"));
    };
    let major = number / MAJOR_STEP;
    if major < MAJOR_MIN {
        return Some(ServerFinding::refused(
            WHAT,
            format!("PostgreSQL {major}"),
            "14 or newer is needed: its times are exact to the microsecond (extract gives a numeric since 14), and its \
             indexes drop dead entries before they split (since 14), without which queues bloat",
        ));
    }
    (major > MAJOR_KNOWN).then(|| {
        ServerFinding::warning(
            WHAT,
            format!("PostgreSQL {major}"),
            format!("{MAJOR_KNOWN} is the newest that this program knows: look for a newer Gatepost"),
        )
    })
}

/// Settings without which a commit that was answered may be lost.
fn durable(facts: &Facts, engine: &Engine) -> Vec<ServerFinding> {
    let server = |name: &str| {
        format!(
            "a crash loses or tears what was confirmed: set `{name} = on` in postgresql.conf and reload it"
        )
    };
    let asked: [(&'static str, &Option<String>, &[&str], String); 4] = [
        ("fsync", &facts.fsync, &["on"], server("fsync")),
        ("full_page_writes", &facts.full_page_writes, &["on"], server("full_page_writes")),
        (
            "synchronous_commit",
            &facts.synchronous_commit,
            &["on", "remote_apply"],
            format!("commits are answered before they are durable; {SESSION}"),
        ),
        ("transaction isolation", &facts.isolation, &["read committed"], SESSION.to_owned()),
    ];
    let wrong = asked.into_iter().filter_map(|(what, found, wanted, advice)| match found {
        Some(value) if wanted.contains(&value.as_str()) => None,
        Some(value) => Some(ServerFinding::refused(what, value.clone(), advice)),
        // Another engine need not have the setting; that it is another one is said.
        None if *engine != Engine::Postgres => None,
        None => Some(ServerFinding::refused(what, "not told", advice)),
    });
    wrong.collect()
}

fn standby(facts: &Facts) -> Option<ServerFinding> {
    facts.is_standby().then(|| {
        ServerFinding::refused(
            "role",
            "a standby, which takes no writes",
            "name the primary in the address; after a failover, a name that follows the primary helps",
        )
    })
}

/// Nothing would come of the start: its own commits would wait.
fn waits(facts: &Facts) -> Option<ServerFinding> {
    let names = facts.waits_for.as_ref().filter(|_| !facts.is_standby())?;
    Some(ServerFinding::refused(
        "synchronous standby",
        format!("commits wait for `{names}`, and none of them is attached"),
        "start the standby, or take it out of synchronous_standby_names",
    ))
}

fn checksums(facts: &Facts) -> Option<ServerFinding> {
    (facts.checksums.as_deref() == Some("off")).then(|| {
        ServerFinding::warning(
            "data_checksums",
            "off",
            "damage on its disk is found late or never: stop the server and run `pg_checksums --enable`",
        )
    })
}

fn room(facts: &Facts) -> Option<ServerFinding> {
    let room = facts.room.filter(|room| *room < CONNECTIONS)?;
    Some(ServerFinding::warning(
        "connections",
        format!("{} more may come", room.max(0)),
        format!(
            "a node uses up to {CONNECTIONS}: raise max_connections, or the limit of the role or the database"
        ),
    ))
}

fn clocks(clocks: &Clocks) -> Option<ServerFinding> {
    let Clocks { server, before, after } = clocks;
    let behind = before.as_micros() - server.as_micros();
    let ahead = server.as_micros() - after.as_micros();
    (behind.max(ahead) > CLOCKS_APART_MAX_MICROS).then(|| {
        ServerFinding::warning(
            "clocks",
            format!("the server's says {}, this host's {}", server.to_rfc3339(), before.to_rfc3339()),
            "times are the server's; have both clocks set, by NTP for example",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::Weight;
    use super::*;
    use gatepost_core::Timestamp;

    fn sound() -> Facts {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        let on = || Some("on".to_owned());
        Facts {
            version: "PostgreSQL 16.4 (Debian 16.4-1) on x86_64-pc-linux-gnu".to_owned(),
            number: Some(160_004),
            fsync: on(),
            full_page_writes: on(),
            synchronous_commit: on(),
            isolation: Some("read committed".to_owned()),
            checksums: on(),
            access_method: Some("heap".to_owned()),
            in_recovery: Some(false),
            waits_for: None,
            room: Some(90),
            clocks: Some(Clocks { server: at(100), before: at(100), after: at(101) }),
            catalogue: None,
        }
    }

    fn text(finding: &ServerFinding) -> String {
        format!("{:?} {finding}", finding.weight)
    }

    #[test]
    fn a_sound_server_gives_no_word() {
        assert_eq!(judge(&sound(), Engines::Postgres), []);
        let stricter = Facts { synchronous_commit: Some("remote_apply".to_owned()), ..sound() };
        assert_eq!(judge(&stricter, Engines::Postgres), []);
    }

    #[test]
    fn each_fault_is_named_alone() {
        type Spoil = fn(&mut Facts);
        let cases: [(Spoil, &str); 15] = [
            (|facts| facts.number = Some(130_022), "Refused version: PostgreSQL 13: 14 or newer is needed"),
            (|facts| facts.number = Some(190_000), "Warning version: PostgreSQL 19: 18 is the newest"),
            (|facts| facts.number = None, "Refused version: not told"),
            (|facts| facts.fsync = Some("off".to_owned()), "Refused fsync: off: a crash loses"),
            (|facts| facts.full_page_writes = Some("off".to_owned()), "Refused full_page_writes: off:"),
            (
                |facts| facts.synchronous_commit = Some("local".to_owned()),
                "Refused synchronous_commit: local:",
            ),
            (
                |facts| facts.synchronous_commit = Some("remote_write".to_owned()),
                "Refused synchronous_commit: remote_write",
            ),
            (
                |facts| facts.isolation = Some("serializable".to_owned()),
                "Refused transaction isolation: serializable: each session",
            ),
            (|facts| facts.isolation = None, "Refused transaction isolation: not told"),
            (|facts| facts.in_recovery = Some(true), "Refused role: a standby"),
            (
                |facts| facts.waits_for = Some("second".to_owned()),
                "Refused synchronous standby: commits wait for `second`, and none",
            ),
            (|facts| facts.checksums = Some("off".to_owned()), "Warning data_checksums: off"),
            (|facts| facts.room = Some(8), "Warning connections: 8 more may come: a node uses up to 9"),
            (
                |facts| facts.access_method = Some("orioledb".to_owned()),
                "Refused engine: PostgreSQL with tables kept by `orioledb`",
            ),
            (|facts| facts.version.clear(), "Refused engine: an engine that this program does not know"),
        ];
        for (spoil, begins) in cases {
            let mut facts = sound();
            spoil(&mut facts);
            let found: Vec<String> = judge(&facts, Engines::Postgres).iter().map(text).collect();
            assert!(matches!(found.as_slice(), [one] if one.starts_with(begins)), "{begins}: {found:#?}");
        }
    }

    #[test]
    fn clocks_apart_are_both_named() {
        for server in [Timestamp::from_micros(94_000_000), Timestamp::from_micros(107_000_000)] {
            let facts = Facts { clocks: Some(Clocks { server, ..sound().clocks.unwrap() }), ..sound() };
            let found = judge(&facts, Engines::Postgres);
            let [one] = found.as_slice() else { panic!("{found:#?}") };
            assert_eq!((one.weight, one.what), (Weight::Warning, "clocks"));
            assert!(one.found.contains(&server.to_rfc3339()) && one.found.contains("00:01:40"), "{one}");
        }
        let server = Timestamp::from_micros(105_900_000);
        let near = Facts { clocks: Some(Clocks { server, ..sound().clocks.unwrap() }), ..sound() };
        assert_eq!(judge(&near, Engines::Postgres), []);
    }

    #[test]
    fn what_only_resembles_postgresql_is_named_and_may_be_tried() {
        for (version, catalogue, name) in [
            ("CockroachDB CCL v25.1.2 (x86_64-pc-linux-gnu, built 2025)", None, "CockroachDB"),
            ("PostgreSQL 15.2-YB-2.25.0.0-b0 on x86_64-pc-linux-gnu", None, "YugabyteDB"),
            ("PostgreSQL 8.0.2 on i686-pc-linux-gnu, Redshift 1.0.12103", None, "Amazon Redshift"),
            ("PostgreSQL 12.12 (Greenplum Database 7.1.0 build commit:e7c2b1f)", None, "Greenplum"),
            ("PostgreSQL 16", Some("Aurora DSQL"), "Aurora DSQL"),
            (
                "PostgreSQL 17.0 on x86_64-pc-linux-gnu",
                Some("PostgreSQL with tables of the gateway distributed by Citus"),
                "Citus",
            ),
        ] {
            // Such an engine lacks settings, and its version's number is not PostgreSQL's.
            let facts =
                Facts { version: version.to_owned(), catalogue, number: None, fsync: None, ..sound() };
            let refused = judge(&facts, Engines::Postgres);
            assert!(
                matches!(refused.as_slice(), [one] if one.weight == Weight::Refused && one.found.contains(name))
            );
            let tried = judge(&facts, Engines::Alike);
            assert!(
                matches!(tried.as_slice(), [one] if one.weight == Weight::Warning && one.found.contains(name))
            );
        }
        let edb = "PostgreSQL 16.4 (EnterpriseDB Advanced Server 16.4.0) on x86_64-pc-linux-gnu";
        let edb = Facts { version: edb.to_owned(), ..sound() };
        assert_eq!(judge(&edb, Engines::Postgres), []);
    }
}

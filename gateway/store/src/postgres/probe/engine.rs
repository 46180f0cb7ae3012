//! Which engine answers: many speak PostgreSQL's protocol, and not all that they do is PostgreSQL's.

use super::facts::Facts;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Engine {
    /// PostgreSQL, or what is built of its own source and keeps its storage and its locks.
    Postgres,
    /// Another one, by its name.
    Like(String),
}

/// Words in what an engine says of itself.
const BY_VERSION: &[(&str, &str)] = &[
    ("CockroachDB", "CockroachDB"),
    ("-YB-", "YugabyteDB"),
    ("YugabyteDB", "YugabyteDB"),
    ("Redshift", "Amazon Redshift"),
    ("Greenplum", "Greenplum"),
    ("Cloudberry", "Apache Cloudberry"),
    ("Aurora DSQL", "Aurora DSQL"),
    ("Materialize", "Materialize"),
    ("materialized", "Materialize"),
    ("RisingWave", "RisingWave"),
    ("CrateDB", "CrateDB"),
    ("QuestDB", "QuestDB"),
    ("Spanner", "Spanner"),
    ("openGauss", "openGauss"),
    ("GaussDB", "GaussDB"),
];
/// How versions of PostgreSQL begin, and of EDB's, which is one.
const OURS: &[&str] = &["PostgreSQL ", "EnterpriseDB "];
/// The only way in which PostgreSQL itself keeps tables.
const ACCESS_METHOD: &str = "heap";

pub(super) fn name(facts: &Facts) -> Engine {
    let known = BY_VERSION.iter().find(|(word, _)| facts.version.contains(word)).map(|(_, name)| *name);
    let known = known.or(facts.catalogue);
    if let Some(name) = known {
        return Engine::Like(name.to_owned());
    }
    if !OURS.iter().any(|ours| facts.version.starts_with(ours)) {
        return Engine::Like("an engine that this program does not know".to_owned());
    }
    match facts.access_method.as_deref() {
        None | Some(ACCESS_METHOD) => Engine::Postgres,
        Some(other) => Engine::Like(format!("PostgreSQL with tables kept by `{other}`")),
    }
}

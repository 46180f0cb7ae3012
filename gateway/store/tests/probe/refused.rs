//! Servers that are not used, and why; and those that are, with a word.

use gatepost_postgres::Cluster;
use gatepost_store::{Durability, Engines, Weight, server_look};

use crate::{DATABASE, cluster, look, open, refusal};

#[tokio::test]
async fn a_sound_server_gives_no_word_and_nothing_is_left_on_it() {
    let cluster = cluster(&[]);
    let url = cluster.url(DATABASE);
    // Nodes that start at the same time look at the same time.
    let (one, two, three) = tokio::join!(look(&url), look(&url), look(&url));
    for look in [one, two, three] {
        assert_eq!((look.durability, look.findings), (Durability::Fsync, Vec::new()));
        assert!(look.server.starts_with("PostgreSQL 1"), "{}", look.server);
    }
    assert_eq!(cluster.query(DATABASE, "SELECT to_regclass('gatepost.probe') IS NULL").unwrap(), "t");
    assert_eq!(
        cluster.query(DATABASE, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").unwrap(),
        "0"
    );
}

#[tokio::test]
async fn all_that_is_wrong_is_said_at_once_and_no_password() {
    let cluster = cluster(&[("fsync", "off"), ("full_page_writes", "off"), ("max_connections", "11")]);
    let text = refusal(&format!("{}&password=s3cret", cluster.url(DATABASE))).await;
    for part in [
        "will not do:",
        "fsync: off: a crash loses or tears what was confirmed: set `fsync = on`",
        "full_page_writes: off:",
        "connections: ",
        "more may come: a node uses up to 9",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("s3cret"), "{text}");
    assert_eq!(cluster.query(DATABASE, "SELECT to_regclass('gatepost.store') IS NULL").unwrap(), "t");
}

#[tokio::test]
async fn what_the_database_or_the_address_prefers_does_not_reach_our_sessions() {
    let cluster =
        cluster(&[("default_transaction_isolation", "serializable"), ("synchronous_commit", "off")]);
    for setting in ["synchronous_commit = off", "default_transaction_isolation = 'repeatable read'"] {
        cluster.query(DATABASE, &format!("ALTER DATABASE {DATABASE} SET {setting}")).unwrap();
        cluster.query(DATABASE, &format!("ALTER ROLE gatepost SET {setting}")).unwrap();
    }
    let url = format!("{}&options[synchronous_commit]=off", cluster.url(DATABASE));
    assert_eq!(look(&url).await.findings, []);
    let dir = tempfile::tempdir().unwrap();
    let (store, task) = open(&dir, &url).await.unwrap();
    drop(store);
    task.stop().await;
}

#[tokio::test]
async fn a_standby_is_refused() {
    let cluster = cluster(&[]);
    let standby = cluster.standby("second", &[]).unwrap();
    let text = refusal(&standby.url(DATABASE)).await;
    assert!(text.contains("role: a standby, which takes no writes: name the primary"), "{text}");
}

#[tokio::test]
async fn who_may_make_nothing_is_told() {
    let cluster = cluster(&[]);
    cluster.query(DATABASE, "CREATE ROLE reader LOGIN").unwrap();
    let look = look(&cluster.url(DATABASE).replace("user=gatepost", "user=reader")).await;
    let [finding] = look.findings.as_slice() else { panic!("{look:?}") };
    assert_eq!(finding.weight, Weight::Refused);
    assert!(finding.found.contains("permission denied"), "{finding}");
    assert!(finding.advice.contains("schema `gatepost`"), "{finding}");
    // With a schema of its own a role need not be able to make one.
    cluster.query(DATABASE, "CREATE SCHEMA gatepost AUTHORIZATION reader").unwrap();
    let look = crate::look(&cluster.url(DATABASE).replace("user=gatepost", "user=reader")).await;
    assert_eq!(look.findings, []);
}

/// Somebody else's trigger puts a third row into the probe's table, as an engine might that skips, sees or moves other rows.
#[tokio::test]
async fn what_behaves_otherwise_is_refused() {
    let cluster = cluster(&[]);
    let statements = "CREATE FUNCTION meddle() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN \
        IF to_regclass('gatepost.probe') IS NOT NULL THEN INSERT INTO gatepost.probe VALUES (7); END IF; END $$; \
        CREATE EVENT TRIGGER meddle ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION meddle()";
    cluster.query(DATABASE, statements).unwrap();
    let text = refusal(&cluster.url(DATABASE)).await;
    for part in [
        "SKIP LOCKED: of the rows 1, which is locked, and 2 it gives [2, 7]",
        "isolation:",
        "WITH … DELETE … INSERT:",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

/// Each has something in its catalogue that PostgreSQL has not. Distributed tables are told by an extension, which is not here.
#[tokio::test]
async fn another_engine_is_known_by_its_catalogue_and_may_be_tried() {
    let cluster = cluster(&[]);
    for (schema, table, name) in
        [("crdb_internal", "x", "CockroachDB"), ("sys", "iam_pg_role_mappings", "Aurora DSQL")]
    {
        let made = format!("CREATE SCHEMA {schema} CREATE TABLE {table} ()");
        cluster.query(DATABASE, &made).unwrap();
        let url = cluster.url(DATABASE);
        let text = refusal(&url).await;
        assert!(text.contains(&format!("engine: {name}, which is not PostgreSQL")), "{text}");
        assert!(text.contains("`experimental = true`"), "{text}");
        let tried = server_look(&url, Engines::Alike).await.unwrap();
        assert!(matches!(tried.findings.as_slice(), [one] if one.weight == Weight::Warning), "{tried:?}");
        cluster.query(DATABASE, &format!("DROP SCHEMA {schema} CASCADE")).unwrap();
    }
}

#[tokio::test]
async fn an_address_elsewhere_is_refused_before_anybody_is_asked() {
    let text = refusal("postgres://gp:s3cret@db.invalid/gp").await;
    assert!(text.contains("db.invalid:5432 is on another machine, and without sslmode"), "{text}");
    assert!(text.contains("?sslmode=verify-full&sslrootcert="), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_no_finding() {
    let mut cluster = Cluster::start(&[]).unwrap();
    cluster.kill().unwrap();
    let text = refusal(&cluster.url(DATABASE)).await;
    assert!(text.starts_with("PostgreSQL: "), "{text}");
}

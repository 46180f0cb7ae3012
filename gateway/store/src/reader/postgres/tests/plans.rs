//! What every statement is prepared to, with tables that are not empty.

use sqlx::{Executor as _, PgPool, Row as _, SqlStr};

use super::super::sql;
use super::Server;

/// Messages of four days, each with a delivery; most have ended.
const ROWS: &str = "
    INSERT INTO queue (id, name, kind, version, trip_failures, idle_before, session)
        SELECT n, 'q' || n, 'adapter', 1, 0, 0, 0 FROM generate_series(1, 8) n;
    INSERT INTO message (seq, id, day, accepted_at, sender_kind, sender, kind, form, size, dedup, fingerprint, subject, key, correlation,
        first_pos, deliveries, remains)
        SELECT n, decode(lpad(to_hex(n), 32, '0'), 'hex'), n * 4 / 40001, n, 'app', 'ehr', 'kind', 1, 2, '', '',
        decode(to_hex(n / 100 + 4096), 'hex'), decode(to_hex(n / 100 + 4096), 'hex'), decode(lpad(to_hex(n), 32, '0'), 'hex'), n, 1, ''
        FROM generate_series(1, 40000) n;
    INSERT INTO payload (day, seq, attributes, salt, data) SELECT day, seq, '', '', '' FROM message;
    INSERT INTO delivery (pos, id, message, queue, state, blocks, due, late, attempts, series, crashes, doubt, suspect, replayed, reason,
        born, idle_at_birth, changed_at, leaves)
        SELECT n, decode(lpad(to_hex(n), 32, '0'), 'hex'), n, n % 8 + 1, CASE WHEN n % 8000 = 0 THEN 5 WHEN n % 8000 = 1 THEN 3
        WHEN n > 20000 THEN 0 ELSE 4 END, true, CASE WHEN n > 20000 AND n % 8000 > 1 THEN n END, false, 0, 0, 0, false, false, false,
        CASE WHEN n % 8000 = 0 THEN 'rejected' END, n, 0, n, '' FROM generate_series(1, 40000) n;
    INSERT INTO ready (queue, bucket, due, pos, suspect) SELECT queue, pos % 64, due, pos, false FROM delivery WHERE due IS NOT NULL;
    INSERT INTO stuck (state, pos, queue, held) SELECT state, pos, queue, state = 3 FROM delivery WHERE state IN (3, 5);
    INSERT INTO lease_group (id, epoch, pos) SELECT n, 1, ARRAY[n, n + 1] FROM generate_series(1, 20) n;
    INSERT INTO detail (day, delivery, leaf, body) SELECT day, seq, seq, '' FROM message;
    INSERT INTO reply (day, delivery, body) SELECT day, seq, '' FROM message;
    INSERT INTO leaf (day, number, bytes) SELECT day, seq, '' FROM message;
    INSERT INTO leaf_place (first, number, day, count) SELECT seq - 1, seq, day, 1 FROM message WHERE seq <= 39000;
    INSERT INTO leaf_new (number, day, count) SELECT seq, day, 1 FROM message WHERE seq > 39000;
    INSERT INTO store (id, store_key, log_key, clock, sequenced) VALUES (1, '', '', 0, 39000);
    ANALYZE";

/// How many parameters a statement has.
fn parameters(statement: &str) -> usize {
    (1..).take_while(|number| statement.contains(&format!("${number}"))).count()
}

/// The steps of a statement with these parameters, as it is planned without knowing them.
async fn plan(pool: &PgPool, explain: &str, statement: &str, parameters: &str) -> Vec<String> {
    let mut connection = pool.acquire().await.unwrap();
    let prepare = format!("SET plan_cache_mode = force_generic_plan; PREPARE looked_at AS {statement}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(prepare)).execute(&mut *connection).await.unwrap();
    let list = if parameters.is_empty() { String::new() } else { format!("({parameters})") };
    let sql = format!("{explain} EXECUTE looked_at{list}");
    let rows = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *connection).await.unwrap();
    sqlx::raw_sql("DEALLOCATE looked_at").execute(&mut *connection).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn every_statement_prepares_and_none_reads_a_whole_table_that_grows() {
    let server = Server::start().await;
    for (name, statement) in sql::ALL {
        assert!(statement.starts_with(&format!("/* {} */ ", name.to_lowercase())), "{name}");
        let prepared = server.pool.prepare(SqlStr::from_static(statement)).await;
        assert!(prepared.is_ok(), "{name}: {:?}", prepared.err());
    }
    sqlx::raw_sql(ROWS).execute(&server.pool).await.unwrap();
    // Of the partitioned ones, one of the partitions stands for all.
    let growing = [
        "message",
        "delivery",
        "ready",
        "leaf_place",
        "leaf_new",
        "payload_1",
        "detail_1",
        "reply_1",
        "leaf_1",
    ];
    let mut scans = Vec::new();
    for (name, statement) in sql::ALL {
        let nulls = vec!["NULL"; parameters(statement)].join(", ");
        for step in plan(&server.pool, "EXPLAIN (COSTS OFF)", statement, &nulls).await {
            if growing.iter().any(|table| format!("{step} ").contains(&format!("Seq Scan on {table} "))) {
                scans.push(format!("{name}: {step}"));
            }
        }
    }
    assert!(scans.is_empty(), "{scans:#?}");
}

#[tokio::test]
async fn content_is_looked_for_in_the_partition_of_its_day_alone() {
    let server = Server::start().await;
    sqlx::raw_sql(ROWS).execute(&server.pool).await.unwrap();
    for (statement, parameters, table) in [
        (sql::MESSAGE_BY_ID, "decode(lpad(to_hex(15000), 32, '0'), 'hex')", "payload_"),
        (sql::MESSAGE_PAYLOAD, "15000", "payload_"),
        (sql::MESSAGES_BY_SEQ, "'{15000,15001}', 5", "payload_"),
        (sql::DELIVERY_DETAILS, "15000", "detail_"),
        (sql::DELIVERY_REPLY, "15000", "reply_"),
        (sql::LEAVES, "15000, 15100", "leaf_"),
        (sql::LEAF_BY_NUMBER, "15000", "leaf_"),
        (sql::LEAF_BY_NUMBER, "39500", "leaf_"),
    ] {
        let explain = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF)";
        let steps = plan(&server.pool, explain, statement, parameters).await;
        let partition = |step: &&String| {
            (0..4).any(|day| step.contains(&format!(" on {table}{day} "))) && !step.contains("never executed")
        };
        let looked_at: Vec<&String> = steps.iter().filter(partition).collect();
        assert_eq!(looked_at.len(), 1, "{statement}\n{}", steps.join("\n"));
    }
}

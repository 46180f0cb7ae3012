//! What the writer's statements are prepared to. Their plans are made once and kept, as a rule while the tables are empty: whatever
//! the planner thinks of them then, each must reach its rows by their keys.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};

use super::connection::PLANS;
use super::{MIGRATIONS, sql};

/// Tables that grow with messages or with what waits.
const GROWING: [&str; 14] = [
    "message",
    "dedup",
    "delivery",
    "ready",
    "lane",
    "lane_changed",
    "stuck",
    "expiry",
    "leaf_place",
    "payload",
    "piece",
    "detail",
    "reply",
    "leaf",
];

/// These walk along an index from one of its ends and stop after a few rows, or are not the writer's.
const WALKS: [&str; 2] = ["position_newest", "reconcile_"];

/// Steps of a plan that read one of the growing tables from its beginning.
fn whole_reads(plan: &[String]) -> Vec<&String> {
    let reads = plan.iter().enumerate().filter(|(number, step)| {
        let table = step.split_once(" on ").and_then(|(_, rest)| rest.split_whitespace().next());
        let is_scan = step.contains(" Scan") || step.starts_with("Seq Scan");
        // A partition stands for its table.
        let grows = table.is_some_and(|table| GROWING.contains(&table.trim_end_matches("_other")));
        let has_condition =
            || plan.get(number + 1).is_some_and(|next| next.trim_start().starts_with("Index Cond:"));
        is_scan && grows && !has_condition()
    });
    reads.map(|(_, step)| step).collect()
}

#[tokio::test]
async fn every_row_is_reached_by_its_key_whatever_the_planner_knew() {
    let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
    let mut open = PgConnection::connect(&url).await.unwrap();
    let run =
        async |open: &mut PgConnection, sql: String| sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(open).await;
    run(&mut open, "CREATE SCHEMA gatepost".to_owned()).await.unwrap();
    run(&mut open, "SET search_path = gatepost".to_owned()).await.unwrap();
    for (_, migration) in MIGRATIONS {
        run(&mut open, (*migration).to_owned()).await.unwrap();
    }
    for (name, value) in PLANS {
        run(&mut open, format!("SET {name} = {value}")).await.unwrap();
    }
    let mut found = Vec::new();
    let turns = super::commit::whole_texts();
    let all = sql::ALL.iter().copied().chain(turns.iter().map(|(name, text)| (*name, text.as_str())));
    for (name, statement) in all {
        let parameters = (1..).take_while(|number| statement.contains(&format!("${number}"))).count();
        let nulls = vec!["NULL"; parameters].join(", ");
        let list = if parameters == 0 { String::new() } else { format!("({nulls})") };
        run(&mut open, format!("PREPARE looked_at AS {statement}")).await.unwrap();
        let rows = run(&mut open, format!("EXPLAIN (COSTS OFF) EXECUTE looked_at{list}")).await.unwrap();
        run(&mut open, "DEALLOCATE looked_at".to_owned()).await.unwrap();
        let plan: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        let name = name.to_lowercase();
        if !WALKS.iter().any(|walk| name.starts_with(walk)) {
            found.extend(whole_reads(&plan).into_iter().map(|step| format!("{name}: {}", step.trim())));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_whole_read_is_noticed() {
    let plan =
        |steps: &[&str]| whole_reads(&steps.iter().map(|step| (*step).to_owned()).collect::<Vec<_>>()).len();
    assert_eq!(plan(&["Seq Scan on delivery d", "  Filter: (state = 0)"]), 1);
    assert_eq!(
        plan(&["  ->  Index Scan using delivery_pkey on delivery d", "        Filter: (state = 0)"]),
        1
    );
    assert_eq!(
        plan(&["  ->  Index Scan using delivery_pkey on delivery d", "        Index Cond: (pos = w.pos)"]),
        0
    );
    assert_eq!(plan(&["  ->  Index Scan using payload_other_pkey on payload_other p"]), 1);
    assert_eq!(plan(&["  ->  Seq Scan on queue"]), 0);
}

//! A PostgreSQL database of a test's own, with the schema in it and nothing else.

use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::postgres::MIGRATIONS;

/// Days that have partitions.
const DAYS: i32 = 4;

pub(super) struct Server {
    pub(super) pool: PgPool,
}

impl Server {
    pub(super) async fn start() -> Self {
        let url = gatepost_postgres::fresh_database().expect("a PostgreSQL server for the tests");
        let pool = PgPoolOptions::new().max_connections(2).connect(&url).await.unwrap();
        for (_, migration) in MIGRATIONS {
            sqlx::raw_sql(*migration).execute(&pool).await.unwrap();
        }
        for table in ["payload", "detail", "reply", "leaf"] {
            for day in 0..DAYS {
                let sql = format!(
                    "CREATE TABLE {table}_{day} PARTITION OF {table} FOR VALUES FROM ({day}) TO ({})",
                    day + 1
                );
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await.unwrap();
            }
        }
        Self { pool }
    }
}

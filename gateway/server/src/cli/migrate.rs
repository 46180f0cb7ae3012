//! `gatepost migrate`: moves a stopped gateway from SQLite to the PostgreSQL of its configuration. It can be interrupted and repeated.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use gatepost_store::Database;
use gatepost_store::migrate::{
    BATCH_ROWS, Begun, MigrateError, Migrated, Migration, Moved, Part, Progress, Step, migrate as run,
};
use indicatif::ProgressBar;
use serde_json::json;

use super::audit::chain;
use super::failure::{EXIT_AUDIT, Failure};
use super::ui::{Style, Ui, harmless};
use super::{Context, text};
use crate::config::Config;
use crate::serve::database;

#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// Where to; its address is the one in the configuration's [store]
    #[arg(long, value_enum)]
    to: To,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum To {
    Postgres,
}

pub(super) async fn migrate(context: &Context, args: &Migrate) -> Result<(), Failure> {
    let To::Postgres = args.to;
    let config =
        Config::load(context.config.as_deref()).map_err(|error| Failure::usage(error.to_string()))?;
    let database = database(&config).map_err(|error| Failure::unsuccessful(chain(&error)))?;
    let Database::Postgres { url, engines, .. } = database else {
        return Err(Failure::Usage {
            what: "the configuration does not say to which PostgreSQL".to_owned(),
            hint: Some(
                "set `postgres = { url_file = … }` in its [store], and leave `data_dir` and `name` as they are",
            ),
        });
    };
    let migration = Migration {
        data_dir: config.gateway.data_dir.clone(),
        origin: config.gateway.name.clone(),
        url,
        engines,
        seal_keys: config.seal_keys.clone(),
        batch_rows: BATCH_ROWS,
    };
    let ui = &context.ui;
    let bar = ui.progress(0, "messages");
    let stop = Arc::new(AtomicBool::new(false));
    let work = run(migration, show(&bar, &stop));
    tokio::pin!(work);
    let migrated = loop {
        tokio::select! {
            migrated = &mut work => break migrated,
            // The batch under way is finished, and the next run goes on behind it.
            _ = tokio::signal::ctrl_c(), if !stop.load(Ordering::Relaxed) => stop.store(true, Ordering::Relaxed),
        }
    };
    bar.finish_and_clear();
    match migrated.map_err(failure)? {
        Migrated::Before => before(ui),
        Migrated::Now(moved) => print(ui, &moved, &config),
    }
}

fn show(
    bar: &ProgressBar,
    stop: &Arc<AtomicBool>,
) -> impl FnMut(Progress) -> ControlFlow<()> + Send + 'static {
    let (bar, stop) = (bar.clone(), Arc::clone(stop));
    move |progress| {
        bar.set_message(step_name(progress.step));
        bar.set_length(progress.all.max(progress.done));
        bar.set_position(progress.done);
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

fn step_name(step: Step) -> &'static str {
    match step {
        Step::Copying(Part::Queues) => "queues",
        Step::Copying(Part::Messages) => "messages",
        Step::Copying(Part::Deliveries) => "deliveries",
        Step::Copying(Part::Details) => "reasons and evidence",
        Step::Copying(Part::Replies) => "replies",
        Step::Copying(Part::States) => "adapters' state",
        Step::Copying(Part::Entries) => "audit log",
        Step::Verifying => "comparing the audit log",
    }
}

fn before(ui: &Ui) -> Result<(), Failure> {
    if ui.json {
        return ui.json(&json!({"moved": false, "moved_before": true}));
    }
    ui.line("everything was moved before: there is nothing left to do but `gatepost serve`")
}

fn print(ui: &Ui, moved: &Moved, config: &Config) -> Result<(), Failure> {
    let counts = &moved.counts;
    if ui.json {
        return ui.json(&json!({
            "moved": true,
            "moved_before": false,
            "begun": match moved.begun {
                Begun::Anew => "anew",
                Begun::GoesOn => "goes_on",
                Begun::Again => "again",
            },
            "queues": counts.queues,
            "messages": counts.messages,
            "payloads": counts.payloads,
            "idempotency_keys": counts.keys,
            "deliveries": counts.deliveries,
            "replies": counts.replies,
            "adapter_states": counts.states,
            "entries": moved.entries,
            "root": moved.root.to_base64(),
            "kept": moved.kept,
        }));
    }
    let of = |count: i64, one, many| text::plural(u64::try_from(count).unwrap_or(0), one, many);
    ui.line(format_args!(
        "{}: {}, {} and {} are in PostgreSQL",
        ui.paint(Style::Good, "moved"),
        of(counts.messages, "message", "messages"),
        of(counts.deliveries, "delivery", "deliveries"),
        of(counts.keys, "idempotency key", "idempotency keys"),
    ))?;
    ui.line(format_args!(
        "the audit log goes on there after {}, root {}: what was signed before still verifies",
        text::plural(moved.entries, "entry", "entries"),
        moved.root.to_base64(),
    ))?;
    let keys = config.gateway.data_dir.join("keys");
    let next = format!(
        "next: `gatepost serve`; for every other node copy {} before its first start. The old database is {}: remove it when the new \
         one has a backup",
        keys.display(),
        moved.kept.display(),
    );
    ui.line(ui.paint(Style::Faint, harmless(&next)))
}

fn failure(error: MigrateError) -> Failure {
    let (what, hint) = (chain(&error), hint(&error).map(str::to_owned));
    match error {
        MigrateError::Log(_) | MigrateError::Unequal(_) => Failure::Audit { code: EXIT_AUDIT, what },
        MigrateError::NoData(_)
        | MigrateError::Running(_)
        | MigrateError::Original(_)
        | MigrateError::Damaged(_)
        | MigrateError::Scattered(_)
        | MigrateError::Database(_)
        | MigrateError::Foreign
        | MigrateError::InUse
        | MigrateError::OfAnotherTime
        | MigrateError::ClockBehind { .. }
        | MigrateError::Interrupted => Failure::Unsuccessful { what, hint },
    }
}

fn hint(error: &MigrateError) -> Option<&'static str> {
    match error {
        MigrateError::NoData(_) => Some("`data_dir` must be the one that the gateway ran with on SQLite"),
        MigrateError::Running(_) => Some("when it is down, run this again; nothing has been changed"),
        MigrateError::Database(_) => {
            Some("when the database can be used, run this again: what was copied stays, and it goes on")
        }
        MigrateError::Interrupted => Some("run this again: what was copied stays, and it goes on"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    /// Runs it with a configuration that says this of its store; the error, as programs read it.
    fn refused(dir: &Path, store: &str) -> (Failure, Value) {
        let config = dir.join("gatepost.toml");
        let text = format!(
            "[gateway]\nname = \"test\"\ndata_dir = \"data\"\n[[listen]]\nserves = \"operators\"\nunix = \"a.sock\"\n{store}"
        );
        std::fs::write(&config, text).unwrap();
        let (ui, printed) = Ui::in_memory(true);
        let context = Context { config: Some(config), ui };
        let migrated =
            super::super::runtime().unwrap().block_on(migrate(&context, &Migrate { to: To::Postgres }));
        let printed = printed.lock().unwrap().clone();
        (migrated.unwrap_err(), serde_json::from_slice(&printed).unwrap_or_default())
    }

    #[test]
    fn without_a_database_to_move_to_or_one_to_move_it_says_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        let (failure, printed) = refused(dir.path(), "");
        assert_eq!((failure.exit_code(), printed), (2, Value::Null));
        assert!(failure.hint().unwrap().contains("url_file"), "{failure}");

        let store = "[store]\npostgres = { url_file = \"url\" }\n";
        let (failure, _) = refused(dir.path(), store);
        assert!(failure.to_string().contains("url"), "{failure}");

        let url = dir.path().join("url");
        std::fs::write(&url, "postgres://gatepost:secret-word@127.0.0.1:1/none\n").unwrap();
        std::fs::set_permissions(&url, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let (failure, _) = refused(dir.path(), store);
        assert_eq!(failure.exit_code(), 1);
        assert!(failure.to_string().contains("has no SQLite database to move"), "{failure}");
        assert!(!failure.to_string().contains("secret-word"), "{failure}");
    }

    #[test]
    fn a_log_or_a_copy_that_is_not_as_it_was_written_has_the_audit_logs_exit_code() {
        let unequal = failure(MigrateError::Unequal("7 messages instead of 8".to_owned()));
        assert_eq!(unequal.exit_code(), EXIT_AUDIT);
        let edited = failure(MigrateError::Log(gatepost_store::LogFault::Edited(7)));
        assert_eq!(edited.exit_code(), EXIT_AUDIT);
        let interrupted = failure(MigrateError::Interrupted);
        assert_eq!(interrupted.exit_code(), 1);
        assert!(interrupted.hint().unwrap().contains("again"));
    }
}

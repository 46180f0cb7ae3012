//! The commands around the configuration: `init`, `check`, `schema`, `serve`, `reload` and `completions`.

use std::path::{Path, PathBuf};

use clap::CommandFactory as _;
use clap_complete::Shell;
use gatepost_store::{DataDirError, OpenError};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use serde_json::{Value, json};

use super::Context;
use super::failure::{EXIT_AUDIT, Failure};
use super::ui::{Style, Ui};
use crate::config::{self, Config, Facts, LoadError, Rule, Safety, Verdict};
use crate::listen::processes_are_provable;
use crate::serve::ServeError;
use crate::supervise::{Launcher, RequestError, request_reload, validate_adapters};

#[derive(Debug, clap::Args)]
pub(super) struct Init {
    /// Directory for the configuration and its data; made if it is missing
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// List the rules by which a configuration is refused or warned of, and check nothing
    #[arg(long)]
    rules: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Serve {
    /// Let adapters do without a sandbox (`sandbox = "off"`). For trying something out, never for real messages
    #[arg(long)]
    insecure_dev: bool,
    /// End when this process, our parent, ends
    #[arg(long, hide = true, value_name = "PID")]
    with_parent: Option<i32>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn init(ui: &Ui, args: &Init) -> Result<(), Failure> {
    let file = config::init(&args.dir).map_err(|error| Failure::usage(error.to_string()))?;
    // Without `..` in it, for people copy what is printed below.
    let file = file.canonicalize().unwrap_or(file);
    if ui.json {
        return ui.json(&json!({"config": file.display().to_string()}));
    }
    let shown = file.display();
    ui.line(format_args!("{} {shown}", ui.paint(Style::Good, "wrote")))?;
    ui.line("")?;
    ui.line("Next:")?;
    for (about, command) in [
        ("start it (Ctrl-C stops it)", format!("gatepost -c {shown} serve")),
        (
            "then, in another terminal, send",
            format!("echo hello | gatepost -c {shown} send --type com.example.hello -"),
        ),
        ("receive", format!("gatepost -c {shown} receive my-inbox")),
        ("and see how it is", format!("gatepost -c {shown} status")),
    ] {
        ui.line(format_args!("  {} {command}", ui.paint(Style::Faint, format_args!("{about:<32}"))))?;
    }
    Ok(())
}

pub(super) fn schema(ui: &Ui) -> Result<(), Failure> {
    ui.line(config::schema())
}

// === check ===

pub(super) fn check(context: &Context, args: &Check) -> Result<(), Failure> {
    let ui = &context.ui;
    if args.rules {
        return rules(ui);
    }
    match faults(context.config.as_deref())? {
        Ok(valid) if ui.json => {
            let warnings: Vec<&Value> = valid.warnings.iter().map(|warning| &warning.json).collect();
            ui.json(&json!({"valid": true, "faults": [], "warnings": warnings}))
        }
        Ok(valid) => {
            valid.warn(ui);
            ui.line(valid.summary)
        }
        Err(faults) => Err(report(ui, &faults)?),
    }
}

fn rules(ui: &Ui) -> Result<(), Failure> {
    let verdict = |verdict| match verdict {
        Verdict::Refused => "refused",
        Verdict::Warned => "warned of",
    };
    let facts = Rule::ALL.map(Rule::facts);
    if ui.json {
        let rule = |rule: &Facts| json!({"id": rule.id, "verdict": verdict(rule.verdict), "what": rule.what, "advice": rule.advice});
        return ui.json(&json!({"rules": facts.iter().map(rule).collect::<Vec<_>>()}));
    }
    let mut grid = ui.table(&["RULE", "IS", "WHAT", "DO"]);
    for rule in facts {
        let style = if rule.verdict == Verdict::Refused { Style::Bad } else { Style::Warn };
        grid.row(vec![
            (Style::Strong, rule.id.to_owned()),
            (style, verdict(rule.verdict).to_owned()),
            (Style::Plain, rule.what.to_owned()),
            (Style::Faint, rule.advice.to_owned()),
        ]);
    }
    grid.print(ui)
}

/// A configuration without faults.
pub(super) struct Valid {
    /// What the file holds, in a line.
    pub(super) summary: String,
    pub(super) warnings: Vec<Fault>,
}

impl Valid {
    /// On standard error, as faults are.
    fn warn(&self, ui: &Ui) {
        for warning in &self.warnings {
            ui.note(format_args!("warning: {}", super::ui::harmless(&warning.line)));
        }
    }
}

/// One fault, as a line and as JSON.
pub(super) struct Fault {
    pub(super) line: String,
    json: Value,
}

/// Every fault of the configuration and of its adapters; without any, what the file holds and is warned of.
pub(super) fn faults(path: Option<&Path>) -> Result<Result<Valid, Vec<Fault>>, Failure> {
    let summary = match config::check(path) {
        Ok(summary) => summary,
        Err(LoadError::Invalid(faults)) => return Ok(Err(faults.iter().map(file_fault).collect())),
        Err(error) => return Err(Failure::usage(error.to_string())),
    };
    let config = load(path)?;
    if let Some(why) = config.unprovable(processes_are_provable()) {
        let file = config.file.display().to_string();
        let json = json!({"file": file, "line": 0, "column": 0, "key": "", "text": why});
        return Ok(Err(vec![Fault { line: format!("{file}: {why}"), json }]));
    }
    let launcher = Launcher::start().map_err(Failure::io("cannot ask the adapters' programs"))?;
    match super::runtime()?.block_on(validate_adapters(&config, &launcher)) {
        Ok(_) => {
            let warnings = config.warnings.iter().map(file_fault).collect();
            Ok(Ok(Valid { summary, warnings }))
        }
        Err(faults) => Ok(Err(faults.iter().map(file_fault).collect())),
    }
}

fn file_fault(fault: &config::Fault) -> Fault {
    let json = json!({
        "file": fault.file.display().to_string(),
        "line": fault.line,
        "column": fault.column,
        "key": fault.key,
        "text": fault.text,
        "rule": fault.rule.map(Rule::id),
    });
    Fault { line: fault.to_string(), json }
}

/// Prints the faults, one per line on standard error, as JSON on standard output.
fn report(ui: &Ui, faults: &[Fault]) -> Result<Failure, Failure> {
    if ui.json {
        let faults: Vec<&Value> = faults.iter().map(|fault| &fault.json).collect();
        ui.json(&json!({"valid": false, "faults": faults}))?;
    } else {
        for fault in faults {
            ui.note(super::ui::harmless(&fault.line));
        }
    }
    Ok(Failure::Configuration(faults.len()))
}

fn load(path: Option<&Path>) -> Result<Config, Failure> {
    Config::load(path).map_err(|error| Failure::usage(error.to_string()))
}

// === serve and reload ===

/// Runs the gateway until it is told to stop. `run` is the composition root's.
pub(super) fn serve(
    context: &Context,
    args: &Serve,
    run: impl FnOnce(Config) -> Result<(), ServeError>,
) -> Result<(), Failure> {
    if let Some(parent) = args.with_parent {
        end_with(parent)?;
    }
    let safety = if args.insecure_dev { Safety::InsecureDev } else { Safety::Required };
    if args.insecure_dev {
        context.ui.note("--insecure-dev: adapters may run without a sandbox; this is not for real messages");
    }
    let config = match Config::load_as(context.config.as_deref(), safety) {
        Ok(config) => config,
        Err(LoadError::Invalid(faults)) => {
            let faults: Vec<Fault> = faults.iter().map(file_fault).collect();
            return Err(report(&context.ui, &faults)?);
        }
        Err(error) => return Err(Failure::usage(error.to_string())),
    };
    match run(config) {
        Ok(()) => Ok(()),
        // A fault is a fault, whether the file shows it or the adapter's program tells it.
        Err(ServeError::Adapters(faults)) => {
            let faults: Vec<Fault> = faults.iter().map(file_fault).collect();
            Err(report(&context.ui, &faults)?)
        }
        Err(ServeError::Store(error @ OpenError::Log(_))) => {
            Err(Failure::Audit { code: EXIT_AUDIT, what: error.to_string() })
        }
        Err(ServeError::Store(error @ OpenError::DataDir(DataDirError::InUse(_)))) => {
            let hint =
                Some("`gatepost status` shows it, `gatepost reload` gives it this configuration".to_owned());
            Err(Failure::Unsuccessful { what: error.to_string(), hint })
        }
        Err(error) => Err(Failure::unsuccessful(error.to_string())),
    }
}

fn end_with(parent: i32) -> Result<(), Failure> {
    set_pdeathsig(Signal::SIGTERM).map_err(|errno| Failure::Io {
        doing: "cannot follow the parent".to_owned(),
        source: errno.into(),
    })?;
    // It may have died before the line above.
    if getppid() == Pid::from_raw(parent) { Ok(()) } else { Err(Failure::Interrupted) }
}

/// Checks the file here, where every fault can be shown, then has the running gateway put it in force.
pub(super) fn reload(context: &Context) -> Result<(), Failure> {
    let ui = &context.ui;
    let path = context.config.as_deref();
    let valid = match faults(path)? {
        Ok(valid) => valid,
        Err(faults) => return Err(report(ui, &faults)?),
    };
    let config = load(path)?;
    let status = super::runtime()?.block_on(request_reload(&config)).map_err(reload_failure)?;
    if ui.json {
        ui.json(&status)?;
    } else if status.in_force() {
        valid.warn(ui);
        ui.line(valid.summary)?;
        let done = ui.paint(Style::Good, "in force");
        ui.line(format_args!(
            "{done}: configuration {} of this gateway (pid {})",
            status.generation, status.pid
        ))?;
    } else {
        for fault in &status.faults {
            ui.note(super::ui::harmless(fault));
        }
    }
    if status.in_force() {
        Ok(())
    } else if status.faults.is_empty() {
        Err(Failure::NeedsRestart(status.needs_restart))
    } else {
        Err(Failure::Configuration(status.faults.len()))
    }
}

fn reload_failure(error: RequestError) -> Failure {
    match error {
        RequestError::NotRunning(data_dir) => Failure::NotRunning(data_dir),
        RequestError::Signal { .. } => Failure::Unsuccessful {
            what: error.to_string(),
            hint: Some("run it as the gateway's user, or as root".to_owned()),
        },
        RequestError::NoAnswer | RequestError::Io { .. } => Failure::unsuccessful(error.to_string()),
    }
}

pub(super) fn completions(ui: &Ui, args: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "gatepost", &mut script);
    ui.raw(&script)
}

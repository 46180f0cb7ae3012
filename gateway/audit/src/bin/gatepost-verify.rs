//! `gatepost-verify`: checks an audit log, or receipts from one, with files alone.
//!
//! Exit codes: 0 nothing is wrong, 10 signature, 11 root, 12 tile or bundle, 13 fork, 16 malformed leaf, 17 impossible
//! leaf, 18 rolled back, 20 wrong usage or something unreadable.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use gatepost_audit::dir::VKEY;
use gatepost_audit::proof::{self, Proof, ProofTextError};
use gatepost_audit::verify::{Outcome, read_vkey};
use gatepost_audit::{Checkpoint, Fault, Leaf, Options, Report, VerifierKey, verify_dir};
use serde_json::{Value, json};

const EXIT_CODES: &str = "\
Exit codes:
   0  nothing is wrong
  10  the checkpoint is not signed by the key
  11  the entries do not hash to the signed root
  12  a tile or bundle was changed, cut or is missing
  13  the log signed two histories (with --since)
  16  an entry is malformed or not canonical
  17  an entry cannot follow those before it
  18  the log is shorter than it was (with --since)
  20  wrong usage, or something cannot be read";

/// Verify a Gatepost audit log without trusting Gatepost.
#[derive(Parser)]
#[command(name = "gatepost-verify", version, after_help = EXIT_CODES)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    log: Option<LogArgs>,
}

#[derive(Subcommand)]
enum Command {
    /// Verify a receipt: that its entries are in the log whose key you give
    Proof(ProofArgs),
}

#[derive(Args)]
struct LogArgs {
    /// An exported log: checkpoint, tile/, vkey (a directory called `proof` is given as ./proof)
    dir: PathBuf,
    /// The log's verifier key, or a file that holds it; without it, DIR/vkey is believed
    #[arg(long, value_name = "FILE|KEY")]
    vkey: Option<String>,
    /// An older checkpoint, kept elsewhere, that this log must extend
    #[arg(long, value_name = "CHECKPOINT_FILE")]
    since: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ProofArgs {
    /// One or more tlog-proof texts, or the JSON answer of /v1/audit/receipt
    file: PathBuf,
    /// The log's verifier key, or a file that holds it
    #[arg(long, value_name = "FILE|KEY")]
    vkey: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed stream leaves the exit code as the answer.
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(Outcome::Usage as u8) };
        }
    };
    let (json, result) = match (cli.command, cli.log) {
        (Some(Command::Proof(args)), _) => (args.json, verify_proofs(&args)),
        (None, Some(args)) => (args.json, verify_log(&args)),
        (None, None) => return ExitCode::from(Outcome::Usage as u8),
    };
    let (answer, code) = match result {
        Ok(answer) => (answer, 0),
        Err(fault) => (Answer::from(&fault), fault.exit_code()),
    };
    match answer.print(json) {
        Ok(()) => ExitCode::from(code),
        Err(_) if code != 0 => ExitCode::from(code),
        // A reader who closed the pipe has not been told that all is well.
        Err(_) => ExitCode::from(Outcome::Usage as u8),
    }
}

/// The same answer for people and for programs.
struct Answer {
    lines: Vec<String>,
    object: Value,
}

impl Answer {
    fn print(&self, json: bool) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if json {
            writeln!(out, "{}", self.object)?;
        } else {
            self.lines.iter().try_for_each(|line| writeln!(out, "{}", printable(line)))?;
        }
        out.flush()
    }
}

impl From<&Fault> for Answer {
    fn from(fault: &Fault) -> Self {
        let mut message = fault.to_string();
        let mut source = fault.source();
        while let Some(error) = source {
            message = format!("{message}: {error}");
            source = error.source();
        }
        Self {
            lines: vec![format!("FAILED ({}): {message}", fault.exit_code())],
            object: json!({
                "ok": false,
                "exit": fault.exit_code(),
                "fault": fault.word(),
                "leaf": fault.leaf(),
                "file": fault.path(),
                "message": message,
            }),
        }
    }
}

fn verify_log(args: &LogArgs) -> Result<Answer, Fault> {
    let beside = args.dir.join(VKEY);
    let key = match &args.vkey {
        Some(vkey) => read_vkey(vkey)?,
        None => read_vkey(&beside.display().to_string())?,
    };
    let since = match &args.since {
        Some(path) => Some((path.display().to_string(), read(path)?)),
        None => None,
    };
    let options = Options { since, ..Options::new(key.clone()) };
    let report = verify_dir(&args.dir, options, &mut |_, _| {})?;
    Ok(log_answer(&report, &key, args.vkey.is_some()))
}

fn log_answer(report: &Report, key: &VerifierKey, pinned: bool) -> Answer {
    let mut lines = vec![format!(
        "OK: {} entries of {}, root {}, signed by {}",
        report.size,
        report.origin,
        report.root.to_base64(),
        key.hint()
    )];
    if let Some(since) = report.since {
        lines.push(format!("extends the older checkpoint of {since} entries"));
    }
    if report.unsigned > 0 {
        lines.push(format!("{} entries not yet signed", report.unsigned));
    }
    if !pinned {
        lines.push(
            "the key is the one in the directory; give --vkey to check against a key you trust".to_owned(),
        );
    }
    let object = json!({
        "ok": true,
        "exit": 0,
        "origin": report.origin,
        "size": report.size,
        "root": report.root.to_base64(),
        "unsigned": report.unsigned,
        "since": report.since,
        "deliveries_open": report.deliveries_open,
        "vkey": key.to_string(),
        "vkey_pinned": pinned,
    });
    Answer { lines, object }
}

fn verify_proofs(args: &ProofArgs) -> Result<Answer, Fault> {
    let key = read_vkey(&args.vkey)?;
    let path = args.file.display().to_string();
    let unusable = |source| Fault::Proof { path: path.clone(), source };
    let bytes = read(&args.file)?;
    let mut lines = Vec::new();
    let mut objects = Vec::new();
    for text in proof::split_texts(&bytes).map_err(unusable)? {
        let proof = Proof::parse(text.as_bytes()).map_err(unusable)?;
        let checkpoint = proof
            .verify(std::slice::from_ref(&key))
            .map_err(|source| Fault::Receipt { path: path.clone(), source })?;
        let entry = proof.entry.as_deref().unwrap_or_default();
        Leaf::parse(entry).map_err(|source| Fault::Leaf { leaf: proof.index, source })?;
        let entry = String::from_utf8_lossy(entry);
        lines.push(proof_line(&proof, &checkpoint));
        lines.push(format!("  {entry}"));
        objects.push(json!({ "index": proof.index, "size": checkpoint.size, "entry": entry }));
    }
    if objects.is_empty() {
        return Err(unusable(ProofTextError::NoHeader));
    }
    let object = json!({ "ok": true, "exit": 0, "origin": key.name(), "proofs": objects });
    Ok(Answer { lines, object })
}

fn proof_line(proof: &Proof, checkpoint: &Checkpoint) -> String {
    format!("OK: entry {} of {} signed by {}", proof.index, checkpoint.size, checkpoint.origin)
}

/// What is printed may come from a log that is not to be trusted: nothing in it may steer a terminal or turn the
/// direction of the text.
fn printable(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    for character in line.chars() {
        match character {
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}' => {
                text.extend(character.escape_unicode());
            }
            control if control.is_control() => text.extend(control.escape_unicode()),
            plain => text.push(plain),
        }
    }
    text
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    fs::read(path).map_err(|source| Fault::Unreadable { path: path.display().to_string(), source })
}

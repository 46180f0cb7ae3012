//! The command line of `gatepost`: what it understands, and which file does it.
//!
//! Commands that speak with a running gateway are clients of its HTTP API and nothing more: they use the same sockets and
//! the same rights as everybody else. Results go to standard output, everything else to standard error.

mod adapter;
mod audit;
mod backup;
mod bench;
mod client;
mod deliveries;
mod demo;
mod doctor;
mod failure;
mod keys;
mod list;
mod locate;
mod migrate;
mod queue;
mod receive;
mod restore;
mod scratch;
mod send;
mod setup;
mod show;
mod status;
mod text;
mod token;
mod ui;
mod view;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::Config;
use crate::serve::ServeError;
use client::Client;
use failure::{EXIT_CODES, Failure};
use locate::Serves;
use ui::Ui;

/// The gateway's supervisor calls this program by this word; people do not.
const ADAPTER_EXEC: &str = "adapter-exec";
/// A gateway that root has started starts what stays root by this word.
const SPAWNER: &str = "spawner";
/// The gateway of `bench` starts this program as its adapter by this word.
const BENCH_ADAPTER: &str = "bench-adapter";
/// And as the greedy client that it measures another one beside by this one.
const BENCH_NEIGHBOUR: &str = "bench-neighbour";

/// Heading of the options that every command takes.
const EVERYWHERE: &str = "Options everywhere";

#[derive(Debug, Parser)]
#[command(name = "gatepost", version, after_help = EXIT_CODES, arg_required_else_help = true)]
/// A secure local integration gateway: accepts messages durably, delivers them to partners, and proves it
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Configuration file [default: ./gatepost.toml, then /etc/gatepost/gatepost.toml]
    #[arg(short, long, global = true, value_name = "FILE", help_heading = EVERYWHERE)]
    config: Option<PathBuf>,
    /// Print JSON in place of tables; errors too, on standard error
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch a gateway at work: send HL7 messages, kill it in the middle, see that nothing is lost
    Demo(demo::Demo),
    /// Write a commented, working configuration for the current user
    Init(setup::Init),
    /// Check the configuration and its adapters; print every fault and warning
    Check(setup::Check),
    /// Print the JSON Schema of the configuration
    Schema,
    /// Run the gateway
    Serve(setup::Serve),
    /// Check the configuration, then make the running gateway take it
    Reload,
    /// Show whether the gateway works, and what blocks if it does not
    Status(status::Status),
    /// Send a message
    Send(send::Send),
    /// Read an inbox
    Receive(receive::Receive),
    /// Show what became of a message, step by step
    Show(show::Show),
    /// List messages, newest first
    List(list::List),
    /// Look at queues, pause and resume them
    #[command(subcommand)]
    Queue(queue::Queue),
    /// Restart adapters, and call them for what they offer
    #[command(subcommand)]
    Adapter(adapter::Adapter),
    /// Deliveries that were given up: list, try again, discard
    #[command(subcommand)]
    Dead(deliveries::Dead),
    /// Deliveries that may or may not have arrived: list, decide
    #[command(subcommand)]
    Doubt(deliveries::Doubt),
    /// Erase all that messages were about, copies included; the audit log stays
    Erase(keys::Erase),
    /// The key that data keys are wrapped with
    #[command(subcommand)]
    Key(keys::Key),
    /// The audit log: verify, export, prove, read. Works on the data directory, gateway running or not
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Second factors for apps that share a user: make, list, revoke
    #[command(subcommand)]
    Token(token::Token),
    /// Copy all that the gateway has stored into a new directory, while it runs or not
    Backup(backup::Backup),
    /// Put a backup back into an empty data directory, or prove that it could be
    Restore(restore::Restore),
    /// Measure this machine's gateway with everything switched on
    Bench(bench::Bench),
    /// Look at the machine and at all that is stored; save what is sound of it
    Doctor(doctor::Doctor),
    /// Move a stopped gateway, with all that it stores, from SQLite to PostgreSQL
    Migrate(migrate::Migrate),
    /// Print the completions for a shell
    Completions(setup::Completions),
}

#[derive(Debug, Args)]
struct Target {
    /// The gateway's socket [default: the one in the configuration]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// What every command needs.
struct Context {
    config: Option<PathBuf>,
    ui: Ui,
}

impl Context {
    fn operators(&self, target: &Target) -> Result<Client, Failure> {
        locate::socket(self.config.as_deref(), target.socket.as_deref(), Serves::Operators).map(Client::new)
    }

    fn apps(&self, target: &Target) -> Result<Client, Failure> {
        locate::socket(self.config.as_deref(), target.socket.as_deref(), Serves::Apps).map(Client::new)
    }
}

/// Does what the process's arguments say. `serve` runs a gateway until it is told to stop.
pub(crate) fn main(serve: impl FnOnce(Config) -> Result<(), ServeError>) -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    // Before clap: these words are not for people, and what follows the first belongs to the adapter's program.
    match arguments.next() {
        Some(word) if word == ADAPTER_EXEC => return crate::supervise::adapter_exec(arguments),
        Some(word) if word == SPAWNER => return crate::supervise::spawner(arguments),
        Some(word) if word == BENCH_ADAPTER => {
            let ui = Ui::detect(false);
            let args = bench::BenchAdapter::parse_from(std::env::args_os().skip(1));
            return exit_code(&ui, bench::run_adapter(&ui, &args));
        }
        Some(word) if word == BENCH_NEIGHBOUR => {
            let ui = Ui::detect(false);
            let args = bench::BenchNeighbour::parse_from(std::env::args_os().skip(1));
            return exit_code(&ui, bench::run_neighbour(&ui, args));
        }
        _ => {}
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && std::env::args_os().any(|word| word == "--json") => {
            return exit_code(&Ui::detect(true), Err(Failure::usage(usage_fault(&error))));
        }
        // Help, the version, and what is wrong with the words, as people read it.
        Err(error) => error.exit(),
    };
    let context = Context { config: cli.global.config, ui: Ui::detect(cli.global.json) };
    let result = run(&context, &cli.command, serve);
    exit_code(&context.ui, result.and(give_to_gateway(&context, &cli.command)))
}

/// Root looks after the data of a gateway that is not root, and leaves nothing in it that the gateway could not open.
fn give_to_gateway(context: &Context, command: &Command) -> Result<(), Failure> {
    let more = match command {
        Command::Doctor(args) => args.target(),
        Command::Audit(_)
        | Command::Token(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Migrate(_) => None,
        _ => return Ok(()),
    };
    // Without one, nothing has been done.
    let Ok(config) = Config::load(context.config.as_deref()) else { return Ok(()) };
    crate::supervise::give_to_gateway(&config, more)
        .map_err(Failure::io("cannot give the data to the gateway's user"))
}

/// What clap finds wrong, without its label and its advice.
fn usage_fault(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let fault = text.split("\n\n").next().unwrap_or(text);
    fault.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn exit_code(ui: &Ui, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else { return ExitCode::SUCCESS };
    ui.error(&failure);
    ExitCode::from(failure.exit_code())
}

fn run(
    context: &Context,
    command: &Command,
    serve: impl FnOnce(Config) -> Result<(), ServeError>,
) -> Result<(), Failure> {
    match command {
        Command::Demo(args) => runtime()?.block_on(demo::demo(context, args)),
        Command::Init(args) => setup::init(&context.ui, args),
        Command::Check(args) => setup::check(context, args),
        Command::Schema => setup::schema(&context.ui),
        Command::Serve(args) => setup::serve(context, args, serve),
        Command::Reload => setup::reload(context),
        Command::Status(args) => runtime()?.block_on(status::status(context, args)),
        Command::Send(args) => runtime()?.block_on(send::send(context, args)),
        Command::Receive(args) => runtime()?.block_on(receive::receive(context, args)),
        Command::Show(args) => runtime()?.block_on(show::show(context, args)),
        Command::List(args) => runtime()?.block_on(list::list(context, args)),
        Command::Queue(command) => runtime()?.block_on(queue::queue(context, command)),
        Command::Adapter(command) => runtime()?.block_on(adapter::adapter(context, command)),
        Command::Dead(command) => runtime()?.block_on(deliveries::dead(context, command)),
        Command::Doubt(command) => runtime()?.block_on(deliveries::doubt(context, command)),
        Command::Erase(args) => runtime()?.block_on(keys::erase(context, args)),
        Command::Key(command) => runtime()?.block_on(keys::key(context, command)),
        Command::Audit(command) => runtime()?.block_on(audit::audit(context, command)),
        Command::Token(command) => token::token(context, command),
        Command::Backup(args) => runtime()?.block_on(backup::backup(context, args)),
        Command::Restore(args) => runtime()?.block_on(restore::restore(context, args)),
        Command::Bench(args) => runtime()?.block_on(bench::bench(context, args)),
        Command::Doctor(args) => doctor::doctor(context, args),
        Command::Migrate(args) => runtime()?.block_on(migrate::migrate(context, args)),
        Command::Completions(args) => setup::completions(&context.ui, args),
    }
}

/// Commands do one thing after the other; what they wait for is elsewhere. So one thread does.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(Failure::io("cannot start the runtime"))
}

//! Why a command ended otherwise than well, and the exit code that says so. Scripts depend on the codes.

use std::io;
use std::path::PathBuf;

use gatepost_api::Problem;
use gatepost_api::problem::Code;

pub(super) const EXIT_FAILED: u8 = 1;
pub(super) const EXIT_USAGE: u8 = 2;
pub(super) const EXIT_UNREACHABLE: u8 = 3;
pub(super) const EXIT_REFUSED: u8 = 4;
pub(super) const EXIT_NOT_FOUND: u8 = 5;
pub(super) const EXIT_AUDIT: u8 = 6;
const EXIT_NEEDS_RESTART: u8 = 7;
pub(super) const EXIT_DISAGREE: u8 = 8;
const EXIT_INCOMPLETE: u8 = 9;
const EXIT_AUDIT_UNREADABLE: u8 = gatepost_audit::verify::Outcome::Usage as u8;

/// The end of `gatepost --help`.
pub(super) const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed
  2  wrong usage, or the configuration has faults
  3  the gateway cannot be reached
  4  the gateway refused
  5  there is no such thing
  6  the audit log does not verify (`audit verify` names the kind: 10 signature, 11 root,
     12 files, 13 fork, 16 leaf, 17 impossible leaf, 18 rolled back, 20 unreadable)
  7  `reload`: the file is correct, but only a restart can change some of its keys; nothing changed
  8  `audit reconcile`, `restore --verify`: the audit log and the database do not agree
  9  `doctor --repair`: the new directory is there, but not everything could be saved";

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{what}")]
    Usage { what: String, hint: Option<&'static str> },
    /// The faults have been printed, one per line.
    #[error("{} in the configuration", super::text::plural(*.0 as u64, "fault", "faults"))]
    Configuration(usize),
    /// The file is correct; these are the keys that a running gateway cannot change.
    #[error("only a restart can change {}: nothing changed, the configuration before stays in force", .0.join(", "))]
    NeedsRestart(Vec<String>),
    #[error("no gateway answers on {}: {source}", socket.display())]
    Unreachable { socket: PathBuf, source: io::Error },
    /// The command needs no socket, but the process.
    #[error("no gateway runs on {}", .0.display())]
    NotRunning(PathBuf),
    #[error("no answer from the gateway on {}: {what}", socket.display())]
    NoAnswer { socket: PathBuf, what: String },
    #[error("{}: {} ({}, request {})", .0.title, .0.detail, .0.code, .0.request_id)]
    Refused(Box<Problem>),
    #[error("the gateway's answer (status {status}) is not understood")]
    Garbled { status: u16 },
    #[error("{0}")]
    NotFound(String),
    /// `code` is the exit code.
    #[error("{what}")]
    Audit { code: u8, what: String },
    #[error("{doing}: {source}")]
    Io { doing: String, source: io::Error },
    /// Work that was done and did not succeed.
    #[error("{what}")]
    Unsuccessful { what: String, hint: Option<String> },
    /// A salvage that is done; what was not saved has been printed.
    #[error("{} not be saved; the list says what and why", super::text::plural(*.gone, "thing could", "things could"))]
    Incomplete { gone: u64 },
    #[error("interrupted")]
    Interrupted,
    /// Standard output is gone or full.
    #[error("cannot write the output: {0}")]
    Output(io::Error),
}

impl Failure {
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::Usage { what: what.into(), hint: None }
    }

    pub(crate) fn unsuccessful(what: impl Into<String>) -> Self {
        Self::Unsuccessful { what: what.into(), hint: None }
    }

    /// For `map_err`: an I/O error while `doing` something.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { doing: doing.into(), source }
    }

    /// Whoever reads our output has gone away, which is how `| head` ends.
    pub(crate) fn is_quiet(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            _ if self.is_quiet() => 0,
            Self::Usage { .. } | Self::Configuration(_) => EXIT_USAGE,
            Self::NeedsRestart(_) => EXIT_NEEDS_RESTART,
            Self::Unreachable { .. } | Self::NotRunning(_) | Self::NoAnswer { .. } => EXIT_UNREACHABLE,
            Self::Refused(problem) if problem.code == Code::NotFound.as_str() => EXIT_NOT_FOUND,
            Self::Refused(_) => EXIT_REFUSED,
            Self::NotFound(_) => EXIT_NOT_FOUND,
            Self::Audit { code, .. } => *code,
            Self::Incomplete { .. } => EXIT_INCOMPLETE,
            Self::Garbled { .. }
            | Self::Io { .. }
            | Self::Unsuccessful { .. }
            | Self::Interrupted
            | Self::Output(_) => EXIT_FAILED,
        }
    }

    /// The word by which programs tell failures apart: the API's own code where it refused.
    pub(crate) fn word(&self) -> &str {
        match self {
            Self::Refused(problem) => &problem.code,
            Self::Usage { .. } => "usage",
            Self::Configuration(_) => "configuration",
            Self::NeedsRestart(_) => "needs_restart",
            Self::Unreachable { .. } | Self::NotRunning(_) | Self::NoAnswer { .. } => "unreachable",
            Self::NotFound(_) => Code::NotFound.as_str(),
            Self::Audit { .. } => "audit",
            Self::Incomplete { .. } => "incomplete",
            Self::Interrupted => "interrupted",
            Self::Garbled { .. } | Self::Io { .. } | Self::Unsuccessful { .. } | Self::Output(_) => "failed",
        }
    }

    /// What the reader can do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Usage { hint, .. } => return hint.map(str::to_owned),
            Self::Unsuccessful { hint, .. } => return hint.clone(),
            Self::Unreachable { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "you may not open this socket: see its `mode` and `group` in [[listen]], or use another user"
                }
                _ => "start it with `gatepost serve`, or name the right socket with --socket or -c",
            },
            Self::NotRunning(_) => {
                "start it with `gatepost serve`; if the file's `data_dir` has changed, restart the gateway that runs"
            }
            Self::NoAnswer { .. } => "it may still have acted on the request: look with `gatepost status`",
            Self::Refused(problem) => return problem_hint(&problem.code).map(str::to_owned),
            Self::Garbled { .. } => "is this socket a Gatepost of the same version? Try `gatepost doctor`",
            Self::Audit { code, .. } if *code == EXIT_AUDIT_UNREADABLE => {
                "check the path, and that you may read it: what is in the data directory is the gateway's user's"
            }
            Self::Audit { .. } => "keep the data directory as it is: it is the evidence",
            Self::Incomplete { .. } => {
                "deliveries that became `dead` are in `gatepost dead ls`; keep the old directory"
            }
            Self::NeedsRestart(_) => {
                "restart the gateway; or set these keys back, and the rest can be reloaded"
            }
            Self::Configuration(_) => "correct them and run `gatepost check` again",
            Self::NotFound(_) | Self::Io { .. } | Self::Interrupted | Self::Output(_) => return None,
        };
        Some(hint.to_owned())
    }
}

fn problem_hint(code: &str) -> Option<&'static str> {
    let code = *Code::ALL.iter().find(|known| known.as_str() == code)?;
    Some(match code {
        Code::Unauthenticated => {
            "your user matches no principal of this socket: name it in [apps.…] or [operators.…], then `gatepost reload`"
        }
        Code::AmbiguousIdentity => {
            "your user matches several principals of this socket: make their selectors exclude each other"
        }
        Code::Forbidden => {
            "the configuration does not give you this right: see `can`, `inbox` or `send` of your principal"
        }
        Code::TypeNotAllowed => {
            "name a type that it may send with --type, or add this one to its `send`, then `gatepost reload`"
        }
        Code::NoRoute => "add a [[routes]] that takes this message, then `gatepost reload`",
        Code::RouteFailed => "correct the `when` of the route it names",
        Code::IdempotencyMismatch => "use a new --id (or --idempotency-key) for new content",
        Code::BacklogFull => {
            "see `gatepost status` and `gatepost queue ls`: what was handed in is not settled yet; try again later, or raise `limits.backlog` of the sender"
        }
        Code::QueueFull => "see `gatepost queue ls`: the destination is behind; try again later",
        Code::StorageFull => "free some space on the disk of data_dir",
        Code::StoreUnavailable => "see `gatepost status` and `gatepost doctor`",
        Code::AdapterAbsent => "see `gatepost status`; with several nodes, ask the one that runs the adapter",
        Code::CallUnanswered => {
            "see what the adapter shows before you ask again; `gatepost audit log` has its answer, if it comes yet"
        }
        Code::Stopping => "try again when it is up",
        Code::IllegalState => "see its state with `gatepost show ID`",
        Code::ReceiptPending => "try again in a second",
        Code::TooLarge => "see `max_message`; a batch may have 1,000 events and 64 MiB",
        Code::Internal => "see the gateway's log for this request id",
        Code::NotFound => "see `gatepost list`, `gatepost queue ls` or `gatepost status`",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let problem = |code| Failure::Refused(Box::new(Problem::new(code, "d", "r")));
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        for (failure, code) in [
            (Failure::unsuccessful("x"), 1),
            (Failure::usage("x"), 2),
            (Failure::Configuration(3), 2),
            (Failure::NeedsRestart(vec!["listen".into()]), 7),
            (Failure::Unreachable { socket: "s".into(), source: gone() }, 3),
            (problem(Code::NoRoute), 4),
            (problem(Code::NotFound), 5),
            (Failure::Audit { code: 18, what: "x".into() }, 18),
            (Failure::Incomplete { gone: 1 }, 9),
            (Failure::Output(io::ErrorKind::BrokenPipe.into()), 0),
            (Failure::Output(io::ErrorKind::StorageFull.into()), 1),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure}");
        }
    }

    #[test]
    fn a_refusal_says_what_where_and_what_to_do() {
        let failure = Failure::Refused(Box::new(Problem::new(Code::NoRoute, "no route from ehr", "req-1")));
        assert_eq!(
            failure.to_string(),
            "No route takes this message: no route from ehr (no_route, request req-1)"
        );
        assert!(failure.hint().unwrap().contains("[[routes]]"));
    }
}

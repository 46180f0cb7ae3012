//! How an adapter's process ended, for people, for the audit log, and for the brakes.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use gatepost_core::queue::TripReason;
use nix::sys::signal::Signal;

use super::exec::EXIT_CANNOT_EXECUTE;

/// The program refused its settings or its command line.
const EXIT_REFUSED: i32 = 2;

/// How a process ended, or why there was none.
pub(super) enum Exit {
    NotStarted(String),
    Ended { status: ExitStatus, cause: Cause, last_line: Option<String>, worked: bool },
}

/// What is known of an end beside its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    Unknown,
    /// The kernel killed it: its control group had no memory left.
    Memory,
}

impl Cause {
    /// Of a process whose control group ran out of memory, or did not.
    pub(super) fn of(status: ExitStatus, ran_out_of_memory: bool) -> Self {
        let is_killed = status.signal() == Some(Signal::SIGKILL as i32);
        // What the kernel killed in there may have been something that it started.
        if ran_out_of_memory && is_killed { Self::Memory } else { Self::Unknown }
    }
}

impl Exit {
    pub(super) fn worked(&self) -> bool {
        matches!(self, Self::Ended { worked: true, .. })
    }

    /// As the audit log says it.
    pub(super) fn code(&self) -> String {
        match self {
            Self::NotStarted(_) => "not_started".to_owned(),
            Self::Ended { cause: Cause::Memory, .. } => "killed_for_memory".to_owned(),
            Self::Ended { status, .. } => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exit_{code}"),
                (None, Some(signal)) => format!("signal_{signal}"),
                (None, None) => "ended".to_owned(),
            },
        }
    }

    pub(super) fn trip_reason(&self) -> TripReason {
        match self {
            Self::NotStarted(_) => TripReason::AdapterRefused,
            Self::Ended { status, .. } => match status.code() {
                Some(code) if code == EXIT_REFUSED || code == i32::from(EXIT_CANNOT_EXECUTE) => {
                    TripReason::AdapterRefused
                }
                Some(_) | None => TripReason::CrashLoop,
            },
        }
    }
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotStarted(why) => f.write_str(why),
            Self::Ended { status, cause, last_line, .. } => {
                write!(f, "{status}")?;
                if *cause == Cause::Memory {
                    f.write_str(", killed for memory: it needs less, or more in allow.memory")?;
                }
                last_line.as_ref().map_or(Ok(()), |line| write!(f, ": {line}"))
            }
        }
    }
}

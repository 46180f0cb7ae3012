//! The kinds of neighbours that a well-behaved client may have.

/// One that wants more than it may have, or is broken. The names are those of the command line and of `--json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// 64 connections hand in single messages as fast as they are answered, far over the rate
    Flood,
    /// 32 connections send bodies of 16 MiB slowly
    SlowBodies,
    /// 300 connections are opened and say nothing; whichever is closed is opened anew
    Silent,
    /// 16 connections at a time send garbage or half a request, and hang up
    Garbage,
    /// 64 connections ask for the state of a message as fast as they are answered
    Asks,
    /// 64 connections hand in what a full queue refuses, with no limit to their rate
    FullQueue,
    /// Hands in all that its rate permits
    Permitted,
    /// 4 connections hand in messages of 16 MiB, one after the other
    LargeMessages,
    /// 4 connections hand in batches of 200 messages of 63 KiB, one after the other
    LargeBatches,
}

impl Kind {
    pub(super) const ALL: [Self; 9] = [
        Self::Flood,
        Self::SlowBodies,
        Self::Silent,
        Self::Garbage,
        Self::Asks,
        Self::FullQueue,
        Self::Permitted,
        Self::LargeMessages,
        Self::LargeBatches,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Flood => "flood",
            Self::SlowBodies => "slow_bodies",
            Self::Silent => "silent",
            Self::Garbage => "garbage",
            Self::Asks => "asks",
            Self::FullQueue => "full_queue",
            Self::Permitted => "permitted",
            Self::LargeMessages => "large_messages",
            Self::LargeBatches => "large_batches",
        }
    }

    /// For people.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Flood => "floods, far over its rate",
            Self::SlowBodies => "sends large bodies slowly",
            Self::Silent => "connects and says nothing",
            Self::Garbage => "sends garbage and hangs up",
            Self::Asks => "asks how things stand, all the time",
            Self::FullQueue => "fills a queue that is full",
            Self::Permitted => "hands in what it may",
            Self::LargeMessages => "hands in large messages",
            Self::LargeBatches => "hands in large batches",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_on_the_command_line_are_those_of_json() {
        use clap::ValueEnum as _;
        assert_eq!(Kind::value_variants(), Kind::ALL);
        for kind in Kind::ALL {
            assert_eq!(kind.to_possible_value().unwrap().get_name(), kind.name());
        }
    }
}

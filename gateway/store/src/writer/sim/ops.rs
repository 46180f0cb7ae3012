//! What a run consists of, as values: a failing run is kept by keeping them. Numbers that choose among things are taken modulo
//! how many there are, so that a run still means something when steps are left out of it.

use gatepost_core::{OnDead, OnDoubt, Order};

use crate::dice::Dice;

/// Queues of every run, by their position in [`QUEUES`].
pub(super) const QUEUES: [&str; 3] = ["wire", "far", "box"];
/// The one that the gateway starts itself.
pub(super) const WIRE: usize = 0;
/// The one that is run elsewhere.
pub(super) const FAR: usize = 1;
pub(super) const INBOX: usize = 2;
/// Senders 0 and 1 are apps; 2 and 3 are the adapters of the first two queues.
pub(super) const SENDERS: [&str; 4] = ["ehr", "lab", QUEUES[WIRE], QUEUES[FAR]];

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// These calls reach the writer together.
    Together { ops: Vec<Op>, fault: Option<Fault> },
    /// Time passes, and the writer looks at it.
    Pass { ms: u64, fault: Option<Fault> },
    /// The power goes between two commits. While the machine is off its wall clock may step.
    Crash { down_ms: u64, wall_ms: i64, fault: Option<Fault> },
    /// A checkpoint is signed; what it covers is filed, and the writer told so.
    Sign { fault: Option<Fault> },
}

/// What goes wrong, at which of the step's commits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Fault {
    pub(super) at: u32,
    pub(super) kind: Kind,
}

impl Fault {
    /// A full disk also refuses what comes next: the log that is to begin anew, or the commit that was to go without its pieces.
    pub(super) fn strikes_at(self, commit: u32) -> bool {
        let times = if self.kind == Kind::Full { 2 } else { 1 };
        (self.at..self.at + times).contains(&commit)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Full,
    Broken,
    Refused,
    /// The commit is on the disk, and the disk says that it failed.
    BrokenAfter,
    CrashBefore,
    /// The commit is on the disk, and nobody is told.
    CrashAfter,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Op {
    Send {
        sender: u8,
        events: Vec<Ev>,
    },
    /// An earlier request, answered or not, once more.
    SendAgain {
        which: u8,
    },
    /// Whether an earlier request's first event is known.
    Before {
        which: u8,
    },
    Lease {
        queue: u8,
        max: u8,
        id: u8,
        secs: u16,
        earlier_life: bool,
    },
    Settle {
        queue: u8,
        items: Vec<Item>,
        emit: Emits,
        state: bool,
        atomic: bool,
        earlier_life: bool,
    },
    SettleAgain {
        which: u8,
    },
    Session {
        queue: u8,
    },
    Death {
        queue: u8,
        crashed: bool,
    },
    Operate {
        which: u8,
        verb: Decides,
    },
    Brake {
        queue: u8,
        brake: Brakes,
    },
    /// An operator gives one destination's deliveries to another.
    Move {
        from: u8,
        to: u8,
    },
    Configure {
        queues: Vec<Setup>,
    },
    Note,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ev {
    /// Idempotency key; it determines the lanes too, so that an honest repetition is one.
    pub(super) key: u8,
    pub(super) content: u8,
    /// Destinations, a bit each.
    pub(super) to: u8,
    /// 0: never.
    pub(super) expires_s: u16,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Item {
    /// From [`PAST`] on one of the leases that are over.
    pub(super) which: u8,
    pub(super) says: Says,
}

pub(super) const PAST: u8 = 200;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Says {
    Begin,
    Sent,
    Delivered,
    /// Delivered, by evidence that may be below what the destination asks for.
    Weak,
    InDoubt,
    Retry,
    RetryLater,
    Trouble,
    /// Only its lane's partner is away.
    Away,
    Reject,
    Release,
    Extend,
    Wake,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Emits {
    Nothing,
    Routed,
    Unrouted,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Decides {
    Replay,
    Discard,
    SayDelivered,
    SayRetry,
    SayDead,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Brakes {
    Pause,
    Resume,
    CrashLoop,
    Refused,
    Answered,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Setup {
    pub(super) queue: u8,
    pub(super) order: Order,
    pub(super) on_doubt: OnDoubt,
    pub(super) on_dead: OnDead,
    pub(super) window: u32,
    pub(super) in_flight: u32,
    pub(super) attempts: u32,
    /// Messages; 0: no limit.
    pub(super) backlog: u64,
    /// Deliveries that the sender of the same number may have unsettled; 0: no limit.
    pub(super) sent: u64,
}

/// The steps of a seed.
pub(super) fn steps(seed: u64) -> Vec<Step> {
    let mut dice = Dice(seed);
    // Some runs are about one kind of trouble, since where everything happens nothing lasts long enough to meet anything.
    let faults = [0, 4, 12, 25][pick(&mut dice, 4)];
    let restless = dice.chance(50);
    let count = 12 + dice.below(48);
    let first = Op::Configure { queues: setups(&mut dice, false) };
    let mut steps = vec![Step::Together { ops: vec![first], fault: None }];
    for _ in 0..count {
        steps.push(step(&mut dice, faults, restless));
    }
    steps
}

fn pick(dice: &mut Dice, count: u64) -> usize {
    usize::try_from(dice.below(count)).unwrap_or(0)
}

fn number(dice: &mut Dice, bound: u64) -> u8 {
    u8::try_from(dice.below(bound.min(256))).unwrap_or(0)
}

fn step(dice: &mut Dice, faults: u64, restless: bool) -> Step {
    let fault = dice.chance(faults).then(|| fault(dice));
    match dice.below(100) {
        0..=14 => Step::Pass { ms: span(dice, restless), fault },
        15..=17 => Step::Sign { fault },
        18..=20 if restless => Step::Crash {
            down_ms: span(dice, false),
            wall_ms: [0, 0, 3_600_000, -3_600_000][pick(dice, 4)],
            fault,
        },
        _ => {
            let count = if dice.chance(45) { 1 } else { 2 + dice.below(5) };
            Step::Together { ops: (0..count).map(|_| op(dice, restless)).collect(), fault }
        }
    }
}

fn fault(dice: &mut Dice) -> Fault {
    let at = if dice.chance(70) { 0 } else { 1 + u32::from(number(dice, 3)) };
    let kind = match dice.below(8) {
        0 => Kind::Full,
        1 => Kind::Broken,
        2 => Kind::Refused,
        3 => Kind::BrokenAfter,
        4 | 5 => Kind::CrashBefore,
        _ => Kind::CrashAfter,
    };
    Fault { at, kind }
}

/// Mostly shorter than a lease; now and then longer than a retention.
fn span(dice: &mut Dice, restless: bool) -> u64 {
    match dice.below(100) {
        0..=59 => 10 + dice.below(3000),
        60..=84 => 20_000 + dice.below(60_000),
        85..=96 => 600_000 + dice.below(7_200_000),
        _ if restless => 86_400_000 + dice.below(172_800_000),
        _ => 1000,
    }
}

fn op(dice: &mut Dice, restless: bool) -> Op {
    let queue = number(dice, 3);
    match dice.below(100) {
        0..=20 => {
            let sender = if dice.chance(80) { number(dice, 2) } else { 2 + number(dice, 2) };
            let count = if dice.chance(60) { 1 } else { 1 + dice.below(5) };
            Op::Send { sender, events: (0..count).map(|_| event(dice)).collect() }
        }
        21..=26 => Op::SendAgain { which: number(dice, 256) },
        27..=28 => Op::Before { which: number(dice, 256) },
        29..=54 => Op::Lease {
            queue,
            max: 1 + number(dice, 6),
            id: if dice.chance(40) { 1 + number(dice, 4) } else { 0 },
            secs: [5, 30, 600][pick(dice, 3)],
            earlier_life: dice.chance(4),
        },
        55..=81 => settle(dice, queue),
        82..=84 => Op::SettleAgain { which: number(dice, 256) },
        85..=86 => Op::Session { queue },
        87..=88 => Op::Death { queue, crashed: dice.chance(75) },
        89..=93 => Op::Operate {
            which: number(dice, 256),
            verb: [
                Decides::Replay,
                Decides::Replay,
                Decides::Discard,
                Decides::SayDelivered,
                Decides::SayRetry,
                Decides::SayRetry,
                Decides::SayDead,
            ][pick(dice, 7)],
        },
        94..=96 => Op::Brake {
            queue,
            brake: [
                Brakes::Pause,
                Brakes::Resume,
                Brakes::Resume,
                Brakes::CrashLoop,
                Brakes::Refused,
                Brakes::Answered,
            ][pick(dice, 6)],
        },
        97 if restless => Op::Move { from: queue, to: number(dice, 3) },
        98 if restless => Op::Configure { queues: setups(dice, true) },
        _ => Op::Note,
    }
}

fn event(dice: &mut Dice) -> Ev {
    Ev {
        key: number(dice, 40),
        content: if dice.chance(92) { 0 } else { 1 },
        to: [1, 1, 1, 2, 2, 4, 3, 7][pick(dice, 8)],
        expires_s: if dice.chance(12) { [1, 40, 3000][pick(dice, 3)] } else { 0 },
    }
}

fn settle(dice: &mut Dice, queue: u8) -> Op {
    let mut items = Vec::new();
    let count = if dice.chance(50) { 1 } else { 1 + dice.below(4) };
    for _ in 0..count {
        let which = if dice.chance(92) { number(dice, 6) } else { PAST + number(dice, 20) };
        if dice.chance(75) {
            items.push(Item { which, says: Says::Begin });
        }
        let says = match dice.below(100) {
            0..=32 => Says::Delivered,
            33..=39 => Says::Away,
            40..=44 => Says::Weak,
            45..=52 => Says::Sent,
            53..=60 => Says::InDoubt,
            61..=68 => Says::Retry,
            69..=70 => Says::RetryLater,
            71..=76 => Says::Trouble,
            77..=82 => Says::Reject,
            83..=89 => Says::Release,
            90..=92 => Says::Extend,
            93..=95 => Says::Away,
            96..=97 => {
                items.push(Item { which: PAST + number(dice, 20), says: Says::Wake });
                continue;
            }
            _ => continue,
        };
        items.push(Item { which, says });
    }
    Op::Settle {
        queue,
        items,
        emit: if dice.chance(15) {
            if dice.chance(75) { Emits::Routed } else { Emits::Unrouted }
        } else {
            Emits::Nothing
        },
        state: dice.chance(15),
        atomic: dice.chance(10),
        earlier_life: dice.chance(6),
    }
}

fn setups(dice: &mut Dice, may_lack: bool) -> Vec<Setup> {
    let mut setups = Vec::new();
    for queue in 0..3 {
        if may_lack && dice.chance(15) {
            continue;
        }
        let order = [Order::None, Order::Key, Order::Key, Order::Strict][pick(dice, 4)];
        setups.push(Setup {
            queue,
            order,
            on_doubt: [OnDoubt::Resend, OnDoubt::Hold, OnDoubt::Query][pick(dice, 3)],
            on_dead: [OnDead::Continue, OnDead::HoldLane][pick(dice, 2)],
            window: if order == Order::None { 1 } else { [1, 1, 2, 4][pick(dice, 4)] },
            in_flight: [1, 3, 256][pick(dice, 3)],
            attempts: [1, 3, 5][pick(dice, 3)],
            backlog: [0, 0, 0, 6][pick(dice, 4)],
            sent: [0, 0, 4, 9][pick(dice, 4)],
        });
    }
    setups
}

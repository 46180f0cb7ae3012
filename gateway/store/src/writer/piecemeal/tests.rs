use gatepost_core::Timestamp;
use gatepost_core::message::{DataForm, NewMessage};
use gatepost_core::principal::{Actor, ActorKind, TypePatterns};
use tokio::sync::oneshot;

use super::*;
use crate::ops::Accept;
use crate::prepared::Remains;
use crate::seal::Vault;

const SIZES: Sizes = Sizes { piece: 100, operation: 1000, payload: 300, least: 50 };

/// An operation with payloads of which the sealed forms have so many bytes.
fn accept(sealed: &[usize]) -> Op {
    let (vault, sender) = (Vault::new(&[1; 32]), Actor::new(ActorKind::App, "ehr"));
    let mut prepared = Vec::new();
    for (number, bytes) in sealed.iter().enumerate() {
        let mut message = NewMessage {
            kind: "t".into(),
            source: "/test".into(),
            subject: None,
            partition_key: None,
            barrier_key: None,
            datacontenttype: None,
            correlation_id: None,
            expires_at: None,
            attributes: b"{}".to_vec(),
            form: DataForm::Text,
            // Nine bytes come with the seal.
            data: vec![b'x'; bytes.saturating_sub(9)],
            idempotency_key: number.to_string(),
            destinations: Vec::new(),
        };
        let at = Timestamp::from_micros(1);
        prepared.push(Prepared::new(&vault, &sender, &mut message, at, Remains::Within).unwrap());
    }
    let permit = TypePatterns::new(["*"]).permit(&sender, "t").unwrap();
    let accept = Accept { permit, session: None, messages: Vec::new() };
    Op::Accept { accept, prepared, place: None, answer: oneshot::channel().0 }
}

fn ids(op: &Op) -> Vec<MessageId> {
    prepared(op).unwrap().iter().map(|prepared| prepared.id).collect()
}

fn of(ops: Vec<Op>) -> Piecemeal {
    let (mut ops, mut piecemeal) = (ops, Piecemeal::new(SIZES));
    piecemeal.part(&mut ops);
    assert!(ops.is_empty());
    piecemeal
}

/// Looks at the one whose turn it is, and takes all of it for new.
fn look(piecemeal: &mut Piecemeal) {
    let added = piecemeal.to_look_at().map(ids).unwrap_or_default();
    piecemeal.looked_at(&added.into_iter().collect());
}

/// Numbers and lengths of the pieces of a step that then is written.
fn write(piecemeal: &mut Piecemeal, most: usize) -> Vec<(u32, usize)> {
    let step = piecemeal.step(most).unwrap();
    let pieces = step.pieces.iter().map(|piece| (piece.number, piece.bytes.len())).collect();
    let then = step.then;
    piecemeal.written(then);
    pieces
}

#[test]
fn only_what_is_large_and_has_a_large_payload_is_parted_from_the_rest() {
    let mut piecemeal = Piecemeal::new(SIZES);
    let mut ops = vec![accept(&[999]), accept(&[1000]), accept(&[250; 4]), accept(&[300, 700])];
    piecemeal.part(&mut ops);
    let sizes: Vec<usize> = ops.iter().map(|op| prepared(op).unwrap().len()).collect();
    assert_eq!((sizes, piecemeal.waiting.len()), (vec![1, 4], 2));
    let mut many: Vec<Op> = (0..1000).map(|_| accept(&[1000])).collect();
    piecemeal.part(&mut many);
    assert_eq!((many.len(), piecemeal.waiting.len()), (0, 1002), "none goes round the others");
}

#[test]
fn a_payload_is_cut_into_pieces_that_are_numbered_and_the_first_says_that_nothing_is_accepted() {
    let mut piecemeal = of(vec![accept(&[1050])]);
    assert!(piecemeal.step(9).is_none(), "nothing before it was looked at");
    look(&mut piecemeal);
    assert_eq!(write(&mut piecemeal, 1), [(0, 0), (1, 100)]);
    assert_eq!(write(&mut piecemeal, 2), [(2, 100), (3, 100)]);
    assert!(piecemeal.take_whole().is_empty());
    let rest = write(&mut piecemeal, 100);
    assert_eq!((rest[0], rest[7], rest.len()), ((4, 100), (11, 50), 8));
    let whole = piecemeal.take_whole();
    assert_eq!(in_pieces(&whole[0]).count(), 1);
    assert!(piecemeal.due(Instant::now()).is_none());
}

/// What it is cut into is the sealed value.
#[test]
fn the_pieces_are_the_payload() {
    for bytes in [1000, 1001, 1099, 1100] {
        let mut piecemeal = of(vec![accept(&[bytes])]);
        look(&mut piecemeal);
        let sealed = prepared(&piecemeal.waiting[0].op).unwrap()[0].data.clone();
        let mut found = Vec::new();
        while let Some(step) = piecemeal.step(3) {
            found.extend(step.pieces.iter().flat_map(|piece| piece.bytes).copied());
            let then = step.then;
            piecemeal.written(then);
        }
        assert_eq!(found, sealed);
        let whole = piecemeal.take_whole();
        let Prepared { id, salt, data, .. } = &prepared(&whole[0]).unwrap()[0];
        let owner = Owner::Data { message: id.as_bytes(), salt };
        let count = u32::try_from(bytes.div_ceil(100)).unwrap();
        assert_eq!(InPieces::read(data, owner), Some(InPieces { count, bytes: bytes as u64 }));
    }
}

#[test]
fn of_a_batch_what_is_small_or_known_stays_as_it_is() {
    let mut piecemeal = of(vec![accept(&[250, 400, 350, 300])]);
    let all = piecemeal.to_look_at().map(ids).unwrap();
    piecemeal.looked_at(&[all[0], all[1], all[3]].into());
    assert_eq!(write(&mut piecemeal, 5), [(0, 0), (1, 100), (2, 100), (3, 100), (4, 100), (0, 0), (1, 100)]);
    assert_eq!(write(&mut piecemeal, 5), [(2, 100), (3, 100)]);
    let whole = piecemeal.take_whole();
    assert_eq!(in_pieces(&whole[0]).collect::<Vec<_>>(), [all[1], all[3]]);
    // Where nothing would be added, nothing is written.
    let mut piecemeal = of(vec![accept(&[1000])]);
    piecemeal.looked_at(&HashSet::new());
    assert_eq!(piecemeal.take_whole().len(), 1);
}

#[test]
fn of_a_large_batch_of_small_ones_only_so_much_stays() {
    let mut piecemeal = of(vec![accept(&[250; 6]), accept(&[290, 49, 280, 300, 270, 260])]);
    look(&mut piecemeal);
    let all = ids(&piecemeal.waiting[0].op);
    assert_eq!(write(&mut piecemeal, 2), [(0, 0), (1, 100), (2, 100)]);
    // The large one, and as many others as leave little enough.
    look(&mut piecemeal);
    assert_eq!(
        write(&mut piecemeal, 7),
        [(0, 0), (1, 100), (2, 100), (3, 90), (0, 0), (1, 100), (2, 100), (3, 100)]
    );
    // Two of the first ones, the rest of them in one step.
    assert_eq!(write(&mut piecemeal, 4), [(3, 50), (0, 0), (1, 100), (2, 100), (3, 50)]);
    let whole = piecemeal.take_whole();
    assert_eq!(whole.iter().map(|op| in_pieces(op).count()).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(in_pieces(&whole[1]).collect::<Vec<_>>(), all[..2]);
    // What is too small for a row of its own stays, however many there are.
    let mut ops = vec![accept(&[49; 30])];
    piecemeal.part(&mut ops);
    assert_eq!(ops.len(), 1);
}

#[test]
fn small_pieces_take_as_long_as_their_rows() {
    let sizes = Sizes { piece: 1600, operation: 1000, payload: 300, least: 20 };
    let (mut piecemeal, mut ops) = (Piecemeal::new(sizes), vec![accept(&[25; 80])]);
    piecemeal.part(&mut ops);
    look(&mut piecemeal);
    // Forty of them go, with a row for each in place of a hundred bytes.
    let rows: Vec<usize> = (0..3).map(|_| write(&mut piecemeal, 1).len()).collect();
    assert_eq!(rows, [32, 32, 16]);
}

#[test]
fn they_take_turns_and_what_is_given_up_says_what_of_it_is_there() {
    let mut piecemeal = of(vec![accept(&[1000]), accept(&[2000])]);
    look(&mut piecemeal);
    let first = ids(&piecemeal.waiting[0].op);
    write(&mut piecemeal, 1);
    assert!(piecemeal.to_look_at().is_some(), "the other one's turn");
    look(&mut piecemeal);
    write(&mut piecemeal, 1);
    assert_eq!(write(&mut piecemeal, 1), [(2, 100)], "the first one's again");
    let (ops, begun) = piecemeal.give_up(|op| ids(op) == first);
    assert_eq!((ops.len(), begun), (1, first));
    let (op, begun) = piecemeal.give_up_first().unwrap();
    assert_eq!(begun, ids(&op));
    assert!(piecemeal.give_up_first().is_none());
}

#[test]
fn what_has_failed_among_others_stands_alone() {
    let mut piecemeal = of(vec![accept(&[1000])]);
    look(&mut piecemeal);
    assert!(piecemeal.along().is_some());
    piecemeal.not_written();
    let now = Instant::now();
    piecemeal.committed(Whose::Others, now, Duration::from_secs(1));
    assert!(piecemeal.along().is_none());
    assert_eq!(piecemeal.due(now), Some(now), "and does not wait for them");
    write(&mut piecemeal, 1);
    assert!(piecemeal.along().is_some());
}

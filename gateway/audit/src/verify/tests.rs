mod sample;

use std::cell::RefCell;
use std::fs;

use proptest::prelude::*;
use sample::{Log, SIZE, accepted, delivery_leaf, id, key, leaf, leaves, root, signed, verify};

use super::*;
use crate::dir::write_file_durable;
use crate::edge::TileEdge;
use crate::leaf::{Event, Leaf, State};
use crate::note::SignerKey;
use crate::tiles::{encode_bundle, parse_bundle, tile_path};
use crate::tree::leaf_hash;

const BUNDLES: [&str; 3] = ["tile/entries/000", "tile/entries/001", "tile/entries/002.p/88"];

/// Exit code, first wrong leaf, wrong file.
fn fault(result: Result<Report, Fault>) -> (u8, Option<u64>, Option<String>) {
    let fault = result.unwrap_err();
    (fault.exit_code(), fault.leaf(), fault.path().map(str::to_owned))
}

fn at(exit: u8, leaf: u64, path: &str) -> (u8, Option<u64>, Option<String>) {
    (exit, Some(leaf), Some(path.to_owned()))
}

#[test]
fn an_untouched_log_verifies_at_every_size_around_the_tiles() {
    for size in [0, 1, 2, 255, 256, 257, 511, 512, 513, SIZE] {
        let leaves = leaves(size);
        let report = Log::export(&leaves).verify().unwrap();
        assert_eq!((report.size, report.root, report.unsigned), (size as u64, root(&leaves), 0));
        assert_eq!(report.origin, sample::ORIGIN);
    }
    let open = Log::export(&leaves(SIZE)).verify().unwrap().deliveries_open;
    assert!((20..SIZE as u64 / 3).contains(&open), "{open}: only unfinished deliveries are remembered");
}

/// Every byte of every entry and its length, and every byte of every leaf hash. A full run per byte would take an
/// hour; the walk stands before the entry in question instead, which is where a full run would come to.
#[test]
fn every_flipped_byte_of_an_entry_or_its_hash_is_noticed_at_its_leaf() {
    let log = Log::export(&leaves(SIZE));
    let nowhere = tempfile::tempdir().unwrap();
    let files = || Files { tiles: DirTiles::new(log.dir.path()), partials: Partials::Expected };
    let checkpoint = Checkpoint::open(&log.read("checkpoint"), &[key().verifier()]).unwrap();
    let mut walk = Walk::start(files(), checkpoint, None).unwrap();
    let mut flips = 0;
    for (index, path) in BUNDLES.iter().enumerate() {
        walk.files = files();
        walk.open_bundle(index as u64, path).unwrap();
        // Who of the two was changed is another test's question, and would read files for each flip.
        walk.files.tiles = DirTiles::new(nowhere.path());
        let mut bundle = log.read(path);
        let lengths: Vec<usize> =
            parse_bundle(&bundle).unwrap().iter().map(|entry| 2 + entry.len()).collect();
        let mut start = 0;
        for (position, length) in lengths.iter().enumerate() {
            let leaf = walk.entries();
            let width = (lengths.len() - position) as u16;
            for byte in start..start + length {
                let bit = 1 << (byte % 8);
                bundle[byte] ^= bit;
                let found = walk_bundle_entries(&mut walk, path, width, &bundle[start..]).unwrap_err();
                assert_eq!((found.exit_code(), found.leaf()), (12, Some(leaf)), "byte {byte} of {path}");
                bundle[byte] ^= bit;
                flips += 1;
            }
            let entry = bundle[start + 2..start + length].to_vec();
            for byte in 0..Hash::BYTES {
                let good = walk.tile_hash(position);
                let mut bad = *good.as_bytes();
                bad[byte] ^= 1 << (byte % 8);
                walk.set_tile_hash(position, Hash::from(bad));
                let found = walk.entry(&entry).unwrap_err();
                assert_eq!((found.exit_code(), found.leaf()), (12, Some(leaf)));
                walk.set_tile_hash(position, good);
                flips += 1;
            }
            walk.files = files();
            walk.entry(&entry).unwrap();
            walk.files.tiles = DirTiles::new(nowhere.path());
            start += length;
        }
    }
    assert_eq!(walk.finish().size, SIZE as u64);
    assert!(flips > 100_000, "{flips}");
}

/// The same through files and the whole run: all of the checkpoint and the upper tile, samples of the rest.
#[test]
fn flipped_bytes_in_files_are_noticed_and_named() {
    let log = Log::export(&leaves(SIZE));
    let mut samples = 0;
    let mut flip = |path: &str, step: usize, check: &dyn Fn(usize, &Fault)| {
        let good = log.read(path);
        for byte in (0..good.len()).step_by(step) {
            let mut bad = good.clone();
            bad[byte] ^= 1 << (byte % 8);
            log.write(path, &bad);
            check(byte, &log.verify().unwrap_err());
            samples += 1;
        }
        log.write(path, &good);
    };
    flip("checkpoint", 1, &|_, fault| {
        assert_eq!((fault.exit_code(), fault.path()), (10, Some("checkpoint")))
    });
    flip("tile/1/000.p/2", 1, &|byte, fault| {
        let Fault::TileChanged { path, position, leaf } = fault else { panic!("{fault}") };
        assert_eq!((path.as_str(), *position, *leaf), ("tile/1/000.p/2", byte / 32, byte as u64 / 32 * 256));
    });
    for (first, path) in [(0, "tile/0/000"), (256, "tile/0/001"), (512, "tile/0/002.p/88")] {
        flip(path, 211, &|byte, fault| {
            let Fault::LeafHashChanged { leaf, path: named } = fault else { panic!("{fault}") };
            assert_eq!((*leaf, named.as_str()), (first + byte as u64 / 32, path));
        });
    }
    for (first, path) in [(0, BUNDLES[0]), (256, BUNDLES[1]), (512, BUNDLES[2])] {
        let bundle = log.read(path);
        let mut starts = vec![0];
        for entry in parse_bundle(&bundle).unwrap() {
            starts.push(starts.last().unwrap() + 2 + entry.len());
        }
        flip(path, 997, &|byte, fault| {
            let entry = starts.iter().rposition(|&start| start <= byte).unwrap();
            assert_eq!(
                (fault.exit_code(), fault.leaf(), fault.path()),
                (12, Some(first + entry as u64), Some(path))
            );
            let in_length = byte < starts[entry] + 2;
            assert!(in_length || matches!(fault, Fault::LeafChanged { .. }), "{fault}");
        });
    }
    assert!(samples > 400, "{samples}");
    assert!(log.verify().is_ok());
}

#[test]
fn leaves_deleted_inserted_swapped_or_doubled_are_named() {
    let good = leaves(SIZE);
    let log = Log::export(&good);
    let rewrite = |bundle: usize, change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let end = good.len().min(bundle * 256 + 256);
        let mut entries = good[bundle * 256..end].to_vec();
        change(&mut entries);
        log.write(BUNDLES[bundle], encode_bundle(entries.iter().map(Vec::as_slice)).unwrap());
        let found = fault(log.verify());
        log.write(BUNDLES[bundle], encode_bundle(good[bundle * 256..end].iter().map(Vec::as_slice)).unwrap());
        found
    };
    assert_eq!(rewrite(0, &|e| drop(e.remove(0))), at(12, 0, BUNDLES[0]));
    assert_eq!(rewrite(0, &|e| drop(e.remove(100))), at(12, 100, BUNDLES[0]));
    assert_eq!(rewrite(0, &|e| drop(e.pop())), at(12, 255, BUNDLES[0]));
    assert_eq!(rewrite(1, &|e| e.truncate(7)), at(12, 263, BUNDLES[1]));
    assert_eq!(rewrite(1, &|e| e.clear()), at(12, 256, BUNDLES[1]));
    assert_eq!(rewrite(1, &|e| e.swap(3, 200)), at(12, 259, BUNDLES[1]));
    assert_eq!(rewrite(2, &|e| e.swap(86, 87)), at(12, 598, BUNDLES[2]));
    assert_eq!(rewrite(2, &|e| e.insert(5, e[4].clone())), at(12, 517, BUNDLES[2]));
    assert_eq!(rewrite(2, &|e| e.push(e[4].clone())), at(12, 600, BUNDLES[2]));
    assert_eq!(rewrite(2, &|e| drop(e.pop())), at(12, 599, BUNDLES[2]));
    assert!(log.verify().is_ok());
}

#[test]
fn missing_and_cut_files_are_named() {
    for (path, expected) in [
        (BUNDLES[0], at(12, 0, "tile/entries/000")),
        (BUNDLES[1], at(12, 256, "tile/entries/001")),
        (BUNDLES[2], at(12, 512, BUNDLES[2])),
        ("tile/0/000", at(12, 0, "tile/0/000")),
        ("tile/0/002.p/88", at(12, 512, "tile/0/002.p/88")),
        ("tile/1/000.p/2", at(12, 0, "tile/1/000.p/2")),
        ("checkpoint", (20, None, Some("checkpoint".to_owned()))),
    ] {
        let log = Log::export(&leaves(SIZE));
        log.remove(path);
        assert_eq!(fault(log.verify()), expected);
    }
    let log = Log::export(&leaves(SIZE));
    log.write("tile/0/001", &log.read("tile/0/001")[..8_191]);
    assert_eq!(fault(log.verify()), (12, None, Some("tile/0/001".to_owned())));
    log.remove("tile/0/001");
    fs::create_dir(log.path("tile/0/001")).unwrap();
    assert_eq!(fault(log.verify()), (20, None, Some("tile/0/001".to_owned())));
}

/// Above 65,536 entries there is a full tile over full tiles.
#[test]
fn full_upper_tiles_are_compared_too() {
    let mut entries = vec![leaf(1, Event::Searched).encode().unwrap(); 65_600];
    entries[0] = leaf(0, Event::LogOpened).encode().unwrap();
    let log = Log::export(&entries);
    let good = log.read("tile/1/000");
    let mut bad = good.clone();
    bad[255 * Hash::BYTES] ^= 1;
    log.write("tile/1/000", &bad);
    assert_eq!(fault(log.verify()), at(12, 255 * 256, "tile/1/000"));
    log.remove("tile/1/000");
    assert_eq!(fault(log.verify()), at(12, 0, "tile/1/000"));
    log.write("tile/1/000", &good);
    assert_eq!(log.verify().unwrap().size, 65_600);
}

/// Whoever can rewrite all files, but has not the key.
#[test]
fn a_consistent_rewrite_without_the_key_fails_at_the_root() {
    let good = leaves(SIZE);
    let mut bad = good.clone();
    bad[300] = Leaf { size: Some(1), ..accepted(300, &[9_999]) }.encode().unwrap();
    let log = Log::export(&bad);
    log.write("checkpoint", signed(&good));
    let Fault::Root { size: 600, since: None } = log.verify().unwrap_err() else { panic!() };
    let since = |size: usize| match log.verify_since(&signed(&good[..size])).unwrap_err() {
        Fault::Root { since, .. } => since,
        other => panic!("{other}"),
    };
    assert_eq!(since(300), Some((300, true)));
    assert_eq!(since(301), Some((301, false)));
    // Entry and leaf hash changed together, the level above forgotten.
    let log = Log::export(&good);
    let rewritten = Log::export(&bad);
    for path in [BUNDLES[1], "tile/0/001"] {
        log.write(path, rewritten.read(path));
    }
    assert_eq!(fault(log.verify()), at(12, 256, "tile/1/000.p/2"));
}

/// Whoever has the key too, against someone who kept an older checkpoint.
#[test]
fn an_older_checkpoint_shows_forks_and_rollbacks() {
    let good = leaves(SIZE);
    let log = Log::export(&good);
    for size in [0, 1, 255, 256, 300, 512, 599, 600] {
        assert_eq!(log.verify_since(&signed(&good[..size])).unwrap().since, Some(size as u64));
    }
    let mut forked = good.clone();
    forked[10] = leaf(10, Event::ConfigChanged).encode().unwrap();
    for size in [11, 256, 599, 600] {
        let Fault::Fork { since, size: 600 } = log.verify_since(&signed(&forked[..size])).unwrap_err() else {
            panic!()
        };
        assert_eq!(since, size as u64);
    }
    let shorter = Log::export(&good[..400]);
    assert_eq!(fault(shorter.verify_since(&signed(&good))).0, 18);
    let stranger = SignerKey::from_seed(sample::ORIGIN, &[1; 32]).unwrap();
    let foreign = Checkpoint { origin: sample::ORIGIN.to_owned(), size: 1, root: root(&good[..1]) };
    assert_eq!(
        fault(log.verify_since(&foreign.sign(&stranger).unwrap())),
        (10, None, Some("since".to_owned()))
    );
}

#[test]
fn another_logs_checkpoint_or_key_is_refused() {
    let log = Log::export(&leaves(5));
    let other = SignerKey::from_seed("clinic-2", &[42; 32]).unwrap();
    assert_eq!(fault(verify(log.dir.path(), Options::new(other.verifier()))).0, 10);
    let theirs = Checkpoint { origin: "clinic-2".to_owned(), size: 5, root: root(&leaves(5)) };
    log.write("checkpoint", theirs.sign(&other).unwrap());
    assert_eq!(fault(log.verify()).0, 10);
}

#[test]
fn entries_beyond_the_checkpoint_are_counted_not_refused() {
    let good = leaves(SIZE);
    let log = Log::export(&good);
    for size in [0, 1, 255, 256, 257, 511, 512, 513, 599] {
        log.write("checkpoint", signed(&good[..size]));
        let report = log.verify().unwrap();
        assert_eq!((report.size, report.unsigned), (size as u64, (SIZE - size) as u64));
    }
    // They still must be leaves, and agree with the tiles that are there.
    let mut bundle = log.read(BUNDLES[2]);
    *bundle.last_mut().unwrap() ^= 1;
    log.write(BUNDLES[2], bundle);
    assert_eq!(fault(log.verify()), at(12, 599, BUNDLES[2]));
}

#[test]
fn every_partial_file_must_agree_not_only_the_widest() {
    let good = leaves(SIZE);
    let log = Log::export(&good);
    let hashes = log.read("tile/0/002.p/88");
    log.write("tile/0/002.p/5", &hashes[..5 * 32]);
    let bundle = encode_bundle(good[512..517].iter().map(Vec::as_slice)).unwrap();
    log.write("tile/entries/002.p/5", &bundle);
    log.write("tile/0/002.p/.88.tmp", "torn");
    assert!(log.verify().is_ok());
    let mut bad = hashes[..5 * 32].to_vec();
    bad[4 * 32] ^= 1;
    log.write("tile/0/002.p/5", bad);
    assert_eq!(fault(log.verify()), at(12, 516, "tile/0/002.p/5"));
    log.remove("tile/0/002.p/5");
    log.write("tile/entries/002.p/5", &bundle[..bundle.len() - 1]);
    assert_eq!(fault(log.verify()), (12, None, Some("tile/entries/002.p/5".to_owned())));
}

#[test]
fn signed_nonsense_is_named() {
    let mut bad = leaves(SIZE);
    bad[77] = br#"{"at":"2026-11-23T08:50:12.123456Z","who":"me"}"#.to_vec();
    let Fault::Leaf { leaf: 77, source } = Log::export(&bad).verify().unwrap_err() else { panic!() };
    assert_eq!(source.to_string(), r#"unknown key "who""#);
    bad[77] = Vec::new();
    assert_eq!(fault(Log::export(&bad).verify()), (16, Some(77), None));
}

/// Each case: what follows `log_opened` and the acceptance of delivery 1, and what is said of its last leaf.
#[test]
fn impossible_histories_are_named() {
    use Event::*;
    let step = |event, attempt| delivery_leaf(0, event, 1, attempt);
    let series = |event, series, attempt| Leaf { series: Some(series), ..step(event, attempt) };
    let state = |event, state| Leaf { state: Some(state), ..step(event, 1) };
    let at = |destination: &'static str, leaf| Leaf { destination: Some(destination.into()), ..leaf };
    let moved = |from: &'static str, to, attempt| Leaf {
        subject_of: Some(from.into()),
        state: Some(State::Waiting),
        ..at(to, step(Moved, attempt))
    };
    let name = "02020202-0202-0202-0000-000000000001";
    let ok = |leaves: &[Leaf<'static>]| (leaves.to_vec(), String::new());
    let no = |leaves: &[Leaf<'static>], error: &str| (leaves.to_vec(), error.replace("{}", name));
    let ended =
        |event: &str| format!("{event} of delivery {name}, which was never accepted or has already ended");
    let cases = [
        ok(&[step(Attempt, 1), step(Released, 1), step(Attempt, 1), step(Delivered, 1)]),
        ok(&[step(Attempt, 1), step(InDoubt, 1), state(Resolved, State::Waiting), step(Attempt, 2)]),
        ok(&[
            step(Dead, 1),
            series(Replayed, 1, 0),
            series(Attempt, 1, 1),
            series(Dead, 1, 1),
            series(Discarded, 1, 1),
        ]),
        ok(&[step(Expired, 0), accepted(0, &[2])]),
        ok(&[Leaf { attempt: None, series: None, ..step(Delivered, 0) }]),
        ok(&[step(Delivered, 1), Leaf { delivery: Some(id(2, 1)), ..leaf(0, PayloadRead) }]),
        ok(&[
            moved("lab", "lab-2", 0),
            at("lab-2", step(Attempt, 1)),
            at("lab-2", step(Retry, 1)),
            Leaf { series: Some(1), ..moved("lab-2", "lab", 0) },
            at("lab", series(Attempt, 1, 1)),
            at("lab", series(Dead, 1, 1)),
            Leaf { series: Some(1), state: Some(State::Dead), ..moved("lab", "lab-2", 1) },
            at("lab-2", series(Discarded, 1, 1)),
        ]),
        no(&[step(Attempt, 1), moved("lab", "lab-2", 1)], "delivery {} is moved while a partner may have it"),
        no(&[step(InDoubt, 1), moved("lab", "lab-2", 1)], "delivery {} is moved while a partner may have it"),
        no(&[step(Delivered, 1), moved("lab", "lab-2", 1)], &ended("moved")),
        no(&[moved("desk", "lab-2", 0)], "moved of delivery {} at \"desk\", but it is at \"lab\""),
        no(
            &[moved("lab", "lab-2", 0), at("lab", step(Attempt, 1))],
            "attempt of delivery {} at \"lab\", but it is at \"lab-2\"",
        ),
        no(&[step(Dead, 1), moved("lab", "lab-2", 1)], "moved of delivery {} leaves it waiting"),
        no(
            &[Leaf { state: Some(State::Dead), ..moved("lab", "lab-2", 0) }],
            "moved of delivery {} leaves it dead",
        ),
        no(&[leaf(0, LogOpened)], "log_opened may only be the first leaf"),
        no(&[leaf(0, Attempt)], "attempt names no delivery"),
        no(&[accepted(0, &[2, 1])], "delivery {} is accepted a second time"),
        no(&[delivery_leaf(0, Attempt, 3, 1)], &ended("attempt").replace("0001", "0003")),
        no(&[step(Delivered, 1), step(Delivered, 1)], &ended("delivered")),
        no(&[step(Delivered, 1), step(Retry, 1)], &ended("retry")),
        no(&[step(Expired, 1), step(Attempt, 1)], &ended("attempt")),
        no(&[step(Dead, 1), step(Discarded, 1), step(Replayed, 1)], &ended("replayed")),
        no(&[state(Resolved, State::Delivered), step(Delivered, 1)], &ended("delivered")),
        no(
            &[step(Dead, 1), step(Attempt, 2)],
            "attempt of delivery {}, which is dead: only replayed, discarded or moved may follow",
        ),
        no(
            &[state(Resolved, State::Dead), step(Delivered, 1)],
            "delivered of delivery {}, which is dead: only replayed, discarded or moved may follow",
        ),
        no(&[step(Replayed, 1)], "delivery {} is replayed, but is not dead"),
        no(&[state(Delivered, State::Waiting)], "delivered of delivery {} leaves it waiting"),
        no(
            &[step(Attempt, 2), step(Attempt, 1)],
            "the attempts of delivery {} go back: from 0.2 to 0.1 (series.attempt)",
        ),
        no(
            &[step(Dead, 1), series(Replayed, 1, 0), step(Attempt, 2)],
            "the attempts of delivery {} go back: from 1.0 to 0.2 (series.attempt)",
        ),
    ];
    for (steps, error) in cases {
        let log = [leaf(0, LogOpened), accepted(0, &[1])].into_iter().chain(steps);
        let log: Vec<_> = log.map(|leaf| leaf.encode().unwrap()).collect();
        let last = log.len() as u64 - 1;
        match Log::export(&log).verify() {
            Ok(_) => assert_eq!(error, ""),
            Err(Fault::Semantic { leaf, source }) => assert_eq!((leaf, source.to_string()), (last, error)),
            Err(other) => panic!("{other}"),
        }
    }
    let unopened = [leaf(0, GatewayStarted).encode().unwrap()];
    assert_eq!(fault(Log::export(&unopened).verify()), (17, Some(0), None));
}

/// A gateway's own directory: full files there, the newest entries in its database.
struct Live {
    log: Log,
    leaves: Vec<Vec<u8>>,
    tiled: usize,
}

impl Live {
    fn new(leaves: Vec<Vec<u8>>, signed_size: usize) -> Self {
        let log = Log { dir: tempfile::tempdir().unwrap() };
        log.write("checkpoint", signed(&leaves[..signed_size]));
        Self { log, leaves, tiled: 0 }
    }

    fn tile_up_to(&mut self, size: usize) {
        let (mut edge, mut full) = (TileEdge::new(), Vec::new());
        self.leaves[..size].iter().for_each(|leaf| edge.push(leaf_hash(leaf), &mut full));
        for tile in full {
            write_file_durable(self.log.dir.path(), &tile.path(), &tile.bytes()).unwrap();
            if tile.level == 0 {
                let first = tile.index as usize * 256;
                let bundle =
                    encode_bundle(self.leaves[first..first + 256].iter().map(Vec::as_slice)).unwrap();
                write_file_durable(self.log.dir.path(), &entries_path(tile.index, None), &bundle).unwrap();
            }
        }
        self.tiled = size;
    }

    fn tail(&self, from: usize) -> Tail {
        Tail { start: from as u64, leaves: self.leaves[from..].to_vec() }
    }

    fn options<'a>(read_tail: impl FnMut(u64) -> io::Result<Tail> + 'a) -> Options<'a> {
        Options { tail: Some(Box::new(read_tail)), ..Options::new(key().verifier()) }
    }
}

#[test]
fn a_live_log_verifies_from_files_and_tail() {
    for signed_size in [0, 200, 256, 511, 512, 590, 600] {
        for tiled in [0, 256, 512] {
            let mut live = Live::new(leaves(SIZE), signed_size);
            live.tile_up_to(tiled);
            for tail_start in [tiled, tiled.saturating_sub(256)] {
                let options = Live::options(|from| {
                    assert_eq!(from, tiled as u64);
                    Ok(live.tail(tail_start))
                });
                let report = verify(live.log.dir.path(), options).unwrap();
                assert_eq!((report.size, report.unsigned), (signed_size as u64, (SIZE - signed_size) as u64));
            }
        }
    }
}

#[test]
fn a_live_log_may_be_tiled_while_it_is_read() {
    let live = RefCell::new(Live::new(leaves(SIZE), SIZE));
    live.borrow_mut().tile_up_to(256);
    let dir = live.borrow().log.dir.path().to_path_buf();
    let options = Live::options(|from| {
        live.borrow_mut().tile_up_to(512);
        assert!([256, 512].contains(&from));
        Ok(live.borrow().tail(512))
    });
    assert_eq!(verify(&dir, options).unwrap().size, SIZE as u64);
}

#[test]
fn a_live_log_that_lacks_entries_or_has_others_is_refused() {
    let mut live = Live::new(leaves(SIZE), SIZE);
    live.tile_up_to(256);
    let dir = live.log.dir.path();
    let gap = verify(dir, Live::options(|_| Ok(live.tail(300))));
    assert_eq!(fault(gap), at(12, 256, "tile/entries/001"));
    let short =
        verify(dir, Live::options(|_| Ok(Tail { start: 256, leaves: live.leaves[256..599].to_vec() })));
    assert_eq!(fault(short), at(12, 599, "tile/entries/002"));
    let changed = verify(
        dir,
        Live::options(|_| {
            let mut tail = live.tail(256);
            tail.leaves[40] = leaf(0, Event::Searched).encode().unwrap();
            Ok(tail)
        }),
    );
    assert_eq!(fault(changed).0, 11);
    let broken = verify(dir, Live::options(|_| Err(io::Error::other("database"))));
    assert_eq!(fault(broken).0, 20);
    // Without the tail the reader is told where the newest entries are.
    let message = verify(dir, Options::new(key().verifier())).unwrap_err().to_string();
    assert_eq!(message, "tile/entries/001 is missing, needed from leaf 256 on");
    live.tile_up_to(512);
    let message = live.log.verify().unwrap_err().to_string();
    assert!(message.contains("gatepost audit verify"), "{message}");
}

#[test]
fn what_was_changed_in_a_live_log_is_told_with_its_newest_entries() {
    for tail_start in [0, 512] {
        for (path, at_byte, expected) in [
            ("tile/entries/000", 300, " in tile/entries/000 was changed"),
            ("tile/0/001", 32 * 7, "the hash of leaf 263 in tile/0/001 was changed"),
        ] {
            let mut live = Live::new(leaves(SIZE), SIZE);
            live.tile_up_to(512);
            let file = live.log.dir.path().join(path);
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[at_byte] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            let options = Live::options(|_| Ok(live.tail(tail_start)));
            let message = verify(live.log.dir.path(), options).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}

#[test]
fn keys_are_read_from_text_and_file() {
    let log = Log::export(&leaves(3));
    let vkey = key().verifier();
    assert_eq!(read_vkey(&vkey.to_string()).unwrap(), vkey);
    assert_eq!(read_vkey(log.path("vkey").to_str().unwrap()).unwrap(), vkey);
    assert_eq!(read_vkey("no-such-file").unwrap_err().exit_code(), 20);
    assert!(matches!(read_vkey("clinic-1+00000000+AAAA"), Err(Fault::Key { .. })));
    assert!(matches!(read_vkey(log.path("checkpoint").to_str().unwrap()), Err(Fault::Key { .. })));
}

#[test]
fn every_exit_code_is_what_scripts_expect() {
    use Outcome::*;
    let codes =
        [Signature, Root, Files, Fork, Leaf, Semantic, RolledBack, Usage].map(|outcome| outcome as u8);
    assert_eq!(codes, [10, 11, 12, 13, 16, 17, 18, 20]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any bytes in place of any file: a fault, never a panic, never an answer that all is well.
    #[test]
    fn no_file_can_be_replaced(
        which in 0..8usize,
        keep in any::<prop::sample::Index>(),
        junk in prop::collection::vec(any::<u8>(), 1..100),
    ) {
        let log = Log::export(&leaves(300));
        let tile = tile_path(0, 0, None);
        let path = [
            "checkpoint", "tile/entries/000", "tile/entries/001.p/44", &tile, "tile/0/001.p/44", "tile/1/000.p/1",
            "tile/entries/001.p/7", "tile/0/001.p/7",
        ][which];
        let good = fs::read(log.path(path)).unwrap_or_default();
        let mut bad = good[..keep.index(good.len() + 1)].to_vec();
        bad.extend_from_slice(&junk);
        prop_assume!(bad != good);
        log.write(path, &bad);
        prop_assert!(log.verify().is_err());
    }
}

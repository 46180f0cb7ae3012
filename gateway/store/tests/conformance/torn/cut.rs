//! A write-ahead log that is cut off, or damaged in the middle.

use super::flipped::{differing, flip, named_by_doctor};
use super::saved::salvaged;
use super::*;

/// The directory of a gateway that was killed with a filled log: a copy of one at work.
pub(super) async fn killed(batches: usize) -> Filled {
    let (fixture, promised) = filled(3).await;
    // The start brings the log into the database; what comes then stands in the log alone.
    let fixture = fixture.restart().await;
    let mut filled = Filled { place: fixture.place.clone(), promised };
    for batch in 0..batches {
        if batch + 3 == batches {
            fixture.until_signed().await;
        }
        let messages: Vec<_> = (0..3)
            .map(|n| {
                message(
                    &format!("w{batch}-{n}"),
                    Some("k"),
                    &format!("w{batch}-{n} {}", "y".repeat(n * 3000)),
                    &["ward"],
                )
            })
            .collect();
        let contents: Vec<Vec<u8>> = messages.iter().map(|message| message.data.clone()).collect();
        let accepted = fixture.accept(messages).await.unwrap();
        filled.promised.extend(accepted.iter().map(|accepted| accepted.id).zip(contents));
    }
    // The database before the files: these may be ahead of it then only by what it has as well.
    let dir = tempfile::tempdir().unwrap();
    for name in [DATABASE, WAL] {
        fs::copy(fixture.place.path().join(name), dir.path().join(name)).unwrap();
    }
    for name in ["keys", "audit"] {
        copy_dir(&fixture.place.path().join(name), &dir.path().join(name));
    }
    filled.place = Place { dir: Arc::new(dir), ..fixture.place.clone() };
    fixture.stop().await;
    filled
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Where each transaction of the log ends.
pub(super) fn commits(wal: &[u8]) -> Vec<usize> {
    let frame = 24 + u32_at(wal, 8) as usize;
    let ends = (0..).map(|n| 32 + n * frame).take_while(|start| start + frame <= wal.len());
    ends.filter(|start| u32_at(wal, start + 4) > 0 && wal[start + 8..start + 16] == wal[16..24])
        .map(|start| start + frame)
        .collect()
}

fn cut(filled: &Filled, length: usize) -> Place {
    let place = copied(&filled.place);
    let wal = fs::File::options().write(true).open(place.path().join(WAL)).unwrap();
    wal.set_len(length as u64).unwrap();
    place
}

fn leaf_count(dumped: &BTreeMap<String, Vec<String>>) -> u64 {
    dumped["store"][0].split(' ').nth(3).unwrap().parse().unwrap()
}

pub(super) fn signed(place: &Place) -> u64 {
    let checkpoint = fs::read_to_string(place.path().join("audit/checkpoint")).unwrap();
    checkpoint.lines().nth(1).unwrap().parse().unwrap()
}

/// Cuts the log at these lengths: what is left is a prefix of the commits, and what is missing and was signed is named.
pub(super) async fn cut_at(filled: &Filled, lengths: &[usize], until: Option<Instant>) -> (u64, u64) {
    let wal = fs::read(filled.place.path().join(WAL)).unwrap();
    let ends = commits(&wal);
    assert!(ends.len() > 8, "the log has {} commits", ends.len());
    let mut prefixes = vec![dump(&cut(filled, 0).path().join(DATABASE)).await.unwrap()];
    for end in &ends {
        prefixes.push(dump(&cut(filled, *end).path().join(DATABASE)).await.unwrap());
    }
    assert!(
        prefixes.windows(2).all(|pair| leaf_count(&pair[0]) <= leaf_count(&pair[1])),
        "commits only add entries"
    );
    let (mut cuts, mut named) = (0, 0);
    for length in lengths {
        if until.is_some_and(|until| Instant::now() > until) {
            break;
        }
        let context = format!("the log is cut at {length} of {}", wal.len());
        let place = cut(filled, *length);
        let is_named = named_by_doctor(place.path(), &context);
        let signed = signed(&place);
        let refused = cuts % 16 == 0 && cut(filled, *length).open_unconfigured().await.is_err();
        let left = dump(&place.path().join(DATABASE)).await.unwrap();
        let whole = ends.iter().filter(|end| *end <= length).count();
        assert_eq!(differing(&prefixes[whole], &left), None, "{context}: not the first {whole} commits");
        let rolled_back = leaf_count(&left) < signed;
        assert_eq!(
            is_named,
            rolled_back,
            "{context}: {} entries are left, {signed} are signed",
            leaf_count(&left)
        );
        assert!(
            rolled_back || !refused,
            "{context}: nothing that is signed is missing, and the start is refused"
        );
        assert!(
            !rolled_back || refused || cuts % 16 != 0,
            "{context}: signed entries are missing, and it starts"
        );
        cuts += 1;
        named += u64::from(is_named);
    }
    (cuts, named)
}

#[tokio::test]
async fn a_log_cut_off_anywhere_is_a_prefix_of_its_commits_and_what_was_signed_and_is_missing_is_named() {
    const STRIDE: usize = 61;
    let filled = killed(8).await;
    let wal = fs::read(filled.place.path().join(WAL)).unwrap();
    let mut lengths: BTreeSet<usize> =
        (0..=wal.len() / 512).step_by(STRIDE).map(|sector| sector * 512).collect();
    for end in commits(&wal) {
        let sector = end / 512;
        lengths.extend(
            [end, sector * 512, (sector + 1) * 512].into_iter().filter(|length| *length <= wal.len()),
        );
    }
    let lengths: Vec<usize> = lengths.into_iter().collect();
    let (cuts, named) = cut_at(&filled, &lengths, None).await;
    note(format_args!("{cuts} cuts of {} bytes: {named} named", wal.len()));
    assert!(named > 0 && named < cuts, "{named} of {cuts} were named: both must come up");
}

/// What SQLite adds up of a frame, from zero: words of little endian, in pairs.
fn frame_sums(frame: &[u8]) -> (u32, u32) {
    let covered = frame[..8].iter().chain(&frame[24..]).copied().collect::<Vec<u8>>();
    covered.chunks_exact(8).fold((0, 0), |(one, two), pair| {
        let word = |at: usize| u32::from_le_bytes(pair[at..at + 4].try_into().unwrap());
        let one = word(0).wrapping_add(one).wrapping_add(two);
        (one, word(4).wrapping_add(two).wrapping_add(one))
    })
}

/// Bits of a frame one of which has to be flipped, once this one has, for its sums to be what they were: itself alone where the checksum
/// says which one it was.
fn alike(frame: &[u8], bit: usize) -> Vec<usize> {
    let sums = frame_sums(frame);
    let mut damaged = frame.to_vec();
    damaged[bit / 8] ^= 1 << (bit % 8);
    let mends = |other: &usize| {
        let mut flipped = damaged.clone();
        flipped[other / 8] ^= 1 << (other % 8);
        frame_sums(&flipped) == sums
    };
    (0..8 * frame.len()).filter(mends).collect()
}

#[tokio::test]
async fn a_flipped_bit_of_the_write_ahead_log_is_named() {
    let filled = killed(8).await;
    let path = filled.place.path().join(WAL);
    let wal = fs::read(&path).unwrap();
    assert_eq!(&wal[..4], [0x37, 0x7f, 0x06, 0x82], "its words are of little endian");
    let frame_bytes = 24 + u32_at(&wal, 8) as usize;
    let end = *commits(&wal).last().unwrap() as u64;
    // Of these SQLite's checksum says which one it was; of the highest bits of a word it often does not.
    let anywhere = (0..10).map(|n| scattered(n, 2) % (8 * end));
    let highest = (0..6).map(|n| (scattered(n, 3) % (8 * end)) | 24);
    let mut open = 0;
    for bit in anywhere.chain(highest) {
        let place = copied(&filled.place);
        flip(&place.path().join(WAL), bit);
        let found = salvage::inspect(place.path(), &Default::default()).unwrap().damage;
        assert!(found.iter().any(|damage| damage.place.starts_with(WAL)), "bit {bit}: {found:?}");
        let (frame, within) = match (bit as usize).checked_sub(8 * 32) {
            Some(bit) => {
                (&wal[32 + bit / 8 / frame_bytes * frame_bytes..][..frame_bytes], bit % (8 * frame_bytes))
            }
            None => (&wal[..0], 0),
        };
        let is_told = frame.is_empty() || (64..192).contains(&within) || alike(frame, within).len() == 1;
        assert!(
            !is_told || found.iter().all(|damage| damage.fate == Fate::Mended),
            "bit {bit}: one bit is put right: {found:?}"
        );
        open += u64::from(!is_told);
        let (new, saved) = salvaged(&place, &filled.promised, &format!("bit {bit} of the log")).await;
        // What is said to be put right or made anew is as it was.
        if saved.damage.iter().all(|damage| [Fate::Mended, Fate::Rebuilt].contains(&damage.fate)) {
            let fixture = new.open().await.unwrap();
            for (id, data) in &filled.promised {
                let found = fixture.store.read().message(*id, Data::Include).await.unwrap();
                assert_eq!(
                    found.unwrap().data.as_deref(),
                    Some(data.as_slice()),
                    "bit {bit}: {:?}",
                    saved.damage
                );
            }
            fixture.stop().await;
        }
        assert_serves_only_what_was_accepted(&place, &filled.promised, &format!("bit {bit} of the log"))
            .await;
    }
    assert!(open > 0, "none was of those that the checksum does not tell");
}

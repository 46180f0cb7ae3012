use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn selector(uid: u32) -> Selector {
    Selector { user: Some(uid), token_issued: true, ..Selector::default() }
}

const DAY: Duration = Duration::from_secs(86_400);

fn add(data_dir: &Path, app: &str, uid: u32, expires: Duration) -> Created {
    let created = create(app, &selector(uid), expires).unwrap();
    Ledger::open(data_dir).unwrap().add(&created).unwrap();
    created
}

#[test]
fn a_token_has_its_form_and_only_its_digest_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let created = add(directory.path(), "ehr", 100, DAY);
    let text = &created.text;
    assert_eq!(text.len(), 4 + 12 + 1 + 43 + 1 + 8, "{text}");
    assert_eq!(id_of(text), Some(created.entry.id.as_str()));
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926, "the standard's check value");
    let file = directory.path().join(FILE);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let kept = fs::read_to_string(file).unwrap();
    assert!(!kept.contains(&text[17..60]), "the secret is in the file");
    assert!(!format!("{:?}", created.entry).contains(&text[17..60]));
    let other = create("ehr", &selector(100), DAY).unwrap();
    assert_ne!(other.text[17..60], text[17..60]);
}

#[test]
fn a_token_counts_for_its_app_and_selector_until_it_expires() {
    let directory = tempfile::tempdir().unwrap();
    let (own, brief) = (
        add(directory.path(), "ehr", 100, DAY).text,
        // It is over by the time that it is looked at.
        add(directory.path(), "ehr", 100, Duration::from_micros(1)).text,
    );
    let tokens = Tokens::open(directory.path());
    assert!(tokens.admit("ehr", &selector(100), &own));
    assert!(!tokens.admit("ehr", &selector(100), &brief), "expired");
    assert!(!tokens.admit("lab", &selector(100), &own), "another app's");
    assert!(!tokens.admit("ehr", &selector(101), &own), "the app is somebody else now");
    let narrowed = Selector { exe: Some("/opt/none/ehr".into()), ..selector(100) };
    assert!(!tokens.admit("ehr", &narrowed, &own), "or somebody less");

    for at in 0..own.len() {
        let mut changed = own.clone().into_bytes();
        changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
        assert!(!tokens.admit("ehr", &selector(100), std::str::from_utf8(&changed).unwrap()), "byte {at}");
    }
    // A right form and a right check are not enough.
    let body = format!("{}{}", &own[..17], "A".repeat(43));
    let forged = format!("{body}_{:08x}", crc32(body.as_bytes()));
    assert!(id_of(&forged).is_some());
    assert!(!tokens.admit("ehr", &selector(100), &forged));
    for text in ["", "gpt_", &own[1..], &format!("{own} "), &own.to_uppercase(), &"ü".repeat(34)] {
        assert!(!tokens.admit("ehr", &selector(100), text), "{text}");
    }
}

#[test]
fn at_most_two_are_live_and_expired_ones_make_room() {
    let directory = tempfile::tempdir().unwrap();
    let first = add(directory.path(), "ehr", 100, DAY);
    add(directory.path(), "ehr", 100, Duration::from_micros(1));
    add(directory.path(), "ehr", 100, DAY);
    add(directory.path(), "lab", 100, DAY);
    let third = create("ehr", &selector(100), DAY).unwrap();
    let mut ledger = Ledger::open(directory.path()).unwrap();
    assert!(
        matches!(ledger.add(&third), Err(TokensError::TooMany { ids, .. }) if ids.len() == 2 && ids.contains(&first.entry.id))
    );
    assert!(matches!(ledger.revoke("000000000000"), Err(TokensError::NotFound(_))));
    ledger.revoke(&first.entry.id).unwrap();
    ledger.add(&third).unwrap();
    assert_eq!(ledger.entries.len(), 3);
}

#[test]
fn a_changed_file_is_seen_and_a_broken_one_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let tokens = Tokens::open(directory.path());
    assert_eq!(tokens.look().unwrap(), Changes::default());
    let one = add(directory.path(), "ehr", 100, DAY);
    assert!(!tokens.admit("ehr", &selector(100), &one.text), "nobody looked");
    assert_eq!(tokens.look().unwrap(), Changes { created: vec![one.entry.clone()], revoked: Vec::new() });
    assert!(tokens.admit("ehr", &selector(100), &one.text));
    assert_eq!(tokens.look().unwrap(), Changes::default());

    let file = directory.path().join(FILE);
    let sound = fs::read(&file).unwrap();
    fs::write(&file, "{\"tokens\":[{}]}").unwrap();
    assert!(matches!(tokens.look(), Err(TokensError::Broken { line: 1, .. })));
    assert_eq!(tokens.look().unwrap(), Changes::default(), "said once");
    assert!(tokens.admit("ehr", &selector(100), &one.text));
    fs::write(&file, sound).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(tokens.look(), Err(TokensError::Exposed { .. })));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(tokens.look().unwrap(), Changes::default());

    Ledger::open(directory.path()).unwrap().revoke(&one.entry.id).unwrap();
    assert_eq!(tokens.look().unwrap(), Changes { created: Vec::new(), revoked: vec![one.entry] });
    assert!(!tokens.admit("ehr", &selector(100), &one.text));
    let two = add(directory.path(), "ehr", 100, DAY);
    tokens.look().unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(tokens.look().unwrap().revoked, [two.entry]);
}

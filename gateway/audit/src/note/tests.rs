use proptest::prelude::*;

use super::*;

/// The example of c2sp.org/signed-note.
const SPEC_VKEY: &str = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k";
const SPEC_NOTE: &str = "This is an example message.\n\n\u{2014} example.com/foo \
     Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n";

/// The example of golang.org/x/mod/sumdb/note.
const GO_SKEY: &str = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const GO_VKEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const GO_TEXT: &str = "If you think cryptography is the answer to your problem,\n\
     then you don't know what your problem is.\n";
const GO_SIGNATURE: &str = "\u{2014} PeterNeumann \
     x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

fn key(name: &str, seed: u8) -> SignerKey {
    SignerKey::from_seed(name, &[seed; 32]).unwrap()
}

#[test]
fn the_specifications_example_opens() {
    let vkey = VerifierKey::parse(SPEC_VKEY).unwrap();
    assert_eq!(
        (vkey.name(), vkey.id(), vkey.to_string().as_str()),
        ("example.com/foo", 0x530d_903a, SPEC_VKEY)
    );
    let opened = open(SPEC_NOTE.as_bytes(), &[vkey]).unwrap();
    assert_eq!(opened, Opened { text: "This is an example message.\n", signed_by: vec![0], unknown: 0 });
}

#[test]
fn gos_example_key_signs_the_same_bytes_as_go() {
    let skey = SignerKey::parse(GO_SKEY).unwrap();
    assert_eq!(skey.encode(), GO_SKEY);
    assert_eq!(skey.verifier().to_string(), GO_VKEY);
    assert_eq!(skey.verifier(), VerifierKey::parse(GO_VKEY).unwrap());
    assert_eq!(skey.sign(GO_TEXT).unwrap(), format!("{GO_TEXT}\n{GO_SIGNATURE}"));
}

#[test]
fn a_key_never_shows_its_secret() {
    let skey = SignerKey::parse(GO_SKEY).unwrap();
    assert_eq!(format!("{skey:?}"), "SignerKey(PeterNeumann+c74f20a3, secret of 32 bytes)");
}

/// As Go's own test: no part of a key text is a key, and no byte of it may change.
#[test]
fn a_mangled_key_is_no_key() {
    for (text, skey) in [(GO_VKEY, false), (GO_SKEY, true)] {
        let is_key =
            |text: &str| if skey { SignerKey::parse(text).is_ok() } else { VerifierKey::parse(text).is_ok() };
        assert!(is_key(text));
        for start in 0..text.len() {
            for end in start..=text.len() {
                assert_eq!(is_key(&text[start..end]), end - start == text.len(), "{}", &text[start..end]);
            }
            let mut bytes = text.as_bytes().to_vec();
            for byte in (0..128u8).filter(|&byte| byte != text.as_bytes()[start]) {
                bytes[start] = byte;
                assert!(!is_key(std::str::from_utf8(&bytes).unwrap()), "byte {start} as {byte}");
            }
        }
    }
    for (text, reason) in [
        (
            "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEQ==",
            "its key is not 32 bytes long",
        ),
        (
            "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
            "its signature type is not Ed25519",
        ),
    ] {
        assert_eq!(VerifierKey::parse(text), Err(NoteError::BadVerifierKey(reason)));
    }
}

#[test]
fn a_weak_public_key_is_refused() {
    let mut neutral_element = [0; 32];
    neutral_element[0] = 1;
    assert!(matches!(VerifierKey::from_public("k", &neutral_element), Err(NoteError::BadVerifierKey(_))));
}

#[test]
fn names_are_checked() {
    for name in ["", "a b", "a+b", "a\nb", "a\u{a0}b", "a\u{2003}b", "\t"] {
        assert_eq!(SignerKey::from_seed(name, &[1; 32]).unwrap_err(), NoteError::BadName, "{name:?}");
    }
    assert!(SignerKey::from_seed("clinic-1.example/audit", &[1; 32]).is_ok());
}

#[test]
fn unknown_signatures_are_ignored_and_wrong_known_ones_refuse_the_note() {
    let (ours, theirs) = (key("log", 1), key("witness", 2));
    let text = "hello\n\nworld\n";
    let both = sign(text, &[&theirs, &ours]).unwrap();
    let known = [ours.verifier()];
    let opened = open(both.as_bytes(), &known).unwrap();
    assert_eq!(opened, Opened { text, signed_by: vec![0], unknown: 1 });
    let opened = open(both.as_bytes(), &[ours.verifier(), theirs.verifier()]).unwrap();
    assert_eq!((opened.signed_by, opened.unknown), (vec![1, 0], 0));
    // Same name, other key: its id differs, so it is unknown.
    assert_eq!(open(both.as_bytes(), &[key("log", 3).verifier()]), Err(NoteError::NoKnownSignature));
    assert_eq!(open(both.as_bytes(), &[]), Err(NoteError::NoKnownSignature));
    // One good signature does not excuse a bad one.
    let other = sign("other\n", &[&theirs]).unwrap();
    let bad_line = other.lines().last().unwrap();
    let mixed = format!("{}{bad_line}\n", sign(text, &[&ours]).unwrap());
    let bad = NoteError::BadSignature { key: theirs.verifier().hint() };
    assert_eq!(open(mixed.as_bytes(), &[ours.verifier(), theirs.verifier()]), Err(bad));
    assert_eq!(open(mixed.as_bytes(), &known).unwrap().unknown, 1);
}

#[test]
fn sixteen_signatures_open_and_far_too_many_do_not() {
    let keys: Vec<_> = (0..=SIGNATURES_MAX as u8).map(|n| key(&format!("k{n}"), n)).collect();
    let refs: Vec<_> = keys.iter().collect();
    for count in [1, 16, SIGNATURES_MAX] {
        let note = sign("text\n", &refs[..count]).unwrap();
        assert_eq!(open(note.as_bytes(), &[keys[0].verifier()]).unwrap().unknown, count - 1);
    }
    assert_eq!(sign("text\n", &refs), Err(NoteError::TooManySignatures));
    let mut note = sign("text\n", &refs[..SIGNATURES_MAX]).unwrap();
    note.push_str("\u{2014} more AAAAAAA=\n");
    assert_eq!(open(note.as_bytes(), &[keys[0].verifier()]), Err(NoteError::TooManySignatures));
}

#[test]
fn malformed_notes_are_refused_for_what_they_are() {
    let known = [VerifierKey::parse(GO_VKEY).unwrap()];
    let note = |text: &str, signatures: &str| {
        open(format!("{text}\n{signatures}").as_bytes(), &known).map(|opened| opened.unknown)
    };
    assert!(note(GO_TEXT, GO_SIGNATURE).is_ok());
    let malformed = Err(NoteError::MalformedSignature { line: 1 });
    for line in [
        "- PeterNeumann AAAAAAA=\n",
        "\u{2014}PeterNeumann AAAAAAA=\n",
        "\u{2014}  AAAAAAA=\n",
        "\u{2014} PeterNeumann AAAAAA==\n",
        "\u{2014} PeterNeumann AAAAAAA\n",
        "\u{2014} PeterNeumann \n",
        "\u{2014} PeterNeumann\n",
        "\u{2014} Peter+Neumann AAAAAAA=\n",
    ] {
        assert_eq!(note(GO_TEXT, line), malformed, "{line:?}");
    }
    assert_eq!(note(GO_TEXT, ""), Err(NoteError::NoSignatures));
    assert_eq!(note(GO_TEXT, GO_SIGNATURE.trim_end()), Err(NoteError::NoSignatures));
    assert_eq!(open(GO_TEXT.as_bytes(), &known), Err(NoteError::NoSignatures));
    assert_eq!(note("tab\tin text\n", GO_SIGNATURE), Err(NoteError::NotText));
    assert_eq!(open(b"\xff\n\nx\n", &known), Err(NoteError::NotText));
    let long = "x".repeat(NOTE_BYTES_MAX);
    assert_eq!(open(long.as_bytes(), &known), Err(NoteError::NoSignatures));
    let longer = format!("{long}x");
    assert_eq!(open(longer.as_bytes(), &known), Err(NoteError::TooLong(NOTE_BYTES_MAX + 1)));
    assert_eq!(key("k", 1).sign("no newline"), Err(NoteError::NotText));
    assert_eq!(key("k", 1).sign("bell\u{7}\n"), Err(NoteError::NotText));
    assert!(matches!(key("k", 1).sign(&format!("{long}\n")), Err(NoteError::TooLong(_))));
}

/// A signature lives through no change at all, of the text or of itself.
#[test]
fn every_changed_byte_of_a_note_is_noticed() {
    let known = [VerifierKey::parse(GO_VKEY).unwrap()];
    let mut note = format!("{GO_TEXT}\n{GO_SIGNATURE}").into_bytes();
    for position in 0..note.len() {
        for bit in 0..8 {
            note[position] ^= 1 << bit;
            assert!(open(&note, &known).is_err(), "bit {bit} of byte {position}");
            note[position] ^= 1 << bit;
        }
    }
}

proptest! {
    #[test]
    fn any_text_signs_and_opens(text in "[ -~\u{a1}-\u{2fff}\n]{0,200}", seed in any::<[u8; 32]>()) {
        let key = SignerKey::from_seed("k", &seed).unwrap();
        let text = format!("{text}\n");
        let note = key.sign(&text).unwrap();
        let known = [key.verifier()];
        prop_assert_eq!(open(note.as_bytes(), &known).unwrap().text, text);
    }

    #[test]
    fn hostile_notes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let known = [VerifierKey::parse(GO_VKEY).unwrap()];
        let _ = open(&bytes, &known);
        let mut note = format!("{GO_TEXT}\n").into_bytes();
        note.extend_from_slice(&bytes);
        prop_assert!(open(&note, &known).is_err());
    }
}

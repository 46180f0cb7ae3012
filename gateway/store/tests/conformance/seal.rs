//! Encryption at rest: what is stored shows nothing, an erased message is gone for good, and the seal key changes under whatever
//! happens.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use gatepost_core::principal::{Actor, ActorKind};
use gatepost_core::{MessageId, Outcome};
use gatepost_store::{
    AcceptError, Data, Database, Encryption, EraseWhat, MessageFilter, OpenError, StoreError,
};

use crate::check::{assert_log, assert_sound, entries};
use crate::fixture::{DELIVERED, Fixture, Place, item, merge, message, queue, quick};

pub(crate) fn operator() -> Actor {
    Actor::new(ActorKind::Operator, "ops")
}

/// Sends a message about somebody and delivers it, with evidence and a reply.
pub(crate) async fn delivered(fixture: &Fixture, session: u64, text: &str, subject: &str) -> MessageId {
    let mut event = message(text, None, text, &["lab"]);
    event.subject = Some(subject.to_owned());
    event.attributes =
        format!(r#"{{"specversion":"1.0","id":"{text}","source":"/ehr","type":"t","subject":"{subject}"}}"#)
            .into_bytes();
    let accepted = fixture.accept(vec![event]).await.unwrap();
    let leased = fixture.lease_one("lab", session).await;
    let mut done = item(&leased, DELIVERED);
    done.reply = Some(format!(r#"{{"data":"reply to {text}"}}"#).into_bytes());
    done.evidence = Some(format!(r#""evidence of {text}""#).into_bytes());
    fixture.store.delivery_settle(fixture.settling("lab", session, vec![done])).await.unwrap();
    accepted[0].id
}

pub(crate) async fn payload(fixture: &Fixture, id: MessageId) -> Option<String> {
    let stored = fixture.store.read().message(id, Data::Include).await.unwrap().unwrap();
    stored.data.map(|data| String::from_utf8(data.to_vec()).unwrap())
}

/// Whether bytes stand in a file somewhere below.
pub(crate) fn stands_in_a_file(dir: &Path, needle: &[u8]) -> bool {
    fs::read_dir(dir).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => stands_in_a_file(&path, needle),
            false => fs::read(&path).unwrap().windows(needle.len()).any(|window| window == needle),
        }
    })
}

fn seal_keys(place: &Place) -> HashMap<String, Vec<u8>> {
    let files = fs::read_dir(place.path().join("keys")).unwrap().map(|entry| entry.unwrap().path());
    let named =
        files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap()));
    named.filter(|(name, _)| name.starts_with("seal-")).collect()
}

#[tokio::test]
async fn nothing_of_a_message_stands_in_a_file() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let id = delivered(&fixture, session, "canary", "canary").await;
    assert!(!stands_in_a_file(fixture.place.path(), b"canary"), "while it is in use");
    assert_eq!(payload(&fixture, id).await.as_deref(), Some("canary"));
    let place = fixture.stop().await;
    assert!(!stands_in_a_file(place.path(), b"canary"));
}

/// `at_rest = false`, from the first start on and after another.
#[tokio::test]
async fn a_store_that_encrypts_nothing_opens_and_has_what_was_accepted() {
    let place = Place { encryption: Encryption::Off, ..Place::new(vec![queue("lab", quick())]) };
    let fixture = place.open().await.unwrap();
    let session = fixture.session("lab").await;
    let id = delivered(&fixture, session, "plain", "plain").await;
    let fixture = fixture.crash().await.open().await.unwrap();
    assert_eq!(payload(&fixture, id).await.as_deref(), Some("plain"));
    let place = Place { encryption: Encryption::On, ..fixture.stop().await };
    let fixture = place.open().await.unwrap();
    assert_eq!(
        payload(&fixture, id).await.as_deref(),
        Some("plain"),
        "what was in the clear is read as before"
    );
    let session = fixture.session("lab").await;
    let sealed = delivered(&fixture, session, "canary", "canary").await;
    assert_eq!(payload(&fixture, sealed).await.as_deref(), Some("canary"));
    let place = fixture.stop().await;
    assert!(!stands_in_a_file(place.path(), b"canary"));
}

#[tokio::test]
async fn who_encrypts_nothing_any_more_makes_no_keys() {
    let trees = async |place: &Place| {
        let trees = "SELECT count(*) FROM keyring";
        crate::check::number(place, [trees, trees]).await
    };
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let sealed = delivered(&fixture, session, "sealed", "sealed").await;
    let place = Place { encryption: Encryption::Off, ..fixture.stop().await };
    let before = trees(&place).await;
    for name in ["1", "2"] {
        let fixture = place.open().await.unwrap();
        fixture.send(name, None, "lab").await;
        assert_eq!(payload(&fixture, sealed).await.as_deref(), Some("sealed"));
        fixture.stop().await;
    }
    assert_eq!(trees(&place).await, before);
}

#[tokio::test]
async fn an_erased_merge_is_found_by_neither_of_its_keys() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let merged = fixture.accept(vec![merge("1", ["kept", "gone"], &["lab"])]).await.unwrap()[0].id;
    let session = fixture.session("lab").await;
    let leased = fixture.lease_one("lab", session).await;
    let mut refused = item(&leased, Outcome::Reject);
    refused.reply = Some(br#"{"data":"AE of somebody"}"#.to_vec());
    fixture.store.delivery_settle(fixture.settling("lab", session, vec![refused])).await.unwrap();
    let found = async |key: &str| {
        let filter = MessageFilter { key: Some(key.into()), ..MessageFilter::default() };
        fixture.store.read().message_list(&filter, None, 10).await.unwrap().items.len()
    };
    assert_eq!((found("kept").await, found("gone").await), (1, 1));
    fixture.store.erase(operator(), EraseWhat::Message(merged)).await.unwrap();
    assert_eq!((found("kept").await, found("gone").await), (0, 0));
    let detail = fixture.store.read().message_detail(merged).await.unwrap().unwrap();
    assert_eq!(detail.deliveries[0].1, None, "nor what it was refused with");
    // What finds it in a new start, and the sums.
    let place = fixture.restart().await.stop().await;
    assert_sound(&place, "erased merge").await;
    assert_log(&place, "erased merge").await;
}

/// What is sealed while there is erased, and right after, is sealed with keys that are there at the next start.
#[tokio::test]
async fn what_is_left_of_many_that_were_erased_opens_after_a_start() {
    const MANY: usize = 70;
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let mut ids = Vec::new();
    for n in 0..MANY {
        ids.push(delivered(&fixture, session, &n.to_string(), "patient").await);
    }
    let erased = fixture.store.erase(operator(), EraseWhat::Subject("patient".to_owned())).await.unwrap();
    assert_eq!(erased.messages.len(), MANY, "in more than one step");
    let fixture = fixture.crash().await.open().await.unwrap();
    for id in ids {
        assert_eq!(payload(&fixture, id).await, None);
    }
    assert_sound(&fixture.stop().await, "many erased").await;
}

#[tokio::test]
async fn an_erased_message_is_gone_with_everything_about_it() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let kept = delivered(&fixture, session, "kept", "somebody").await;
    let gone = delivered(&fixture, session, "gone", "patient").await;
    let before = seal_keys(&fixture.place);

    let erased = fixture.store.erase(operator(), EraseWhat::Message(gone)).await.unwrap();
    assert_eq!((erased.messages.as_slice(), erased.unsettled.len(), erased.plain), (&[gone][..], 0, 0));
    assert_eq!(erased.copies_remain, None);

    // Neither is left of the old key, nor does a name lead to it: what was wrapped with it before cannot be unwrapped.
    let after = seal_keys(&fixture.place);
    assert_eq!(after.keys().collect::<Vec<_>>(), ["seal-2.key"]);
    for key in before.values() {
        assert!(!stands_in_a_file(fixture.place.path(), key.trim_ascii()));
    }
    for fixture in [fixture.restart().await] {
        assert_eq!(payload(&fixture, gone).await, None);
        let detail = fixture.store.read().message_detail(gone).await.unwrap().unwrap();
        assert_eq!(detail.deliveries[0].1, None, "the reply");
        assert!(detail.history.iter().all(|step| step.evidence.is_none()));
        assert!(!String::from_utf8(detail.message.attributes.to_vec()).unwrap().contains("patient"));
        assert_eq!(payload(&fixture, kept).await.as_deref(), Some("kept"));
        let detail = fixture.store.read().message_detail(kept).await.unwrap().unwrap();
        assert_eq!(detail.deliveries[0].1.as_deref(), Some(r#"{"data":"reply to kept"}"#));
        // Whoever hands it in once more is told that it was another, and cannot find out what it was.
        let refused = fixture.accept(vec![message("gone", None, "gone", &["lab"])]).await;
        assert!(matches!(refused, Err(AcceptError::Mismatch(0))), "{refused:?}");
        let again = fixture.store.erase(operator(), EraseWhat::Message(gone)).await.unwrap();
        assert!(again.messages.is_empty(), "there is nothing more to erase");
        let place = fixture.stop().await;
        assert_sound(&place, "erased").await;
        assert_log(&place, "erased").await;
        let log = String::from_utf8(entries(&place).await.concat()).unwrap();
        assert_eq!(log.matches("message_erased").count(), 1);
        assert_eq!(log.matches("seal_key_rotated").count(), 1);
    }
}

#[tokio::test]
async fn what_an_app_sent_and_what_is_about_a_subject_is_found_and_what_is_under_way_stays() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let mut about = Vec::new();
    for number in 0..70 {
        let subject = if number % 2 == 0 { "patient" } else { "other" };
        let id = delivered(&fixture, session, &number.to_string(), subject).await;
        about.extend((number % 2 == 0).then_some(id));
    }
    let mut waiting = message("w", None, "w", &["lab"]);
    waiting.subject = Some("patient".to_owned());
    let waiting = fixture.accept(vec![waiting]).await.unwrap()[0].id;
    let erased = fixture.store.erase(operator(), EraseWhat::Subject("patient".to_owned())).await.unwrap();
    assert_eq!(erased.messages, about);
    assert_eq!(erased.unsettled, [waiting]);
    assert_eq!(payload(&fixture, waiting).await.as_deref(), Some("w"));
    let nothing = fixture.store.erase(operator(), EraseWhat::App("nobody".to_owned())).await.unwrap();
    assert!(nothing.messages.is_empty() && nothing.unsettled.is_empty());
    let sender = fixture.store.read().message(waiting, Data::Omit).await.unwrap().unwrap().sender.name;
    let rest = fixture.store.erase(operator(), EraseWhat::App(sender)).await.unwrap();
    assert_eq!((rest.messages.len(), rest.unsettled), (35, vec![waiting]));
    let place = fixture.stop().await;
    assert_sound(&place, "erased").await;
    assert_log(&place, "erased").await;
}

#[tokio::test]
async fn messages_open_after_each_rotation_and_only_the_newest_key_is_left() {
    let mut fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let mut sent = Vec::new();
    for version in 2..6 {
        let session = fixture.session("lab").await;
        sent.push(delivered(&fixture, session, &version.to_string(), "s").await);
        let rotated = fixture.store.seal_key_rotate(operator()).await.unwrap();
        assert_eq!((rotated.version, rotated.destroyed), (version, vec![version - 1]));
        fixture = fixture.restart().await;
        for (id, text) in sent.iter().zip(2..) {
            assert_eq!(payload(&fixture, *id).await, Some(text.to_string()));
        }
        assert_eq!(seal_keys(&fixture.place).len(), 1);
    }
}

/// A start goes on with a rotation that was killed: a newer key lies there, and some are wrapped with the older one still.
#[tokio::test]
async fn a_rotation_that_was_killed_is_ended_by_the_next_start() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let Database::Sqlite = fixture.place.database else { return };
    let session = fixture.session("lab").await;
    let id = delivered(&fixture, session, "x", "s").await;
    let place = fixture.stop().await;
    fs::write(place.path().join("keys/seal-2.key"), "ab".repeat(32)).unwrap();
    let fixture = place.open().await.unwrap();
    assert_eq!(payload(&fixture, id).await.as_deref(), Some("x"));
    assert_eq!(seal_keys(&place).into_keys().collect::<Vec<_>>(), ["seal-2.key"]);
}

/// A kill between a key's loss of its name and its end leaves the file; the next start ends it.
#[tokio::test]
async fn a_key_that_was_being_destroyed_is_no_key_and_is_ended_by_the_next_start() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    let session = fixture.session("lab").await;
    let id = delivered(&fixture, session, "x", "s").await;
    fixture.store.seal_key_rotate(operator()).await.unwrap();
    let place = fixture.stop().await;
    let left = place.path().join("keys/seal-1.destroyed");
    fs::write(&left, "0".repeat(30)).unwrap();
    let fixture = place.open().await.unwrap();
    assert_eq!(payload(&fixture, id).await.as_deref(), Some("x"));
    assert!(!left.exists());
}

#[tokio::test]
async fn data_with_a_foreign_seal_key_is_refused() {
    let fixture = Fixture::new(vec![queue("lab", quick())]).await;
    fixture.send("x", None, "lab").await;
    let place = fixture.stop().await;
    let path = place.path().join("keys/seal-1.key");
    let kept = fs::read(&path).unwrap();
    fs::write(&path, "ab".repeat(32)).unwrap();
    let refused = place.refusal().await;
    assert!(refused.to_string().contains("wrapped with another key"), "{refused}");
    fs::write(&path, &kept).unwrap();
    fs::rename(&path, place.path().join("keys/seal-7.key")).unwrap();
    let refused = place.refusal().await;
    assert!(refused.to_string().contains("there is no seal key 1"), "{refused}");
    assert!(
        matches!(refused, OpenError::Store(StoreError::SealKey(_)) | OpenError::Postgres(_)),
        "{refused:?}"
    );
    fs::rename(place.path().join("keys/seal-7.key"), &path).unwrap();
    place.open().await.unwrap();
}

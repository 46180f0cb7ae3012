//! The tokens that `gatepost token` makes for apps: a second factor for those that share a user. A token narrows an identity that the
//! connection has proven; by itself it opens nothing.
//!
//! They stand in `tokens.json` in the data directory, as SHA-256: in 256 random bits there is nothing to guess, so that a slow hash would
//! only cost time. In the data directory and not beside the configuration, because they are state: the configuration may be read-only,
//! shared between hosts and under version control, while this file changes without it, belongs to the gateway's user and is 0600. The
//! command writes it, the running gateway sees that it changed (`Tokens::look`) and writes the leaf.

mod file;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use gatepost_core::Timestamp;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::{IssuedTokens, Selector};

pub(crate) use file::{Entry, Ledger, TokensError};
use file::{FILE, Print};

/// Longest time that a token may be good for: it must be possible to say that none is older than a year and a bit.
pub(crate) const EXPIRES_MAX: Duration = Duration::from_secs(400 * 86_400);
/// Most live tokens of one app: the one in use, and the one that replaces it.
pub(crate) const LIVE_MAX: usize = 2;
/// How often a running gateway looks whether the file has changed; a token counts, or no longer, after this long at most.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(500);

const PREFIX: &str = "gpt_";
/// Characters of an id: 48 random bits, hex.
const ID_CHARS: usize = 12;
/// Characters of 32 random bytes in URL-safe base64.
const SECRET_CHARS: usize = 43;
/// Hex digits of a CRC-32, by which people's programs tell a token from something else, and a whole one from a part.
const CRC_CHARS: usize = 8;

/// A new token; the text is shown once and kept nowhere.
pub(crate) struct Created {
    pub(crate) text: String,
    pub(crate) entry: Entry,
}

/// What a look at the file has shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) created: Vec<Entry>,
    pub(crate) revoked: Vec<Entry>,
}

/// The tokens in force.
pub(crate) struct Tokens {
    file: PathBuf,
    in_force: ArcSwap<InForce>,
}

struct InForce {
    entries: Vec<Entry>,
    print: Option<Print>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokens({})", self.in_force.load().entries.len())
    }
}

impl Tokens {
    /// Those of the gateway on `data_dir`. A file that cannot be read lets nobody in, which is said.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let file = data_dir.join(FILE);
        let print = Print::of(&file);
        let entries = file::read(&file).unwrap_or_else(|error| {
            tracing::error!(%error, "no token counts");
            Vec::new()
        });
        Self { file, in_force: ArcSwap::from_pointee(InForce { entries, print }) }
    }

    /// Takes the file anew if it has changed. One that cannot be read leaves those before in force; its error is told once.
    pub(crate) fn look(&self) -> Result<Changes, TokensError> {
        let before = self.in_force.load_full();
        let print = Print::of(&self.file);
        if print == before.print {
            return Ok(Changes::default());
        }
        let (entries, result) = match file::read(&self.file) {
            Ok(entries) => {
                let missing = |from: &[Entry], of: &[Entry]| -> Vec<Entry> {
                    of.iter()
                        .filter(|entry| !from.iter().any(|other| other.id == entry.id))
                        .cloned()
                        .collect()
                };
                // One that was dropped because it had expired was not revoked.
                let mut revoked = missing(&entries, &before.entries);
                revoked.retain(|entry| !entry.has_expired(now()));
                let created = missing(&before.entries, &entries);
                (entries, Ok(Changes { created, revoked }))
            }
            Err(error) => (before.entries.clone(), Err(error)),
        };
        self.in_force.store(Arc::new(InForce { entries, print }));
        result
    }
}

impl IssuedTokens for Tokens {
    fn admit(&self, name: &str, selector: &Selector, token: &str) -> bool {
        let in_force = self.in_force.load();
        let Some(id) = id_of(token) else { return false };
        // An id is no secret: it is in lists and in the log.
        let Some(entry) = in_force.entries.iter().find(|entry| entry.id == id) else { return false };
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        bool::from(digest.as_slice().ct_eq(entry.sha256.0.as_slice()))
            && entry.app == name
            && entry.binding.0 == selector.binding()
            && !entry.has_expired(now())
    }
}

/// The wall clock: an expiry is a date.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// Makes a token for `app` that is good for `expires`.
pub(crate) fn create(app: &str, selector: &Selector, expires: Duration) -> Result<Created, TokensError> {
    let mut random = [0; ID_CHARS / 2 + 32];
    getrandom::fill(&mut random).map_err(|_| TokensError::Random)?;
    let (id, secret) = random.split_at(ID_CHARS / 2);
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let body = format!("{PREFIX}{id}_{}", URL_SAFE_NO_PAD.encode(secret));
    let text = format!("{body}_{:08x}", crc32(body.as_bytes()));
    let (created, expires) = (now(), i64::try_from(expires.as_micros()).unwrap_or(i64::MAX));
    let entry = Entry {
        id,
        app: app.to_owned(),
        sha256: file::Digest(Sha256::digest(text.as_bytes()).into()),
        binding: file::Digest(selector.binding()),
        created: created.to_rfc3339(),
        expires: Timestamp::from_micros(created.as_micros().saturating_add(expires)).to_rfc3339(),
    };
    Ok(Created { text, entry })
}

/// The id of a well-formed token. The secret may hold underscores, so places count and not separators.
fn id_of(token: &str) -> Option<&str> {
    let body_chars = PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS;
    if token.len() != body_chars + 1 + CRC_CHARS || !token.is_ascii() {
        return None;
    }
    let (body, crc) = token.split_at(body_chars);
    let (id, secret) = body.strip_prefix(PREFIX)?.split_at(ID_CHARS);
    let sound = secret.starts_with('_') && crc == format!("_{:08x}", crc32(body.as_bytes()));
    sound.then_some(id)
}

/// CRC-32 as in gzip, bit by bit: it is computed once per request, over 60 bytes.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests;

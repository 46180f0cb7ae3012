//! What the keys of the file are called in faults: `adapters.lab.settings.connect`.

/// The path of `name` below `parent`, quoted as in TOML where it must be.
pub(super) fn child(parent: &str, name: &str) -> String {
    let bare = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
    let name = if bare { name.to_owned() } else { format!("{name:?}") };
    if parent.is_empty() { name } else { format!("{parent}.{name}") }
}

/// The path of an array's element; people count from 1.
pub(super) fn element(parent: &str, index: usize) -> String {
    format!("{parent}[{}]", index + 1)
}

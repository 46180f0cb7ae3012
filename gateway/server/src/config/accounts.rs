//! Users and groups of this machine, by name or number.

use nix::unistd::{Group, User};

/// The uid of a user that exists here. A number needs no entry in the user database (containers often have none).
pub(super) fn uid(user: &str) -> Result<u32, String> {
    found(user, "user", User::from_name(user).map(|user| user.map(|user| user.uid.as_raw())))
}

/// The gid of a group that exists here.
pub(super) fn gid(group: &str) -> Result<u32, String> {
    found(group, "group", Group::from_name(group).map(|group| group.map(|group| group.gid.as_raw())))
}

fn found(name: &str, kind: &str, entry: nix::Result<Option<u32>>) -> Result<u32, String> {
    match entry {
        Ok(Some(id)) => Ok(id),
        Ok(None) => match name.parse() {
            Ok(number) => Ok(number),
            // Where no user database is at all, root is still root.
            Err(_) if name == "root" => Ok(0),
            Err(_) => Err(format!("no {kind} `{name}` on this machine: create it, or name another one")),
        },
        Err(errno) => {
            Err(format!("the {kind} `{name}` cannot be looked up ({errno}): try again, or write its number"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found_and_strangers_are_not() {
        assert_eq!(uid("root"), Ok(0));
        assert_eq!(uid("4242"), Ok(4242));
        assert_eq!(gid("root"), Ok(0));
        assert!(uid("no-such-user-here").unwrap_err().contains("create it"));
        assert!(gid("-1").is_err());
    }
}

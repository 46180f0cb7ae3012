//! Identifiers. Each kind of thing has its own type, so that one cannot be passed for another.

use std::fmt;

use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Uuid);

        impl $name {
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

uuid_id! {
    /// One accepted message: a UUIDv7.
    MessageId
}
uuid_id! {
    /// One message to one destination: a UUIDv7, constant over all attempts. Partners may deduplicate on it.
    DeliveryId
}

/// Proves a lease: four bytes of the gateway's instance epoch, twelve random ones. Never printed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseToken([u8; 16]);

impl LeaseToken {
    pub fn new(instance_epoch: u32, random: [u8; 12]) -> Self {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&instance_epoch.to_be_bytes());
        bytes[4..].copy_from_slice(&random);
        Self(bytes)
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Which start of a gateway has given the lease.
    pub fn instance_epoch(&self) -> u32 {
        let [a, b, c, d, ..] = self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    /// 32 hexadecimal digits, as it stands on the wire.
    pub fn to_wire(self) -> String {
        format!("{:032x}", u128::from_be_bytes(self.0))
    }

    /// Reads the wire form; `None` for anything else.
    pub fn from_wire(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(|value| Self(value.to_be_bytes()))
    }
}

impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_survives_the_wire_and_refuses_everything_else() {
        let token = LeaseToken::new(7, [0xab; 12]);
        assert_eq!(LeaseToken::from_wire(&token.to_wire()), Some(token));
        for text in ["", "zz", "+0000007abababababababababababababab", &"g".repeat(32), &"a".repeat(33)] {
            assert_eq!(LeaseToken::from_wire(text), None, "{text}");
        }
        assert!(!format!("{token:?}").contains("ab"));
    }
}

//! An adapter's own settings: turned into JSON, not interpreted, and searched for secrets, which must not stand in the file.

use serde_json::{Map, Number, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Report, Spot};
use super::path::{child, element};

const SECRET_ADVICE: &str = "a secret must not stand in this file: write it to a file that only the adapter can read, \
                             and give the adapter that file's path";

/// How the last part of a secret's key is usually called, in small letters without separators.
const SECRET_NAMES: [&str; 16] = [
    "accesskey",
    "apikey",
    "authorization",
    "bearer",
    "cookie",
    "credential",
    "credentials",
    "hmackey",
    "passphrase",
    "passwd",
    "password",
    "privatekey",
    "secret",
    "secretkey",
    "signingkey",
    "token",
];

pub(super) fn read(table: &DeTable<'_>, key: &str, report: &mut Report<'_>) -> Map<String, Value> {
    let entry = |(name, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        let spot = Spot::new(&value.span(), child(key, name.get_ref()));
        let is_named_file = names_files(key) && is_absolute(value.get_ref());
        if names_a_secret(name.get_ref()) && holds_text(value.get_ref()) && !is_named_file {
            report.add(&spot, SECRET_ADVICE);
        }
        (name.get_ref().to_string(), json(value.get_ref(), &spot, report))
    };
    table.iter().map(entry).collect()
}

/// Whether a key of this name would hold a secret itself, rather than the path or the digest of one.
pub(super) fn names_a_secret(key: &str) -> bool {
    let plain: String =
        key.chars().filter(char::is_ascii_alphanumeric).map(|char| char.to_ascii_lowercase()).collect();
    SECRET_NAMES.iter().any(|secret| plain.ends_with(secret))
}

/// Whether a table of this name holds the paths of what its keys name, as `header_files = { authorization = "/etc/…" }` does.
fn names_files(key: &str) -> bool {
    key.ends_with("_files") || key.ends_with("-files")
}

fn is_absolute(value: &DeValue<'_>) -> bool {
    matches!(value, DeValue::String(text) if text.starts_with('/'))
}

/// Whether a text is a private key or an address with a password in it.
pub(super) fn is_a_secret(text: &str) -> bool {
    let password_in_url = |(_, rest): (&str, &str)| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
        authority
            .rsplit_once('@')
            .is_some_and(|(user, _)| user.split_once(':').is_some_and(|(_, word)| !word.is_empty()))
    };
    text.contains("PRIVATE KEY-----") || text.split_once("://").is_some_and(password_in_url)
}

fn holds_text(value: &DeValue<'_>) -> bool {
    match value {
        DeValue::String(_) | DeValue::Integer(_) => true,
        DeValue::Array(items) => items.iter().any(|item| holds_text(item.get_ref())),
        DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Table(_) => false,
    }
}

fn json(value: &DeValue<'_>, spot: &Spot, report: &mut Report<'_>) -> Value {
    match value {
        DeValue::String(text) => {
            if is_a_secret(text) {
                report.add(spot, SECRET_ADVICE);
            }
            Value::String(text.to_string())
        }
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) => Value::Number(number.into()),
            Err(_) => refuse(spot, "too large: a whole number must fit in 64 bits", report),
        },
        DeValue::Float(float) => match float.as_str().parse().ok().and_then(Number::from_f64) {
            Some(number) => Value::Number(number),
            None => refuse(spot, "must be a finite number", report),
        },
        DeValue::Boolean(boolean) => Value::Bool(*boolean),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => {
            let item = |(index, item): (usize, &Spanned<DeValue<'_>>)| {
                json(item.get_ref(), &Spot::new(&item.span(), element(&spot.key, index)), report)
            };
            Value::Array(items.iter().enumerate().map(item).collect())
        }
        DeValue::Table(table) => Value::Object(read(table, &spot.key, report)),
    }
}

fn refuse(spot: &Spot, why: &str, report: &mut Report<'_>) -> Value {
    report.add(spot, why);
    Value::Null
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_holds_a_secret_is_known_by_its_end() {
        for key in [
            "password",
            "db_password",
            "client-secret",
            "apiKey",
            "X-API-Key",
            "bearer_token",
            "Authorization",
        ] {
            assert!(names_a_secret(key), "{key}");
        }
        for key in
            ["password_file", "token_sha256", "partition_key", "key", "secret_path", "connect", "token_url"]
        {
            assert!(!names_a_secret(key), "{key}");
        }
    }

    #[test]
    fn a_table_of_files_names_secrets_and_holds_none() {
        assert!(names_files("adapters.hook.settings.header_files"));
        assert!(!names_files("adapters.hook.settings.headers"));
        for (value, is_path) in [
            (DeValue::String("/etc/gatepost/token".into()), true),
            (DeValue::String("Bearer abc".into()), false),
            (DeValue::Boolean(true), false),
        ] {
            assert_eq!(is_absolute(&value), is_path);
        }
    }

    #[test]
    fn private_keys_and_passwords_in_addresses_are_secrets() {
        assert!(is_a_secret("-----BEGIN EC PRIVATE KEY-----\n…"));
        assert!(is_a_secret("amqp://gate:hunter2@broker/vhost"));
        for text in [
            "https://partner.example/a:b@c",
            "amqp://gate@broker",
            "https://host:443/x",
            "a:b@c",
            "https://u:@h",
        ] {
            assert!(!is_a_secret(text), "{text}");
        }
    }
}

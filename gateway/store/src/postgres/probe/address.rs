//! Reading a database's address, and refusing one by which somebody in between could be the database.

use std::net::IpAddr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::open::OpenError;

/// Parameters of an address that sqlx knows. It logs others with their values, and a value may be a secret with a misspelt name.
const PARAMETERS: &[&str] = &[
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Reads an address. One that leads to another machine must verify who answers there.
pub(crate) fn address(url: &str) -> Result<PgConnectOptions, OpenError> {
    let parameters = url.split_once('?').map_or("", |(_, parameters)| parameters);
    let names = parameters.split('&').map(|parameter| parameter.split('=').next().unwrap_or_default());
    for name in names.filter(|name| !name.is_empty()) {
        let is_option = name.starts_with("options[") || name.starts_with("options%5B");
        if !is_option && !PARAMETERS.contains(&name) {
            let known = "those known are sslmode, sslrootcert, sslcert, sslkey, host, port, dbname, user, password and options";
            // Only what looks like a name is repeated: it may be the rest of a password with a `?` in it.
            let name = if is_name(name) { format!("`{name}`") } else { "one of them".to_owned() };
            return Err(OpenError::Url(format!("{name} is no parameter: {known}")));
        }
    }
    let options: PgConnectOptions =
        url.parse().map_err(|error: sqlx::Error| OpenError::Url(error.to_string()))?;
    verifies(&options)?;
    Ok(options)
}

/// What can be said of a database's address without asking anybody.
pub fn check_address(url: &str) -> Result<(), OpenError> {
    address(url).map(|_| ())
}

fn is_name(text: &str) -> bool {
    text.len() <= 32 && text.bytes().all(|byte| byte.is_ascii_lowercase() || matches!(byte, b'_' | b'-'))
}

/// Without verification a password and all messages go to whoever answers, so this is asked before anybody is.
fn verifies(options: &PgConnectOptions) -> Result<(), OpenError> {
    if is_local(options) || matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
        return Ok(());
    }
    let how = match options.get_ssl_mode() {
        PgSslMode::Disable | PgSslMode::Allow => "sslmode asks for no TLS",
        PgSslMode::Prefer => "without sslmode nobody verifies who answers there",
        PgSslMode::Require => "sslmode=require does not verify who answers there",
        // What is named by sslrootcert comes on top of them.
        PgSslMode::VerifyCa => "sslmode=verify-ca takes the certificate of any public authority for any name",
        PgSslMode::VerifyFull => "",
    };
    let server = format!("{}:{}", options.get_host(), options.get_port());
    Err(OpenError::Unverified { server, how })
}

/// Nobody else can be in between. A name is not looked up: who answers that may be another one too.
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host().trim_start_matches('[').trim_end_matches(']');
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_elsewhere_is_verified_or_refused_and_no_password_is_said() {
        for local in [
            "postgres://gp:s3cret@127.0.0.1/gp",
            "postgres://gp:s3cret@[::1]:5433/gp?sslmode=disable",
            "postgres://gp@localhost/gp",
            "postgres:///gp?host=%2Frun%2Fpostgresql",
            "postgres://gp:s3cret@db.example/gp?sslmode=verify-full",
            "postgres://gp:s3cret@10.0.0.7/gp?sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&options[jit]=off",
        ] {
            address(local).unwrap();
        }
        for (elsewhere, why) in [
            ("postgres://gp:s3cret@db.example/gp", "without sslmode"),
            ("postgres://gp:s3cret@db.example/gp?sslmode=disable", "no TLS"),
            ("postgres://gp:s3cret@10.0.0.7/gp?sslmode=require", "sslmode=require"),
            (
                "postgres://gp:s3cret@10.0.0.7/gp?sslmode=verify-ca&sslrootcert=%2Fetc%2Fca.pem",
                "any public authority",
            ),
            ("postgres:///gp?host=db.example&password=s3cret", "without sslmode"),
            ("postgres:///gp?hostaddr=10.0.0.7&password=s3cret", "without sslmode"),
            ("postgres://gp@127.0.0.1/gp?passwort=s3cret", "`passwort` is no parameter"),
            ("postgres://gp@127.0.0.1/gp?S3cret@x/gp", "one of them is no parameter"),
            ("postgres://gp:s3cret@127.0.0.1:x/gp", "port"),
        ] {
            let text = address(elsewhere).unwrap_err().to_string();
            assert!(text.contains(why), "{elsewhere}: {text}");
            assert!(!text.to_lowercase().contains("s3cret"), "{text}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_write() {
        let text = address("postgres://gp:s3cret@db.example/gp").unwrap_err().to_string();
        assert!(
            text.contains("db.example:5432") && text.contains("?sslmode=verify-full&sslrootcert="),
            "{text}"
        );
    }
}

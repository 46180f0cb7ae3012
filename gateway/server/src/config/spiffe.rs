//! What a SPIFFE id is: `spiffe://trust-domain/path`, compared byte by byte, so that there must be one way to write each.

/// Longest SPIFFE id, bytes (from its standard).
const ID_BYTES_MAX: usize = 2048;
/// Longest trust domain, bytes (likewise).
const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// Why `id` is no SPIFFE id of a workload, or `None` if it is one.
pub(crate) fn spiffe_fault(id: &str) -> Option<&'static str> {
    if id.len() > ID_BYTES_MAX {
        return Some("its URI name is too long");
    }
    let Some(rest) = id.strip_prefix("spiffe://") else { return Some("its URI name is not a SPIFFE id") };
    if rest.contains('?') {
        return Some("its SPIFFE id has a query");
    }
    if rest.contains('#') {
        return Some("its SPIFFE id has a fragment");
    }
    let (trust_domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    if trust_domain.contains('@') {
        return Some("its SPIFFE id has user information");
    }
    if trust_domain.contains(':') {
        return Some("its SPIFFE id has a port");
    }
    if trust_domain.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some("its SPIFFE id's trust domain has capital letters");
    }
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_');
    if trust_domain.is_empty()
        || trust_domain.len() > TRUST_DOMAIN_BYTES_MAX
        || !trust_domain.bytes().all(plain)
    {
        return Some("its SPIFFE id has no well-formed trust domain");
    }
    if path.is_empty() {
        return Some("its SPIFFE id has no path");
    }
    let segment = |segment: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        !matches!(segment, "" | "." | "..") && segment.bytes().all(legal)
    };
    (!path.split('/').all(segment)).then_some("its SPIFFE id's path is not well-formed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_way_to_write_an_id() {
        for id in [
            "spiffe://clinic.example/ehr",
            "spiffe://a/b/c",
            "spiffe://a_b-c.9/EHR/.x/x..y/~".trim_end_matches("/~"),
        ] {
            assert_eq!(spiffe_fault(id), None, "{id}");
        }
        let long = format!("spiffe://a/{}", "x".repeat(2048));
        for (id, word) in [
            ("", "not a SPIFFE id"),
            ("https://clinic.example/ehr", "not a SPIFFE id"),
            ("SPIFFE://clinic.example/ehr", "not a SPIFFE id"),
            (long.as_str(), "too long"),
            ("spiffe://clinic.example/ehr?x", "query"),
            ("spiffe://clinic.example/ehr#x", "fragment"),
            ("spiffe://root@clinic.example/ehr", "user information"),
            ("spiffe://clinic.example:443/ehr", "port"),
            ("spiffe://Clinic.example/ehr", "capital letters"),
            ("spiffe:///ehr", "trust domain"),
            ("spiffe://clinic.ex%61mple/ehr", "trust domain"),
            ("spiffe://*.example/ehr", "trust domain"),
            ("spiffe://clinic.example", "no path"),
            ("spiffe://clinic.example/", "no path"),
            ("spiffe://clinic.example/ehr/", "path is not"),
            ("spiffe://clinic.example//ehr", "path is not"),
            ("spiffe://clinic.example/../ehr", "path is not"),
            ("spiffe://clinic.example/e%68r", "path is not"),
            ("spiffe://clinic.example/*", "path is not"),
            ("spiffe://clinic.example/ärzte", "path is not"),
        ] {
            let fault = spiffe_fault(id);
            assert!(fault.is_some_and(|fault| fault.contains(word)), "{id}: {fault:?}");
        }
    }
}

//! What stands in `postgresql.conf`, which is ours alone.

/// What is right for tests of durability; the rest is PostgreSQL's own.
const DEFAULTS: [(&str, &str); 13] = [
    ("listen_addresses", ""),
    ("port", "5432"), // the socket's name too
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("synchronous_commit", "on"),
    ("shared_buffers", "128MB"),
    ("max_connections", "200"),
    ("max_wal_size", "4GB"),
    ("wal_keep_size", "1GB"), // a standby that was away finds what it missed
    ("jit", "off"),
    // In the data directory, so that it goes with it also when the server was killed.
    ("dynamic_shared_memory_type", "mmap"),
    ("cluster_name", "test"),
    ("log_line_prefix", "%m [%p] %q%a "),
];

#[derive(Debug, Clone)]
pub(crate) struct Settings(Vec<(String, String)>);

impl Default for Settings {
    fn default() -> Self {
        let mut settings = Self(Vec::new());
        settings.change(&DEFAULTS);
        settings
    }
}

impl Settings {
    pub(crate) fn change(&mut self, settings: &[(&str, &str)]) {
        for (name, value) in settings {
            self.0.retain(|(old, _)| old != name);
            self.0.push(((*name).to_owned(), (*value).to_owned()));
        }
    }

    /// Empty if it is not set.
    pub(crate) fn value(&self, name: &str) -> &str {
        self.0.iter().find(|(own, _)| own == name).map_or("", |(_, value)| value)
    }

    pub(crate) fn text(&self) -> String {
        self.0.iter().map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_setting_stands_once_and_quoted() {
        let mut settings = Settings(Vec::new());
        settings.change(&[("a", "1"), ("b", "it's"), ("a", "2")]);
        assert_eq!(settings.text(), "b = 'it''s'\na = '2'\n");
        assert_eq!((settings.value("a"), settings.value("c")), ("2", ""));
    }
}

//! What is wrong with settings that can be read.

use std::net::SocketAddr;

use gatepost_adapter::Fault;

use super::Settings;

const CONNECTIONS_MAX: usize = 64;
const TIMEOUT_MS_MAX: u64 = 600_000;
const IDLE_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// The gateway waits for late proof so long at most.
const APPLICATION_ACK_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// The gateway holds an answer for so long at most.
const REPLY_MS_MAX: u64 = 60_000;
const LENIENT_END_MS_MAX: u64 = 10_000;
/// The gateway's own default for the largest message.
const FRAME_BYTES_MAX: usize = 64 * 1024 * 1024;
const LISTEN_CONNECTIONS_MAX: usize = 4096;

impl Settings {
    pub(crate) fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut range = |key: &str, value: u64, highest: u64| {
            if !(1..=highest).contains(&value) {
                faults.push(Fault::new(key, format!("must be from 1 to {highest}")));
            }
        };
        range("connections", self.connections as u64, CONNECTIONS_MAX as u64);
        range("connect_timeout_ms", self.connect_timeout_ms, TIMEOUT_MS_MAX);
        range("ack_timeout_ms", self.ack_timeout_ms, TIMEOUT_MS_MAX);
        range("application_ack_timeout_ms", self.application_ack_timeout_ms, APPLICATION_ACK_MS_MAX);
        range("mllp_release", self.mllp_release.into(), 2);
        range("max_frame_bytes", self.max_frame_bytes as u64, FRAME_BYTES_MAX as u64);
        range("max_connections", self.max_connections as u64, LISTEN_CONNECTIONS_MAX as u64);
        range(
            "max_connections_per_source",
            self.max_connections_per_source as u64,
            LISTEN_CONNECTIONS_MAX as u64,
        );
        range("idle_frame_timeout_ms", self.idle_frame_timeout_ms, TIMEOUT_MS_MAX);
        if let Some(idle) = self.idle_connection_timeout_ms {
            range("idle_connection_timeout_ms", idle, IDLE_MS_MAX);
        }
        if let Some(idle) = self.idle_disconnect_ms {
            range("idle_disconnect_ms", idle, IDLE_MS_MAX);
        }
        if let Some(pause) = self.lenient_end_ms {
            range("lenient_end_ms", pause, LENIENT_END_MS_MAX);
        }
        faults.extend(self.on_ack.faults());
        if !(1_000..=REPLY_MS_MAX).contains(&self.reply_timeout_ms) {
            faults.push(Fault::new("reply_timeout_ms", format!("must be from 1000 to {REPLY_MS_MAX}")));
        }
        if self.reply_from_app.iter().any(|code| !is_message_code(code)) {
            faults.push(Fault::new("reply_from_app", "must hold message codes of MSH-9.1, like \"QBP\""));
        }
        if self.connect.is_none() && self.listen.is_none() && self.partners.is_empty() {
            faults.push(Fault::new(
                "connect",
                "neither `connect` nor `partners` nor `listen` is set, so there is nothing to do",
            ));
        }
        if self.connect.as_deref().is_some_and(|address| !is_host_and_port(address)) {
            faults.push(Fault::new("connect", "must be host:port, like lab.example.org:2575"));
        }
        if self.listen.as_deref().is_some_and(|address| address.parse::<SocketAddr>().is_err()) {
            faults.push(Fault::new("listen", "must be address:port, like 127.0.0.1:2575"));
        }
        if let Some(tls) = &self.tls {
            match &self.connect {
                Some(address) => faults.extend(tls.faults("tls", address)),
                // They have it each for their own address.
                None if !self.partners.is_empty() => {}
                None => faults.push(Fault::new("tls", "goes with `connect`, which is not set")),
            }
        }
        if let Some(tls) = &self.listen_tls {
            match &self.listen {
                Some(_) => faults.extend(tls.faults("listen_tls")),
                None => faults.push(Fault::new("listen_tls", "goes with `listen`, which is not set")),
            }
        }
        let of_listen = [
            ("allow_from", self.allow_from.is_some()),
            ("answers_from", self.answers_from.is_some()),
            ("reply_from_app", !self.reply_from_app.is_empty()),
            ("sequence_numbers.receive", self.sequence_numbers.receive),
        ];
        for (key, _) in of_listen.iter().filter(|(_, is_set)| *is_set && self.listen.is_none()) {
            faults.push(Fault::new(*key, "goes with `listen`, which is not set"));
        }
        let sends = self.connect.is_some() || self.names_sent_to().next().is_some();
        let of_connect = [
            ("answers_from", self.answers_from.is_some() && !sends),
            ("sequence_numbers.send", self.sequence_numbers.send && self.connect.is_none()),
        ];
        for (key, _) in of_connect.iter().filter(|(_, is_missing)| *is_missing) {
            faults.push(Fault::new(*key, "goes with `connect`, which is not set"));
        }
        if self.source.as_deref() == Some("") {
            faults.push(Fault::new("source", "must not be empty"));
        }
        faults.extend(self.partner_faults());
        faults
    }
}

fn is_message_code(code: &str) -> bool {
    !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
}

fn is_host_and_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::on_ack::Action;

    fn read(text: &str) -> Result<Settings, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_smallest_settings_are_whole() {
        let settings = read(r#"{"connect":"lab.example.org:2575"}"#).unwrap();
        assert!(settings.faults().is_empty());
        assert_eq!(settings.partition_key.0, "PID-3.1".parse().ok());
        assert_eq!(settings.subject.0, "MSH-10".parse().ok());
    }

    #[test]
    fn the_table_of_codes_is_the_partners() {
        let settings =
            read(r#"{"listen":"[::1]:2575","on_ack":{"AE":"retry_destination"},"partition_key":""}"#)
                .unwrap();
        assert!(settings.faults().is_empty());
        assert_eq!(settings.on_ack.ae, Some(Action::RetryDestination));
        assert_eq!(settings.on_ack.ar, None);
        assert_eq!(settings.partition_key.0, None);
    }

    #[test]
    fn every_fault_is_told() {
        let faults = |text: &str| -> Vec<String> {
            read(text).unwrap().faults().into_iter().map(|fault| fault.key).collect()
        };
        assert_eq!(faults("{}"), ["connect"]);
        assert_eq!(
            faults(r#"{"connect":"lab","listen":"localhost:1","connections":0,"source":""}"#),
            ["connections", "connect", "listen", "source"]
        );
        assert_eq!(
            faults(r#"{"connect":":1","ack_timeout_ms":0,"max_frame_bytes":99999999999}"#),
            ["ack_timeout_ms", "max_frame_bytes", "connect"]
        );
        assert_eq!(faults(r#"{"listen":"127.0.0.1:1","tls":{}}"#), ["tls"]);
        // What would do nothing is not what was meant.
        assert_eq!(
            faults(
                r#"{"connect":"lab:1","allow_from":["::1"],"answers_from":["cn:lab"],"reply_from_app":["QBP"]}"#
            ),
            ["allow_from", "answers_from", "reply_from_app"]
        );
        assert_eq!(faults(r#"{"listen":"127.0.0.1:1","answers_from":["10.0.0.1"]}"#), ["answers_from"]);
        let sent_to = |partner: &str| {
            format!(
                r#"{{"listen":"127.0.0.1:1","answers_from":["10.0.0.1"],"partners":[{{"name":"p",{partner}}}]}}"#
            )
        };
        assert_eq!(faults(&sent_to(r#""connect":"lab:1""#)), [""; 0]);
        assert_eq!(faults(&sent_to(r#""from":["10.0.0.1"]"#)), ["answers_from"]);
        let both = r#""sequence_numbers":{"send":true,"receive":true}"#;
        assert_eq!(faults(&format!(r#"{{"connect":"lab:1",{both}}}"#)), ["sequence_numbers.receive"]);
        assert_eq!(faults(&format!(r#"{{"listen":"127.0.0.1:1",{both}}}"#)), ["sequence_numbers.send"]);
        let listen_tls = r#""listen_tls":{"cert_file":"/nonexistent/c","key_file":"/nonexistent/k"}"#;
        assert_eq!(faults(&format!(r#"{{"connect":"lab:1",{listen_tls}}}"#)), ["listen_tls"]);
        assert_eq!(
            faults(&format!(
                r#"{{"connect":"lab:1","tls":{{"cert_file":"/c"}},"listen":"127.0.0.1:1",{listen_tls}}}"#
            )),
            ["tls.key_file", "listen_tls.cert_file"]
        );
        assert!(read(r#"{"conect":"lab:1"}"#).unwrap_err().contains("unknown field `conect`"));
        assert!(read(r#"{"on_ack":{"AA":"retry"}}"#).unwrap_err().contains("unknown field `AA`"));
        assert!(read(r#"{"partition_key":"PID"}"#).unwrap_err().contains("like PID-3.1"));
        assert!(read(r#"{"allow_from":["10.0.0.0/33"]}"#).unwrap_err().contains("10.1.0.0/16"));
    }
}

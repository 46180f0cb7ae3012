//! Tells whoever started the gateway how it is (systemd's `Type=notify`): a datagram to the socket that NOTIFY_SOCKET names. Nothing
//! here may stop the gateway: who does not listen is not told.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What can be told.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    /// Everything listens.
    Ready,
    Stopping,
}

pub(crate) fn notify(state: State) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else { return };
    if let Err(error) = tell(&socket, state) {
        tracing::warn!(%error, "whoever started the gateway cannot be told that it is {}", state.as_str());
    }
}

impl State {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "READY=1",
            Self::Stopping => "STOPPING=1",
        }
    }
}

fn tell(socket: &OsStr, state: State) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let datagram = UnixDatagram::unbound()?;
    // A full queue must not hold the gateway up.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(state.as_str().as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(listening: &UnixDatagram) -> String {
        let mut bytes = [0; 64];
        let count = listening.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[test]
    fn files_and_names_without_files_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listening = UnixDatagram::bind(&path).unwrap();
        tell(path.as_os_str(), State::Ready).unwrap();
        assert_eq!(heard(&listening), "READY=1");

        let name = format!("gatepost-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listening = UnixDatagram::bind_addr(&address).unwrap();
        tell(OsStr::new(&format!("@{name}")), State::Stopping).unwrap();
        assert_eq!(heard(&listening), "STOPPING=1");

        assert!(tell(dir.path().join("nobody").as_os_str(), State::Ready).is_err());
    }
}

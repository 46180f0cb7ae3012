//! Sockets that somebody else has bound and listens on for us (systemd's socket units): a `[[listen]]` with the address of one takes it in
//! place of binding its own, so that clients may connect while the gateway starts, and it needs no right to the directory.
//!
//! A passed socket is judged like one of our own: no abstract address, no directory that others write to, no more permissions than the
//! configuration gives. One that no `[[listen]]` names is an error: somebody believes that it is served.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt::AcceptConn};

/// More than any configuration has listeners.
const PASSED_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum PassedError {
    #[error("{count} sockets are passed to this process, the most is {PASSED_MAX}: name fewer in Sockets=")]
    TooMany { count: usize },
    #[error(
        "socket {index} of those that are passed to this process is neither a Unix socket with the path of a file nor a TCP one that \
         listens; use ListenStream= and Accept=no"
    )]
    Unfit { index: usize, source: io::Error },
    #[error(
        "the socket {0} is passed to this process, but no [[listen]] names it: add one, or take it out of Sockets="
    )]
    Unnamed(String),
}

/// The sockets that are still to be taken.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    unix: Vec<(PathBuf, UnixListener)>,
    tcp: Vec<(SocketAddr, TcpListener)>,
}

impl Passed {
    /// Those that the environment says are for this process. To be called once, and before there are other threads: it changes the
    /// environment.
    pub(crate) fn take() -> Result<Self, PassedError> {
        // Without a process's number the variables are a relative's, and the descriptors may be anything.
        if std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
            return Ok(Self::default());
        }
        let mut passed = ListenFd::from_env();
        let count = passed.len();
        if count > PASSED_MAX {
            return Err(PassedError::TooMany { count });
        }
        let mut taken = Self::default();
        for index in 0..count {
            taken.take_one(&mut passed, index).map_err(|source| PassedError::Unfit { index, source })?;
        }
        Ok(taken)
    }

    fn take_one(&mut self, passed: &mut ListenFd, index: usize) -> io::Result<()> {
        // Taking marks the descriptor, so that no adapter inherits it.
        match passed.take_unix_listener(index) {
            Ok(Some(listener)) => self.add_unix(listener),
            Ok(None) => Ok(()),
            Err(_) => match passed.take_tcp_listener(index)? {
                Some(listener) => self.add_tcp(listener),
                None => Ok(()),
            },
        }
    }

    fn add_unix(&mut self, listener: UnixListener) -> io::Result<()> {
        let address = listener.local_addr()?;
        let path = address.as_pathname().ok_or_else(|| io::Error::other("it has no path"))?;
        check_listens(getsockopt(&listener, AcceptConn)?)?;
        listener.set_nonblocking(true)?;
        self.unix.push((path.to_owned(), listener));
        Ok(())
    }

    fn add_tcp(&mut self, listener: TcpListener) -> io::Result<()> {
        check_listens(getsockopt(&listener, AcceptConn)?)?;
        listener.set_nonblocking(true)?;
        self.tcp.push((listener.local_addr()?, listener));
        Ok(())
    }

    /// Whether there is one for `path`, which then need not be bound.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.unix.iter().any(|(bound, _)| bound == path)
    }

    pub(super) fn unix(&mut self, path: &Path) -> Option<UnixListener> {
        let index = self.unix.iter().position(|(passed, _)| passed == path)?;
        Some(self.unix.swap_remove(index).1)
    }

    pub(super) fn tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let index = self.tcp.iter().position(|(passed, _)| *passed == address)?;
        Some(self.tcp.swap_remove(index).1)
    }

    /// To be asked when every listener has taken its own.
    pub(crate) fn all_taken(self) -> Result<(), PassedError> {
        let unix = self.unix.first().map(|(path, _)| path.display().to_string());
        match unix.or_else(|| self.tcp.first().map(|(address, _)| address.to_string())) {
            Some(socket) => Err(PassedError::Unnamed(socket)),
            None => Ok(()),
        }
    }
}

fn check_listens(listens: bool) -> io::Result<()> {
    if listens { Ok(()) } else { Err(io::Error::other("it is a connection, not a listening socket")) }
}

#[cfg(test)]
impl Passed {
    pub(super) fn of(listener: UnixListener) -> Self {
        let mut passed = Self::default();
        passed.add_unix(listener).unwrap();
        passed
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_taken_by_its_address_once_and_what_is_left_over_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.sock");
        let mut passed = Passed::of(UnixListener::bind(&path).unwrap());
        passed.add_tcp(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let address = passed.tcp[0].0;
        assert!(passed.unix(&dir.path().join("other.sock")).is_none());
        assert!(passed.unix(&path).is_some() && passed.unix(&path).is_none());
        let left = passed.all_taken().unwrap_err().to_string();
        assert!(left.contains(&address.to_string()) && left.contains("no [[listen]] names it"), "{left}");
    }

    #[test]
    fn what_has_no_path_or_does_not_listen_is_refused() {
        use std::os::linux::net::SocketAddrExt as _;
        use std::os::unix::net::SocketAddr;
        let name = format!("gatepost-{}", std::process::id());
        let nameless = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        assert!(Passed::default().add_unix(nameless).unwrap_err().to_string().contains("no path"));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        let (connection, _) = listener.accept().unwrap();
        let connection = UnixListener::from(std::os::fd::OwnedFd::from(connection));
        assert!(Passed::default().add_unix(connection).unwrap_err().to_string().contains("a connection"));
    }
}

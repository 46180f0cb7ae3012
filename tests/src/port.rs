//! Ports for programs that are told by number where to listen, which may be much later, or again after they were killed.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, setsockopt, socket, sockopt,
};

/// A TCP port of 127.0.0.1 that the kernel gives to nobody else while this, or a copy of it, is there: neither to who asks for any port, nor as the near
/// end of a connection. It is bound and does not listen, so whoever connects is refused; and who names it, and sets `SO_REUSEADDR`
/// as servers do, may listen on it.
#[derive(Clone, Debug)]
pub struct Port {
    number: u16,
    _bound: Arc<OwnedFd>,
}

impl Port {
    pub fn reserve() -> Self {
        let bound = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
        let bound = bound.expect("a socket can be had");
        setsockopt(&bound, sockopt::ReuseAddr, &true).expect("sockets have this option");
        let any = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
        bind(bound.as_raw_fd(), &any).expect("a port can be had");
        let own: SockaddrIn = getsockname(bound.as_raw_fd()).expect("it is bound");
        Self { number: own.port(), _bound: Arc::new(bound) }
    }

    pub fn number(&self) -> u16 {
        self.number
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }

    /// Whether somebody listens on it, found out without taking a connection's place there.
    pub fn is_served(&self) -> bool {
        // A line for each socket: its number, then its own address in hexadecimal, the other's, and its state, of which 0A listens.
        let port = format!(":{:04X}", self.number);
        let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc is mounted");
        table.lines().skip(1).any(|line| {
            let mut fields = line.split_whitespace();
            fields.nth(1).is_some_and(|own| own.ends_with(&port)) && fields.nth(1) == Some("0A")
        })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::{TcpListener, TcpStream};

    use super::Port;

    #[test]
    fn a_reserved_port_refuses_until_somebody_who_names_it_listens_again_and_again() {
        let port = Port::reserve();
        for _ in 0..2 {
            assert!(!port.is_served());
            assert_eq!(TcpStream::connect(port.address()).unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let listener = TcpListener::bind(port.address()).unwrap();
            assert!(port.is_served());
            let (_near, _far) = (TcpStream::connect(port.address()).unwrap(), listener.accept().unwrap());
        }
    }

    /// The kernel's own choice, often enough that it would have met one that is free.
    #[test]
    fn nobody_who_takes_any_port_is_given_a_reserved_one() {
        let reserved: Vec<Port> = (0..200).map(|_| Port::reserve()).collect();
        let is_reserved = |number: u16| reserved.iter().any(|port| port.number() == number);
        let others: Vec<TcpListener> =
            (0..2000).map_while(|_| TcpListener::bind("127.0.0.1:0").ok()).collect();
        assert!(others.len() > 500, "{} ports", others.len());
        assert!(!others.iter().any(|other| is_reserved(other.local_addr().unwrap().port())));
    }
}

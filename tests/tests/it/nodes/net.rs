//! Network namespaces, each with an address of its own on one bridge; gone with the test.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) struct Net {
    /// Of the bridge, and the beginning of every other name.
    name: String,
    host: Ipv4Addr,
    namespaces: Vec<String>,
}

impl Net {
    pub(crate) fn new(count: usize) -> io::Result<Self> {
        // Names of links are short, and other tests may run beside this one.
        let id = std::process::id();
        let third = u8::try_from(id % 250).unwrap_or(0) + 1;
        let mut net = Self {
            name: format!("gp{}", id % 1_000_000),
            host: Ipv4Addr::new(10, 213, third, 1),
            namespaces: Vec::new(),
        };
        let bridge = net.name.clone();
        ip(&["link", "add", &bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", net.host), "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for number in 1..=count {
            let (namespace, outside) = (format!("{bridge}n{number}"), format!("{bridge}v{number}"));
            ip(&["netns", "add", &namespace])?;
            net.namespaces.push(namespace.clone());
            ip(&["link", "add", &outside, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
            ip(&["link", "set", &outside, "master", &bridge, "up"])?;
            let address = format!("10.213.{third}.{}/24", 10 + number);
            ip(&["-n", &namespace, "addr", "add", &address, "dev", "eth0"])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        }
        Ok(net)
    }

    /// The address of the machine itself.
    pub(crate) fn host(&self) -> IpAddr {
        IpAddr::V4(self.host)
    }

    pub(crate) fn namespaces(&self) -> &[String] {
        &self.namespaces
    }

    /// Nothing passes any more, and nobody is told.
    pub(crate) fn cut(&self, number: usize) {
        ip(&["link", "set", &self.outside(number), "down"]).expect("a link can be taken down");
    }

    pub(crate) fn mend_later(&self, number: usize, after: Duration) -> JoinHandle<()> {
        let outside = self.outside(number);
        std::thread::spawn(move || {
            std::thread::sleep(after);
            // The test may be over.
            let _ = ip(&["link", "set", &outside, "up"]);
        })
    }

    fn outside(&self, number: usize) -> String {
        format!("{}v{}", self.name, number + 1)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            let _ = ip(&["netns", "del", namespace]);
        }
        let _ = ip(&["link", "del", &self.name]);
    }
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let done = Command::new("ip").args(arguments).output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("ip {}: {}", arguments.join(" "), said.trim())))
}

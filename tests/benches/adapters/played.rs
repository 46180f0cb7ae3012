//! Partners that this process plays.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

/// Listens for as long as the process lives, with `session` on each connection, which ends with its adapter.
pub(crate) fn listen(session: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("there is a free port");
    let address = listener.local_addr().expect("it has an address");
    let session = Arc::new(session);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let session = Arc::clone(&session);
            thread::spawn(move || {
                if let Err(error) = stream.set_nodelay(true).and_then(|()| session(stream)) {
                    gatepost_tests::note(&format!("a partner's connection ended: {error}"));
                }
            });
        }
    });
    address
}

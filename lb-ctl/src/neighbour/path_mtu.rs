//! Lets the kernel learn path MTUs from routers between director and backends.
//!
//! A router that cannot forward an encapsulated packet tells the director by
//! ICMP. The kernel hands such an error to the sockets of the packet's
//! protocol and, on the way, notes the MTU in the route. The packets leave by
//! XDP, so there would be no such socket and the error would be lost.

use std::io;

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tracing::warn;

/// IP protocol numbers of encapsulated IPv4 and IPv6 packets.
const ENCAPSULATED: [i32; 2] = [libc::IPPROTO_IPIP, libc::IPPROTO_IPV6];

/// As long as it lives, the kernel learns.
#[derive(Debug)]
pub struct PathMtu {
    _sockets: Vec<Socket>,
}

impl PathMtu {
    /// Begins. An IP version that this kernel lacks has nothing to be learnt.
    pub fn learn() -> Self {
        let mut sockets = Vec::new();
        for (version, domain) in [("IPv4", Domain::IPV4), ("IPv6", Domain::IPV6)] {
            for protocol in ENCAPSULATED {
                match open(domain, protocol) {
                    Ok(socket) => sockets.push(socket),
                    Err(e) if e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                    Err(e) => warn!(
                        "routers' ICMP errors about {version} tunnels are not heard ({e}): \
                         if a path to a backend has a smaller MTU than its interface, \
                         tell the route: ip route change PREFIX via GATEWAY mtu BYTES"
                    ),
                }
            }
        }
        Self { _sockets: sockets }
    }
}

fn open(domain: Domain, protocol: i32) -> io::Result<Socket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
    // Packets themselves are of no interest, and nobody reads them.
    let nothing = SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0);
    socket.attach_filter(&[nothing])?;
    if domain == Domain::IPV6 {
        // Without it, an IPv6 socket that is not connected learns nothing. The
        // errors are queued as well, up to the size of the buffer.
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        socket.set_recv_buffer_size(0)?;
    }
    Ok(socket)
}

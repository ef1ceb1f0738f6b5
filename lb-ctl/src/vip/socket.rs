//! A packet(7) socket that hears ARP and neighbour advertisements on one
//! interface, and sends frames.

use std::io;
use std::mem::MaybeUninit;

use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

/// The socket.
pub struct FrameSocket {
    socket: AsyncFd<Socket>,
}

/// What a [`FrameSocket`] hears.
#[derive(Clone, Copy, Debug)]
pub enum Hears {
    /// ARP.
    Arp,
    /// ICMPv6 neighbour advertisements.
    Advertisements,
}

impl FrameSocket {
    /// Opens a socket on the interface with this index.
    ///
    /// # Errors
    /// If the kernel refuses, for want of CAP_NET_RAW for example.
    pub fn open(interface: u32, hears: Hears) -> io::Result<Self> {
        let ethertype = match hears {
            Hears::Arp => libc::ETH_P_ARP,
            Hears::Advertisements => libc::ETH_P_IPV6,
        } as u16;
        // Protocol 0: nothing is heard before filter and interface are set.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        if let Hears::Advertisements = hears {
            socket.attach_filter(&only_advertisements())?;
        }
        socket.set_nonblocking(true)?;
        socket.bind(&link_address(interface, ethertype))?;
        // SAFETY: a Socket has the same file descriptor until it is dropped,
        // and nobody else closes it.
        let socket = unsafe { AsyncFd::register(socket)? };
        Ok(Self { socket })
    }

    /// Waits for a frame; returns its first bytes.
    ///
    /// # Errors
    /// If the interface goes down or away.
    pub async fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready.try_io(|socket| {
                let mut buffer = [MaybeUninit::<u8>::uninit(); 128];
                let length = socket.get_ref().recv(&mut buffer)?;
                let bytes = &buffer[..length];
                // SAFETY: `recv` has filled the first `length` bytes.
                Ok(bytes.iter().map(|b| unsafe { b.assume_init() }).collect())
            });
            if let Ok(frame) = received {
                return frame;
            }
        }
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// If the interface is down or its queue is full.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.get_ref().send(frame).map(drop)
    }
}

fn link_address(interface: u32, ethertype: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is a socket address: it fits the storage, is plain
    // data, and all of it is set or zero.
    unsafe {
        let address = storage.view_as::<libc::sockaddr_ll>();
        address.sll_family = libc::AF_PACKET as libc::sa_family_t;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = interface as i32;
        SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t)
    }
}

/// Classic BPF: IPv6's next header is ICMPv6, its type an advertisement.
fn only_advertisements() -> [SockFilter; 6] {
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = SockFilter::new;
    [
        step(LOAD_BYTE, 0, 0, 20),
        step(JUMP_IF_EQUAL, 0, 3, 58),
        step(LOAD_BYTE, 0, 0, 54),
        step(JUMP_IF_EQUAL, 0, 1, 136),
        step(RETURN, 0, 0, 128),
        step(RETURN, 0, 0, 0),
    ]
}

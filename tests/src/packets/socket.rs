use std::io::Error;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::RcvBufForce;

use crate::{Host, RECEIVE_BUFFER};

/// A socket that sends and receives whole Ethernet frames on one interface.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens it on an interface of a host. It receives every frame that
    /// arrives there, also those for other MAC addresses that reach the
    /// interface, but none that the host itself sends.
    pub fn open(host: &Host, ifname: &str) -> anyhow::Result<Self> {
        let socket = Self::open_both_ways(host, ifname)?;
        socket.set_option(libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        Ok(socket)
    }

    /// Like [`Self::open`], and receives what the host sends as well.
    pub fn open_both_ways(host: &Host, ifname: &str) -> anyhow::Result<Self> {
        host.in_namespace(|| open_here(ifname))
            .with_context(|| format!("cannot open a packet socket on {} {ifname}", host.name()))
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        // SAFETY: the kernel reads `frame.len()` bytes of a live slice.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if usize::try_from(sent) != Ok(frame.len()) {
            bail!(
                "cannot send a frame of {} bytes: {}",
                frame.len(),
                Error::last_os_error()
            );
        }
        Ok(())
    }

    /// The next frame; `None` if there is none within `timeout`.
    pub fn receive(&self, timeout: Duration) -> anyhow::Result<Option<Vec<u8>>> {
        self.receive_where(timeout, |frame| Some(frame.to_vec()))
    }

    /// The first frame of which `select` makes something; `None` if there is
    /// none within `timeout`. Frames before it are lost.
    pub fn receive_where<T>(
        &self,
        timeout: Duration,
        mut select: impl FnMut(&[u8]) -> Option<T>,
    ) -> anyhow::Result<Option<T>> {
        let deadline = Instant::now() + timeout;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a poll that returns early would spin.
            let wait = PollTimeout::try_from(left + Duration::from_micros(999))?;
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], wait) {
                Ok(0) if left.is_zero() => return Ok(None),
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(e) => return Err(e).context("cannot wait for a frame"),
            }
            if let Some(found) = select(self.receive_now(&mut buffer)?) {
                return Ok(Some(found));
            }
        }
    }

    fn receive_now<'a>(&self, buffer: &'a mut [u8]) -> anyhow::Result<&'a [u8]> {
        // SAFETY: the kernel writes at most `buffer.len()` bytes to a live slice.
        let length = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            return Err(Error::last_os_error()).context("cannot receive a frame");
        };
        Ok(&buffer[..length])
    }

    fn set_option<T>(&self, option: libc::c_int, value: &T) -> anyhow::Result<()> {
        // SAFETY: the kernel reads size_of::<T>() bytes of plain data.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop).context("setsockopt")
    }
}

/// Opens the socket in the calling thread's namespace.
fn open_here(ifname: &str) -> anyhow::Result<PacketSocket> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // Protocol 0 receives nothing: not a single frame of another interface
    // can slip in before bind.
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let socket = PacketSocket(unsafe { OwnedFd::from_raw_fd(fd) });
    setsockopt(&socket.0, RcvBufForce, &RECEIVE_BUFFER)?;
    let index = nix::net::if_::if_nametoindex(ifname)?;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index)?;
    // SAFETY: the kernel reads a live sockaddr_ll of the given size.
    let result = unsafe {
        libc::bind(
            socket.0.as_raw_fd(),
            std::ptr::from_ref(&address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    let membership = libc::packet_mreq {
        mr_ifindex: address.sll_ifindex,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    socket.set_option(libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    Ok(socket)
}

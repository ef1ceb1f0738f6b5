//! What a forwarded packet must look like.

use std::net::IpAddr;

use anyhow::ensure;

use crate::world::{DIRECTOR_MAC, Layout, Mode, backend_address, backend_of_mac, vip_number};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Checks that `received` is `sent` on its way to a backend of the service
/// that it was sent to.
pub fn check(layout: Layout, sent: &[u8], received: &[u8]) -> anyhow::Result<()> {
    let is_v4 = sent[12..14] == [0x08, 0x00];
    let backend = backend_of_mac(&received[..6]);
    let Some(backend) = backend else {
        anyhow::bail!("not to a backend's MAC address");
    };
    ensure!(received[6..12] == DIRECTOR_MAC, "not from the director");
    ensure!(received[12..14] == sent[12..14], "another EtherType");
    let vip = if is_v4 { &sent[30..34] } else { &sent[38..54] };
    ensure!(
        layout.service_of(backend) == vip_number(vip),
        "to backend {backend}, which is another service's"
    );
    let outer = match layout.mode {
        Mode::Dr => 0,
        Mode::Tun if is_v4 => IPV4,
        Mode::Tun => IPV6,
    };
    ensure!(
        received.get(ETHERNET + outer..) == Some(&sent[ETHERNET..]),
        "the packet itself is another"
    );
    let outer = &received[ETHERNET..ETHERNET + outer];
    let whole = received.len() - ETHERNET;
    match (outer.len(), backend_address(is_v4, backend)) {
        (0, _) => {}
        (IPV4, IpAddr::V4(address)) => {
            ensure!(outer[0] == 0x45 && outer[9] == 4, "no IPv4 in IPv4");
            ensure!(outer[2..4] == (whole as u16).to_be_bytes(), "length");
            ensure!(outer[16..20] == address.octets(), "not to {address}");
            ensure!(sum(outer) == 0xffff, "checksum");
        }
        (_, IpAddr::V6(address)) => {
            ensure!(outer[0] >> 4 == 6 && outer[6] == 41, "no IPv6 in IPv6");
            let payload = (whole - IPV6) as u16;
            ensure!(outer[4..6] == payload.to_be_bytes(), "length");
            ensure!(outer[24..40] == address.octets(), "not to {address}");
        }
        (_, address) => anyhow::bail!("not to {address}"),
    }
    Ok(())
}

/// The sum of 16-bit words that is all ones in a valid header.
fn sum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    ((sum & 0xffff) + (sum >> 16)) as u16
}

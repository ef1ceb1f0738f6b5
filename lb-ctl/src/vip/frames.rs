//! ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861) frames about one
//! address: announcements, probes, and what others claim.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Tells the segment that `address` is at `mac`: a gratuitous ARP request, or
/// an unsolicited neighbour advertisement with the override flag.
pub fn announcement(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => arp_request(mac, v4, v4),
        IpAddr::V6(v6) => {
            const OVERRIDE: u8 = 0x20;
            const TARGET_LINK_LAYER_ADDRESS: [u8; 2] = [2, 1];
            let mut body = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
            body.extend(v6.octets());
            body.extend(TARGET_LINK_LAYER_ADDRESS);
            body.extend(mac);
            icmpv6(mac, v6, ALL_NODES, body)
        }
    }
}

/// Asks who has `address`, without saying who asks: an ARP probe, or a
/// solicitation as for duplicate address detection. Changes no neighbour table.
pub fn probe(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => arp_request(mac, Ipv4Addr::UNSPECIFIED, v4),
        IpAddr::V6(v6) => {
            let mut body = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            body.extend(v6.octets());
            icmpv6(mac, Ipv6Addr::UNSPECIFIED, solicited_node(v6), body)
        }
    }
}

/// The address that a frame claims, and the MAC that it claims it for: the
/// sender of any ARP packet, the target of a neighbour advertisement.
pub fn claim(frame: &[u8]) -> Option<(IpAddr, Mac)> {
    let mac_at = |offset: usize| Mac::try_from(frame.get(offset..offset + 6)?).ok();
    match frame.get(12..14)? {
        ethertype if *ethertype == ETHERTYPE_ARP => {
            let ip: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
            let ip = Ipv4Addr::from(ip);
            (!ip.is_unspecified()).then_some((ip.into(), mac_at(22)?))
        }
        ethertype if *ethertype == ETHERTYPE_IPV6 => {
            if *frame.get(20)? != ICMPV6 || *frame.get(54)? != NEIGHBOUR_ADVERTISEMENT {
                return None;
            }
            let target: [u8; 16] = frame.get(62..78)?.try_into().ok()?;
            // The option that names the MAC may be left out: then the sender's.
            let mac = match frame.get(78..80) {
                Some([2, 1]) => mac_at(80)?,
                _ => mac_at(6)?,
            };
            Some((Ipv6Addr::from(target).into(), mac))
        }
        _ => None,
    }
}

fn arp_request(mac: Mac, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, ETHERTYPE_ARP);
    // Ethernet, IPv4, address lengths, request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

fn icmpv6(mac: Mac, source: Ipv6Addr, destination: Ipv6Addr, mut body: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut sum = Checksum::default();
    sum.add(&source.octets());
    sum.add(&destination.octets());
    sum.add(&u32::from(length).to_be_bytes());
    sum.add(&u32::from(ICMPV6).to_be_bytes());
    sum.add(&body);
    body[2..4].copy_from_slice(&sum.finish());

    let d = destination.octets();
    let mut frame = ethernet(
        [0x33, 0x33, d[12], d[13], d[14], d[15]],
        mac,
        ETHERTYPE_IPV6,
    );
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    // Routers do not forward it: RFC 4861 demands a hop limit of 255.
    frame.extend([ICMPV6, 255]);
    frame.extend(source.octets());
    frame.extend(destination.octets());
    frame.extend(body);
    frame
}

fn ethernet(destination: Mac, source: Mac, ethertype: [u8; 2]) -> Vec<u8> {
    [destination.as_slice(), &source, &ethertype].concat()
}

/// RFC 4291, section 2.7.1.
fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let a = address.octets();
    let high = 0xff00 | u16::from(a[13]);
    let low = u16::from_be_bytes([a[14], a[15]]);
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

/// The Internet checksum, RFC 1071. Parts have even lengths.
#[derive(Default)]
struct Checksum(u32);

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        for pair in bytes.chunks(2) {
            let word = [pair[0], pair.get(1).copied().unwrap_or(0)];
            self.0 += u32::from(u16::from_be_bytes(word));
        }
    }

    fn finish(self) -> [u8; 2] {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn addresses() -> [IpAddr; 2] {
        [
            "203.0.113.10".parse().unwrap(),
            "2001:db8::10".parse().unwrap(),
        ]
    }

    #[test]
    fn an_announcement_is_a_claim_and_a_probe_is_none() {
        for address in addresses() {
            assert_eq!(claim(&announcement(MAC, address)), Some((address, MAC)));
            assert_eq!(claim(&probe(MAC, address)), None);
        }
    }

    #[test]
    fn a_frame_cut_at_any_length_is_no_claim() {
        for address in addresses() {
            let frame = announcement(MAC, address);
            let needed = if address.is_ipv4() { 32 } else { frame.len() };
            for length in 0..needed {
                // An advertisement without its option claims for the sender.
                if address.is_ipv6() && (78..80).contains(&length) {
                    assert_eq!(claim(&frame[..length]), Some((address, MAC)));
                } else {
                    assert_eq!(claim(&frame[..length]), None, "{length} bytes");
                }
            }
        }
    }

    #[test]
    fn the_icmpv6_checksum_sums_to_zero() {
        for frame in addresses()
            .map(|a| [announcement(MAC, a), probe(MAC, a)])
            .concat()
        {
            if frame[12..14] == ETHERTYPE_ARP {
                continue;
            }
            let mut sum = Checksum::default();
            sum.add(&frame[22..54]);
            sum.add(&u32::from(u16::from_be_bytes([frame[18], frame[19]])).to_be_bytes());
            sum.add(&u32::from(ICMPV6).to_be_bytes());
            sum.add(&frame[54..]);
            assert_eq!(sum.finish(), [0, 0]);
        }
    }

    #[test]
    fn a_solicitation_goes_to_the_solicited_node() {
        let address = "2001:db8::12:3456".parse().unwrap();
        let expected: Ipv6Addr = "ff02::1:ff12:3456".parse().unwrap();
        assert_eq!(solicited_node(address), expected);
    }
}

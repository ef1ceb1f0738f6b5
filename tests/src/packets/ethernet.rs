use crate::Mac;

/// EtherTypes (IANA).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP, RFC 826.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
}

/// An Ethernet header without VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Who shall receive the frame.
    pub destination: Mac,
    /// Who sent it.
    pub source: Mac,
    /// What it carries, see [`ethertype`]; host byte order.
    pub ethertype: u16,
}

impl Ethernet {
    /// Length of the header in bytes.
    pub const LENGTH: usize = 14;

    /// The frame: this header, then `payload`.
    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(Self::LENGTH + payload.len());
        frame.extend(self.destination.0);
        frame.extend(self.source.0);
        frame.extend(self.ethertype.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// Header and payload of a frame; `None` if it is too short.
    pub fn parse(frame: &[u8]) -> Option<(Self, &[u8])> {
        let (header, payload) = frame.split_at_checked(Self::LENGTH)?;
        Some((
            Self {
                destination: Mac(header[..6].try_into().ok()?),
                source: Mac(header[6..12].try_into().ok()?),
                ethertype: u16::from_be_bytes([header[12], header[13]]),
            },
            payload,
        ))
    }
}

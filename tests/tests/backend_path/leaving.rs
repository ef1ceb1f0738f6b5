//! Frames that leave: the MSS of SYN-ACKs from a VIP.

use lb_common::tunnel::Counter;

use super::packet::{changed, frame, has_right_checksums, tcp};
use super::world::{MSS, World, backend, client, vip};

const SYN_ACK: u8 = 0x12;

/// An MSS option.
pub fn mss(value: u16) -> Vec<u8> {
    let [high, low] = value.to_be_bytes();
    vec![2, 4, high, low]
}

/// A case: what it is, the frame, and the MSS that its option should have
/// afterwards, with the offset of the option's value, if it is changed.
pub type Case = (String, Vec<u8>, Option<(usize, u16)>);

/// Cases of both IP versions.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in [4, 6] {
        let options_at = if version == 4 { 14 + 40 } else { 14 + 60 };
        let limit = MSS[usize::from(version == 6)];
        let mut add = |name: &str, packet: Vec<u8>, lowered: Option<usize>| {
            let lowered = lowered.map(|offset| (options_at + offset, limit));
            cases.push((format!("{version}: {name}"), frame(&packet), lowered));
        };
        let answer = |options: &[u8]| tcp(vip(version), client(version), SYN_ACK, options);
        let linux = [
            &mss(1460)[..],
            &[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 3, 3, 7],
        ]
        .concat();
        add("as Linux sends it", answer(&linux), Some(2));
        add("MSS alone", answer(&mss(1460)), Some(2));
        add("the largest", answer(&mss(65_495)), Some(2));
        add("one too large", answer(&mss(limit + 1)), Some(2));
        add("just right", answer(&mss(limit)), None);
        add("small", answer(&mss(536)), None);
        let behind = |n: usize| [&vec![1; n][..], &mss(1460), &vec![1; (4 - n % 4) % 4]].concat();
        for n in [1, 2, 3, 4, 7, 36] {
            add(&format!("behind {n} NOPs"), answer(&behind(n)), Some(n + 2));
        }
        let last = [&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1][..], &mss(1460)].concat();
        add("behind timestamps", answer(&last), Some(14));
        add("no options", answer(&[]), None);
        add(
            "behind the end of options",
            answer(&[&[0, 0, 0, 0][..], &mss(1460)].concat()),
            None,
        );
        // Options that etherparse would not make are written afterwards.
        let raw = |at: usize, value: u8| changed(answer(&mss(1460)), options_at - 14 + at, value);
        add("length 3", raw(1, 3), None);
        add("length 0", raw(1, 0), None);
        add("length beyond the header", raw(1, 40), None);
        add("another kind", raw(0, 30), None);
        add(
            "SYN",
            tcp(vip(version), client(version), 0x02, &mss(1460)),
            None,
        );
        add(
            "ACK",
            tcp(vip(version), client(version), 0x10, &mss(1460)),
            None,
        );
        add(
            "from the backend's own address",
            tcp(backend(version), client(version), SYN_ACK, &mss(1460)),
            None,
        );
        add(
            "from a client of a VIP",
            tcp(client(version), vip(version), SYN_ACK, &mss(1460)),
            None,
        );
        let protocol_at = if version == 4 { 9 } else { 6 };
        add(
            "another protocol",
            changed(answer(&mss(1460)), protocol_at, 132),
            None,
        );
    }
    let fragment = changed(tcp(vip(4), client(4), SYN_ACK, &mss(1460)), 6, 0x20);
    cases.push(("fragment".to_owned(), frame(&fragment), None));
    cases
}

#[test]
fn only_what_is_too_large_is_lowered_and_checksums_stay_right() {
    let world = World::new("bp-mss");
    for (name, before, lowered) in cases() {
        let after = world.leaves_in_kernel(&before);
        assert_eq!(after, world.leaves_on_host(&before), "{name}");
        let mut expected = before.clone();
        if let Some((offset, limit)) = lowered {
            expected[offset..offset + 2].copy_from_slice(&limit.to_be_bytes());
            assert!(has_right_checksums(&before), "{name}: before");
            assert!(has_right_checksums(&after.bytes), "{name}: after");
            // The checksum is the only other thing that differs.
            let checksum = if before[12] == 8 { 14 + 36 } else { 14 + 56 };
            expected[checksum..checksum + 2].copy_from_slice(&after.bytes[checksum..checksum + 2]);
        }
        assert_eq!(after.bytes, expected, "{name}");
        let count = after.counted.get(&Counter::MssLowered).copied();
        assert_eq!(count, lowered.map(|_| 1), "{name}");
    }
}

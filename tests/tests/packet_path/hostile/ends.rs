//! The ways in which a packet may end, and what makes each of them true.

use integration::hostile::whole::{echoed, encapsulated, expect, ip_packet, translated, untagged};
use integration::hostile::{Kind, Place, headers};
use lb_common::counters::{BackendCounters, DropReason};
use lb_ebpf::verdict::Verdict;

use super::super::nat::read;
use super::super::world::{Outcome, backend_mac};

/// How a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Untouched, nothing counted.
    Passed,
    /// Sent on whole, counted once for one backend.
    Forwarded,
    /// It has become an ICMP error, counted under the reason for it.
    Answered,
    /// It has become the reply to a ping, which nothing counts.
    Replied,
    /// Counted once, under this reason.
    Dropped(DropReason),
}

/// How the packet ended that came as `frame`.
///
/// # Errors
/// What is wrong, if it is none of the ways.
pub fn end_of(frame: &[u8], outcome: &Outcome) -> Result<End, String> {
    let dropped: Vec<_> = outcome.dropped.iter().map(|(&r, &n)| (r, n)).collect();
    let counted: Vec<_> = outcome.counted.iter().map(|(&n, &c)| (n, c)).collect();
    match (outcome.verdict, &dropped[..], &counted[..]) {
        (Verdict::Pass, [], []) => {
            expect(outcome.bytes == frame, "passed, but not untouched")?;
            Ok(End::Passed)
        }
        (Verdict::Drop(reason), &[(counted, 1)], []) if counted == reason => {
            Ok(End::Dropped(reason))
        }
        (Verdict::Transmit, [(DropReason::TooBig | DropReason::TtlExceeded, 1)], []) => {
            answered(&untagged(frame), &untagged(&outcome.bytes))?;
            Ok(End::Answered)
        }
        (Verdict::Transmit, [], []) => {
            echoed(&untagged(frame), &untagged(&outcome.bytes))?;
            Ok(End::Replied)
        }
        (Verdict::Transmit | Verdict::Redirect(_) | Verdict::Host, [], &[(backend, counters)]) => {
            let outcome = Outcome {
                bytes: untagged(&outcome.bytes),
                ..outcome.clone()
            };
            forwarded(&untagged(frame), &outcome, backend, &counters)?;
            Ok(End::Forwarded)
        }
        _ => Err(format!("no way to end: {outcome:?}")),
    }
}

/// An error with right checksums, that quotes the beginning of the packet.
fn answered(frame: &[u8], answer: &[u8]) -> Result<(), String> {
    let packet = ip_packet(answer).ok_or("the answer is cut short")?;
    expect(packet.end == answer.len(), "the answer is padded")?;
    let read = read(answer);
    expect(read.icmp.is_some(), "the answer is no ICMP")?;
    expect(read.macs[..6] == frame[6..12], "the answer goes elsewhere")?;
    let sent = ip_packet(frame).ok_or("answered, but cut short")?;
    let sent = &frame[sent];
    expect(
        sent.starts_with(&read.payload),
        "the answer quotes another packet",
    )
}

fn forwarded(
    frame: &[u8],
    outcome: &Outcome,
    backend: u8,
    counters: &BackendCounters,
) -> Result<(), String> {
    let packet = ip_packet(frame).ok_or("forwarded, but cut short")?;
    let length = packet.len() as u64;
    let count = (
        counters.packets + counters.reply_packets,
        counters.bytes + counters.reply_bytes,
    );
    expect(count == (1, length), "counted otherwise than once as it is")?;
    let mut own = headers(frame).into_iter();
    if let Some(last) = own.rfind(|header| header.place == Place::Own) {
        let least = match last.kind {
            Kind::Tcp => 20,
            Kind::Udp => 8,
            Kind::Sctp => 12,
            _ => 0,
        };
        expect(last.at + least <= packet.end, "layer 4 cut short")?;
    }
    let bytes = &outcome.bytes;
    if outcome.verdict != Verdict::Host && counters.packets == 1 {
        expect(bytes[..6] == backend_mac(backend), "not to the backend")?;
    }
    match backend {
        0..=10 | 18 | 19 => expect(bytes[12..] == frame[12..], "more than MACs changed"),
        11..=13 | 20 => encapsulated(frame, bytes),
        _ => translated(frame, bytes),
    }
}

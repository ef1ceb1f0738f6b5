//! The ways in which a frame may end. One that arrives is passed untouched,
//! taken out of its outer packet whole, or dropped under exactly one reason;
//! one that leaves is untouched but for its MSS.

use integration::hostile::whole::{expect, taken_out};
use integration::hostile::{Kind, headers};
use lb_common::tunnel::Counter;
use lb_ebpf::backend::Verdict;

use super::super::world::Outcome;
use super::Way;

/// Checks how a frame ended.
///
/// # Errors
/// What is wrong, if it is in none of the ways.
pub fn check_end(way: Way, frame: &[u8], outcome: &Outcome) -> Result<(), String> {
    let dropped: u64 = outcome.dropped.values().sum();
    let counted: Vec<_> = outcome.counted.iter().map(|(&c, &n)| (c, n)).collect();
    let is_same = outcome.bytes == frame;
    match (way, outcome.verdict, dropped, &counted[..]) {
        (_, Verdict::Pass, 0, []) => expect(is_same, "passed, but not untouched"),
        (Way::Arrives | Way::Filtered, Verdict::Drop(_), 1, []) => Ok(()),
        (Way::Filtered, Verdict::Pass, 0, [(Counter::Decapsulated, 1)]) => {
            expect(is_same, "let in, but not untouched")
        }
        (Way::Arrives, Verdict::Pass, 0, [(Counter::Decapsulated, 1)]) => {
            taken_out(frame, &outcome.bytes)
        }
        (Way::Leaves, Verdict::Pass, 0, [(Counter::MssLowered, 1)]) => {
            lowered(frame, &outcome.bytes)
        }
        _ => Err("no way to end".to_owned()),
    }
}

/// Nothing but the MSS, and a checksum with it, differs.
fn lowered(frame: &[u8], bytes: &[u8]) -> Result<(), String> {
    let found = headers(frame);
    let tcp = found.last().filter(|header| header.kind == Kind::Tcp);
    let tcp = tcp.ok_or("an MSS in what is no TCP")?.at;
    expect(bytes.len() == frame.len(), "another length")?;
    let checksum = tcp + 16..tcp + 18;
    let differs = |at: &usize| frame[*at] != bytes[*at] && !checksum.contains(at);
    let changed: Vec<_> = (0..frame.len()).filter(differs).collect();
    let options = tcp + 20..tcp + 60;
    let is_inside = changed.iter().all(|at| options.contains(at));
    expect(
        is_inside && (1..=2).contains(&changed.len()),
        "more than the MSS changed",
    )
}

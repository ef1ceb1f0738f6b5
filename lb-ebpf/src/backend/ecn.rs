//! Explicit congestion notification through a tunnel: RFC 6040, section 4.2.

const MASK: u8 = 3;
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;

/// The inner traffic class after decapsulation; DSCP stays. `None` if the
/// packet must be dropped: it met congestion and its sender would not know
/// what the mark means.
#[inline(always)]
pub const fn decapsulated(outer: u8, inner: u8) -> Option<u8> {
    let ecn = match (outer & MASK, inner & MASK) {
        (CE, NOT_ECT) => return None,
        (CE, _) => CE,
        (ECT_1, ECT_0) => ECT_1,
        (_, inner) => inner,
    };
    Some(inner & !MASK | ecn)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figure 4 of the RFC: a row for each inner field, a column for each
    /// outer one, both in the order Not-ECT, ECT(0), ECT(1), CE.
    #[test]
    fn the_table_of_the_rfc() {
        let order = [NOT_ECT, ECT_0, ECT_1, CE];
        let rows = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE); 4]),
        ];
        for (inner, expected) in rows {
            for (outer, expected) in order.into_iter().zip(expected) {
                let got = decapsulated(0xa8 | outer, 0x48 | inner);
                assert_eq!(got, expected.map(|ecn| 0x48 | ecn), "{outer} {inner}");
            }
        }
    }
}

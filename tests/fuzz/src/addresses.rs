//! Addresses that random bytes, and the corpus, can hit.

use std::net::IpAddr;

/// The VIP of either IP version.
pub fn vips() -> [IpAddr; 2] {
    [
        [203, 0, 113, 10].into(),
        "2001:db8::10".parse().expect("an address"),
    ]
}

/// A backend's own address of either IP version.
pub fn backends() -> [IpAddr; 2] {
    [
        [203, 0, 113, 21].into(),
        "2001:db8::21".parse().expect("an address"),
    ]
}

/// The pool's address of either IP version.
pub fn pool() -> [IpAddr; 2] {
    [
        [203, 0, 113, 3].into(),
        "2001:db8::3".parse().expect("an address"),
    ]
}

//! The ABI between the packet path in the kernel and the control plane in user
//! space, and the arithmetic on which both must agree.
//!
//! # Byte order
//! Addresses and ports that are read from packets are kept as they stand in
//! the packet (network byte order) and are never swapped on the packet path.
//! Such a field says "network byte order" in its documentation; every other
//! integer is in host byte order.
//!
//! Several fields that are used together are kept in one word and put
//! together by shifting: one store instead of several, which the kernel's hash
//! function could not read back in one go without waiting for them. The
//! shifts are those of a little-endian machine.
//!
//! # Layout
//! Each type that crosses into the kernel is `repr(C)`, has no implicit
//! padding, and carries a const assertion of its size and alignment. There is
//! no `Option`, `bool` or enum inside, so that every bit pattern is a value.
//! Hash map keys are compared by the kernel byte for byte: their padding must
//! be zero, which the constructors see to.

#![cfg_attr(not(any(test, feature = "user")), no_std)]

const _: () = assert!(
    cfg!(target_endian = "little"),
    "the layout of keys is that of a little-endian machine"
);

mod address;
pub mod backend;
pub mod counters;
pub mod flow;
pub mod fragment;
pub mod limits;
pub mod nat;
pub mod program;
pub mod ring;
pub mod service;
pub mod service_table;
pub mod settings;
pub mod tunnel;
pub mod vip;
pub mod vlan;

mod mac;

pub use address::Address;
pub use mac::Mac;

/// Version of everything in this crate that the kernel sees.
///
/// Raise it when the layout or the meaning of a map changes. It names the
/// directory in which maps are pinned and stands in [`settings::Settings`]; a
/// control plane reuses pinned maps only if both agree with its own.
pub const ABI_VERSION: u32 = 4;

/// IP protocol numbers (IANA) that a service can have.
pub mod protocol {
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// SCTP, RFC 9260.
    pub const SCTP: u8 = 132;
}

/// Asserts size and alignment of a type that crosses into the kernel, and
/// makes it usable as key or value of aya's typed maps.
macro_rules! abi {
    ($type:ty, size = $size:expr, align = $align:expr) => {
        const _: () = assert!(core::mem::size_of::<$type>() == $size);
        const _: () = assert!(core::mem::align_of::<$type>() == $align);
        #[cfg(feature = "user")]
        // SAFETY: repr(C), no implicit padding (asserted size), and every bit
        // pattern is valid, as the crate's documentation promises.
        unsafe impl aya::Pod for $type {}
    };
}
pub(crate) use abi;

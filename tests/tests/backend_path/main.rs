//! The backend's programs in the kernel and the same source on the host:
//! packets in, verdict, bytes and counters out.
//!
//! Needs root, and the BPF objects: `cargo xtask build-ebpf`.

mod arriving;
mod hostile;
mod leaving;
mod packet;
mod world;

//! `lb-agent` in TUN mode, on a host that gets hand-made encapsulated packets.
//!
//! Needs root, what `cargo xtask setup` brings, and `lb-agent` built: `cargo xtask build-ebpf && cargo build -p
//! lb-agent`.

mod apply;
mod bench;
mod drift;
mod kernel;
#[expect(dead_code, reason = "another suite uses the rest of it")]
#[path = "../backend_path/packet.rs"]
mod packet;
mod traffic;

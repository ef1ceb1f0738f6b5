//! Virtual machines that run Debian's own kernels, in software emulation.
//!
//! A machine boots from memory: the kernel and an initramfs made of busybox,
//! the programs under test with their libraries, and the kernel modules that
//! are asked for. It runs one command and powers off. The kernel speaks on the
//! first serial port, the command on the second, so neither garbles the other.
//!
//! `cargo xtask setup` brings QEMU, busybox and the kernels.

mod builder;
mod image;
mod init;
mod kernel;
mod machine;
mod suite;

pub use builder::{Builder, Vm};
pub use kernel::Kernel;
pub use machine::Output;
pub use suite::{bulk, in_vm, inside};

//! The packet path, packet by packet: the real program in the kernel, run by
//! BPF_PROG_TEST_RUN, and the same source on the host.

mod clock;
mod crowded;
mod differential;
mod echo;
mod flooded;
mod fragments;
mod golden;
mod hostile;
mod nat;
mod packet;
mod tun;
mod vlan;
mod world;

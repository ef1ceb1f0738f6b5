//! What a backend needs so that a director can send it the packets of a VIP.
//!
//! In DR mode every backend holds the VIP too. If it answers ARP for it, or
//! names it as the sender of its own ARP requests, the router learns the
//! backend's MAC and the VIP is stolen from the director. So the VIP sits on
//! `lo`, and the ARP sysctls are set *before* it gets there.
//!
//! In TUN mode packets also arrive encapsulated: [`tunnel`] lets in those of
//! the directors and keeps clients from sending what does not fit.
//!
//! What to change is decided without I/O, in [`plan`] and [`check`], from what
//! [`host`] found; [`host`] then carries it out, and [`state`] remembers what
//! was there before, so that `undo` can put it back.

pub mod apply;
pub mod arp;
pub mod check;
pub mod cli;
pub mod config;
pub mod facts;
pub mod host;
pub mod interface;
mod netlink;
mod packets;
pub mod plan;
pub mod prefix;
pub mod report;
pub mod run;
pub mod state;
pub mod tunnel;
pub mod undo;
pub mod vip;

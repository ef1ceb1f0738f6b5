//! `lb-agent` on a host: what it changes, restores, finds and puts back.
//!
//! Needs root, and `lb-agent` built: `cargo build -p lb-agent`.

mod bench;
mod check;
mod report;
mod restore;
mod run;

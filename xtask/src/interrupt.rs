//! Ctrl-C while a lab is up: the lab goes all the same.

use std::process::exit;
use std::thread;

use integration::Lab;
use nix::sys::signal::{SigSet, Signal};

const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Keeps the signals from ending the process. Must come before any thread is
/// started. [`integration::Host::command`] unblocks them for its programs.
pub fn block() -> anyhow::Result<()> {
    Ok(SigSet::from_iter(SIGNALS).thread_block()?)
}

/// Waits for the signals; removes the lab and ends the process when one comes.
pub fn remove_lab_on_interrupt(id: &str) {
    let id = id.to_owned();
    thread::spawn(move || {
        let signal = SigSet::from_iter(SIGNALS).wait();
        eprintln!("interrupted: removing the lab");
        if let Err(e) = Lab::remove(&id) {
            eprintln!("error: {e:#}");
        }
        exit(128 + signal.map_or(Signal::SIGINT, |signal| signal) as i32);
    });
}

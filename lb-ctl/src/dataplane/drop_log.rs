//! Writes the packets that the program drops to the log.

use aya::Ebpf;
use aya_log::EbpfLogger;
use lb_common::counters::DropReason;
use log::{Log, Metadata, Record};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{info, warn};

/// Follows the program's log until the process ends. Needs a tokio runtime.
///
/// # Errors
/// If the object has no log, or it cannot be read.
pub fn follow(object: &mut Ebpf) -> anyhow::Result<()> {
    let logger = EbpfLogger::init_with_logger(object, DropLog)?;
    // SAFETY: the logger has the ring buffer's file descriptor until it is
    // dropped, and nobody else closes it.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = logger.map_err(std::io::Error::from)?;
    tokio::spawn(async move {
        loop {
            match logger.readable_mut().await {
                Ok(mut ready) => {
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
                Err(error) => {
                    warn!("cannot read the program's log any more: {error}");
                    return;
                }
            }
        }
    });
    Ok(())
}

/// Turns the number of a drop reason into its name.
struct DropLog;

impl Log for DropLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        match reason(&text) {
            Some(reason) => info!(
                reason = reason.name(),
                "packet dropped: {}",
                reason.meaning()
            ),
            None => info!("packet path: {text}"),
        }
    }

    fn flush(&self) {}
}

/// The reason in a line such as `dropped: reason 8`.
fn reason(line: &str) -> Option<DropReason> {
    let number: usize = line.strip_prefix("dropped: reason ")?.parse().ok()?;
    DropReason::ALL.get(number).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_program_names_its_reason() {
        assert_eq!(reason("dropped: reason 4"), Some(DropReason::Fragment));
        assert_eq!(reason("dropped: reason 4711"), None);
        assert_eq!(reason("something else"), None);
    }
}

//! Captures on the wire, by tcpdump.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::{Host, Lab, Process, try_eventually};

/// How long tcpdump may take to start and to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// Matches what must never be on a wire with an MTU of 1500: IP fragments,
/// and frames that are longer than Ethernet's header and such a packet.
pub const ODD: &str = "(ip[6:2] & 0x3fff != 0) or (ip6 and ip6[6] == 44) or greater 1515";

/// Matches packets in packets: IP protocols 4 and 41.
pub const ENCAPSULATED: &str = "(ip and (ip[9] == 4 or ip[9] == 41)) or \
                                (ip6 and (ip6[6] == 4 or ip6[6] == 41))";

/// Matches ICMP "fragmentation needed" and ICMPv6 "packet too big".
pub const TOO_BIG: &str = "(icmp and icmp[0] == 3 and icmp[1] == 4) or \
                           (icmp6 and ip6[6] == 58 and ip6[40] == 2)";

/// A capture that is under way. It sees what comes and what goes on an
/// interface.
#[derive(Debug)]
pub struct Capture {
    process: Process,
    file: PathBuf,
    name: String,
}

impl Capture {
    /// Starts a capture of what matches a filter, in tcpdump's language, and
    /// waits until it sees.
    pub fn start(lab: &Lab, host: &Host, ifname: &str, filter: &str) -> anyhow::Result<Self> {
        let name = format!("{} {ifname}: {filter}", host.name());
        let number = fs::read_dir(lab.dir())?.count();
        let stem = format!("tcpdump-{ifname}-{number}");
        let file = lab.dir().join(format!("{}-{stem}.pcap", host.name()));
        let mut command = host.command("tcpdump");
        // Root as it is: tcpdump's own user could not write the file.
        command.args(["-n", "-Z", "root", "--immediate-mode", "-U", "-i", ifname]);
        // Room for a burst: each frame takes as much of it as the longest may.
        command.args(["-B", "16384", "-s", "65535"]);
        command.arg("-w").arg(&file).arg(filter);
        let process = host.spawn(command, &stem)?;
        try_eventually("tcpdump to listen", PATIENCE, || {
            let log = process.log();
            log.contains("listening on").then_some(()).ok_or(log)
        })?;
        Ok(Self {
            process,
            file,
            name,
        })
    }

    /// The frames so far.
    pub fn frames(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let bytes = fs::read(&self.file)
            .with_context(|| format!("cannot read the capture {}", self.name))?;
        Ok(parse(&bytes))
    }

    /// Waits until a frame has been seen.
    pub fn wait(&self, timeout: Duration) -> anyhow::Result<()> {
        try_eventually(&format!("a frame at {}", self.name), timeout, || {
            self.frames().is_ok_and(|frames| !frames.is_empty())
        })
    }

    /// Ends the capture and returns its frames.
    ///
    /// # Errors
    /// When it has missed one.
    pub fn finish(self) -> anyhow::Result<Vec<Vec<u8>>> {
        self.process.kill(Signal::SIGINT)?;
        let status = self.process.wait_exit(PATIENCE)?;
        let log = self.process.log();
        ensure!(
            status.success() && log.contains("\n0 packets dropped by kernel"),
            "the capture {} is not complete: {log}",
            self.name
        );
        self.frames()
    }
}

/// The frames of a pcap file in this machine's byte order, a last one that is
/// not wholly written left out.
fn parse(file: &[u8]) -> Vec<Vec<u8>> {
    const FILE_HEADER: usize = 24;
    const RECORD_HEADER: usize = 16;
    let mut frames = Vec::new();
    let mut rest = file.get(FILE_HEADER..).unwrap_or_default();
    while let Some((header, after)) = rest.split_at_checked(RECORD_HEADER) {
        let length = [header[8], header[9], header[10], header[11]];
        let length = u32::from_ne_bytes(length) as usize;
        let Some((frame, after)) = after.split_at_checked(length) else {
            break;
        };
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_in_a_file() {
        let mut file = vec![0; 24];
        for frame in [&[1_u8, 2, 3][..], &[4]] {
            file.extend([0; 8]);
            file.extend((frame.len() as u32).to_ne_bytes());
            file.extend([0; 4]);
            file.extend(frame);
        }
        assert_eq!(parse(&file), [vec![1, 2, 3], vec![4]]);
        file.pop();
        assert_eq!(parse(&file), [vec![1, 2, 3]]);
        assert!(parse(&[]).is_empty());
    }
}

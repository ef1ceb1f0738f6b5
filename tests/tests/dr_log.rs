//! The director's log tells of dropped packets, if it is asked to.
//!
//! Needs root, and `lb-ctl` built: `cargo xtask build-ebpf && cargo build -p
//! lb-ctl`.

use std::net::SocketAddr;
use std::time::Duration;

use integration::talk::Protocol;
use integration::topology::{DrLab, Family};
use integration::try_eventually;

#[test]
fn with_log_drops_each_dropped_packet_is_told_with_its_reason() -> anyhow::Result<()> {
    let mut lab = DrLab::new("log-drops", 1)?;
    lab.start_director(&["--log-drops"])?;
    let service = lab.plain_service("idle", Family::V4, Protocol::Tcp, 5000, &[]);
    lab.api().put("/v1/services/idle", &service)?.ok()?;
    let vip = SocketAddr::new(Family::V4.vip(), 5000);
    try_eventually("the drop in the log", Duration::from_secs(20), || {
        let short = Duration::from_millis(200);
        let tried = lab
            .client
            .in_namespace(|| std::net::TcpStream::connect_timeout(&vip, short));
        anyhow::ensure!(tried.is_err(), "somebody answers");
        let path = lab.lab.dir().join("director-lb-ctl.log");
        let log = std::fs::read_to_string(path)?;
        anyhow::ensure!(
            log.contains("packet dropped") && log.contains("no_backend"),
            "{log}"
        );
        Ok(())
    })
}

//! What a client does with services on the VIPs, whoever balances them.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::topology::{Family, Site};
use crate::{Host, run};

/// How long an ICMP error may take to come back.
const SOON: Duration = Duration::from_secs(10);

/// Counters of packets whose checksum is wrong, as nstat names them.
const CHECKSUM_ERRORS: [&str; 6] = [
    "IpExtInCsumErrors",
    "IcmpInCsumErrors",
    "Icmp6InCsumErrors",
    "TcpInCsumErrors",
    "UdpInCsumErrors",
    "Udp6InCsumErrors",
];

impl Site {
    /// Gets that many pages of the web service, over a connection each;
    /// returns how many each backend answered.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn pages(&self, family: Family, count: usize) -> anyhow::Result<BTreeMap<String, usize>> {
        let url = format!("http://{}/", family.vip_in_url());
        // One curl for all of them.
        let mut args = vec!["--silent", "--show-error", "--fail", "--globoff"];
        args.extend(["--max-time", "120", "--header", "Connection: close"]);
        args.extend(std::iter::repeat_n(url.as_str(), count));
        let answers = self.client.run("curl", args)?;
        let mut names = BTreeMap::new();
        for name in answers.lines() {
            *names.entry(name.to_owned()).or_default() += 1;
        }
        ensure!(names.values().sum::<usize>() == count, "{answers}");
        Ok(names)
    }

    /// Uploads that many bytes and finds them whole on one of the backends.
    ///
    /// # Errors
    /// When they are not, or the transfer stalls.
    pub fn upload(&self, family: Family, bytes: u64) -> anyhow::Result<()> {
        let file = self.lab.dir().join("upload");
        fs::File::create(&file)?.set_len(bytes)?;
        let name = file.to_str().context("the lab's path is not UTF-8")?;
        let (status, up, _) = self.curl(family, &["--upload-file", name], "/files/up")?;
        ensure!((status, up) == (201, bytes), "status {status}, {up} bytes");
        let arrived: Vec<PathBuf> = self.uploads()?.into_iter().filter(|f| f.exists()).collect();
        ensure!(arrived.len() == 1, "uploaded to {arrived:?}");
        let length = fs::metadata(&arrived[0])?.len();
        ensure!(length == bytes, "{length} of {bytes} bytes arrived");
        fs::remove_file(&arrived[0])?;
        Ok(())
    }

    /// Downloads that many bytes.
    ///
    /// # Errors
    /// When not all of them come, or the transfer stalls.
    pub fn download(&self, family: Family, bytes: u64) -> anyhow::Result<()> {
        for backend in &self.backends {
            let nginx = backend.nginx.as_ref().context("no nginx")?;
            nginx.add_file("down", bytes)?;
        }
        let (status, _, down) = self.curl(family, &[], "/files/down")?;
        ensure!(
            (status, down) == (200, bytes),
            "status {status}, {down} bytes"
        );
        Ok(())
    }

    /// Where an upload lands.
    fn uploads(&self) -> anyhow::Result<Vec<PathBuf>> {
        let nginx = self.backends.iter().map(|b| b.nginx.as_ref());
        nginx
            .map(|nginx| Ok(nginx.context("no nginx")?.files().join("up")))
            .collect()
    }

    /// Runs curl; `transfer` says what and where. Returns what it wrote of the
    /// transfer: status, bytes up, bytes down.
    fn curl(
        &self,
        family: Family,
        transfer: &[&str],
        path: &str,
    ) -> anyhow::Result<(u64, u64, u64)> {
        let url = format!("http://{}{path}", family.vip_in_url());
        let mut curl = self.client.command("curl");
        curl.args(["--silent", "--show-error", "--globoff"])
            .args(["--output", "/dev/null"])
            // A stall is an error.
            .args(["--speed-time", "8", "--speed-limit", "100000"])
            .args(["--connect-timeout", "10", "--max-time", "150"])
            .args([
                "--write-out",
                "%{http_code} %{size_upload} %{size_download} %{time_total}",
            ])
            .args(transfer)
            .arg(&url);
        let text = run(&mut curl)?;
        eprintln!("{family}: {transfer:?}: {text}");
        let mut numbers = text.split(' ').map(str::parse::<f64>);
        let mut next = || Ok::<_, anyhow::Error>(numbers.next().context("curl is silent")?? as u64);
        Ok((next()?, next()?, next()?))
    }

    /// Sends a datagram to the VIP and waits until an ICMP error says that no
    /// server is there.
    ///
    /// # Errors
    /// When none comes.
    pub fn ensure_refused(&self, family: Family, port: u16) -> anyhow::Result<()> {
        let vip = SocketAddr::new(family.vip(), port);
        self.client.in_namespace(|| {
            let any: IpAddr = match family {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            // Only a connected socket is told of errors, and only of its own.
            socket.connect(vip)?;
            socket.set_read_timeout(Some(SOON))?;
            socket.send(b"anybody?")?;
            match socket.recv(&mut [0; 64]) {
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
                Err(e) => Err(e).with_context(|| format!("{vip} was not refused")),
                Ok(_) => bail!("{vip} answered"),
            }
        })
    }

    /// Who answers for each hop on the way to the VIP; `how` are traceroute's
    /// options of the kind of packets.
    ///
    /// # Errors
    /// When a hop is silent.
    pub fn hops(&self, family: Family, how: &[&str]) -> anyhow::Result<Vec<IpAddr>> {
        let vip = family.vip().to_string();
        let common = ["-n", "-q", "1", "-w", "5", "-m", "8"];
        let args = common.iter().chain(how).copied().chain([vip.as_str()]);
        let text = self.client.run("traceroute", args)?;
        // ` 1  198.51.100.1  0.050 ms`, after a heading.
        let lines = text.lines().skip(1);
        lines
            .map(|line| {
                let hop = line.split_whitespace().nth(1).unwrap_or_default();
                hop.parse().with_context(|| format!("{how:?}: {text}"))
            })
            .collect()
    }

    /// What a host remembers of the path to an address; `None` if it has not
    /// been told that it is narrow.
    ///
    /// # Errors
    /// When it has no route there.
    pub fn learnt_mtu(host: &Host, to: IpAddr) -> anyhow::Result<Option<u64>> {
        let route = host.run("ip", ["-json", "route", "get", &to.to_string()])?;
        let route: Value = serde_json::from_str(&route)?;
        Ok(route[0]["metrics"][0]["mtu"].as_u64())
    }

    /// How many packets were dropped for this reason.
    ///
    /// # Errors
    /// When there is no such reason.
    pub fn dropped(&self, reason: &str) -> anyhow::Result<u64> {
        let status = self.status()?;
        let mut drops = status["drops"].as_array().into_iter().flatten();
        let count = drops.find(|d| d["reason"] == reason).map(|d| &d["count"]);
        let count = count.and_then(Value::as_u64);
        count.with_context(|| format!("no drop reason {reason} in {status}"))
    }

    /// Checks that neither client nor backend has got a packet with a wrong
    /// checksum.
    ///
    /// # Errors
    /// When one has.
    pub fn ensure_checksums_right(&self) -> anyhow::Result<()> {
        let backends = self.backends.iter().map(|backend| &backend.host);
        for host in backends.chain([&self.client]) {
            let args = ["-a", "-s", "-z"].into_iter().chain(CHECKSUM_ERRORS);
            let text = host.run("nstat", args)?;
            for name in CHECKSUM_ERRORS {
                let line = text.lines().find(|line| line.starts_with(name));
                let value = line.and_then(|line| line.split_whitespace().nth(1));
                ensure!(value == Some("0"), "{}: {name}: {text}", host.name());
            }
        }
        Ok(())
    }
}

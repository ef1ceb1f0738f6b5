//! nginx on a host of a lab.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::{Host, Process, try_eventually};

/// A running nginx. Dropping it ends it.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
    dir: PathBuf,
}

/// One line of the access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// nginx's number of the connection.
    pub connection: u64,
    /// The client's address and port, `192.0.2.1:1234` or `[2001:db8::1]:1234`.
    pub client: String,
    /// The address at which the request arrived: in DR the VIP.
    pub server: String,
    /// HTTP status.
    pub status: u16,
}

impl Nginx {
    /// Starts nginx on a host and waits until it listens. `listen` holds
    /// nginx's own form: `80`, `203.0.113.21:80`, `[::]:80`.
    ///
    /// It answers `/` with the host's name, as body and as header
    /// `x-backend`; below `/files/` it serves the files of [`Self::files`] and
    /// takes new ones by PUT.
    pub fn start(host: &Host, lab_dir: &Path, listen: &[&str]) -> anyhow::Result<Self> {
        let dir = lab_dir.join(format!("{}-nginx", host.name()));
        for sub in ["temp", "files"] {
            fs::create_dir_all(dir.join(sub))
                .with_context(|| format!("cannot make {}", dir.join(sub).display()))?;
        }
        // Its workers, which are not root, write there.
        for sub in ["temp", "files"] {
            fs::set_permissions(dir.join(sub), fs::Permissions::from_mode(0o777))?;
        }
        let pid_file = dir.join("nginx.pid");
        if pid_file.exists() {
            fs::remove_file(&pid_file)?;
        }
        let config = dir.join("nginx.conf");
        fs::write(&config, config_text(host.name(), &dir, listen)?)?;
        let mut command = host.command("nginx");
        command.arg("-p").arg(&dir).arg("-c").arg(&config);
        let process = host
            .spawn(command, "nginx")
            .context("nginx is in Debian's package nginx-light")?;
        let nginx = Self { process, dir };
        // It writes the file once all its sockets listen.
        try_eventually("nginx to listen", Duration::from_secs(10), || {
            pid_file
                .exists()
                .then_some(())
                .ok_or_else(|| nginx.process.log())
        })
        .with_context(|| format!("on host {}", host.name()))?;
        Ok(nginx)
    }

    /// Directory of the files that it serves below `/files/`.
    pub fn files(&self) -> PathBuf {
        self.dir.join("files")
    }

    /// Makes a file of that many bytes to be had as `/files/NAME`.
    pub fn add_file(&self, name: &str, bytes: u64) -> anyhow::Result<()> {
        let file = fs::File::create(self.files().join(name))?;
        Ok(file.set_len(bytes)?)
    }

    /// The master process; its group holds the workers too.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Lets nginx outlive this process.
    pub fn leave(self) {
        self.process.leave();
    }

    /// The requests that it has answered. A line comes a moment after its
    /// answer: wait for it.
    pub fn accesses(&self) -> anyhow::Result<Vec<Access>> {
        let path = self.dir.join("access.log");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.lines()
            .map(|line| {
                access(line).with_context(|| format!("odd line in {}: {line}", path.display()))
            })
            .collect()
    }
}

fn access(line: &str) -> Option<Access> {
    let mut words = line.split(' ');
    let mut word = || words.next();
    let connection = word()?.parse().ok()?;
    let (address, port, server) = (word()?, word()?, word()?);
    Some(Access {
        connection,
        client: if address.contains(':') {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        },
        server: server.to_owned(),
        status: word()?.parse().ok()?,
    })
}

fn config_text(name: &str, dir: &Path, listen: &[&str]) -> anyhow::Result<String> {
    let dir = dir.to_str().context("the lab's path is not UTF-8")?;
    let listen: String = listen
        .iter()
        .map(|address| {
            // A wildcard for IPv6 must not take IPv4 as well: that has its own.
            let only = if address.starts_with('[') {
                " ipv6only=on"
            } else {
                ""
            };
            format!("    listen {address}{only} backlog=4096;\n")
        })
        .collect();
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {dir}/temp/{kind};\n"))
        .collect();
    Ok(format!(
        "daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
{temp}  log_format lab '$connection $remote_addr $remote_port $server_addr $status';
  access_log {dir}/access.log lab;
  default_type text/plain;
  keepalive_timeout 1h;
  keepalive_requests 1000000000;
  server {{
{listen}    add_header X-Backend {name} always;
    location / {{ return 200 '{name}\\n'; }}
    location /files/ {{
      alias {dir}/files/;
      dav_methods PUT DELETE;
      client_max_body_size 0;
    }}
  }}
}}
"
    ))
}

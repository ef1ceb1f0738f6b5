//! `cargo xtask lab`: the demo's lab, kept for hands-on use.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use integration::Lab;
use integration::api::{Api, Reply};
use integration::topology::{Family, Mode, Site};

use crate::demo::ModeArgs;
use crate::{interrupt, prepare, root};

/// Subcommands of `cargo xtask lab`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make the lab: client, director and three backends, balancing
    Up {
        #[command(flatten)]
        mode: ModeArgs,
    },
    /// Remove it
    Down,
    /// Run a command on one of its hosts
    Exec {
        /// client, director, b1, b2, … and in TUN and NAT mode router
        host: String,
        /// The command; a shell if there is none
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Show its hosts and what runs on them
    Status,
}

/// The one lab that is kept.
pub const ID: &str = "lb-lab";

/// Runs a subcommand.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Up { mode } => up(mode.mode()?),
        Command::Down => down(),
        Command::Exec { host, command } => exec(host, command),
        Command::Status => status(),
    }
}

fn up(mode: Mode) -> anyhow::Result<()> {
    prepare::run("a lab of network namespaces")?;
    interrupt::block()?;
    let lab = make()?;
    interrupt::remove_lab_on_interrupt(lab.id());
    let mut site = Site::build(lab, mode, 3)?;
    if !matches!(mode, Mode::Nat(_)) {
        for index in 0..site.backends.len() {
            site.agent_apply(index)?;
        }
    }
    site.start_director(&[])?;
    let api = site.api();
    for (name, family) in [("web", Family::V4), ("web6", Family::V6)] {
        let service = site.service(name, family, &[0, 1, 2]);
        api.put(&format!("/v1/services/{name}"), &service)?.ok()?;
    }
    let text = how_to_look_around(&site, &[Family::V4, Family::V6]);
    site.persist()?;
    print!("{text}");
    Ok(())
}

fn down() -> anyhow::Result<()> {
    root::become_root("removing network namespaces")?;
    open()?;
    Lab::remove(ID)?;
    println!("removed the lab");
    Ok(())
}

fn exec(host: &str, command: &[String]) -> anyhow::Result<()> {
    root::become_root("entering a network namespace")?;
    let lab = open()?;
    let shell = ["bash".to_owned()];
    let words = if command.is_empty() {
        &shell[..]
    } else {
        command
    };
    let mut command = lab.existing_host(host)?.command(&words[0]);
    let variables = variables(&lab)?;
    let error = command.args(&words[1..]).envs(variables).exec();
    Err(error).with_context(|| format!("cannot start {}", words[0]))
}

fn status() -> anyhow::Result<()> {
    root::become_root("entering network namespaces")?;
    let lab = open()?;
    for name in lab.host_names()? {
        let host = lab.existing_host(&name)?;
        println!("{name} (namespace {}):", host.namespace());
        for line in host.run("ip", ["-brief", "address", "show"])?.lines() {
            println!("  {line}");
        }
        for pid in integration::run(std::process::Command::new("ip").args([
            "netns",
            "pids",
            host.namespace(),
        ]))?
        .split_whitespace()
        {
            // It may have ended since.
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            println!("  process {pid}: {line}");
        }
    }
    match Api::new(Site::socket_of(&lab))
        .get("/readyz")
        .and_then(Reply::ok)
    {
        Ok(_) => println!("lb-ctl is ready"),
        Err(e) => println!("lb-ctl is not ready: {e:#}"),
    }
    Ok(())
}

/// An empty lab under the fixed id.
pub fn make() -> anyhow::Result<Lab> {
    Lab::with_id(ID).context("`cargo xtask lab down` removes a lab that is up")
}

fn open() -> anyhow::Result<Lab> {
    Lab::open(ID).context("`cargo xtask lab up` makes the lab")
}

/// With these, `lb-ctl` needs no options to find the director, nor a path.
fn variables(lab: &Lab) -> anyhow::Result<[(&'static str, String); 4]> {
    let own = std::env::current_exe()?;
    let Some(programs) = own.parent() else {
        bail!("{} has no directory", own.display());
    };
    let path = std::env::var("PATH").unwrap_or_default();
    let text = |path: PathBuf| path.display().to_string();
    Ok([
        ("LB_LISTEN", format!("unix:{}", text(Site::socket_of(lab)))),
        ("LB_STATE", text(Site::director_state_of(lab))),
        ("LB_BPFFS", text(Site::director_bpffs_of(lab))),
        ("PATH", format!("{}:{path}", programs.display())),
    ])
}

/// What to type in a lab that is kept and has services on these VIPs.
pub fn how_to_look_around(site: &Site, families: &[Family]) -> String {
    let socket = Site::socket_of(&site.lab);
    let backends: Vec<&str> = site.backends.iter().map(|b| b.name()).collect();
    let requests: String = families
        .iter()
        .map(|family| {
            let vip = family.vip_in_url();
            format!("  a request         cargo xtask lab exec client -- curl -gs 'http://{vip}/'\n")
        })
        .collect();
    let vips: Vec<String> = families.iter().map(|f| f.vip().to_string()).collect();
    let place = match site.mode() {
        Mode::Dr => "on one segment (203.0.113.0/24)",
        Mode::Tun => {
            "with a router between client (198.51.100.0/24), director (203.0.113.0/24) and backends (192.0.2.0/24)"
        }
        Mode::Nat(_) => {
            "with a router between client (198.51.100.0/24) and director (203.0.113.0/24), and that before the backends (192.0.2.0/24)"
        }
    };
    let check = match site.mode() {
        Mode::Nat(_) => String::new(),
        Mode::Dr | Mode::Tun => format!(
            "  check a backend   cargo xtask lab exec b1 -- lb-agent check --vip {} --interface eth0 --state {}\n",
            vips.join(","),
            Site::agent_state_of(&site.lab, "b1").display(),
        ),
    };
    let (seeker, _) = site.vip_seeker();
    format!(
        "The lab is up: client, director, {backends} {place}.

{requests}  who has the VIP   cargo xtask lab exec {seeker} -- ip neighbour
  the director      cargo xtask lab exec director -- lb-ctl status
  its API           curl --unix-socket {socket} http://localhost/v1/services
{check}  watch the wire    cargo xtask lab exec b1 -- tcpdump -eni eth0
  a shell           cargo xtask lab exec client
  logs              ls {dir}/*.log
  remove it         cargo xtask lab down
",
        backends = backends.join(", "),
        seeker = seeker.name(),
        socket = socket.display(),
        dir = site.lab.dir().display(),
    )
}

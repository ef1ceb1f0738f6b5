//! A director on Debian's kernels: the program is accepted, runs in the
//! driver, and balances real HTTP requests over real servers.
//!
//! Needs what `cargo xtask setup` brings, and `lb-ctl` and `lb-agent` built:
//! `cargo xtask build-ebpf && cargo build -p lb-ctl -p lb-agent`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use integration::topology::{DrLab, Family};
use integration::vm::{Kernel, in_vm};
use serde_json::json;

const LONG: Duration = Duration::from_secs(240);
/// Enough that each of two backends gets one, but for once in a billion times.
const REQUESTS: usize = 32;

#[test]
fn a_director_balances_on_6_1() {
    balances_on(Kernel::V6_1, "a_director_balances_on_6_1");
}

#[test]
fn a_director_balances_on_6_12() {
    balances_on(Kernel::V6_12, "a_director_balances_on_6_12");
}

fn balances_on(kernel: Kernel, test: &str) {
    in_vm(
        kernel,
        test,
        LONG,
        |vm| vm,
        || {
            if let Err(e) = balances() {
                panic!("{e:#}");
            }
        },
    );
}

fn balances() -> anyhow::Result<()> {
    let mut lab = DrLab::new("kernel", 2)?;
    for i in 0..2 {
        lab.agent_apply(i)?;
    }
    lab.start_director(&["--xdp-mode", "native"])?;
    let attached = lab.xdp()?.context("no XDP program is attached")?;
    ensure!(attached.0 == "native", "{attached:?}");
    for (name, family) in [("v4", Family::V4), ("v6", Family::V6)] {
        let mut service = lab.service(name, family, &[0, 1]);
        // The servers share one emulated processor with everything else.
        service["health_check"] = json!({
            "type": "http", "path": "/",
            "interval_ms": 2000, "timeout_ms": 2000, "rise": 1, "fall": 5,
        });
        lab.put_service(&service)?;
        let served = request(&lab, family.vip())?;
        ensure!(served.len() == 2, "only {served:?} served {family}");
        let owner = lab.vip_owner(family)?;
        ensure!(owner == "director", "{owner} has the VIP of {family}");
    }
    lab.end_director(nix::sys::signal::Signal::SIGTERM)?;
    lab.down()?;
    ensure!(lab.xdp()?.is_none(), "the program is still attached");
    Ok(())
}

/// Names of the backends that answered.
fn request(lab: &DrLab, vip: IpAddr) -> anyhow::Result<BTreeSet<String>> {
    let url = match vip {
        IpAddr::V4(vip) => format!("http://{vip}/"),
        IpAddr::V6(vip) => format!("http://[{vip}]/"),
    };
    // One curl for all of them, each with a connection of its own.
    let mut args = vec!["--silent", "--show-error", "--fail", "--max-time", "120"];
    args.extend(["--no-keepalive", "--header", "Connection: close"]);
    args.extend(std::iter::repeat_n(url.as_str(), REQUESTS));
    let answers = lab.client.run("curl", args)?;
    let names: BTreeSet<String> = answers.lines().map(str::to_owned).collect();
    ensure!(answers.lines().count() == REQUESTS, "{answers}");
    Ok(names)
}

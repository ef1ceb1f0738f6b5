//! What `lb-ctl up` refuses, and what it says then.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use integration::talk::Protocol;
use integration::topology::{DrLab, Family, INTERFACE};
use integration::{XdpAction, paths};
use nix::sys::signal::Signal;

use super::{ensure_clean, ensure_said, refused, serve, talk};

#[test]
fn what_stands_in_the_way_is_named() -> anyhow::Result<()> {
    let lab = DrLab::new("refuse", 0)?;
    let up = |more: &[&str]| -> anyhow::Result<Command> {
        let mut up = lab.up_command()?;
        up.args(more);
        Ok(up)
    };

    let said = refused(&lab, up(&["--interface", "eth7"])?, "unknown")?;
    ensure_said(&said, &["there is no interface eth7", "ip link"])?;
    ensure_clean(&lab)?;

    // The last --bpffs would be one too many: a command of its own.
    let mut elsewhere = lab.director.command(paths::binary("lb-ctl")?);
    elsewhere
        .args(["up", "--interface", INTERFACE, "--listen", &lab.listen()])
        .arg("--state")
        .arg(DrLab::director_state_of(&lab.lab))
        .arg("--bpffs")
        .arg(lab.lab.dir().join("no-bpffs"));
    let said = refused(&lab, elsewhere, "elsewhere")?;
    ensure_said(
        &said,
        &["not on a BPF file system", "mount -t bpf", "--bpffs"],
    )?;
    ensure_clean(&lab)?;

    let program = lab.lab.xdp_program(XdpAction::Pass)?;
    let program = program.to_str().context("UTF-8")?;
    for mode in ["xdpdrv", "xdpgeneric"] {
        let attach = ["link", "set", "dev", INTERFACE, mode, "pinned", program];
        lab.director.run("ip", attach)?;
        let theirs = lab.xdp()?;
        let said = refused(&lab, up(&["--interface", INTERFACE])?, mode)?;
        let words = [
            "eth0 already has an XDP program",
            "ip link set dev eth0 xdp",
        ];
        ensure_said(&said, &words)?;
        ensure!(lab.xdp()? == theirs, "theirs was touched");
        let detach = ["link", "set", "dev", INTERFACE, mode, "off"];
        lab.director.run("ip", detach)?;
    }
    ensure!(lab.xdp()?.is_none());
    Ok(())
}

/// Another user, and root without capabilities.
#[test]
fn without_privileges_it_says_which_are_missing() -> anyhow::Result<()> {
    let lab = DrLab::new("nopriv", 0)?;
    let without = |args: &[&str], state: &Path| -> anyhow::Result<Command> {
        let mut command = lab.director.command("setpriv");
        command.args(args).arg("--").arg(paths::binary("lb-ctl")?);
        let socket = format!("unix:{}/nopriv.sock", state.display());
        command.args(["up", "--interface", INTERFACE, "--listen", &socket]);
        command.arg("--state").arg(state);
        command.arg("--bpffs").arg(lab.director_bpffs());
        Ok(command)
    };
    let state = DrLab::director_state_of(&lab.lab);
    let caps = ["--bounding-set=-all", "--inh-caps=-all"];
    let said = refused(&lab, without(&caps, &state)?, "nocaps")?;
    ensure_said(&said, &["no permission", "root", "CAP_BPF"])?;
    let net_only = ["--bounding-set=-all,+net_admin", "--inh-caps=-all"];
    let said = refused(&lab, without(&net_only, &state)?, "netonly")?;
    ensure_said(&said, &["no permission", "root", "CAP_BPF"])?;
    ensure!(lab.xdp()?.is_none());
    Ok(())
}

#[test]
fn maps_of_another_size_are_not_adopted() -> anyhow::Result<()> {
    let mut lab = DrLab::new("sizes", 1)?;
    lab.start_director(&["--max-backends", "100"])?;
    let _echoes = serve(&lab)?;
    let talk = talk(&lab.client, Protocol::Tcp, Family::V4, 5)?;
    lab.end_director(Signal::SIGTERM)?;
    for (option, map, log) in [
        (["--max-backends", "200"], "BACKENDS", "backends"),
        (["--flow-table-size", "4096"], "FLOWS_V4", "flows"),
    ] {
        let mut up = lab.up_command()?;
        up.args(["--interface", INTERFACE]).args(option);
        if map == "FLOWS_V4" {
            up.args(["--max-backends", "100"]);
        }
        let said = refused(&lab, up, log)?;
        ensure_said(&said, &[map, "lb-ctl down", option[0]])?;
        talk.round("after a refusal")?;
    }
    lab.start_director(&["--max-backends", "100"])?;
    talk.round("after lb-ctl was started with the sizes of before")?;
    talk.ensure_steady("at the end")
}

#[test]
fn a_file_with_another_hash_key_does_not_move_flows_unasked() -> anyhow::Result<()> {
    let mut lab = DrLab::new("hashkey", 1)?;
    lab.start_director(&[])?;
    let _echoes = serve(&lab)?;
    lab.end_director(Signal::SIGTERM)?;
    let file = lab.lab.dir().join("other.toml");
    std::fs::write(&file, "[settings]\nhash_key = \"another\"\n")?;
    let mut up = lab.up_command()?;
    up.args(["--interface", INTERFACE, "--config"]).arg(&file);
    let said = refused(&lab, up, "hash-key")?;
    ensure_said(&said, &["other.toml", "hash key cannot change"])
}

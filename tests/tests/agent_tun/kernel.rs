//! The kernel's own tunnel devices, as `lb-agent` makes them, on Debian's
//! kernels in virtual machines: this machine's may have none.

use std::time::Duration;

use integration::vm::{Builder, Kernel, in_vm};
use serde_json::json;

use crate::bench::Bench;
use crate::traffic::{directors_reach, strangers_do_not};

const LONG: Duration = Duration::from_secs(240);

#[test]
fn tunnel_devices_on_6_1() {
    on(Kernel::V6_1, "kernel::tunnel_devices_on_6_1");
}

#[test]
fn tunnel_devices_on_6_12() {
    on(Kernel::V6_12, "kernel::tunnel_devices_on_6_12");
}

fn on(kernel: Kernel, test: &str) {
    let modules = |vm: Builder| {
        vm.program("tc")
            .module("ipip")
            .module("sit")
            .module("ip6_tunnel")
    };
    in_vm(kernel, test, LONG, modules, || {
        if let Err(e) = devices() {
            panic!("{e:#}");
        }
    });
}

fn devices() -> anyhow::Result<()> {
    let bench = Bench::new("at-devices")?;
    // What new devices get, too.
    for name in ["all", "default", "eth0"] {
        let key = format!("net.ipv4.conf.{name}.rp_filter");
        bench.host.set_sysctl(&key, 1)?;
    }
    let before = bench.snapshot()?;
    let report = bench.apply(&[]);
    assert_eq!(report["tunnel"]["decapsulate"], "kernel", "{report}");
    for name in ["lbtun4", "lbtun64", "lbtun6"] {
        assert!(bench.ip("-oneline link show up")?.contains(name), "{name}");
    }
    assert_eq!(bench.apply(&[])["changed"], false);
    strangers_do_not(&bench)?;
    bench.json(&["undo"], 0);
    assert_eq!(bench.snapshot()?, before);

    bench.apply(&[]);
    directors_reach(&bench)?;

    // What `check` says mends what is wrong.
    for breakage in [
        "ip link del lbtun4",
        "ip link set lbtun6 down",
        "ip address del 127.0.0.4/32 dev lbtun4",
        "sysctl -w net.ipv4.conf.lbtun6.rp_filter=1",
    ] {
        bench.host.run("sh", ["-c", breakage])?;
        let fixes = bench.fixes();
        assert!(!fixes.is_empty(), "{breakage}");
        for fix in fixes {
            bench.host.run("sh", ["-c", &fix])?;
        }
        // A device made by hand gets the kernel's default for rp_filter.
        for fix in bench.fixes() {
            bench.host.run("sh", ["-c", &fix])?;
        }
        assert_eq!(bench.check()["findings"], json!([]), "{breakage}");
    }
    // Our own program instead: the devices go.
    let report = bench.apply(&["--decapsulate", "xdp"]);
    assert!(
        report["changes"].to_string().contains("lbtun64"),
        "{report}"
    );
    assert!(!bench.ip("link show")?.contains("lbtun"));
    bench.json(&["undo"], 0);
    assert_eq!(bench.snapshot()?, before);
    Ok(())
}

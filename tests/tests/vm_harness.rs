//! The virtual machines themselves: that they tell success from failure, and
//! every kind of failure from the others.
//!
//! Needs what `cargo xtask setup` brings.

use std::time::{Duration, Instant};

use integration::vm::{Kernel, Vm};

/// A machine boots in a few seconds; a busy computer takes longer.
const LONG: Duration = Duration::from_secs(120);

#[test]
fn commands_run_on_the_kernel_that_was_asked_for() {
    for kernel in Kernel::ALL {
        let script = "uname -r\necho seen >&2\nexit 7\n";
        let output = Vm::builder(kernel).run(script, LONG).unwrap();
        let release = kernel.release().unwrap();
        assert_eq!(output.status, 7, "{output:?}");
        assert_eq!(output.output, format!("{release}\nseen\n"));
        let error = output.ok().unwrap_err().to_string();
        assert!(
            error.contains("status 7") && error.contains("seen"),
            "{error}"
        );
    }
}

#[test]
fn modules_files_programs_and_variables_arrive() {
    let script = "set -e
        test \"$GREETING\" = \"it's\"
        cmp /etc/hosts-here /etc/hosts-too
        ip link add name tunnel type ipip local 192.0.2.1 remote 192.0.2.2
        ip -details link show tunnel
        lsmod\n";
    let output = Vm::builder(Kernel::V6_1)
        .module("ipip")
        .module("ip_vs_mh")
        .program("ip")
        .file("/etc/hosts", "/etc/hosts-here")
        .file("/etc/hosts", "/etc/hosts-too")
        .env("GREETING", "it's")
        .run(script, LONG)
        .unwrap()
        .ok()
        .unwrap();
    for expected in ["ipip any remote 192.0.2.2", "\ntunnel4", "\nip_vs "] {
        assert!(output.contains(expected), "no {expected:?} in {output}");
    }
}

#[test]
fn a_panic_of_the_kernel_is_told() {
    let crash = "echo last words\necho c >/proc/sysrq-trigger\n";
    let error = Vm::builder(Kernel::V6_12).run(crash, LONG).unwrap_err();
    let error = format!("{error:#}");
    for expected in [
        "kernel 6.12 panicked",
        "last words",
        "sysrq triggered crash",
    ] {
        assert!(error.contains(expected), "no {expected:?} in {error}");
    }
}

#[test]
fn a_machine_that_hangs_is_ended() {
    let start = Instant::now();
    let timeout = Duration::from_secs(30);
    // Sleeping would take it no time.
    let hang = "echo waiting for nothing\nwhile :; do :; done\n";
    let error = Vm::builder(Kernel::V6_1).run(hang, timeout).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("still ran after 30s"), "{error}");
    assert!(error.contains("waiting for nothing"), "{error}");
    // Other tests' machines may have been before it.
    assert!(start.elapsed() < LONG * 4, "{:?}", start.elapsed());
}

#[test]
fn what_is_missing_is_named_before_anything_starts() {
    let error = |vm: integration::vm::Builder| {
        let error = vm.run("true", LONG).unwrap_err();
        format!("{error:#}")
    };
    let vm = || Vm::builder(Kernel::V6_1);
    let module = error(vm().module("no_such_module"));
    assert!(
        module.contains("kernel 6.1 has no module no_such_module"),
        "{module}"
    );
    let program = error(vm().program("no-such-program"));
    assert!(program.contains("no program no-such-program"), "{program}");
    let file = error(vm().file("/no/such/file", "/file"));
    assert!(file.contains("/no/such/file"), "{file}");
}

//! The first process of a machine: a script for busybox's shell.

use std::path::Path;

/// Where programs of the project stand in the machine.
pub(super) const BIN: &str = "/lb/bin";
/// Where modules stand in the machine.
pub(super) const MODULES: &str = "/lb/modules";
/// The command to run.
pub(super) const COMMAND: &str = "/lb/command";
/// Begins the line that says how the command ended.
pub(super) const END: &str = "=== lb-vm: the command ended with status";
/// Begins the line that says why the command was not run.
pub(super) const REFUSED: &str = "=== lb-vm: the machine is not ready:";

/// The script. `modules` are names of files in [`MODULES`], in order.
pub(super) fn script(modules: &[String], environment: &[(String, String)]) -> String {
    let modules: String = modules
        .iter()
        .map(|name| format!("insmod {MODULES}/{name} || refuse 'module {name} does not load'\n"))
        .collect();
    let environment: String = environment
        .iter()
        .map(|(name, value)| format!("export {name}={}\n", quote(value)))
        .collect();
    format!(
        r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /busybox /dev /proc /sys /run /tmp /root /var/log/nginx /var/lib/nginx
$b --install -s /busybox
export PATH={BIN}:/usr/bin:/busybox HOME=/root
ln -s /usr/bin/sh /bin/sh
chmod 1777 /tmp
mount -t devtmpfs devtmpfs /dev
# The command's own serial port, as it is: no carriage returns.
exec </dev/null >/dev/ttyS1 2>&1
stty -F /dev/ttyS1 -opost
finish() {{
    sync
    poweroff -f
    # It returns before the machine is off.
    while :; do sleep 1; done
}}
refuse() {{
    echo "{REFUSED} $1"
    finish
}}
must() {{
    "$@" || refuse "$* failed"
}}
must mount -t proc proc /proc
must mount -t sysfs sysfs /sys
must mkdir -p /dev/pts /dev/shm
must mount -t devpts devpts /dev/pts
must mount -t tmpfs tmpfs /dev/shm
must mount -t tmpfs tmpfs /run
must mount -t tmpfs tmpfs /tmp
must mount -t bpf bpf /sys/fs/bpf
mount --make-rshared /
ln -s /proc/self/fd /dev/fd
hostname lb-vm
ulimit -n 65536
must ifconfig lo up
{modules}{environment}cd /tmp
/bin/sh {COMMAND}
echo "{END} $?"
finish
"#
    )
}

/// Name that a module's file gets, so that two of one name in different
/// directories do not meet.
pub(super) fn module_name(position: usize, file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    format!("{position:03}-{name}")
}

/// A word for the shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

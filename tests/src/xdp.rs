//! XDP programs that do the same with every packet, without a compiler.
//!
//! A frame that a program sends back out of a veth (XDP_TX) is delivered only
//! if the other end of the pair takes packets through NAPI, and a veth does so
//! only while it has an XDP program itself. So each port of a segment gets one
//! that passes everything.

use std::ffi::CString;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, anyhow};
use nix::errno::Errno;

/// What an XDP program does with a packet; the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpAction {
    /// Drops it.
    Drop = 1,
    /// Hands it to the kernel's stack.
    Pass = 2,
    /// Sends it back as it is.
    Tx = 3,
}

/// Loads a program that always does the same and pins it at `path`, which
/// must be on a bpffs.
pub(crate) fn load_and_pin(path: &Path, action: XdpAction) -> anyhow::Result<()> {
    let program = load(action).context("cannot load an XDP program")?;
    pin(&program, path).with_context(|| format!("cannot pin a program at {}", path.display()))
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// Frames in several buffers may come: without it no jumbo frames do.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;

/// `r0 = action; exit`, each instruction as the kernel's `struct bpf_insn`
/// stands in memory on a little-endian machine.
const fn program(action: XdpAction) -> [u64; 2] {
    [((action as u64) << 32) | 0xb7, 0x95]
}

/// The head of the kernel's `union bpf_attr` as BPF_PROG_LOAD reads it.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The head of the kernel's `union bpf_attr` as BPF_OBJ_PIN reads it.
#[repr(C)]
#[derive(Default)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

fn load(action: XdpAction) -> anyhow::Result<OwnedFd> {
    let instructions = program(action);
    let attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Dual MIT/GPL".as_ptr() as u64,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
        ..ProgLoad::default()
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else
    // knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd)?) })
}

fn pin(program: &OwnedFd, path: &Path) -> anyhow::Result<()> {
    use std::os::fd::AsRawFd;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = ObjPin {
        pathname: path.as_ptr() as u64,
        bpf_fd: u32::try_from(program.as_raw_fd())?,
        file_flags: 0,
    };
    bpf(BPF_OBJ_PIN, &attributes)?;
    Ok(())
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> anyhow::Result<libc::c_long> {
    // SAFETY: the kernel reads size_of::<T>() bytes of plain data and, behind
    // its pointers, buffers that the callers keep alive during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    match Errno::result(result) {
        Ok(value) => Ok(value),
        Err(Errno::EPERM) => Err(anyhow!(
            "the kernel refuses bpf(2): root (CAP_BPF and CAP_NET_ADMIN) is needed"
        )),
        Err(e) => Err(anyhow!("bpf(2): {e}")),
    }
}

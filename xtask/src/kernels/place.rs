//! Where suites run.

use std::fmt;
use std::fs;
use std::str::FromStr;

use anyhow::bail;
use integration::vm::Kernel;

/// A kernel to run suites on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The one that runs.
    Here,
    /// Another one, in a virtual machine.
    Machine(Kernel),
}

impl Place {
    /// What `uname -r` says there.
    pub fn release(self) -> anyhow::Result<String> {
        match self {
            Self::Here => Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned()),
            Self::Machine(kernel) => kernel.release(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("here"),
            Self::Machine(kernel) => kernel.fmt(f),
        }
    }
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        if name == "here" {
            return Ok(Self::Here);
        }
        let mut kernels = Kernel::ALL.into_iter();
        match kernels.find(|kernel| kernel.series() == name) {
            Some(kernel) => Ok(Self::Machine(kernel)),
            None => bail!("there is no kernel {name}: say here, 6.1 or 6.12"),
        }
    }
}

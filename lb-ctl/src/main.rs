//! The command `lb-ctl`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lb_ctl::cli::main()
}

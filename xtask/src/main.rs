//! The project's tasks. `cargo xtask help` lists them.

mod bench;
mod build_ebpf;
mod console;
mod demo;
mod fuzz;
mod interrupt;
mod kernels;
mod lab;
mod prepare;
mod root;
mod setup;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "The project's tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, demo and tests need; says what and why
    Setup,
    /// Build the eBPF objects that lb-ctl and lb-agent embed
    BuildEbpf,
    /// Balance real HTTP traffic in a lab of network namespaces (as root)
    Demo(demo::Args),
    /// Keep the demo's lab for hands-on use (as root)
    Lab {
        #[command(subcommand)]
        command: lab::Command,
    },
    /// Run each fuzz target for a while
    Fuzz(fuzz::Args),
    /// Measure time, instructions and memory, also against IPVS (as root)
    Bench(bench::Args),
    /// Run everything from set-up to the last suite (as root)
    Test(test::Args),
    /// Run the suites on this kernel and, in virtual machines, on Debian's 6.1
    /// and 6.12 (as root)
    Kernels(kernels::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup => setup::run().and_then(|()| setup::virtual_machines()),
        Task::BuildEbpf => build_ebpf::run(),
        Task::Demo(args) => demo::run(&args),
        Task::Lab { command } => lab::run(&command),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Kernels(args) => kernels::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

//! Any bytes through the director's packet path.

#![no_main]

use std::cell::LazyCell;

use fuzz::director::{forget, send, tables};
use lb_ebpf::host::HostTables;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static TABLES: LazyCell<HostTables> = LazyCell::new(tables);
}

fuzz_target!(|bytes: &[u8]| {
    TABLES.with(|tables| {
        forget(tables);
        send(bytes, tables);
    });
});

//! Any bytes through the decapsulation of a backend: a packet is taken out
//! whole, dropped under one reason, or passed untouched.

#![no_main]

use std::cell::LazyCell;

use fuzz::whole::taken_out;
use fuzz::{backends, vips};
use lb_common::ABI_VERSION;
use lb_common::tunnel::{Counter, TunnelSettings, role};
use lb_ebpf::backend::host::BackendTables;
use lb_ebpf::backend::{Verdict, decapsulate};
use lb_ebpf::host::HostPacket;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static TABLES: LazyCell<[BackendTables; 2]> =
        LazyCell::new(|| [role::DECAPSULATE, role::FILTER].map(tables));
}

fuzz_target!(|bytes: &[u8]| {
    TABLES.with(|tables| {
        for tables in tables.iter() {
            tables.counters.borrow_mut().clear();
            tables.drops.borrow_mut().clear();
            check(bytes, tables);
        }
    });
});

fn check(bytes: &[u8], tables: &BackendTables) {
    let mut packet = HostPacket::new(bytes, 2);
    let verdict = decapsulate::receive(&mut packet, tables);
    let dropped: u64 = tables.drops.borrow().values().sum();
    let counters = tables.counters.borrow();
    let let_in = counters.get(&Counter::Decapsulated).copied().unwrap_or(0);
    match verdict {
        Verdict::Drop(_) => assert_eq!(dropped, 1),
        Verdict::Pass if let_in == 1 && tables.settings.role == role::DECAPSULATE => {
            assert_eq!(dropped, 0);
            taken_out(bytes, packet.bytes()).expect("the inner packet whole");
        }
        Verdict::Pass => {
            assert_eq!(dropped, 0);
            assert_eq!(packet.bytes(), bytes, "passed, but not untouched");
        }
    }
}

fn tables(role: u32) -> BackendTables {
    let director = [203, 0, 113, 2].into();
    let director_v6: std::net::IpAddr = "2001:db8::2".parse().expect("an address");
    BackendTables {
        settings: TunnelSettings {
            abi_version: ABI_VERSION,
            role,
            ..TunnelSettings::default()
        },
        directors: vec![
            (std::net::IpAddr::V4(director).into(), 128),
            (director_v6.into(), 128),
        ],
        vips: vips().map(Into::into).into(),
        locals: backends().map(Into::into).into(),
        ..BackendTables::default()
    }
}

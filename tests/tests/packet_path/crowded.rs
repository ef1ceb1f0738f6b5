//! Services whose keys fall into one bucket of the table: as many as it holds,
//! and what is for none of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::protocol::TCP;
use lb_common::service::{ServiceKeyV4, ServiceKeyV6};
use lb_common::service_table::{Bucket, InTable as _, MAX_CHAIN};
use lb_ctl::dataplane::{Op, ServiceKey};
use lb_ebpf::verdict::Verdict;

use super::nat::run;
use super::packet::tcp;
use super::world::{Vip, World};

#[test]
fn each_service_of_a_full_bucket_is_found() {
    World::with("crowded", |world| {
        for version in [4, 6] {
            let web = Vip::Plain.key(version, 80, TCP);
            let value = world.service(&web);
            let vips = (100..200).map(|n| vip(version, n));
            let mut neighbours = vips
                .flat_map(|vip| (1..=u16::MAX).map(move |port| ServiceKey { vip, port, ..web }))
                .filter(|key| bucket(key) == bucket(&web));
            let mut keys = vec![web];
            let nobody: Vec<_> = neighbours.by_ref().take(2).collect();
            for key in neighbours.take(MAX_CHAIN as usize - 1) {
                world.write(&Op::PutService(key, value));
                keys.push(key);
            }
            let check = |world: &World, keys: &[ServiceKey], nobody: &[ServiceKey]| {
                for key in keys {
                    assert_eq!(verdict(world, key), Verdict::Transmit, "{key:?}");
                }
                for key in nobody {
                    assert_eq!(verdict(world, key), Verdict::Pass, "{key:?}");
                }
            };
            check(world, &keys, &nobody);
            let (stay, gone) = keys.split_at(keys.len() / 2);
            for key in gone {
                world.write(&Op::RemoveService(*key));
            }
            for key in stay {
                world.write(&Op::PutService(*key, value));
            }
            check(world, stay, &[gone, &nobody].concat());
        }
    });
}

fn vip(version: u8, n: u8) -> IpAddr {
    match version {
        4 => Ipv4Addr::new(203, 0, 113, n).into(),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0x10, 0, 0, 0, n.into()).into(),
    }
}

fn verdict(world: &World, key: &ServiceKey) -> Verdict {
    run(world, &tcp(key.vip, key.port).build()).verdict
}

fn bucket(key: &ServiceKey) -> Bucket {
    match key.vip {
        IpAddr::V4(vip) => ServiceKeyV4::new(vip, key.port, key.protocol).bucket(),
        IpAddr::V6(vip) => ServiceKeyV6::new(vip, key.port, key.protocol).bucket(),
    }
}

//! The harness itself: what a lab promises, and that nothing of it stays.

use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use integration::nginx::Nginx;
use integration::packets::{Arp, Ethernet, Ndp, NdpKind, PacketSocket};
use integration::topology::{DrLab, Family};
use integration::{Host, Lab, Mac, Process, Segment, XdpAction, eventually};
use nix::sys::signal::{SigSet, Signal};

const SOON: Duration = Duration::from_secs(5);

/// Two hosts on a segment.
fn pair(lab: &Lab) -> (Segment, Host, Host) {
    let segment = lab.segment("lan").unwrap();
    let a = lab.host("a").unwrap();
    let b = lab.host("b").unwrap();
    a.attach(&segment, "eth0", &["203.0.113.1/24", "2001:db8:0:1::1/64"])
        .unwrap();
    b.attach(&segment, "eth0", &["203.0.113.2/24", "2001:db8:0:1::2/64"])
        .unwrap();
    (segment, a, b)
}

#[test]
fn hosts_on_a_segment_reach_each_other() {
    let lab = Lab::new("reach").unwrap();
    let (_segment, a, b) = pair(&lab);
    for target in ["203.0.113.2", "2001:db8:0:1::2"] {
        a.run("ping", ["-c", "1", "-W", "2", target]).unwrap();
        let seen = a.neighbour(target.parse().unwrap(), "eth0").unwrap();
        assert_eq!(seen, Some(b.mac("eth0").unwrap()));
    }
    a.flush_neighbours().unwrap();
    let forgotten = a.neighbour(Ipv4Addr::new(203, 0, 113, 2).into(), "eth0");
    assert_eq!(forgotten.unwrap(), None);
}

#[test]
fn mac_addresses_are_the_same_in_every_lab() {
    let lab = Lab::new("mac").unwrap();
    let (segment, a, b) = pair(&lab);
    assert_eq!(a.mac("eth0").unwrap(), Mac([2, b'l', b'b', 0, 0, 1]));
    assert_eq!(b.mac("eth0").unwrap(), Mac([2, b'l', b'b', 0, 0, 2]));
    let c = lab.host("c").unwrap();
    let own = Mac([2, 0, 0, 0, 0, 7]);
    c.attach_with_mac(&segment, "eth1", &[], own).unwrap();
    assert_eq!(c.mac("eth1").unwrap(), own);
}

#[test]
fn ports_have_a_native_xdp_program() {
    const NATIVE: u64 = 1; // XDP_ATTACHED_DRV
    let lab = Lab::new("xdp").unwrap();
    let (segment, ..) = pair(&lab);
    let ports = segment.ports();
    assert_eq!(ports.len(), 2);
    for port in ports {
        let link = segment.switch().link(&port).unwrap();
        assert_eq!(link["xdp"]["mode"].as_u64(), Some(NATIVE), "{link}");
    }
}

#[test]
fn frames_that_xdp_sends_back_arrive() {
    let lab = Lab::new("tx").unwrap();
    let (_segment, a, b) = pair(&lab);
    let program = lab.xdp_program(XdpAction::Tx).unwrap();
    let program = program.to_str().unwrap();
    b.run(
        "ip",
        ["link", "set", "dev", "eth0", "xdpdrv", "pinned", program],
    )
    .unwrap();
    let at_a = PacketSocket::open(&a, "eth0").unwrap();
    let frame = Ethernet {
        destination: Mac::BROADCAST,
        source: Mac([2, 0, 0, 0, 0, 9]),
        ethertype: 0x88b5, // for experiments
    }
    .frame(&[7; 100]);
    at_a.send(&frame).unwrap();
    let back = at_a.receive_where(SOON, |f| (f == frame).then_some(()));
    assert_eq!(back.unwrap(), Some(()));
}

#[test]
fn sockets_opened_in_a_namespace_belong_to_it() {
    let lab = Lab::new("sockets").unwrap();
    let (_segment, a, b) = pair(&lab);
    let listener = b.in_namespace(|| TcpListener::bind("203.0.113.2:7000").unwrap());
    let _client = a.in_namespace(|| TcpStream::connect("203.0.113.2:7000").unwrap());
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip(), Ipv4Addr::new(203, 0, 113, 1));
}

#[test]
fn sysctls_are_the_hosts_own() {
    let lab = Lab::new("sysctl").unwrap();
    let (_segment, a, b) = pair(&lab);
    let key = "net.ipv4.conf.eth0.arp_ignore";
    a.set_sysctl(key, 1).unwrap();
    assert_eq!(a.sysctl(key).unwrap(), "1");
    assert_eq!(b.sysctl(key).unwrap(), "0");
}

#[test]
fn a_command_that_fails_says_everything() {
    let lab = Lab::new("fail").unwrap();
    let host = lab.host("a").unwrap();
    let error = host
        .run("sh", ["-c", "echo out; echo err >&2; exit 3"])
        .unwrap_err();
    let text = format!("{error:#}");
    for part in [
        "host a",
        "exit 3",
        "status: 3",
        "stdout: out",
        "stderr: err",
    ] {
        assert!(text.contains(part), "{part:?} is missing in: {text}");
    }
}

/// A shell that ignores SIGTERM, with a child.
fn stubborn(host: &Host) -> Process {
    let mut command = host.command("sh");
    command.args(["-c", "trap '' TERM; sleep 1000 & echo child $!; wait"]);
    let process = host.spawn(command, "stubborn").unwrap();
    eventually("the shell's child", SOON, || {
        process.log().contains("child")
    });
    process
}

fn child_of(process: &Process) -> PathBuf {
    let log = process.log();
    let pid = log.trim().rsplit(' ').next().unwrap();
    Path::new("/proc").join(pid)
}

#[test]
fn a_process_ends_with_its_guard_and_takes_its_children_along() {
    let lab = Lab::new("guard").unwrap();
    let host = lab.host("a").unwrap();
    let process = stubborn(&host);
    let (parent, child) = (
        Path::new("/proc").join(process.pid().to_string()),
        child_of(&process),
    );
    assert!(parent.exists() && child.exists());
    drop(process);
    assert!(!parent.exists());
    eventually("end of the child", SOON, || !child.exists());
}

#[test]
fn a_process_can_be_killed_and_waited_for() {
    use std::os::unix::process::ExitStatusExt;
    let lab = Lab::new("kill").unwrap();
    let host = lab.host("a").unwrap();
    let process = stubborn(&host);
    assert!(process.is_running());
    assert!(process.wait_exit(Duration::from_millis(50)).is_err());
    process.kill(Signal::SIGKILL).unwrap();
    let status = process.wait_exit(SOON).unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));
    assert!(!process.is_running());
}

#[test]
fn a_process_hears_signals_that_its_starter_has_blocked() {
    use std::os::unix::process::ExitStatusExt;
    let lab = Lab::new("mask").unwrap();
    let host = lab.host("a").unwrap();
    let mut sleep = host.command("sleep");
    sleep.arg("1000");
    // On a thread of its own: the mask must not outlive the test.
    let process = std::thread::scope(|scope| {
        let start = || {
            SigSet::all().thread_block().unwrap();
            host.spawn(sleep, "sleep").unwrap()
        };
        scope.spawn(start).join().unwrap()
    });
    process.kill(Signal::SIGTERM).unwrap();
    let status = process.wait_exit(SOON).unwrap();
    assert_eq!(status.signal(), Some(libc::SIGTERM));
}

/// Every trace that a lab could leave in the system.
fn traces(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["/run/netns", "/run/lb-lab"] {
        for entry in std::fs::read_dir(dir).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.contains(id) {
                found.push(format!("{dir}/{name}"));
            }
        }
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    found.extend(mounts.lines().filter(|m| m.contains(id)).map(str::to_owned));
    found
}

#[test]
fn a_lab_leaves_nothing() {
    let lab = Lab::new("clean").unwrap();
    let (_segment, a, _b) = pair(&lab);
    let process = stubborn(&a);
    let child = child_of(&process);
    let id = lab.id().to_owned();
    assert!(traces(&id).len() >= 5, "{:?}", traces(&id));
    // The lab goes first here: it must end processes that it has no guard of.
    drop(lab);
    assert_eq!(traces(&id), Vec::<String>::new());
    eventually("end of the child", SOON, || !child.exists());
}

#[test]
fn a_lab_leaves_nothing_after_a_panic() {
    let mut seen = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::new("panic").unwrap();
        let (_segment, a, _b) = pair(&lab);
        let process = stubborn(&a);
        seen = Some((lab.id().to_owned(), child_of(&process)));
        a.in_namespace(|| panic!("on purpose"));
    }));
    let message = result.unwrap_err();
    assert_eq!(message.downcast_ref(), Some(&"on purpose"));
    let (id, child) = seen.unwrap();
    assert_eq!(traces(&id), Vec::<String>::new());
    eventually("end of the child", SOON, || !child.exists());
}

#[test]
fn a_lab_can_be_left_opened_and_removed() {
    let id = format!("lb-kept-{}", std::process::id());
    let lab = Lab::with_id(&id).unwrap();
    pair(&lab);
    lab.persist().unwrap();
    assert!(Lab::with_id(&id).is_err());
    let lab = Lab::open(&id).unwrap();
    assert_eq!(lab.host_names().unwrap(), ["a", "b", "lan"]);
    let b = lab.existing_host("b").unwrap();
    b.run("ping", ["-c", "1", "-W", "2", "203.0.113.1"])
        .unwrap();
    assert!(lab.existing_host("c").is_err());
    Lab::remove(&id).unwrap();
    assert_eq!(traces(&id), Vec::<String>::new());
}

#[test]
fn frames_are_sent_and_received_as_they_are() {
    let lab = Lab::new("frames").unwrap();
    let (_segment, a, b) = pair(&lab);
    let (mac_a, mac_b) = (a.mac("eth0").unwrap(), b.mac("eth0").unwrap());
    let at_a = PacketSocket::open(&a, "eth0").unwrap();

    let (ip_a, ip_b) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2));
    let request = Arp::request(mac_a, ip_a, ip_b);
    at_a.send(&request.to_frame()).unwrap();
    let answer = at_a.receive_where(SOON, Arp::parse).unwrap();
    assert_eq!(answer, Some(Arp::reply(mac_b, ip_b, mac_a, ip_a)));

    let (ip_a, ip_b) = (
        "2001:db8:0:1::1".parse().unwrap(),
        "2001:db8:0:1::2".parse().unwrap(),
    );
    let solicitation = Ndp::solicitation(mac_a, ip_a, ip_b);
    at_a.send(&solicitation.to_multicast_frame(mac_a)).unwrap();
    let is_answer = |n: &Ndp| n.target == ip_b && n.kind != NdpKind::Solicitation;
    let answer = at_a.receive_where(SOON, |f| Ndp::parse(f).filter(is_answer));
    assert_eq!(answer.unwrap(), Some(Ndp::advertisement(mac_b, ip_b, ip_a)));

    // Nothing of the kind comes unasked, and the wait for it ends.
    let none = at_a
        .receive_where(Duration::from_millis(20), Arp::parse)
        .unwrap();
    assert_eq!(none, None);
}

#[test]
fn nginx_serves_its_name_and_files() {
    let lab = Lab::new("nginx").unwrap();
    let (_segment, a, b) = pair(&lab);
    let nginx = Nginx::start(&b, lab.dir(), &["80", "[::]:80"]).unwrap();
    nginx.add_file("big", 1 << 20).unwrap();
    for url in ["http://203.0.113.2/", "http://[2001:db8:0:1::2]/"] {
        let answer = a
            .run("curl", ["--silent", "--include", "--max-time", "5", url])
            .unwrap();
        assert!(
            answer.contains("X-Backend: b") && answer.ends_with("\r\n\r\nb\n"),
            "{answer}"
        );
    }
    let file = a
        .run(
            "curl",
            [
                "--silent",
                "--max-time",
                "5",
                "http://203.0.113.2/files/big",
            ],
        )
        .unwrap();
    assert_eq!(file.len(), 1 << 20);
    // It writes a line after it has answered.
    let accesses = eventually("three lines in the log", SOON, || {
        Some(nginx.accesses().unwrap()).filter(|lines| lines.len() == 3)
    });
    let servers: Vec<&str> = accesses
        .iter()
        .map(|access| access.server.as_str())
        .collect();
    assert_eq!(servers, ["203.0.113.2", "2001:db8:0:1::2", "203.0.113.2"]);
    assert!(accesses[1].client.starts_with("[2001:db8:0:1::1]:"));
    assert!(accesses.iter().all(|access| access.status == 200));
}

#[test]
fn the_shared_lab_has_client_director_and_backends() {
    let mut dr = DrLab::new("dr", 2).unwrap();
    dr.add_backend().unwrap();
    for backend in &dr.backends {
        for family in [Family::V4, Family::V6] {
            let url = match backend.address(family) {
                IpAddr::V4(address) => format!("http://{address}/"),
                IpAddr::V6(address) => format!("http://[{address}]/"),
            };
            let answer = dr
                .client
                .run("curl", ["--silent", "--max-time", "5", &url])
                .unwrap();
            assert_eq!(answer.trim(), backend.name());
        }
    }
    let b3 = &dr.backends[2];
    assert_eq!(b3.address(Family::V4).to_string(), "203.0.113.23");
    assert_eq!(b3.address(Family::V6).to_string(), "2001:db8:0:1::23");
    assert_eq!(dr.vip_owner(Family::V4).unwrap(), "nobody");
    dr.backends[1]
        .host
        .add_address("eth0", "203.0.113.10/32")
        .unwrap();
    dr.client
        .run("ping", ["-c", "1", "-W", "2", "203.0.113.10"])
        .unwrap();
    assert_eq!(dr.vip_owner(Family::V4).unwrap(), "b2");
}

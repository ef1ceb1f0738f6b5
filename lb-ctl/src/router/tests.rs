use std::fs;

use super::*;

/// The sysctls of a host as plain files. Unlike the kernel's, writing one
/// changes no other.
struct Fake {
    directory: tempfile::TempDir,
}

impl Fake {
    /// A host with these interfaces and the kernel's own values.
    fn new(interfaces: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let fake = Self { directory };
        fs::create_dir_all(fake.state()).unwrap();
        for interface in ["all", "default"].iter().chain(interfaces) {
            for (name, value) in [
                ("forwarding", 0),
                ("accept_local", 0),
                ("rp_filter", 0),
                ("send_redirects", 1),
            ] {
                fake.make(&format!("net/ipv4/conf/{interface}/{name}"), value);
            }
            for (name, value) in [("forwarding", 0), ("accept_ra", 1)] {
                fake.make(&format!("net/ipv6/conf/{interface}/{name}"), value);
            }
        }
        fake
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("sys")
    }

    fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    fn file(&self) -> PathBuf {
        self.state().join("router.json")
    }

    fn make(&self, sysctl: &str, value: i32) {
        let path = self.root().join(sysctl);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    fn get(&self, sysctl: &str) -> i32 {
        let text = fs::read_to_string(self.root().join(sysctl)).unwrap();
        text.trim().parse().unwrap()
    }

    /// All values, to compare.
    fn all(&self) -> BTreeMap<PathBuf, String> {
        fn collect(directory: &Path, into: &mut BTreeMap<PathBuf, String>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    collect(&path, into);
                } else {
                    let text = fs::read_to_string(&path).unwrap();
                    into.insert(path, text);
                }
            }
        }
        let mut all = BTreeMap::new();
        collect(&self.root(), &mut all);
        all
    }

    fn router(&self, interfaces: &[&str]) -> Router {
        let interfaces = interfaces.iter().map(|&name| name.to_owned()).collect();
        Router::below(self.root(), self.state(), interfaces)
    }

    fn release(&self) -> Result<()> {
        let mut record = Record::open(&self.state(), RECORD)?;
        restore(&self.root(), &mut record, |_| true)
    }
}

#[test]
fn what_forwarding_needs_is_set_and_put_back() {
    let fake = Fake::new(&["eth0", "eth1.100", "other"]);
    fake.make("net/ipv4/conf/all/rp_filter", 1);
    fake.make("net/ipv4/conf/eth0/rp_filter", 2);
    fake.make("net/ipv6/conf/other/accept_ra", 0);
    let before = fake.all();
    let mut router = fake.router(&["eth0", "eth1.100"]);
    router.want(true).unwrap();
    for interface in ["eth0", "eth1.100"] {
        let get = |name: &str| fake.get(&format!("net/ipv4/conf/{interface}/{name}"));
        assert_eq!(get("forwarding"), 1);
        assert_eq!(get("accept_local"), 1);
        assert_eq!(get("rp_filter"), 2);
        assert_eq!(get("send_redirects"), 0);
        assert_eq!(fake.get(&format!("net/ipv6/conf/{interface}/accept_ra")), 2);
    }
    assert_eq!(fake.get("net/ipv4/conf/all/send_redirects"), 0);
    assert_eq!(fake.get("net/ipv4/conf/all/rp_filter"), 1);
    assert_eq!(fake.get("net/ipv4/conf/other/forwarding"), 0);
    assert_eq!(fake.get("net/ipv6/conf/all/forwarding"), 1);
    assert_eq!(fake.get("net/ipv6/conf/other/accept_ra"), 0);
    assert_eq!(router.problems(), Vec::<String>::new());
    let during = fake.all();
    router.want(true).unwrap();
    assert_eq!(fake.all(), during);

    router.want(false).unwrap();
    assert_eq!(fake.all(), before);
    assert!(!fake.file().exists());
    router.want(false).unwrap();
}

#[test]
fn nothing_is_touched_that_needs_not() {
    let fake = Fake::new(&["eth0"]);
    for (name, value) in [
        ("eth0/forwarding", 1),
        ("eth0/accept_local", 1),
        ("eth0/send_redirects", 0),
        ("all/send_redirects", 0),
    ] {
        fake.make(&format!("net/ipv4/conf/{name}"), value);
    }
    fake.make("net/ipv6/conf/all/forwarding", 1);
    let before = fake.all();
    let mut router = fake.router(&["eth0"]);
    router.want(true).unwrap();
    assert_eq!(fake.all(), before);
    assert!(!fake.file().exists());
    assert_eq!(router.problems(), Vec::<String>::new());
}

#[test]
fn a_host_without_ipv6_has_less_to_set() {
    let fake = Fake::new(&["eth0"]);
    fs::remove_dir_all(fake.root().join("net/ipv6")).unwrap();
    let before = fake.all();
    let mut router = fake.router(&["eth0"]);
    router.want(true).unwrap();
    assert_eq!(fake.get("net/ipv4/conf/eth0/forwarding"), 1);
    router.want(false).unwrap();
    assert_eq!(fake.all(), before);
}

#[test]
fn the_first_values_survive_a_crash() {
    let fake = Fake::new(&["eth0"]);
    let before = fake.all();
    fake.router(&["eth0"]).want(true).unwrap();
    let record = fs::read(fake.file()).unwrap();
    // Killed, and started again.
    fake.router(&["eth0"]).want(true).unwrap();
    assert_eq!(fs::read(fake.file()).unwrap(), record);
    // Killed again, and `lb-ctl down`.
    fake.release().unwrap();
    assert_eq!(fake.all(), before);
    assert!(!fake.file().exists());
    fake.release().unwrap();
}

#[test]
fn killed_before_the_first_change() {
    let fake = Fake::new(&["eth0"]);
    let before = fake.all();
    let entries = needs(&fake.root(), &["eth0".to_owned()]).unwrap();
    let mut record = Record::open(&fake.state(), RECORD).unwrap();
    record.replace(entries).unwrap();
    fake.release().unwrap();
    assert_eq!(fake.all(), before);
}

#[test]
fn after_a_reboot_all_is_set_again() {
    let fake = Fake::new(&["eth0"]);
    fake.router(&["eth0"]).want(true).unwrap();
    let rebooted = Fake::new(&["eth0"]);
    rebooted.make("net/ipv4/conf/eth0/rp_filter", 1);
    fs::copy(fake.file(), rebooted.file()).unwrap();
    let before = rebooted.all();
    rebooted.router(&["eth0"]).want(true).unwrap();
    assert_eq!(rebooted.get("net/ipv4/conf/eth0/forwarding"), 1);
    assert_eq!(rebooted.get("net/ipv4/conf/eth0/rp_filter"), 2);
    rebooted.release().unwrap();
    assert_eq!(rebooted.all(), before);
}

#[test]
fn what_others_change_is_told_and_left_alone() {
    let fake = Fake::new(&["eth0"]);
    fake.make("net/ipv4/conf/eth0/rp_filter", 1);
    let mut router = fake.router(&["eth0"]);
    router.want(true).unwrap();
    fake.make("net/ipv4/conf/eth0/rp_filter", 0);
    fake.make("net/ipv4/conf/eth0/forwarding", 0);
    router.want(true).unwrap();
    let problems = router.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems
            .iter()
            .any(|p| p.starts_with("net/ipv4/conf/eth0/forwarding is 0 and must be 1")),
        "{problems:?}"
    );
    // Not one that was set, but one that was right.
    fake.make("net/ipv4/conf/eth0/rp_filter", 2);
    fake.make("net/ipv4/conf/eth0/forwarding", 1);
    assert_eq!(router.problems(), Vec::<String>::new());
    fake.make("net/ipv4/conf/eth0/rp_filter", 0);
    router.want(false).unwrap();
    assert_eq!(fake.get("net/ipv4/conf/eth0/rp_filter"), 0);
    assert_eq!(fake.get("net/ipv4/conf/eth0/forwarding"), 0);
    assert!(!fake.file().exists());
}

#[test]
fn a_wrong_value_that_was_right_is_a_problem_too() {
    let fake = Fake::new(&["eth0"]);
    let mut router = fake.router(&["eth0"]);
    router.want(true).unwrap();
    fake.make("net/ipv4/conf/all/rp_filter", 1);
    let problems = router.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains("net/ipv4/conf/eth0/rp_filter is 0 and must be 2"));
}

#[test]
fn one_interface_may_have_forwarded_ipv6_before() {
    let fake = Fake::new(&["eth0", "eth1"]);
    fake.make("net/ipv6/conf/eth1/forwarding", 1);
    let before = fake.all();
    let mut router = fake.router(&["eth0"]);
    router.want(true).unwrap();
    // A router already: it has no routes from others to lose.
    assert_eq!(fake.get("net/ipv6/conf/eth1/accept_ra"), 1);
    // As the kernel does when `all` is written.
    let record = fs::read_to_string(fake.file()).unwrap();
    assert!(record.contains("net/ipv6/conf/eth1/forwarding"), "{record}");
    router.want(false).unwrap();
    assert_eq!(fake.all(), before);
}

#[test]
fn a_start_with_other_interfaces_puts_the_first_ones_back() {
    let fake = Fake::new(&["eth0", "eth1"]);
    let before = fake.all();
    fake.router(&["eth0", "eth1"]).want(true).unwrap();
    fake.router(&["eth1"]).want(true).unwrap();
    assert_eq!(fake.get("net/ipv4/conf/eth0/forwarding"), 0);
    assert_eq!(fake.get("net/ipv4/conf/eth0/send_redirects"), 1);
    assert_eq!(fake.get("net/ipv4/conf/eth1/forwarding"), 1);
    fake.release().unwrap();
    assert_eq!(fake.all(), before);
}

#[test]
fn an_interface_that_is_gone_is_no_hindrance() {
    let fake = Fake::new(&["eth0", "eth1"]);
    let mut router = fake.router(&["eth0", "eth1", "eth2"]);
    router.want(true).unwrap();
    for version in ["ipv4", "ipv6"] {
        fs::remove_dir_all(fake.root().join(format!("net/{version}/conf/eth1"))).unwrap();
    }
    assert_eq!(router.problems(), Vec::<String>::new());
    router.want(false).unwrap();
    assert_eq!(fake.get("net/ipv4/conf/eth0/forwarding"), 0);
}

#[test]
fn a_damaged_record_is_not_overwritten() {
    let fake = Fake::new(&["eth0"]);
    let before = fake.all();
    fs::write(fake.file(), "nonsense").unwrap();
    let error = fake.router(&["eth0"]).want(true).unwrap_err();
    assert!(format!("{error:#}").contains("router.json"), "{error:#}");
    assert_eq!(fake.all(), before);
    assert_eq!(fs::read(fake.file()).unwrap(), b"nonsense");
}

#[test]
fn nothing_is_changed_that_cannot_be_remembered() {
    let fake = Fake::new(&["eth0"]);
    let before = fake.all();
    fs::remove_dir_all(fake.state()).unwrap();
    fake.router(&["eth0"]).want(true).unwrap_err();
    assert_eq!(fake.all(), before);
}

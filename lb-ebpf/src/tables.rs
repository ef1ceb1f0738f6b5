//! The maps as the stages see them.

use lb_common::Address;
use lb_common::backend::Backend;
use lb_common::counters::DropReason;
use lb_common::flow::{FlowKeyV4, FlowKeyV6, FlowValue};
use lb_common::ring::Slot;
use lb_common::service::{LocalMacKey, ServiceKeyV4, ServiceKeyV6, ServiceValue};

/// What the stages look up and record. In the kernel these are BPF maps.
pub trait Tables {
    /// The IPv4 service with exactly this key.
    fn service_v4(&self, key: &ServiceKeyV4) -> Option<ServiceValue>;
    /// The IPv6 service with exactly this key.
    fn service_v6(&self, key: &ServiceKeyV6) -> Option<ServiceValue>;
    /// Whether any service has port 0.
    fn has_port_zero_services(&self) -> bool;
    /// Whether any service has this VIP.
    fn is_vip(&self, address: &Address) -> bool;
    /// Whether frames for this MAC address are the director's.
    fn is_local_mac(&self, key: &LocalMacKey) -> bool;
    /// Slot `index` of the block numbered `block`.
    fn slot(&self, block: u32, index: u32) -> Option<Slot>;
    /// The backend entry with this index.
    fn backend(&self, id: u32) -> Option<&Backend>;

    /// [`lb_common::flow::seconds`] of the monotonic clock.
    fn now(&self) -> u32;
    /// The backend of a recorded IPv4 flow for which `valid` holds; marks the
    /// flow as seen at `now`.
    fn flow_v4(
        &self,
        key: &FlowKeyV4,
        now: u32,
        valid: impl FnOnce(&FlowValue) -> bool,
    ) -> Option<u32>;
    /// The same for IPv6.
    fn flow_v6(
        &self,
        key: &FlowKeyV6,
        now: u32,
        valid: impl FnOnce(&FlowValue) -> bool,
    ) -> Option<u32>;
    /// Records an IPv4 flow. Failure is not told: a flow that is not recorded
    /// goes where its slot says.
    fn record_v4(&self, key: &FlowKeyV4, value: &FlowValue);
    /// The same for IPv6.
    fn record_v6(&self, key: &FlowKeyV6, value: &FlowValue);

    /// Whether one more ICMP error may be sent now; counts it.
    fn may_send_icmp(&self) -> bool;
    /// Adds a packet of `bytes` to the backend's counters.
    fn count_forwarded(&self, backend: u32, bytes: u16, new_flow: bool);
    /// Adds one to the reason's counter.
    fn count_drop(&self, reason: DropReason);
}

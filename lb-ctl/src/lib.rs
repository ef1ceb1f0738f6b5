//! The control plane of a director: the desired state, the REST API that
//! changes it, and what makes the packet path follow it.
//!
//! The control path runs one way: api, model, plan, reconcile, dataplane.

pub mod api;
pub mod cli;
pub mod client;
pub mod daemon;
pub mod dataplane;
pub mod director;
pub mod health;
pub mod maglev;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod neighbour;
pub mod notify;
pub mod offload;
pub mod plan;
pub mod reconcile;
pub mod record;
pub mod router;
pub mod store;
pub mod vip;

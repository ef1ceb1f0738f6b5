//! The desired state, what is observed of it, and what can be wrong with it.
//!
//! Nothing in here does I/O.

mod backend;
mod config;
mod diff;
mod health_check;
mod problem;
mod service;
pub mod status;
pub mod text;
mod validate;
mod warnings;

pub(crate) use backend::deserialize_weight;
pub use backend::{Backend, BackendAddress};
pub use config::{Config, NatPorts, NatTimeouts, OtherProtocols, Settings};
pub use diff::Difference;
pub use health_check::{CheckType, HealthCheck};
pub use problem::{Kind, Problem, ProblemDocument};
pub use service::{Mode, Ping, Protocol, Scheduler, Service, ServiceName};
pub use validate::{MAX_HASH_KEY, Scope};

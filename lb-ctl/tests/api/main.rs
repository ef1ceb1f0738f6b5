//! The REST API and the commands that are its clients, over a real socket and
//! an engine without a packet path.

mod accepted;
mod commands;
mod director;
mod refused;

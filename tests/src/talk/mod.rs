//! Flows that keep talking: servers that say who they are, and clients that
//! notice when nobody answers, or somebody else.
//!
//! A client sends eight bytes, a number; the server answers with sixteen: its
//! host's name, padded with zeros, and the number.

mod client;
mod server;

pub use client::{Flow, Pace, Talkers};
pub use server::Echo;

/// Which protocol a flow is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP: a flow is a connection.
    Tcp,
    /// UDP: a flow is a connected socket.
    Udp,
}

impl Protocol {
    /// The name, as the API has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

const QUESTION: usize = 8;
const NAME: usize = 8;
/// Length of an answer.
pub const ANSWER: usize = NAME + QUESTION;

/// A name in the form in which it stands in an answer.
fn padded(name: &str) -> anyhow::Result<[u8; NAME]> {
    let mut padded = [0; NAME];
    let part = padded
        .get_mut(..name.len())
        .ok_or_else(|| anyhow::anyhow!("the name {name} is longer than {NAME} bytes"))?;
    part.copy_from_slice(name.as_bytes());
    Ok(padded)
}

/// Name and number of an answer.
pub fn parse_answer(answer: &[u8; ANSWER]) -> (String, u64) {
    let (name, number) = answer.split_at(NAME);
    let name = String::from_utf8_lossy(name);
    let number = number.try_into().expect("the rest of an answer");
    (
        name.trim_end_matches('\0').to_owned(),
        u64::from_be_bytes(number),
    )
}

//! What is made, and where it goes.

use crate::cast::{Audit, Level};
use crate::checksum::Digest;
use crate::error::Error;
use crate::place::{Access, Marks};
use crate::recipe::Recipe;

#[derive(Clone, Copy, Debug)]
pub struct File<'a> {
    pub number: usize,
    pub recipe: &'a Recipe,
}

/// What was made, and what it was made from.
#[derive(Clone, Debug)]
pub struct Made {
    pub digest: Digest,
    pub sources: Vec<(Marks, Digest)>,
    /// What happened to the values of each span that is audited.
    pub audits: Vec<Audit>,
}

pub trait Sink: Send + Sync {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Error>;
}

pub trait Sinks: Sync {
    type Sink: Sink;

    fn create(&self, number: usize) -> Result<Self::Sink, Error>;

    /// Takes over a file whose bytes were all written; `stopped` says that nobody waits for it any
    /// more. Called on a thread that only does this.
    fn finish(
        &self,
        number: usize,
        sink: Self::Sink,
        made: Made,
        stopped: &dyn Fn() -> bool,
    ) -> Result<(), Error>;
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub level: Level,
    pub threads: Option<usize>,
    pub access: Access,
    /// Whether finite values that become infinite stop everything: nothing more is written then,
    /// but all is still examined.
    pub stop_at_overflow: bool,
}

/// The audits of files that were only examined, because values overflowed.
pub type Overflowed = Vec<(usize, Vec<Audit>)>;

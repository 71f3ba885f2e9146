//! Running a plan: check the destination, stage the model where nobody takes it for one,
//! publish it.

mod destination;
mod identity;
mod job;
mod journal;
mod lock;
mod overflow;
mod pieces;
mod publish;
mod source;
mod stage;
mod staging;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use destination::{Found, check as check_destination};
pub use publish::Staged;
pub use stage::stage;

use crate::cast::Audit;

/// The folder in the destination that holds everything until it is published.
pub const STAGING: &str = ".recast";

/// What to do when finite values become infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOverflow {
    /// Examine all tensors, then stop and publish nothing.
    Error,
    /// Let them become infinite.
    Infinity,
    /// Take the largest finite value instead.
    Saturate,
}

impl OnOverflow {
    /// Its name as an option.
    pub fn name(self) -> &'static str {
        match self {
            OnOverflow::Error => "error",
            OnOverflow::Infinity => "inf",
            OnOverflow::Saturate => "saturate",
        }
    }
}

/// How source files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Io {
    /// What is safe and fast everywhere: at present, positioned reads.
    Auto,
    /// Through a memory map. A file that another process truncates meanwhile kills this one.
    Mmap,
    /// By positioned reads.
    Read,
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads; by default as many as the process may use.
    pub threads: Option<usize>,
    /// Whether the result is made durable before it is published.
    pub sync: bool,
    /// How source files are read.
    pub io: Io,
    /// What to do when finite values become infinite.
    pub on_overflow: OnOverflow,
    /// Whether a model in the destination may be replaced.
    pub overwrite: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            threads: None,
            sync: true,
            io: Io::Auto,
            on_overflow: OnOverflow::Error,
            overwrite: false,
        }
    }
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the result that are staged.
    pub done: u64,
    /// Bytes of the whole result.
    pub total: u64,
}

/// The audit of one cast tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorAudit {
    /// Its position in [`crate::plan::Plan::tensors`].
    pub tensor: usize,
    /// What the cast did to it.
    pub audit: Audit,
}

/// What the casts did to the tensors of one file, where they are cast or could have been.
type FileAudits = Vec<Option<Audit>>;

/// A lock on data that every holder leaves whole, so a panic elsewhere does not matter.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

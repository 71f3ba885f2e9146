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
use std::thread;

pub use destination::{Found, check as check_destination};
pub use publish::Staged;
pub use stage::stage;

use crate::cast::{Audit, Overflow};

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

    /// What a cast does under it.
    pub(crate) fn of_cast(self) -> Overflow {
        match self {
            OnOverflow::Error | OnOverflow::Infinity => Overflow::Infinity,
            OnOverflow::Saturate => Overflow::Saturate,
        }
    }
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Worker threads; by default as many as the process may use.
    pub threads: Option<usize>,
    /// Whether the result is made durable before it is published.
    pub sync: bool,
    /// Whether source files are read through a memory map, instead of by positioned reads. A file
    /// that another process truncates meanwhile then kills this one.
    pub mmap: bool,
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
            mmap: false,
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

/// How many threads to run when so many are asked for; by default as many as the process may use.
pub(crate) fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).max(1)
}

/// A lock on data that every holder leaves whole, so a panic elsewhere does not matter.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

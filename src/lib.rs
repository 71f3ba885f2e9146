//! recast changes the dtype of a model checkpoint: exactly, at the speed of the disk, in memory that
//! does not grow with the model, and so that a half-done result is never taken for a model.
//!
//! A conversion is read in this order:
//!
//! 1. [`checkpoint`] opens the objects of a [`place`]: headers, indexes and configs, by [`format`],
//!    no tensor data;
//! 2. [`plan`] decides for every tensor what becomes of it, and gives every file of the result its
//!    [`recipe`], without any I/O;
//! 3. [`make`] carries recipes out, wherever the bytes go;
//! 4. [`commit`] stages the files below `DEST/.recast` and makes them visible, all of them or none,
//!    what makes them a model last; [`report`] owns what is said of it.
//!
//! ```no_run
//! use recast::{checkpoint::Checkpoint, commit, dtype::Float, plan};
//! # fn main() -> Result<(), recast::error::Error> {
//! let checkpoint = Checkpoint::open("model".as_ref(), None)?;
//! let plan = plan::Plan::new(&checkpoint, &plan::Options::to(Float::Bf16))?;
//! let (dest, options) = ("model-bf16".as_ref(), commit::Options::default());
//! commit::convert(&plan, dest, &options, &mut |_, _| true).map_err(|(error, _)| error)?;
//! # Ok(())
//! # }
//! ```

pub mod cast;
pub mod checkpoint;
pub mod checksum;
pub mod commit;
pub mod dtype;
pub mod error;
pub mod format;
pub mod fs;
pub mod keep;
pub mod make;
pub mod names;
pub mod place;
pub mod plan;
#[cfg(feature = "python")]
mod python;
pub mod recipe;
pub mod recognize;
pub mod report;
mod shown;
mod view;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`. Every holder leaves the data whole, so a panic elsewhere does not matter.
pub(crate) fn held<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! recast changes the dtype of a model checkpoint on disk: exactly, at the speed of the disk, in
//! memory that does not grow with the model, and so that a half-done result is never taken for a
//! model.
//!
//! A run is read in this order:
//!
//! 1. [`checkpoint`] opens the tree of files: headers, indexes and configs, no tensor data;
//! 2. [`plan`] decides for every tensor and every byte what will happen, without any I/O;
//! 3. [`run::stage`] casts into `DEST/.recast`, the only step that moves tensor bytes;
//! 4. [`run::publish`] renames the staged files into place, the ones that make it a model last.
//!
//! ```no_run
//! use recast::{checkpoint::Checkpoint, dtype::Float, plan, run};
//! # fn main() -> Result<(), recast::error::Error> {
//! let checkpoint = Checkpoint::open("model".as_ref())?;
//! let options = plan::Options { to: Float::Bf16, keep: vec![], auto_keep: true };
//! let plan = std::sync::Arc::new(plan::Plan::new(&checkpoint, &options)?);
//! let options = run::Options::default();
//! if let Some(mut staged) = run::stage(&plan, "model-bf16".as_ref(), &options, &mut |_| true)? {
//!     staged.publish()?;
//!     staged.finish(&format!("{{\"identity\": {}}}", staged.identity))?;
//! }
//! # Ok(())
//! # }
//! ```

pub mod cast;
pub mod checkpoint;
pub mod dtype;
pub mod error;
#[cfg(feature = "faults")]
pub mod fault;
pub mod fs;
pub mod keep;
pub mod plan;
#[cfg(feature = "python")]
mod python;
pub mod run;

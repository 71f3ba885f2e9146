//! How a result becomes visible: all of it or nothing, what makes it a model last. Without a lock:
//! whoever is stopped before any call to the system, and goes on after anybody else has finished
//! anything, loses no data and spoils no result. docs/architecture.md tells the protocol and why.

mod conversion;
mod destination;
mod folder;
mod publish;
mod published;
mod run_folder;
mod seal;
mod stage;
mod sums;
mod work;

use std::path::{Path, PathBuf};

use conversion::Conversion;
use destination::Destination;
pub use folder::STAGING;

use crate::cast::Overflow;
use crate::error::Error;
use crate::plan::Plan;
use crate::report::{self, Summary};

pub use published::{Checked, check_published};

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
    pub fn of_cast(self) -> Overflow {
        match self {
            OnOverflow::Error | OnOverflow::Infinity => Overflow::Infinity,
            OnOverflow::Saturate => Overflow::Saturate,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub threads: Option<usize>,
    /// Whether the result is made durable before it is published.
    pub sync: bool,
    /// Whether source files are read through a memory map, instead of by positioned reads. A file
    /// that another process truncates meanwhile then kills this one.
    pub mmap: bool,
    /// What to do when finite values become infinite; the plan has the same.
    pub on_overflow: OnOverflow,
    pub overwrite: bool,
    /// Whether [`Hooks::verify`] judges the staged files before they are published.
    pub verify: bool,
    /// Whether the result has a file with the SHA-256 sums of the others.
    pub sha256: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            threads: None,
            sync: true,
            mmap: false,
            on_overflow: OnOverflow::Error,
            overwrite: false,
            verify: false,
            sha256: false,
        }
    }
}

/// What the caller has to say in a conversion.
pub trait Hooks {
    /// Called about every 15 ms with the bytes that are made, or compared, and all of them; stops
    /// the conversion by returning `false`.
    fn progress(&mut self, done: u64, total: u64) -> bool;

    /// Judges the staged files in a folder; what it found as JSON, or nothing when they failed.
    ///
    /// # Errors
    /// When it could not judge; [`Error::Cancelled`] when it was stopped.
    fn verify(&mut self, _staged: &Path) -> Result<Option<String>, Error> {
        Ok(Some("null".to_owned()))
    }
}

impl<F: FnMut(u64, u64) -> bool> Hooks for F {
    fn progress(&mut self, done: u64, total: u64) -> bool {
        self(done, total)
    }
}

#[derive(Debug)]
pub enum Outcome {
    Made {
        made: report::Made,
        /// Files that were staged before.
        resumed_files: usize,
        /// What the verification said, when there was one.
        verified: Option<String>,
    },
    Done {
        summary: Summary,
        /// What was compared to be sure, in words.
        compared: String,
        /// Whether a publication that had begun was carried to its end before.
        completed: bool,
    },
    /// The staged files failed their verification, and are in this folder.
    Rejected(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing that it did.
    Nothing,
    /// Staged files, with which the same command continues.
    Staged,
    /// A publication that has begun, which the next run carries to its end.
    Publishing,
    Published,
}

/// What is at a destination, for a dry run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The result, as far as lengths and headers tell.
    Done,
    /// What was begun of it.
    Begun,
    /// A place for it.
    Place,
}

/// Finds what is at `dest`, and whether the plan may be carried out there. Writes nothing.
///
/// # Errors
/// When `dest` is the source or inside it, holds something else, or what another run began.
pub fn look(plan: &Plan, dest: &Path, options: &Options) -> Result<Found, Error> {
    let conversion = Conversion::new(plan, dest, options)?;
    destination::check_place(plan, dest)?;
    let contents = conversion.folder.look()?;
    let there = Destination::look(&conversion.dest)?;
    if let Some(report) = &there.report
        && conversion.is_mine(report)
    {
        match destination::check_lengths(plan, &conversion.dest, report) {
            Err(Error::Damaged { .. }) if options.overwrite => {}
            result => return result.map(|()| Found::Done),
        }
    }
    let publishing = contents.publishing.as_ref().is_some_and(|run| run.hash == conversion.run);
    if publishing {
        return Ok(Found::Begun);
    }
    conversion.check_first(&there, &contents.runs)?;
    let begun = contents.runs.iter().any(|run| run.hash == conversion.run);
    Ok(if begun { Found::Begun } else { Found::Place })
}

/// Carries the plan out into `dest`: all of it becomes visible, or nothing.
///
/// # Errors
/// When the destination is refused, the system refuses, a value overflows under
/// [`OnOverflow::Error`], the source changes, or the caller stops; with what is left of it.
pub fn convert(
    plan: &Plan,
    dest: &Path,
    options: &Options,
    hooks: &mut dyn Hooks,
) -> Result<Outcome, (Error, Left)> {
    let mut conversion = match Conversion::new(plan, dest, options) {
        Ok(conversion) => conversion,
        Err(error) => return Err((error, Left::Nothing)),
    };
    let result = conversion.carry_out(hooks);
    let left = conversion.clear_up(result.as_ref().err());
    result.map_err(|error| (error, left))
}

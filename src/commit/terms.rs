//! What a conversion is asked for, may ask, and comes to.

use std::path::{Path, PathBuf};

use crate::cast::Overflow;
use crate::error::Error;
use crate::report::{self, Summary};

/// What to do when finite values become infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnOverflow {
    Error,
    Infinity,
    Saturate,
}

impl OnOverflow {
    pub fn name(self) -> &'static str {
        match self {
            OnOverflow::Error => "error",
            OnOverflow::Infinity => "inf",
            OnOverflow::Saturate => "saturate",
        }
    }

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
    /// When it could not judge; [`Error::Stopped`] when it was stopped.
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
        resumed_files: usize,
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
    Nothing,
    /// Staged files, with which the same command continues.
    Staged,
    /// A publication that has begun, which the next run carries to its end.
    Publishing,
    Published,
}

impl Left {
    pub const ALL: [Left; 4] = [Left::Nothing, Left::Staged, Left::Publishing, Left::Published];

    /// What is said of it after an error.
    pub fn note(self) -> &'static str {
        match self {
            Left::Nothing => "nothing was published",
            Left::Staged => "the model is not published; the same command continues",
            Left::Publishing => "publication has begun; the same command completes it",
            Left::Published => "the model is published",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationState {
    /// The result, as far as lengths and headers tell.
    Done,
    Started,
    Free,
}

//! The options of a conversion, as `recast.options.Options` has them.

use pyo3::prelude::*;

use crate::commit::{self, OnOverflow};
use crate::dtype::{Castable, Float};
use crate::error::Error;
use crate::keep::Pattern;
use crate::plan;
use crate::report::AS_STORED;

/// The fields of `recast.options.Options` that the core needs.
#[derive(FromPyObject)]
pub struct Options {
    to: String,
    keep: Vec<String>,
    auto_keep: bool,
    skip_quantized: bool,
    unscaled_fp8: bool,
    on_overflow: String,
    threads: Option<usize>,
    io: String,
    sync: bool,
    overwrite: bool,
    sha256: bool,
}

impl Options {
    /// Those that decide what the result is.
    pub fn of_plan(self) -> PyResult<plan::Options> {
        Ok(plan::Options {
            to: if self.to == AS_STORED { None } else { Some(float(&self.to)?) },
            keep: self.keep,
            auto_keep: self.auto_keep,
            skip_quantized: self.skip_quantized,
            unscaled_fp8: self.unscaled_fp8,
            overflow: on_overflow(&self.on_overflow)?.of_cast(),
        })
    }

    /// Those that decide how it is made; `verify` is whether a callback judges it.
    pub fn of_run(&self, verify: bool) -> PyResult<commit::Options> {
        Ok(commit::Options {
            threads: self.threads,
            sync: self.sync,
            mmap: is_mmap(&self.io)?,
            on_overflow: on_overflow(&self.on_overflow)?,
            overwrite: self.overwrite,
            verify,
            sha256: self.sha256,
        })
    }
}

pub fn float(name: &str) -> PyResult<Float> {
    Float::parse(name).ok_or_else(|| Error::NoSuchDtype { name: name.to_owned() }.into())
}

pub fn castable(name: &str) -> PyResult<Castable> {
    Castable::parse(name).ok_or_else(|| Error::NoSuchDtype { name: name.to_owned() }.into())
}

pub fn on_overflow(name: &str) -> PyResult<OnOverflow> {
    match name {
        "error" => Ok(OnOverflow::Error),
        "inf" => Ok(OnOverflow::Infinity),
        "saturate" => Ok(OnOverflow::Saturate),
        _ => Err(Error::NoSuchPolicy { name: name.to_owned() }.into()),
    }
}

/// Whether files are read through a memory map; `auto` is what is fast and safe everywhere.
fn is_mmap(name: &str) -> PyResult<bool> {
    match name {
        "auto" | "read" => Ok(false),
        "mmap" => Ok(true),
        _ => Err(Error::NoSuchIo { name: name.to_owned() }.into()),
    }
}

/// Which of `names` a pattern of `--keep` matches, without any component.
#[pyfunction]
pub fn matching(pattern: &str, names: Vec<String>) -> PyResult<Vec<bool>> {
    let pattern = Pattern::parse(pattern)?;
    Ok(names.iter().map(|name| pattern.matches("", name)).collect())
}

#[pyfunction]
pub fn keep_lists() -> &'static str {
    crate::recognize::wide::LISTS
}

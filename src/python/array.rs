//! A cast of one array, on several threads, for `recast.cast`.

use std::sync::{Mutex, PoisonError};
use std::thread;

use numpy::{PyReadonlyArray1, PyReadwriteArray1};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::Audit;
use super::options::{castable, float, on_overflow as policy};
use crate::cast::{self, Level};
use crate::error::Error;
use crate::make::threads;

/// Elements a thread takes at a time; fewer are not worth another thread.
const SPLIT: usize = 1 << 18;

/// Bytes from which a result goes past the caches: what a core finds in the last-level cache of many
/// servers. A smaller one may still be there when it is read.
const STREAM_FROM: usize = 32 << 20;

#[pyfunction]
#[pyo3(signature = (source, source_dtype, out, dtype, *, fresh=true, threads=None, on_overflow="inf"))]
#[expect(clippy::too_many_arguments, reason = "as Python calls it")]
pub fn cast_bytes(
    py: Python<'_>,
    source: PyReadonlyArray1<'_, u8>,
    source_dtype: &str,
    mut out: PyReadwriteArray1<'_, u8>,
    dtype: &str,
    fresh: bool,
    threads: Option<usize>,
    on_overflow: &str,
) -> PyResult<Audit> {
    let (from, to) = (castable(source_dtype)?, float(dtype)?);
    let overflow = policy(on_overflow)?.of_cast();
    let level = Level::current()?;
    let (src, dst) = (source.as_slice()?, out.as_slice_mut()?);
    let elements = src.len() / from.bytes();
    if src.len() % from.bytes() != 0 || dst.len() != elements * to.bytes() {
        return Err(PyValueError::new_err("source and out do not hold the same elements"));
    }
    let streams = !fresh && dst.len() >= STREAM_FROM;
    let threads = threads::count(threads).min(elements.div_ceil(SPLIT).max(1));
    let audits = py.detach(|| {
        // Shares are small and taken in turn, so that a thread that is held up holds up nobody.
        let shares = src.chunks(SPLIT * from.bytes()).zip(dst.chunks_mut(SPLIT * to.bytes()));
        let shares = Mutex::new(shares);
        let work = || {
            let mut audit = cast::Audit::default();
            loop {
                let share = shares.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((src, dst)) = share else { break audit };
                let (from, to) = ((from, src), (to, dst));
                match streams {
                    true => cast::stream(level, from, to, overflow, &mut audit),
                    false => cast::cast(level, from, to, overflow, &mut audit),
                }
            }
        };
        thread::scope(|scope| {
            // Where the system gives no more threads, those that run do the work.
            let others: Vec<_> = (1..threads)
                .map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let mine = work();
            let others = others.into_iter().map(thread::ScopedJoinHandle::join);
            std::iter::once(Ok(mine)).chain(others).collect::<Result<Vec<_>, _>>()
        })
    });
    let mut whole = cast::Audit::default();
    for audit in audits.map_err(|_| Error::Panicked)? {
        whole.merge(&audit);
    }
    Ok(Audit::new(&whole))
}

#[pyfunction]
pub fn simd_level() -> PyResult<&'static str> {
    Ok(Level::current()?.name())
}

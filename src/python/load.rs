//! Tensors of a plan in memory, for `recast.load`.

use numpy::PyReadwriteArray1;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{Audit, Plan};
use crate::cast::Level;
use crate::make;
use crate::plan::PlannedFile;

/// A tensor that is wanted: the number of its file, its position there, where its bytes go, and
/// which part of it is meant, and from which byte on.
type Request<'py> = (usize, usize, PyReadwriteArray1<'py, u8>, Option<Vec<(u64, u64)>>, u64);

/// Puts tensors of a plan into memory, and gives what happened to the values of each.
#[pyfunction]
#[pyo3(signature = (plan, wanted, *, threads=None))]
pub fn fill(
    py: Python<'_>,
    plan: &Plan,
    mut wanted: Vec<Request<'_>>,
    threads: Option<usize>,
) -> PyResult<Vec<Audit>> {
    let plan = &plan.0;
    let mut parts = Vec::with_capacity(wanted.len());
    for (file, position, out, slices, offset) in &mut wanted {
        let found = plan
            .files
            .get(*file)
            .and_then(|file: &PlannedFile| file.part(*position, slices.as_deref()));
        let part = found.ok_or_else(|| PyValueError::new_err("no such part of a tensor"))?;
        let out = out.as_slice_mut()?;
        let (bytes, grain) = (out.len() as u64, part.span.grain());
        let is_within = offset.checked_add(bytes).is_some_and(|end| end <= part.bytes);
        if !is_within || !offset.is_multiple_of(grain) || !bytes.is_multiple_of(grain) {
            return Err(PyValueError::new_err("the tensor has another size"));
        }
        let start = part.start + *offset;
        parts.push(make::Wanted { sources: part.sources, span: part.span, start, out });
    }
    let how = (Level::current()?, plan.options.overflow);
    let mut raised = None;
    let result = py.detach(|| {
        make::fill(parts, &*plan.place, how, threads, &mut |_| {
            // A signal ends it.
            raised = Python::attach(|py| py.check_signals().err());
            raised.is_none()
        })
    });
    match (result, raised) {
        (_, Some(raised)) => Err(raised),
        (result, None) => Ok(result?.iter().map(Audit::new).collect()),
    }
}

/// Whether a part of a tensor can be made alone; else it has to be cut from the whole.
#[pyfunction]
pub fn can_cut(plan: &Plan, file: usize, position: usize, slices: Vec<(u64, u64)>) -> bool {
    plan.0.files.get(file).is_some_and(|file| file.part(position, Some(&slices)).is_some())
}

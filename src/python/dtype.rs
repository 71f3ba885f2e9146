//! The dtype table, as data for Python.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::dtype::{Castable, DTYPES, Float, Row};

/// A row of the dtype table.
#[pyclass(frozen, get_all, module = "recast._core")]
pub struct DtypeInfo {
    name: &'static str,
    short_name: &'static str,
    torch_name: Option<&'static str>,
    spellings: Py<PyTuple>,
    bits: u64,
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: u32,
    has_infinity: bool,
    has_nan: bool,
    largest: Option<f64>,
    castable: bool,
    is_source: bool,
}

#[pymethods]
impl DtypeInfo {
    fn __repr__(&self) -> String {
        format!("DtypeInfo('{}')", self.name)
    }
}

impl DtypeInfo {
    fn new(py: Python<'_>, row: &Row) -> PyResult<DtypeInfo> {
        let layout = row.layout;
        Ok(DtypeInfo {
            name: row.name,
            short_name: row.short_name,
            torch_name: row.torch_name,
            spellings: PyTuple::new(py, row.spellings().collect::<Vec<_>>())?.unbind(),
            bits: row.bits,
            exponent_bits: layout.map_or(0, |layout| layout.exponent_bits),
            mantissa_bits: layout.map_or(0, |layout| layout.mantissa_bits),
            bias: layout.map_or(0, |layout| layout.bias),
            has_infinity: layout.is_some_and(|layout| layout.has_infinity()),
            has_nan: layout.is_some_and(|layout| layout.has_nan()),
            largest: layout.map(|layout| layout.largest()),
            castable: row.castable.is_some_and(Castable::is_target),
            is_source: row.castable.is_some(),
        })
    }
}

/// Every dtype, in the order of the table.
pub fn table(py: Python<'_>) -> PyResult<Bound<'_, PyTuple>> {
    let rows = DTYPES.iter().map(|row| DtypeInfo::new(py, row));
    PyTuple::new(py, rows.collect::<PyResult<Vec<_>>>()?)
}

#[pyfunction]
pub fn float_name(name: &str) -> Option<&'static str> {
    Float::parse(name).map(Float::name)
}

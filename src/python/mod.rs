//! The extension module `recast._core`: the core as Python sees it. It converts types, releases
//! the GIL, and looks for signals; it decides nothing.

mod array;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;

use crate::cast::{self, Level};
use crate::checkpoint;
use crate::dtype::Float;
use crate::error::Error;
use crate::plan;
use crate::run::{self, OnOverflow};

impl From<Error> for PyErr {
    /// The exception of `recast.errors` that the error's class names.
    fn from(error: Error) -> PyErr {
        Python::attach(|py| {
            let exception = py
                .import("recast.errors")
                .and_then(|module| module.getattr(error.class()))
                .and_then(|class| class.call1((error.to_string(), error.hint())));
            exception.map_or_else(|failed| failed, PyErr::from_value)
        })
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn float(name: &str) -> PyResult<Float> {
    Float::parse(name).ok_or_else(|| Error::NoSuchDtype { name: name.to_owned() }.into())
}

fn on_overflow(name: &str) -> PyResult<OnOverflow> {
    match name {
        "error" => Ok(OnOverflow::Error),
        "inf" => Ok(OnOverflow::Infinity),
        "saturate" => Ok(OnOverflow::Saturate),
        _ => Err(Error::NoSuchPolicy { name: name.to_owned() }.into()),
    }
}

/// Whether that way to read files is by a memory map; `auto` is what is fast and safe everywhere.
fn is_mmap(name: &str) -> PyResult<bool> {
    match name {
        "auto" | "read" => Ok(false),
        "mmap" => Ok(true),
        _ => Err(Error::NoSuchIo { name: name.to_owned() }.into()),
    }
}

#[pyclass(frozen, get_all, module = "recast._core")]
struct Tensor {
    file: String,
    name: String,
    dtype: String,
    shape: Vec<u64>,
    elements: u64,
    bytes: u64,
}

#[pyclass(frozen, module = "recast._core")]
struct Checkpoint(checkpoint::Checkpoint);

#[pymethods]
impl Checkpoint {
    #[staticmethod]
    fn open(py: Python<'_>, path: PathBuf) -> PyResult<Checkpoint> {
        Ok(Checkpoint(py.detach(|| checkpoint::Checkpoint::open(&path))?))
    }

    #[getter]
    fn path(&self) -> String {
        text(&self.0.root)
    }

    #[getter]
    fn shards(&self) -> usize {
        self.0.shards().count()
    }

    #[getter]
    fn tensors(&self) -> Vec<Tensor> {
        let shards = self.0.shards();
        shards
            .flat_map(|(file, shard)| {
                shard.tensors.iter().map(|tensor| Tensor {
                    file: text(&file.path),
                    name: tensor.name.clone(),
                    dtype: tensor.dtype.name().to_owned(),
                    shape: tensor.shape.clone(),
                    elements: tensor.elements(),
                    bytes: tensor.bytes,
                })
            })
            .collect()
    }

    #[getter]
    fn quantized(&self) -> Option<&str> {
        self.0.quantised.as_ref().map(|(_, method)| method.as_str())
    }

    #[getter]
    fn report(&self) -> Option<Cow<'static, [u8]>> {
        self.0.report().map(Cow::Owned)
    }

    #[pyo3(signature = (to, keep=Vec::new(), auto_keep=true))]
    fn plan(&self, py: Python<'_>, to: &str, keep: Vec<String>, auto_keep: bool) -> PyResult<Plan> {
        let options = plan::Options { to: float(to)?, keep, auto_keep };
        Ok(Plan(Arc::new(py.detach(|| plan::Plan::new(&self.0, &options))?)))
    }
}

#[pyclass(frozen, get_all, module = "recast._core")]
struct PlannedTensor {
    file: String,
    name: String,
    shape: Vec<u64>,
    elements: u64,
    source_dtype: String,
    dtype: String,
    action: &'static str,
    reason: String,
    source_bytes: u64,
    bytes: u64,
}

#[pyclass(frozen, get_all, module = "recast._core")]
struct PlannedFile {
    path: String,
    action: &'static str,
    source_bytes: u64,
    bytes: u64,
}

#[pyclass(frozen, module = "recast._core")]
struct Plan(Arc<plan::Plan>);

#[pymethods]
impl Plan {
    #[getter]
    fn source(&self) -> String {
        text(&self.0.source)
    }

    #[getter]
    fn to(&self) -> &'static str {
        self.0.to.name()
    }

    #[getter]
    fn tensors(&self) -> Vec<PlannedTensor> {
        let tensors = self.0.tensors();
        tensors
            .map(|(file, tensor)| PlannedTensor {
                file: text(file),
                name: tensor.source.name.clone(),
                shape: tensor.source.shape.clone(),
                elements: tensor.source.elements(),
                source_dtype: tensor.source.dtype.name().to_owned(),
                dtype: tensor.dtype.name().to_owned(),
                action: match tensor.action {
                    plan::Action::Cast => "cast",
                    plan::Action::Copy => "copy",
                    plan::Action::Keep => "keep",
                },
                reason: tensor.reason.clone(),
                source_bytes: tensor.source.bytes,
                bytes: tensor.bytes,
            })
            .collect()
    }

    #[getter]
    fn files(&self) -> Vec<PlannedFile> {
        let files = self.0.files.iter();
        files
            .map(|file| PlannedFile {
                path: text(&file.path),
                action: match file.content {
                    plan::Content::Shard { .. } => "cast",
                    plan::Content::Text(_) => "edit",
                    plan::Content::Copy => "copy",
                },
                source_bytes: file.source.bytes,
                bytes: file.bytes,
            })
            .collect()
    }

    #[getter]
    fn tensor_bytes(&self) -> Vec<u64> {
        self.0.tensors().map(|(_, tensor)| tensor.bytes).collect()
    }

    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.0.warnings.clone()
    }

    #[getter]
    fn parameters(&self) -> u64 {
        self.0.tensors().map(|(_, tensor)| tensor.source.elements()).sum()
    }

    #[getter]
    fn bytes_read(&self) -> u64 {
        self.0.bytes_read()
    }

    #[getter]
    fn bytes_written(&self) -> u64 {
        self.0.bytes_written()
    }

    fn __repr__(&self) -> String {
        format!(
            "Plan(source={:?}, to={:?}, files={}, tensors={}, bytes_read={}, bytes_written={})",
            self.source(),
            self.to(),
            self.0.files.len(),
            self.0.tensors().count(),
            self.bytes_read(),
            self.bytes_written()
        )
    }

    #[pyo3(signature = (dest, *, on_overflow="error", overwrite=false))]
    fn check_destination(
        &self,
        dest: PathBuf,
        on_overflow: &str,
        overwrite: bool,
    ) -> PyResult<&'static str> {
        let on_overflow = self::on_overflow(on_overflow)?;
        let options = run::Options { on_overflow, overwrite, ..run::Options::default() };
        Ok(match run::check_destination(&self.0, &dest, &options)? {
            run::Found::Done => "done",
            run::Found::Place { resume: Some(_), .. } => "begun",
            run::Found::Place { resume: None, .. } => "new",
        })
    }

    #[pyo3(signature = (
        dest, *, threads=None, io="auto", sync=true, on_overflow="error", overwrite=false,
        progress=None
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are the options of the command")]
    fn stage(
        &self,
        py: Python<'_>,
        dest: PathBuf,
        threads: Option<usize>,
        io: &str,
        sync: bool,
        on_overflow: &str,
        overwrite: bool,
        progress: Option<Py<PyAny>>,
    ) -> PyResult<Option<Staged>> {
        let (mmap, on_overflow) = (is_mmap(io)?, self::on_overflow(on_overflow)?);
        let options = run::Options { threads, mmap, sync, on_overflow, overwrite };
        let mut raised = None;
        let result = py.detach(|| {
            run::stage(&self.0, &dest, &options, &mut |now| {
                let answer = Python::attach(|py| {
                    py.check_signals()?;
                    match &progress {
                        Some(progress) => progress.call1(py, (now.done, now.total)).map(drop),
                        None => Ok(()),
                    }
                });
                raised = answer.err();
                raised.is_none()
            })
        });
        match (raised, result) {
            // What is staged stays, for the same run to go on with.
            (Some(raised), _) => Err(raised),
            (None, result) => Ok(result?.map(Staged)),
        }
    }
}

#[pyclass(frozen, get_all, module = "recast._core")]
struct Audit {
    tensor: usize,
    to_inf: u64,
    to_zero: u64,
    nan: u64,
    inf: u64,
    max_abs: f32,
    exact: bool,
}

impl Audit {
    fn new(tensor: usize, audit: &cast::Audit) -> Audit {
        let cast::Audit { to_inf, to_zero, nan, inf, exact, .. } = *audit;
        Audit { tensor, to_inf, to_zero, nan, inf, max_abs: audit.max_abs(), exact }
    }
}

#[pyclass(module = "recast._core")]
struct Staged(run::Staged);

#[pymethods]
impl Staged {
    #[getter]
    fn path(&self) -> String {
        text(&self.0.path())
    }

    #[getter]
    fn audits(&self) -> Vec<Audit> {
        self.0.audits.iter().map(|entry| Audit::new(entry.tensor, &entry.audit)).collect()
    }

    #[getter]
    fn publishing(&self) -> bool {
        self.0.is_publishing()
    }

    #[getter]
    fn published(&self) -> bool {
        self.0.published
    }

    #[getter]
    fn resumed_files(&self) -> usize {
        self.0.resumed_files
    }

    #[getter]
    fn identity(&self) -> &str {
        &self.0.identity
    }

    fn publish(&mut self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.0.publish())?)
    }

    fn finish(&mut self, py: Python<'_>, report: &str) -> PyResult<()> {
        Ok(py.detach(|| self.0.finish(report))?)
    }

    fn reject(&mut self, py: Python<'_>) -> PyResult<String> {
        Ok(text(&py.detach(|| self.0.reject())?))
    }

    fn discard(&mut self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.0.discard())?)
    }

    fn leave(&mut self, py: Python<'_>) {
        py.detach(|| self.0.leave());
    }
}

#[pyfunction]
fn float_name(name: &str) -> Option<&'static str> {
    Float::parse(name).map(Float::name)
}

#[pyfunction]
fn simd_level() -> PyResult<&'static str> {
    Ok(Level::current()?.name())
}

#[pymodule]
mod _core {
    #[pymodule_export]
    use super::array::cast_bytes;
    #[pymodule_export]
    use super::{Audit, Checkpoint, Plan, PlannedFile, PlannedTensor, Staged, Tensor};
    #[pymodule_export]
    use super::{float_name, simd_level};

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name Python gives it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
    #[pymodule_export]
    const STAGING: &str = super::run::STAGING;
}

//! The extension module `recast._core`: the core as Python sees it. It converts types, releases
//! the GIL, and looks for signals; it decides nothing.

mod array;
mod convert;
mod dtype;
mod load;
mod options;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use options::Options;

use crate::cast::{self, Overflow};
use crate::checkpoint::{self, SourceFile};
use crate::commit;
use crate::error::Error;
use crate::place::address;
use crate::plan;
use crate::report;

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

/// A path as Python has it: a `str`, in which what is not UTF-8 comes back as it was.
fn text(path: &Path) -> OsString {
    path.as_os_str().to_owned()
}

#[pyclass(frozen, get_all, module = "recast._core")]
struct Tensor {
    file: OsString,
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
    #[pyo3(signature = (path, key=None))]
    fn open(py: Python<'_>, path: PathBuf, key: Option<String>) -> PyResult<Checkpoint> {
        Ok(Checkpoint(py.detach(|| checkpoint::Checkpoint::open(&path, key.as_deref()))?))
    }

    #[getter]
    fn path(&self) -> OsString {
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
                    file: text(&file.source.key),
                    name: tensor.name.clone(),
                    dtype: tensor.dtype.name().to_owned(),
                    shape: tensor.shape.clone(),
                    elements: tensor.elements(),
                    bytes: tensor.bytes,
                })
            })
            .collect()
    }

    /// The shards that loaders do not take when they are given the directory.
    #[getter]
    fn not_loaded(&self) -> Vec<OsString> {
        let shards = self.0.shards().map(|(file, _)| file);
        let left = |file: &&SourceFile| self.0.not_loaded().any(|path| path == file.path());
        shards.filter(left).map(|file| text(&file.source.key)).collect()
    }

    /// The quantized weights of each scheme, with their number, their bytes, and why they are not
    /// dequantized where they are not.
    #[getter]
    fn schemes(&self, py: Python<'_>) -> Vec<(String, u64, u64, Option<String>)> {
        let groups = py.detach(|| plan::Parts::new(&self.0, true, false).groups());
        let rows = groups.into_iter();
        rows.map(|group| (group.scheme, group.weights, group.bytes, group.problem)).collect()
    }

    /// How weights are quantized that are not dequantized, not counting fp8 without scales, which
    /// may be plain.
    #[getter]
    fn quantized(&self) -> Option<String> {
        plan::Parts::new(&self.0, true, false).described()
    }

    /// Whether there are fp8 tensors without scales.
    #[getter]
    fn has_unscaled_fp8(&self) -> bool {
        plan::Parts::new(&self.0, true, false).has_unscaled()
    }

    #[getter]
    fn lossless(&self, py: Python<'_>) -> PyResult<Option<(usize, &'static str)>> {
        let found = py.detach(|| report::lossless(&self.0));
        let found = found.map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(found.map(|found| (found.tensors, found.to.name())))
    }

    fn plan(&self, py: Python<'_>, options: Options) -> PyResult<Plan> {
        let options = options.of_plan()?;
        Ok(Plan(Arc::new(py.detach(|| plan::Plan::new(&self.0, &options))?)))
    }
}

/// What will become of one tensor.
#[pyclass(frozen, get_all, module = "recast._core")]
struct PlannedTensor {
    /// The shard that holds it, relative to the destination.
    file: OsString,
    /// What it is called in the result.
    name: String,
    /// That in the result.
    shape: Vec<u64>,
    /// The product of `shape`.
    elements: u64,
    /// What it, or the codes that it is made of, is called in the source.
    source_name: String,
    /// What safetensors calls its dtype in the source, such as `F32`.
    source_dtype: String,
    /// What safetensors calls its dtype in the result.
    dtype: String,
    /// `cast`; `dequantize` where codes become the values that they stand for with their scales;
    /// `copy` where there is nothing to cast; `keep` where a pattern or the built-in list keeps its
    /// dtype.
    action: &'static str,
    /// Why, in words.
    reason: String,
    source_bytes: u64,
    bytes: u64,
}

/// What will become of one file.
#[pyclass(frozen, get_all, module = "recast._core")]
struct PlannedFile {
    /// Relative to the destination.
    path: OsString,
    /// What it is made of, relative to the source; of a source that is a file, its name.
    source: OsString,
    /// `cast` for a shard, `edit` for a config or an index, `copy` for everything else.
    action: &'static str,
    source_bytes: u64,
    bytes: u64,
}

/// What a conversion will do, to the byte. Making one writes nothing.
#[pyclass(frozen, module = "recast._core")]
struct Plan(Arc<plan::Plan>);

#[pymethods]
impl Plan {
    /// The file or directory that will be converted.
    #[getter]
    fn source(&self) -> OsString {
        text(&self.0.source)
    }

    /// `fp32`, `fp16`, `bf16` or `as-stored`.
    #[getter]
    fn to(&self) -> &'static str {
        report::target(&self.0)
    }

    /// The key of the state dict in pickles, where it was given.
    #[getter]
    fn key(&self) -> Option<&str> {
        self.0.key.as_deref()
    }

    /// The names of the runs that carry it out, under each policy for values that overflow, with
    /// and without a file of sums.
    #[getter]
    fn runs(&self) -> Vec<String> {
        let policies = [Overflow::Infinity, Overflow::Saturate].into_iter();
        let runs = policies.flat_map(|policy| [false, true].map(|sums| self.0.run(policy, sums)));
        runs.map(|run| run.to_string()).collect()
    }

    /// Every tensor, shard by shard.
    #[getter]
    fn tensors(&self) -> Vec<PlannedTensor> {
        let tensors = self.0.tensors();
        tensors
            .map(|(file, tensor, planned)| PlannedTensor {
                file: text(&file.path),
                name: planned.name(tensor).to_owned(),
                shape: planned.shape(tensor).to_vec(),
                elements: planned.elements(tensor),
                source_name: tensor.name.clone(),
                source_dtype: tensor.dtype.name().to_owned(),
                dtype: planned.dtype.name().to_owned(),
                action: match planned.action {
                    plan::Action::Cast => "cast",
                    plan::Action::Copy => "copy",
                    plan::Action::Keep => "keep",
                    plan::Action::Dequantize => "dequantize",
                },
                reason: planned.reason.to_string(),
                source_bytes: tensor.bytes,
                bytes: planned.bytes,
            })
            .collect()
    }

    /// The tensors of the source that are not in the result, because they belong to weights that
    /// are dequantized: the shard and the name of each.
    #[getter]
    fn dropped(&self) -> Vec<(OsString, String)> {
        let dropped = self.0.dropped();
        dropped.map(|(file, tensor)| (text(&file.path), tensor.name.clone())).collect()
    }

    /// The tensors of pickles that are the memory of another one, each with that.
    #[getter]
    fn tied(&self) -> Vec<(&str, &str)> {
        self.0.files.iter().flat_map(plan::PlannedFile::tied).collect()
    }

    /// Every file of the result but its report, in the order they are written.
    #[getter]
    fn files(&self) -> Vec<PlannedFile> {
        let files = self.0.files.iter();
        files
            .map(|file| PlannedFile {
                path: text(&file.path),
                source: text(&file.recipe.sources[0].key),
                action: match file.content {
                    plan::Content::Shard { .. } => "cast",
                    plan::Content::Text => "edit",
                    plan::Content::Copy => "copy",
                },
                source_bytes: file.source_bytes(),
                bytes: file.bytes,
            })
            .collect()
    }

    /// The bytes of each tensor in the result, in the order of `tensors`.
    #[getter]
    fn tensor_bytes(&self) -> Vec<u64> {
        self.0.tensors().map(|(.., planned)| planned.bytes).collect()
    }

    /// The same without those of shards that loaders do not take unless they are asked to.
    #[getter]
    fn loaded_tensor_bytes(&self) -> Vec<u64> {
        let loaded = self.0.tensors().filter(|(file, ..)| !self.0.not_loaded.contains(&file.path));
        loaded.map(|(.., planned)| planned.bytes).collect()
    }

    /// What is legal and should be known, as text.
    #[getter]
    fn warnings(&self) -> Vec<String> {
        self.0.warnings.iter().map(ToString::to_string).collect()
    }

    /// The elements of all tensors.
    #[getter]
    fn parameters(&self) -> u64 {
        self.0.parameters()
    }

    /// The bytes of the files that will be read.
    #[getter]
    fn bytes_read(&self) -> u64 {
        self.0.bytes_read()
    }

    /// The bytes of the files that will be written.
    #[getter]
    fn bytes_written(&self) -> u64 {
        self.0.bytes_written()
    }

    fn __repr__(&self) -> String {
        format!(
            "Plan(source={:?}, to={:?}, files={}, tensors={}, bytes_read={}, bytes_written={})",
            self.0.source.display(),
            self.to(),
            self.0.files.len(),
            self.0.tensors().count(),
            self.bytes_read(),
            self.bytes_written()
        )
    }
}

#[pyclass(frozen, get_all, module = "recast._core")]
struct Audit {
    to_inf: u64,
    to_zero: u64,
    nan: u64,
    inf: u64,
    max_abs: f64,
    exact: bool,
}

impl Audit {
    fn new(audit: &cast::Audit) -> Audit {
        let cast::Audit { to_inf, to_zero, nan, inf, exact, .. } = *audit;
        Audit { to_inf, to_zero, nan, inf, max_abs: audit.max_abs(), exact }
    }
}

#[pyfunction]
#[pyo3(signature = (path, *, write=false))]
fn check_local(path: PathBuf, write: bool) -> PyResult<()> {
    let wanted = if write { address::Use::Write } else { address::Use::Read };
    Ok(address::check_local(&path, wanted)?)
}

#[pyfunction]
fn nesting(text: &[u8]) -> usize {
    crate::format::json::nesting(text)
}

/// Everything that recast may say of a failure: what it is (the exception that an error becomes, or
/// `warning`, `finding` or `note`), an example of the message, and the hint.
#[pyfunction]
fn messages() -> Vec<(&'static str, String, Option<String>)> {
    let errors = crate::error::examples().into_iter().map(|error| {
        let (class, hint) = (error.class(), error.hint());
        (class, error.to_string(), hint)
    });
    let warnings = plan::Warning::examples().into_iter();
    let findings = commit::Damage::examples().into_iter();
    errors
        .chain(warnings.map(|warning| (warning.class(), warning.to_string(), None)))
        .chain(findings.map(|damage| (damage.class(), format!("FILE {damage}"), None)))
        .chain(commit::Left::ALL.map(|left| ("note", left.note().to_owned(), None)))
        .collect()
}

#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::array::{cast_bytes, simd_level};
    #[pymodule_export]
    use super::convert::{Converted, check_published, convert, look, summary};
    #[pymodule_export]
    use super::dtype::{DtypeInfo, float_name};
    #[pymodule_export]
    use super::load::{can_cut, fill};
    #[pymodule_export]
    use super::options::{keep_lists, matching};
    #[pymodule_export]
    use super::{Audit, Checkpoint, Plan, PlannedFile, PlannedTensor, Tensor};
    #[pymodule_export]
    use super::{check_local, messages, nesting};

    #[pymodule_export]
    const SIMD_VARIABLE: &str = super::cast::level::VARIABLE;

    #[pymodule_export]
    const RECIPE_FORMAT: u32 = crate::recipe::FORMAT;

    #[pymodule_export]
    #[expect(non_upper_case_globals, reason = "the name Python gives it")]
    const __version__: &str = env!("CARGO_PKG_VERSION");

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("DTYPES", super::dtype::table(module.py())?)
    }
}

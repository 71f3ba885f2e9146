//! A conversion as Python sees it: what it is asked while it runs, what came of it, and what is left
//! of one that failed.

use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;

use super::options::Options;
use super::{Plan, text};
use crate::commit::{self, Left, Outcome};
use crate::error::Error;
use crate::plan;
use crate::report;

/// What is known of a plan before it is carried out, as JSON.
#[pyfunction]
pub fn summary(plan: &Plan) -> String {
    let summary = report::Summary::new(&plan.0, None);
    serde_json::to_string(&summary).expect("strings and numbers")
}

/// What `dest` holds of the result of `plan`. Writes nothing.
#[pyfunction]
pub fn look(
    py: Python<'_>,
    plan: &Plan,
    dest: PathBuf,
    options: Options,
) -> PyResult<&'static str> {
    let options = options.of_run(false)?;
    Ok(match py.detach(|| commit::look(&plan.0, &dest, &options))? {
        commit::DestinationState::Done => "done",
        commit::DestinationState::Started => "started",
        commit::DestinationState::Free => "new",
    })
}

/// Carries `plan` out into `dest`.
#[pyfunction]
#[pyo3(signature = (plan, dest, options, *, verify=None, progress=None))]
pub fn convert(
    py: Python<'_>,
    plan: &Plan,
    dest: PathBuf,
    options: Options,
    verify: Option<Py<PyAny>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Converted> {
    let options = options.of_run(verify.is_some())?;
    let mut hooks = Hooks { progress, verify, raised: None, stopped: false };
    let plan = &plan.0;
    let result = py.detach(|| commit::convert(plan, &dest, &options, &mut hooks));
    match (result, hooks.raised) {
        // It was to stop when there was nothing left to stop, but whoever said so is to know.
        (Ok(Outcome::Made { .. } | Outcome::Done { .. }), Some(raised)) if hooks.stopped => {
            Err(with_note(py, raised, Left::Published))
        }
        (Ok(outcome), _) => Ok(Converted { plan: Arc::clone(plan), outcome }),
        (Err((error, left)), raised) => {
            Err(with_note(py, raised.unwrap_or_else(|| error.into()), left))
        }
    }
}

/// An exception with what is left of the run; that nothing is, only where it was stopped.
fn with_note(py: Python<'_>, raised: PyErr, left: Left) -> PyErr {
    if left != Left::Nothing || is_stop(py, &raised) {
        // Without the note, the exception itself still says what happened.
        let _ = raised.value(py).call_method1("add_note", (left.note(),));
    }
    raised
}

/// Whether an exception only stops what is going on, as a signal does.
fn is_stop(py: Python<'_>, raised: &PyErr) -> bool {
    !raised.is_instance_of::<pyo3::exceptions::PyException>(py)
}

/// Asks Python what it has to say in a conversion.
struct Hooks {
    progress: Option<Py<PyAny>>,
    verify: Option<Py<PyAny>>,
    /// What it raised, which then is what the conversion raises.
    raised: Option<PyErr>,
    stopped: bool,
}

impl commit::Hooks for Hooks {
    fn progress(&mut self, done: u64, total: u64) -> bool {
        if self.stopped {
            // Also when that came too late for what was being done.
            return false;
        }
        let answer = Python::attach(|py| {
            py.check_signals()?;
            match &self.progress {
                Some(progress) => progress.call1(py, (done, total)).map(drop),
                None => Ok(()),
            }
        });
        self.stopped = answer.is_err();
        self.raised = answer.err();
        !self.stopped
    }

    fn verify(&mut self, staged: &Path) -> Result<Option<String>, Error> {
        let Some(verify) = &self.verify else { return Ok(Some("null".to_owned())) };
        let answer = Python::attach(|py| -> PyResult<Option<String>> {
            verify.call1(py, (text(staged),))?.extract(py)
        });
        answer.map_err(|raised| {
            self.stopped = Python::attach(|py| is_stop(py, &raised));
            self.raised = Some(raised);
            // Whatever else it raised may only be because another run moved the files away.
            if self.stopped { Error::Stopped } else { Error::Panicked }
        })
    }
}

#[pyclass(frozen, module = "recast._core")]
pub struct Converted {
    plan: Arc<plan::Plan>,
    outcome: Outcome,
}

#[pymethods]
impl Converted {
    /// `made`, `done` or `rejected`.
    #[getter]
    fn kind(&self) -> &'static str {
        match self.outcome {
            Outcome::Made { .. } => "made",
            Outcome::Done { .. } => "done",
            Outcome::Rejected(_) => "rejected",
        }
    }

    /// The report without what has a line for each tensor, as JSON.
    fn summary(&self) -> String {
        let summary = match &self.outcome {
            Outcome::Made { made, .. } => report::Summary::new(&self.plan, Some(&made.audits)),
            Outcome::Done { summary, .. } => summary.clone(),
            Outcome::Rejected(_) => report::Summary::new(&self.plan, None),
        };
        serde_json::to_string(&summary).expect("strings and numbers")
    }

    /// All of the report, where this run made it.
    fn report(&self) -> Option<Cow<'static, [u8]>> {
        let Outcome::Made { made, .. } = &self.outcome else { return None };
        let mut text = Vec::new();
        made.write(&self.plan, &mut text).expect("memory takes everything");
        Some(Cow::Owned(text))
    }

    #[getter]
    fn resumed_files(&self) -> usize {
        if let Outcome::Made { resumed_files, .. } = self.outcome { resumed_files } else { 0 }
    }

    /// What was compared where the result was there before.
    #[getter]
    fn compared(&self) -> Option<&str> {
        if let Outcome::Done { compared, .. } = &self.outcome { Some(compared) } else { None }
    }

    /// Whether a publication that had begun was carried to its end.
    #[getter]
    fn completed(&self) -> bool {
        matches!(self.outcome, Outcome::Done { completed: true, .. })
    }

    /// What the verification said, as JSON.
    #[getter]
    fn verified(&self) -> Option<&str> {
        if let Outcome::Made { verified, .. } = &self.outcome { verified.as_deref() } else { None }
    }

    /// Where a result is that failed its verification.
    #[getter]
    fn rejected(&self) -> Option<OsString> {
        if let Outcome::Rejected(path) = &self.outcome { Some(text(path)) } else { None }
    }
}

type Problem = (OsString, String);

/// What is wrong with the files of a published result: how many files, their bytes, and for each
/// that is wrong its path and what is.
#[pyfunction]
#[pyo3(signature = (dest, *, threads=None, progress=None))]
pub fn check_published(
    py: Python<'_>,
    dest: PathBuf,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<(usize, u64, Vec<Problem>)> {
    let mut hooks = Hooks { progress, verify: None, raised: None, stopped: false };
    let result = py.detach(|| {
        let progress = &mut |done, total| commit::Hooks::progress(&mut hooks, done, total);
        commit::check_published(&dest, threads, progress)
    });
    if let Some(raised) = hooks.raised {
        return Err(raised);
    }
    let commit::Checked { files, bytes, damaged } = result?;
    Ok((files, bytes, damaged.iter().map(|(path, what)| (text(path), what.to_string())).collect()))
}

//! What a conversion did: the one owner of `recast.json`, which holds no facts of the machine, so
//! that the same conversion leaves the same report everywhere.

mod identity;
mod lossless;

pub use identity::{File, Identity, Options, Scaled, SourceFile, Totals, is_of};
pub use lossless::{Lossless, lossless};

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cast::Audit;
use crate::checksum::Digest;
use crate::dtype::Float;
use crate::error::{Overflow, OverflowedTensor};
use crate::format::safetensors::Tensor;
use crate::names;
use crate::plan::{Action, Plan, PlannedTensor};
use crate::recipe::FORMAT;

/// What `--to` is called where nothing is cast.
pub const AS_STORED: &str = "as-stored";

/// Of the report and of what the command prints as JSON.
pub const SCHEMA_VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    reason: String,
    tensors: Vec<String>,
    exact_anyway: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    cast: u64,
    copied: u64,
    kept: u64,
    /// Left out where there is none, so that the reports of other conversions are what they were.
    #[serde(default, skip_serializing_if = "is_zero")]
    dequantized: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What is known before and after, without what has a line for each file or tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    schema_version: u32,
    to: String,
    files: usize,
    tensors: Counts,
    parameters: u64,
    bytes_read: u64,
    bytes_written: u64,
    pub audit: Option<Totals>,
    kept: Vec<Kept>,
    /// Tensors of the source that are not in the result: scales, and what goes with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    dropped: Vec<String>,
    /// What pickles hold that is no tensor of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    left_out: Vec<String>,
    warnings: Vec<String>,
}

/// What a plan makes of floats, as `--to` has it.
pub fn target(plan: &Plan) -> &'static str {
    plan.options.to.map_or(AS_STORED, Float::name)
}

/// The audits of the files of a plan, each in the order of the tensors that are audited.
pub type Audits = [Vec<Audit>];

/// Every tensor that is, or could have been, cast, with its file and its audit.
fn audited<'a>(
    plan: &'a Plan,
    audits: &'a Audits,
) -> impl Iterator<Item = (&'a Path, &'a Tensor, &'a PlannedTensor, &'a Audit)> {
    plan.files.iter().zip(audits).flat_map(|(file, audits)| {
        let tensors = file.tensors().filter(|(_, planned)| planned.action != Action::Copy);
        let path = file.path.as_path();
        tensors.zip(audits).map(move |((tensor, planned), audit)| (path, tensor, planned, audit))
    })
}

/// What happened to the values of all tensors that were cast.
pub fn totals(plan: &Plan, audits: &Audits) -> Totals {
    let mut totals = Totals::default();
    for (.., planned, audit) in audited(plan, audits) {
        // Kept tensors are examined too; what would have become of them is no result.
        if planned.action.is_cast() {
            totals.to_inf += audit.to_inf;
            totals.to_zero += audit.to_zero;
            totals.nan += audit.nan;
            totals.inf += audit.inf;
            totals.inexact_tensors += u64::from(!audit.exact);
        }
        if planned.action == Action::Dequantize {
            let scaled = totals.scaled.get_or_insert_default();
            scaled.nan_codes += audit.nan_codes;
            scaled.scales.merge(&audit.scales);
        }
    }
    totals
}

impl Summary {
    /// Of a plan, or, with its audits, of a conversion.
    pub fn new(plan: &Plan, audits: Option<&Audits>) -> Summary {
        let mut tensors = Counts::default();
        let mut kept: Vec<Kept> = Vec::new();
        let mut groups: HashMap<&str, usize> = HashMap::new();
        for (_, tensor, planned) in plan.tensors() {
            match planned.action {
                Action::Cast => tensors.cast += 1,
                Action::Dequantize => tensors.dequantized += 1,
                Action::Copy => tensors.copied += 1,
                Action::Keep => {
                    tensors.kept += 1;
                    let reason = &*planned.reason;
                    let group = *groups.entry(reason).or_insert_with(|| {
                        let reason = reason.to_owned();
                        kept.push(Kept { reason, tensors: vec![], exact_anyway: vec![] });
                        kept.len() - 1
                    });
                    kept[group].tensors.push(tensor.name.clone());
                }
            }
        }
        let audited = audits.into_iter().flat_map(|audits| audited(plan, audits));
        for (_, tensor, planned, audit) in audited {
            if planned.action == Action::Keep && audit.exact {
                kept[groups[&*planned.reason]].exact_anyway.push(tensor.name.clone());
            }
        }
        Summary {
            schema_version: SCHEMA_VERSION,
            to: target(plan).to_owned(),
            files: plan.files.len(),
            tensors,
            parameters: plan.parameters(),
            bytes_read: plan.bytes_read(),
            bytes_written: plan.bytes_written(),
            audit: audits.map(|audits| totals(plan, audits)),
            kept,
            dropped: plan.dropped().map(|(_, tensor)| tensor.name.clone()).collect(),
            left_out: plan.left_out().map(str::to_owned).collect(),
            warnings: plan.warnings.iter().map(ToString::to_string).collect(),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Made {
    pub run: Digest,
    pub on_overflow: &'static str,
    pub files: Vec<File>,
    pub audits: Vec<Vec<Audit>>,
}

impl Made {
    /// Writes the report on carrying `plan` out: a line for each key, and for each item of a list.
    ///
    /// # Errors
    /// What `out` says.
    pub fn write(&self, plan: &Plan, out: &mut dyn Write) -> io::Result<()> {
        let summary = Summary::new(plan, Some(&self.audits));
        let overflowed = summary.audit.is_some_and(|totals| totals.to_inf > 0);
        let options = Options::new(plan, if overflowed { self.on_overflow } else { "error" });
        write!(out, "{{\n  \"schema_version\": {SCHEMA_VERSION}")?;
        let mut member = |key: &str, value: &dyn Fn(&mut dyn Write) -> io::Result<()>| {
            write!(out, ",\n  \"{key}\": ")?;
            value(out)
        };
        member("format", &json(&FORMAT))?;
        member("run", &json(&self.run))?;
        member("to", &json(&summary.to))?;
        member("options", &json(&options))?;
        member("files", &json(&summary.files))?;
        member("tensors", &json(&summary.tensors))?;
        member("parameters", &json(&summary.parameters))?;
        member("bytes_read", &json(&summary.bytes_read))?;
        member("bytes_written", &json(&summary.bytes_written))?;
        member("audit", &|out| {
            // The tensors come behind the totals, inside the same braces.
            let totals = serde_json::to_vec(&summary.audit)?;
            out.write_all(totals.strip_suffix(b"}").unwrap_or(&totals))?;
            out.write_all(b",\"tensors\":")?;
            lines(out, rows(plan, &self.audits))?;
            out.write_all(b"}")
        })?;
        member("kept", &|out| lines(out, summary.kept.iter()))?;
        if !summary.dropped.is_empty() {
            member("dropped", &|out| lines(out, summary.dropped.iter()))?;
        }
        if !summary.left_out.is_empty() {
            member("left_out", &|out| lines(out, summary.left_out.iter()))?;
        }
        member("warnings", &|out| lines(out, summary.warnings.iter()))?;
        member("published_files", &|out| lines(out, self.files.iter()))?;
        out.write_all(b"\n}\n")
    }
}

fn json<T: Serialize>(value: &T) -> impl Fn(&mut dyn Write) -> io::Result<()> {
    move |out| Ok(serde_json::to_writer(out, value)?)
}

fn lines<T: Serialize>(out: &mut dyn Write, items: impl Iterator<Item = T>) -> io::Result<()> {
    let mut before = "[";
    for item in items {
        write!(out, "{before}\n    ")?;
        serde_json::to_writer(&mut *out, &item)?;
        before = ",";
    }
    out.write_all(if before == "[" { b"[]" } else { b"\n  ]" })
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    #[serde(with = "names")]
    file: &'a Path,
    to_inf: u64,
    to_zero: u64,
    nan: u64,
    inf: u64,
    max_abs: f64,
    exact: bool,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    scaled: Option<Scaled>,
}

fn rows<'a>(plan: &'a Plan, audits: &'a Audits) -> impl Iterator<Item = Row<'a>> {
    let all = audited(plan, audits).filter(|(.., planned, _)| planned.action.is_cast());
    all.map(|(file, tensor, planned, audit)| {
        let Audit { to_inf, to_zero, nan, inf, exact, nan_codes, scales, .. } = *audit;
        let (name, max_abs) = (planned.name(tensor), audit.max_abs());
        let is_scaled = planned.action == Action::Dequantize;
        let scaled = is_scaled.then_some(Scaled { nan_codes, scales });
        Row { name, file, to_inf, to_zero, nan, inf, max_abs, exact, scaled }
    })
}

/// The tensors that overflow, the worst first. The audits are those of some files, by their numbers.
pub fn overflow(plan: &Plan, found: &[(usize, Vec<Audit>)]) -> Overflow {
    let mut audits = vec![Vec::new(); plan.files.len()];
    for (file, found) in found {
        audits[*file].clone_from(found);
    }
    let mut can_be_kept = true;
    let overflowed = audited(plan, &audits)
        .filter(|(.., planned, audit)| planned.action != Action::Keep && audit.to_inf > 0)
        .inspect(|(.., planned, _)| can_be_kept &= planned.action != Action::Dequantize);
    let tensors = overflowed.map(|(file, tensor, planned, audit)| OverflowedTensor {
        name: planned.name(tensor).to_owned(),
        file: file.to_owned(),
        overflowed: audit.to_inf,
        elements: planned.elements(tensor),
        max_abs: audit.max_abs(),
    });
    let mut tensors: Vec<_> = tensors.collect();
    tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.overflowed));
    Overflow { to: target(plan), can_be_kept, tensors }
}

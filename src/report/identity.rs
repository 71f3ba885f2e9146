//! What tells one conversion from another: what an unfinished one notes and a finished one reports.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cast::Overflow;
use crate::cast::audit::ScaleCounts;
use crate::checksum::Digest;
use crate::error::Difference;
use crate::names;
use crate::plan::Plan;
use crate::recipe::FORMAT;
use crate::shown::Shown;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub to_inf: u64,
    pub to_zero: u64,
    pub nan: u64,
    pub inf: u64,
    pub inexact_tensors: u64,
    /// Of the weights that were dequantized, if any were.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub scaled: Option<Scaled>,
}

/// What was unusual about codes and scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaled {
    pub nan_codes: u64,
    pub scales: ScaleCounts,
}

/// The options that decide about the result, as far as they made a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    to: String,
    /// Left out where it was not given, so that the reports of other conversions are what they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    keep: Vec<String>,
    auto_keep: bool,
    skip_quantized: bool,
    /// Left out where it made none, so that the reports of other conversions are what they were.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unscaled_fp8: bool,
    /// `error` where nothing overflowed, whatever was asked for.
    on_overflow: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    #[serde(with = "names")]
    pub path: PathBuf,
    pub bytes: u64,
    pub xxh3_128: Digest,
    /// The file it is the result of; none of one that only describes the others.
    pub source: Option<SourceFile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    #[serde(with = "names")]
    pub path: PathBuf,
    pub bytes: u64,
    /// Its checksum; that of its header alone as long as the rest was not read.
    pub xxh3_128: Digest,
}

/// What tells one conversion from another: what an unfinished one notes and a finished one reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub format: u32,
    pub run: Digest,
    pub options: Options,
    /// What happened to the values, once it is known.
    #[serde(default)]
    pub audit: Option<Totals>,
    /// The files, in the order of publication.
    #[serde(rename = "published_files")]
    pub files: Vec<File>,
}

impl Options {
    pub(super) fn new(plan: &Plan, overflow: &'static str) -> Options {
        Options {
            to: super::target(plan).to_owned(),
            key: plan.key.clone(),
            keep: plan.options.keep.clone(),
            auto_keep: plan.options.auto_keep,
            skip_quantized: plan.options.skip_quantized,
            unscaled_fp8: plan.options.unscaled_fp8,
            on_overflow: overflow.to_owned(),
        }
    }
}

impl Identity {
    /// Of a run that has read nothing but headers.
    pub fn planned(
        plan: &Plan,
        run: Digest,
        on_overflow: &'static str,
        sums: Option<&str>,
    ) -> Identity {
        let files = plan.files.iter().map(|file| {
            let source = &file.recipe.sources[0];
            let (path, bytes, xxh3_128) = (source.key.clone(), source.bytes, source.version);
            let source = Some(SourceFile { path, bytes, xxh3_128 });
            File { path: file.path.clone(), bytes: file.bytes, xxh3_128: Digest::default(), source }
        });
        let sums = sums.map(|name| {
            let (path, xxh3_128) = (PathBuf::from(name), Digest::default());
            File { path, bytes: 0, xxh3_128, source: None }
        });
        let options = Options::new(plan, on_overflow);
        let files = files.chain(sums).collect();
        Identity { format: FORMAT, run, options, audit: None, files }
    }

    /// The options of the command that makes it, as far as they are not the default.
    pub fn arguments(&self) -> String {
        let Options { to, key, keep, auto_keep, skip_quantized, unscaled_fp8, on_overflow } =
            &self.options;
        let mut text = format!("--to={to}");
        if let Some(key) = key {
            text.push_str(&format!(" --key '{}'", key.shown()));
        }
        for pattern in keep {
            text.push_str(&format!(" --keep '{}'", pattern.shown()));
        }
        if !auto_keep {
            text.push_str(" --no-auto-keep");
        }
        if *skip_quantized {
            text.push_str(" --skip-quantized");
        }
        if *unscaled_fp8 {
            text.push_str(" --unscaled-fp8");
        }
        if on_overflow != "error" {
            text.push_str(&format!(" --on-overflow={on_overflow}"));
        }
        if self.has_sums() {
            text.push_str(" --sha256");
        }
        text
    }

    fn has_sums(&self) -> bool {
        self.files.iter().any(|file| file.source.is_none())
    }

    /// How what `plan` asks for differs. Where the source is does not matter.
    pub fn differences(
        &self,
        plan: &Plan,
        run: Digest,
        on_overflow: &'static str,
        sums: Option<&str>,
    ) -> Vec<Difference> {
        let here = Identity::planned(plan, run, on_overflow, sums);
        let (left, right) = (&self.options, &here.options);
        let listed = |keep: &[String]| match keep {
            [] => "none".to_owned(),
            some => some.join(" "),
        };
        let key = |options: &Options| options.key.clone().unwrap_or_else(|| "none".to_owned());
        let used = |auto_keep| if auto_keep { "used" } else { "not used" }.to_owned();
        let given = |given| if given { "given" } else { "not given" }.to_owned();
        let settings = [
            ("format of the result", self.format.to_string(), here.format.to_string()),
            ("--to", left.to.clone(), right.to.clone()),
            ("--key", key(left), key(right)),
            ("--keep", listed(&left.keep), listed(&right.keep)),
            ("built-in keep list", used(left.auto_keep), used(right.auto_keep)),
            ("--skip-quantized", given(left.skip_quantized), given(right.skip_quantized)),
            ("--unscaled-fp8", given(left.unscaled_fp8), given(right.unscaled_fp8)),
            ("--sha256", given(self.has_sums()), given(here.has_sums())),
        ];
        let setting = |(what, there, here)| Difference::Setting { what, there, here };
        let different = settings.into_iter().filter(|(_, there, here)| there != here);
        let mut found: Vec<Difference> = different.map(setting).collect();
        if found.is_empty() || !self.has_the_sources_of(&here) {
            found.extend(self.different_files(&here));
        }
        if found.is_empty() {
            let (there, here) = (left.on_overflow.clone(), right.on_overflow.clone());
            found.push(setting(("--on-overflow", there, here)));
        }
        found
    }

    fn has_the_sources_of(&self, other: &Identity) -> bool {
        let source =
            |file: &File| file.source.as_ref().map(|source| (source.path.clone(), source.bytes));
        self.files.iter().filter_map(source).eq(other.files.iter().filter_map(source))
    }

    fn different_files(&self, other: &Identity) -> Vec<Difference> {
        let mut there: HashMap<&Path, &File> = self.made().map(|it| (&*it.path, it)).collect();
        let bytes = |file: &File| file.source.as_ref().map_or(0, |source| source.bytes);
        let mut found = Vec::new();
        for file in other.made() {
            let (path, here) = (file.path.clone(), bytes(file));
            found.extend(match there.remove(&*path) {
                None => Some(Difference::OnlyHere { path }),
                Some(it) if bytes(it) != here => {
                    Some(Difference::Length { path, there: bytes(it), here })
                }
                Some(it) if it.bytes != file.bytes => Some(Difference::ResultLength { path }),
                Some(_) => None,
            });
        }
        let gone = self.made().filter(|file| there.contains_key(&*file.path));
        found.extend(gone.map(|file| Difference::OnlyThere { path: file.path.clone() }));
        let is_same_policy = self.options.on_overflow == other.options.on_overflow;
        if found.is_empty() && self.run != other.run && is_same_policy {
            found.push(Difference::Heads);
        }
        found
    }

    fn made(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.source.is_some())
    }
}

/// Whether a report is that of carrying out a plan whose runs are called so under each policy for
/// values that overflow; `stops` says that overflow is an error.
pub fn is_of(
    report: &Identity,
    plan: &Plan,
    run: impl Fn(Overflow) -> Digest,
    stops: bool,
) -> bool {
    if report.audit.is_some_and(|totals| totals.to_inf > 0) {
        return report.run == run(plan.options.overflow) && !stops;
    }
    // Where nothing overflowed, the policy changed nothing.
    [Overflow::Infinity, Overflow::Saturate].into_iter().any(|overflow| report.run == run(overflow))
}

//! What tells one conversion from another: what a begun one notes, and a finished one reports.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Totals;
use crate::cast::Overflow;
use crate::checksum::Digest;
use crate::error::counted;
use crate::names;
use crate::plan::Plan;
use crate::recipe::FORMAT;
use crate::shown::Shown;

/// How many differing files are named.
const LISTED: usize = 3;

/// The options that decide about the result, as far as they made a difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    to: String,
    keep: Vec<String>,
    auto_keep: bool,
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

/// What tells one conversion from another: what a begun one notes, and a finished one reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// What decides about the bytes changes with it.
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
            to: plan.options.to.name().to_owned(),
            keep: plan.options.keep.clone(),
            auto_keep: plan.options.auto_keep,
            on_overflow: overflow.to_owned(),
        }
    }
}

impl Identity {
    /// Of a run that has read nothing but headers.
    pub fn begun(
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

    /// How what `plan` asks for differs, a line each. Where the source is does not matter.
    pub fn differences(
        &self,
        plan: &Plan,
        run: Digest,
        on_overflow: &'static str,
        sums: Option<&str>,
    ) -> Vec<String> {
        let here = Identity::begun(plan, run, on_overflow, sums);
        let mut lines = Vec::new();
        let mut compare = |what: &str, there: String, here: String| {
            if there != here {
                lines.push(format!("{what}: {there} there, {here} here"));
            }
        };
        let (left, right) = (&self.options, &here.options);
        let listed = |keep: &[String]| match keep {
            [] => "none".to_owned(),
            some => some.join(" "),
        };
        let used = |auto_keep| if auto_keep { "used" } else { "not used" }.to_owned();
        compare("format of the result", self.format.to_string(), here.format.to_string());
        compare("--to", left.to.clone(), right.to.clone());
        compare("--keep", listed(&left.keep), listed(&right.keep));
        compare("built-in keep list", used(left.auto_keep), used(right.auto_keep));
        let given = |it: &Identity| {
            let describes = it.files.iter().any(|file| file.source.is_none());
            if describes { "given" } else { "not given" }.to_owned()
        };
        compare("--sha256", given(self), given(&here));
        if lines.is_empty() || !self.has_the_sources_of(&here) {
            lines.extend(self.different_files(&here));
        }
        if lines.is_empty() {
            let (there, here) = (left.on_overflow.clone(), right.on_overflow.clone());
            lines.push(format!("--on-overflow: {there} there, {here} here"));
        }
        lines
    }

    fn has_the_sources_of(&self, other: &Identity) -> bool {
        let source =
            |file: &File| file.source.as_ref().map(|source| (source.path.clone(), source.bytes));
        self.files.iter().filter_map(source).eq(other.files.iter().filter_map(source))
    }

    fn different_files(&self, other: &Identity) -> Vec<String> {
        let there: HashMap<&Path, &File> =
            self.files.iter().map(|file| (file.path.as_path(), file)).collect();
        let mut lines = Vec::new();
        for file in other.files.iter().filter(|file| file.source.is_some()) {
            let bytes = |file: &File| file.source.as_ref().map_or(0, |source| source.bytes);
            match there.get(file.path.as_path()) {
                None => lines.push(format!("{}: only here", file.path.shown())),
                Some(it) if bytes(it) != bytes(file) => lines.push(format!(
                    "{}: {} there, {} here",
                    file.path.shown(),
                    counted(bytes(it), "byte"),
                    counted(bytes(file), "byte")
                )),
                Some(it) if it.bytes != file.bytes => {
                    lines.push(format!("{}: of another size there", file.path.shown()));
                }
                Some(_) => {}
            }
        }
        let here: HashMap<&Path, ()> =
            other.files.iter().map(|it| (it.path.as_path(), ())).collect();
        let gone = self
            .files
            .iter()
            .filter(|it| it.source.is_some() && !here.contains_key(it.path.as_path()));
        lines.extend(gone.map(|file| format!("{}: only there", file.path.shown())));
        if lines.is_empty() && self.run != other.run {
            let plain = |it: &Identity| it.options.on_overflow.clone();
            if plain(self) == plain(other) {
                lines.push("the headers, configs or indexes of the source are others".to_owned());
            }
        }
        let count = lines.len();
        if count > LISTED {
            lines.truncate(LISTED);
            lines.push(format!("and {}", counted((count - LISTED) as u64, "more file")));
        }
        lines
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

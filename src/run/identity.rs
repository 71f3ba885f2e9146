//! What makes two runs the same run: the source's files, as they were, and the options that decide
//! about the result. A journal and a report carry it; resuming and "already done" rest on it.

use std::fmt::Write;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use super::OnOverflow;
use crate::error::counted;
use crate::fs;
use crate::plan::{Plan, PlannedFile};

/// How many differing files are named.
const LISTED: usize = 3;

/// What a run is a run of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The version of recast.
    pub version: String,
    /// The source, as it was named.
    pub source: String,
    /// The options.
    pub options: Options,
    /// The files of the result, in the order of publication.
    pub files: Vec<File>,
}

/// The options that decide about the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    to: String,
    keep: Vec<String>,
    auto_keep: bool,
    on_overflow: String,
}

/// A file of the result, and what it is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its path in the destination.
    pub path: String,
    /// Its exact length in bytes.
    pub bytes: u64,
    /// The source file as it was.
    pub source: fs::Identity,
    /// A hash of what the source's header or text says and what becomes of it.
    pub planned: String,
}

impl Identity {
    /// Of carrying `plan` out.
    pub fn new(plan: &Plan, on_overflow: OnOverflow) -> Identity {
        Identity {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: plan.source.display().to_string(),
            options: Options {
                to: plan.to.name().to_owned(),
                keep: plan.keep.clone(),
                auto_keep: plan.auto_keep,
                on_overflow: on_overflow.name().to_owned(),
            },
            files: plan.files.iter().map(File::new).collect(),
        }
    }

    /// The paths of the files in the destination.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.files.iter().map(|file| PathBuf::from(&file.path))
    }

    /// How `other` differs, a line each; nothing when both are the same run. Where the source is
    /// does not matter, as long as its files are the same.
    pub fn differences(&self, other: &Identity) -> Vec<String> {
        let mut lines = Vec::new();
        let mut compare = |what: &str, left: &dyn ToString, right: &dyn ToString| {
            let (left, right) = (left.to_string(), right.to_string());
            if left != right {
                lines.push(format!("{what}: {left} there, {right} here"));
            }
        };
        let (left, right) = (&self.options, &other.options);
        compare("version of recast", &self.version, &other.version);
        compare("--to", &left.to, &right.to);
        compare("--keep", &listed(&left.keep), &listed(&right.keep));
        compare("--on-overflow", &left.on_overflow, &right.on_overflow);
        compare("built-in keep list", &used(left.auto_keep), &used(right.auto_keep));
        let same_options = lines.is_empty();
        if self.files != other.files && (same_options || !self.same_sources(other)) {
            if self.source != other.source {
                lines.push(format!("source: {} there, {} here", self.source, other.source));
            }
            lines.extend(self.different_files(other));
        }
        lines
    }

    fn same_sources(&self, other: &Identity) -> bool {
        let source = |file: &File| (file.path.clone(), file.source.clone());
        self.files.iter().map(source).eq(other.files.iter().map(source))
    }

    fn different_files(&self, other: &Identity) -> Vec<String> {
        let find =
            |files: &[File], path: &str| files.iter().find(|file| file.path == path).cloned();
        let mut lines = Vec::new();
        for file in &self.files {
            match find(&other.files, &file.path) {
                None => lines.push(format!("{}: only there", file.path)),
                Some(now) if now != *file => {
                    let (there, here) = (file.describe(), now.describe());
                    lines.push(format!("{}: {there} there, {here} here", file.path));
                }
                Some(_) => {}
            }
        }
        let new = other.files.iter().filter(|file| find(&self.files, &file.path).is_none());
        lines.extend(new.map(|file| format!("{}: only here", file.path)));
        let count = lines.len();
        if count > LISTED {
            lines.truncate(LISTED);
            lines.push(format!("and {}", counted((count - LISTED) as u64, "more file")));
        }
        lines
    }
}

impl File {
    fn new(file: &PlannedFile) -> File {
        File {
            path: file.path.to_string_lossy().into_owned(),
            bytes: file.bytes,
            source: file.source.clone(),
            planned: hash(file),
        }
    }

    fn describe(&self) -> String {
        let fs::Identity { bytes, modified, inode } = &self.source;
        let mut text = counted(*bytes, "byte");
        if let Some(modified) = modified {
            let (seconds, rest) = (modified / 1_000_000_000, modified % 1_000_000_000);
            let _ = write!(text, ", written at {seconds}.{rest:09}");
        }
        if let Some(inode) = inode {
            let _ = write!(text, ", inode {inode}");
        }
        let _ = write!(text, ", hash {}", &self.planned[..self.planned.len().min(8)]);
        text
    }
}

/// A hash of everything the plan took from the file's header or text. Against change, not against
/// attack: who can write the source can write what they like.
fn hash(file: &PlannedFile) -> String {
    let mut hash = Xxh3::new();
    hash.update(file.content.prefix());
    for tensor in file.tensors() {
        hash.update(tensor.source.name.as_bytes());
        hash.update(tensor.source.dtype.name().as_bytes());
        hash.update(&tensor.source.start.to_le_bytes());
        hash.update(&tensor.source.bytes.to_le_bytes());
    }
    format!("{:032x}", hash.digest128())
}

fn listed(patterns: &[String]) -> String {
    if patterns.is_empty() { "none".to_owned() } else { patterns.join(" ") }
}

fn used(auto_keep: bool) -> &'static str {
    if auto_keep { "used" } else { "not used" }
}

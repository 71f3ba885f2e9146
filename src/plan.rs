//! The plan: for every tensor whether it is cast and why, for every file its exact bytes.
//! Pure: it looks at nothing but the opened checkpoint and the options.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::index::Index;
use crate::checkpoint::shard::{MAX_HEADER, Shard, Tensor};
use crate::checkpoint::{Checkpoint, Kind, SourceFile};
use crate::dtype::{Dtype, Float};
use crate::error::Error;
use crate::fs::Identity;
use crate::keep::{self, Pattern};

/// The file that makes a directory of several models a diffusers pipeline.
pub const PIPELINE: &str = "model_index.json";

/// How many names a warning lists before it counts the rest.
const LISTED: usize = 4;

/// What a conversion is asked to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The dtype to cast to.
    pub to: Float,
    /// Patterns of tensors to leave as they are.
    pub keep: Vec<String>,
    /// Whether the built-in list of tensors that loaders need in fp32 holds.
    pub auto_keep: bool,
}

/// What becomes of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is cast.
    Cast,
    /// There is nothing to cast.
    Copy,
    /// It could be cast, but is left as it is.
    Keep,
}

/// A tensor and what becomes of it.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// As it is in the source.
    pub source: Tensor,
    /// What becomes of it.
    pub action: Action,
    /// Why.
    pub reason: String,
    /// Its dtype in the result.
    pub dtype: Dtype,
    /// Its first byte in the result's file.
    pub start: u64,
    /// Its length in the result, in bytes.
    pub bytes: u64,
}

/// Where the bytes of a file of the result come from.
#[derive(Clone, Debug)]
pub enum Content {
    /// A header and the tensors that follow it, in order.
    Shard {
        /// Length, JSON and padding.
        header: Vec<u8>,
        /// In the order of the result's data.
        tensors: Vec<PlannedTensor>,
    },
    /// A small text written as it is here.
    Text(String),
    /// The source file's bytes.
    Copy,
}

impl Content {
    /// What is known before the source is read: a header, or all of a text.
    pub fn prefix(&self) -> &[u8] {
        match self {
            Content::Shard { header, .. } => header,
            Content::Text(text) => text.as_bytes(),
            Content::Copy => &[],
        }
    }
}

/// A file of the result.
#[derive(Clone, Debug)]
pub struct PlannedFile {
    /// Its path below the destination.
    pub path: PathBuf,
    /// Where its source is.
    pub location: PathBuf,
    /// The source's length and what else tells it from a later one.
    pub source: Identity,
    /// Its exact length in bytes.
    pub bytes: u64,
    /// What is written.
    pub content: Content,
}

/// What a conversion will do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The source.
    pub source: PathBuf,
    /// Whether the source is a single file.
    pub single_file: bool,
    /// The dtype to cast to.
    pub to: Float,
    /// The patterns of tensors to leave as they are.
    pub keep: Vec<String>,
    /// Whether the built-in keep list held.
    pub auto_keep: bool,
    /// The files, in the order of publication: weights, other files, indexes, configs, and last
    /// the config (or index) at the root.
    pub files: Vec<PlannedFile>,
    /// What the user should know, grouped.
    pub warnings: Vec<String>,
}

impl Plan {
    /// Plans the conversion of a checkpoint.
    ///
    /// # Errors
    /// When the checkpoint is quantised, or a pattern is invalid or matches nothing.
    pub fn new(checkpoint: &Checkpoint, options: &Options) -> Result<Plan, Error> {
        if let Some((path, method)) = &checkpoint.quantised {
            return Err(Error::Quantised { path: path.clone(), method: method.clone() });
        }
        let to = options.to;
        let chooser = Chooser::new(checkpoint, options)?;
        let mut sources: Vec<&SourceFile> = checkpoint.files.iter().collect();
        sources.sort_by_key(|file| publication_rank(file));
        let mut files: Vec<PlannedFile> = Vec::with_capacity(sources.len());
        // They come before what describes them.
        for (file, shard) in checkpoint.shards() {
            files.push(PlannedFile::new(file, chooser.shard(file, shard)?));
        }
        // Made once, because there may be many indexes, and only where there is one.
        let sizes = LazyCell::new(|| tensor_sizes(&files));
        let mut others = Vec::new();
        for file in sources {
            let content = match &file.kind {
                Kind::Shard(_) | Kind::OtherWeights => continue,
                Kind::Index(index) => {
                    Content::Text(index.updated(total_size(file, index, &sizes), to))
                }
                Kind::Config(config) => Content::Text(config.with_dtype(to)),
                Kind::Plain => Content::Copy,
            };
            others.push(PlannedFile::new(file, content));
        }
        files.append(&mut others);
        let mut plan = Plan {
            source: checkpoint.root.clone(),
            single_file: checkpoint.single_file,
            to,
            keep: options.keep.clone(),
            auto_keep: options.auto_keep,
            files,
            warnings: Vec::new(),
        };
        plan.warnings = plan.collect_warnings(checkpoint);
        Ok(plan)
    }

    /// Every tensor with the path of its file, in the order of the files.
    pub fn tensors(&self) -> impl Iterator<Item = (&Path, &PlannedTensor)> {
        self.files
            .iter()
            .flat_map(|file| file.tensors().iter().map(|tensor| (file.path.as_path(), tensor)))
    }

    /// Bytes the conversion reads.
    pub fn bytes_read(&self) -> u64 {
        self.files.iter().map(|file| file.source.bytes).sum()
    }

    /// Bytes the conversion writes, the report aside.
    pub fn bytes_written(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    fn collect_warnings(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let mut warnings = Vec::new();
        let other = checkpoint.files.iter().filter(|file| matches!(file.kind, Kind::OtherWeights));
        if let Some(files) = list(other.map(|file| file.path.display().to_string())) {
            warnings.push(format!(
                "left behind, because recast converts only safetensors and these hold the old \
                 dtype: {files}"
            ));
        }
        let doubles = self.tensors().filter(|(_, tensor)| tensor.source.dtype.name() == "F64");
        if let Some(tensors) = list(doubles.map(|(_, tensor)| tensor.source.name.clone())) {
            warnings.push(format!("carried in fp64, which recast does not cast: {tensors}"));
        }
        let misnamed = self.files.iter().filter(|file| {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy();
            file.tensors().iter().any(|tensor| tensor.action != Action::Copy)
                && name
                    .split(['.', '-', '_'])
                    .any(|part| Float::parse(part).is_some_and(|float| float != self.to))
        });
        if let Some(files) = list(misnamed.map(|file| file.path.display().to_string())) {
            warnings.push(format!(
                "named after another dtype than the {} they now hold (names are kept): {files}",
                self.to
            ));
        }
        if self.tensors().all(|(_, tensor)| tensor.action == Action::Copy) {
            warnings.push(format!("no tensor needed a cast: all floating tensors are {}", self.to));
        }
        warnings
    }
}

impl PlannedFile {
    fn new(file: &SourceFile, content: Content) -> PlannedFile {
        let bytes = match &content {
            Content::Shard { header, tensors } => {
                header.len() as u64 + tensors.iter().map(|tensor| tensor.bytes).sum::<u64>()
            }
            Content::Text(text) => text.len() as u64,
            Content::Copy => file.identity.bytes,
        };
        PlannedFile {
            path: file.path.clone(),
            location: file.location.clone(),
            source: file.identity.clone(),
            bytes,
            content,
        }
    }

    /// The tensors of a shard; none for any other file.
    pub fn tensors(&self) -> &[PlannedTensor] {
        match &self.content {
            Content::Shard { tensors, .. } => tensors,
            _ => &[],
        }
    }
}

/// Decides what becomes of each tensor.
struct Chooser {
    to: Float,
    patterns: Vec<Pattern>,
    built_in: Vec<keep::Entry>,
}

impl Chooser {
    fn new(checkpoint: &Checkpoint, options: &Options) -> Result<Chooser, Error> {
        let patterns =
            options.keep.iter().map(|text| Pattern::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let names = || {
            let tensors = checkpoint.shards().flat_map(|(_, shard)| &shard.tensors);
            tensors.map(|tensor| tensor.name.as_str())
        };
        for pattern in &patterns {
            if !names().any(|name| pattern.matches(name)) {
                return Err(pattern.unmatched(names()));
            }
        }
        let built_in = if options.auto_keep {
            keep::built_in(options.to, &checkpoint.model_types)
        } else {
            Vec::new()
        };
        Ok(Chooser { to: options.to, patterns, built_in })
    }

    fn decide(&self, tensor: &Tensor) -> (Action, String) {
        let Some(from) = tensor.dtype.float() else {
            return (Action::Copy, format!("{} is not cast", tensor.dtype));
        };
        if from == self.to {
            return (Action::Copy, format!("already {}", self.to));
        }
        if let Some(pattern) = self.patterns.iter().find(|pattern| pattern.matches(&tensor.name)) {
            return (Action::Keep, format!("--keep {}", pattern.text()));
        }
        if let Some(entry) = self.built_in.iter().find(|entry| entry.matches(&tensor.name)) {
            return (Action::Keep, entry.reason.clone());
        }
        (Action::Cast, format!("{from} to {}", self.to))
    }

    fn shard(&self, file: &SourceFile, shard: &Shard) -> Result<Content, Error> {
        let mut tensors: Vec<PlannedTensor> = shard
            .tensors
            .iter()
            .map(|tensor| {
                let (action, reason) = self.decide(tensor);
                let (dtype, bytes) = match action {
                    Action::Cast => (self.to.dtype(), tensor.elements() * self.to.bytes() as u64),
                    Action::Copy | Action::Keep => (tensor.dtype.clone(), tensor.bytes),
                };
                PlannedTensor { source: tensor.clone(), action, reason, dtype, start: 0, bytes }
            })
            .collect();
        // The official writer's order, so that the file is byte-identical to one it writes.
        tensors.sort_by(|left, right| {
            right.dtype.cmp(&left.dtype).then_with(|| left.source.name.cmp(&right.source.name))
        });
        let metadata = with_format(shard.metadata.as_deref());
        let header = Shard::header(
            &metadata,
            tensors.iter().map(|tensor| {
                let Tensor { name, shape, .. } = &tensor.source;
                (name.as_str(), &tensor.dtype, shape.as_slice(), tensor.bytes)
            }),
        );
        let mut end = header.len() as u64;
        let length = end - 8;
        if length > MAX_HEADER {
            let reason = format!(
                "the header of its result would be {length} bytes long, over the format's limit \
                 of {MAX_HEADER}"
            );
            return Err(Error::Header { path: file.location.clone(), reason });
        }
        for tensor in &mut tensors {
            tensor.start = end;
            end += tensor.bytes;
        }
        Ok(Content::Shard { header, tensors })
    }
}

/// transformers 4 refuses a file whose metadata lacks `format`, so it is added where missing.
fn with_format(metadata: Option<&[(String, String)]>) -> Vec<(String, String)> {
    let mut metadata = metadata.unwrap_or_default().to_vec();
    if !metadata.iter().any(|(key, _)| key == "format") {
        metadata.push(("format".to_owned(), "pt".to_owned()));
    }
    metadata
}

/// The bytes of the tensors of each planned shard, by its path.
fn tensor_sizes(shards: &[PlannedFile]) -> HashMap<&Path, HashMap<&str, u64>> {
    let sized = shards.iter().map(|shard| {
        let tensors = shard.tensors().iter();
        let sizes = tensors.map(|tensor| (tensor.source.name.as_str(), tensor.bytes));
        (shard.path.as_path(), sizes.collect())
    });
    sized.collect()
}

/// The tensor bytes an index's shards hold, which is what `total_size` means.
fn total_size(file: &SourceFile, index: &Index, sizes: &HashMap<&Path, HashMap<&str, u64>>) -> u64 {
    let bytes = |(tensor, shard): &(String, String)| {
        sizes[&*file.path.with_file_name(shard)][tensor.as_str()]
    };
    index.weight_map.iter().map(bytes).sum()
}

/// Files that make a directory a model are published after what they describe, the root's last.
fn publication_rank(file: &SourceFile) -> u8 {
    let at_root = file.path.components().count() == 1;
    if file.path == Path::new(PIPELINE) {
        return 6;
    }
    match (&file.kind, at_root) {
        (Kind::Shard(_), _) => 0,
        (Kind::Plain | Kind::OtherWeights, _) => 1,
        (Kind::Index(_), false) => 2,
        (Kind::Config(_), false) => 3,
        (Kind::Index(_), true) => 4,
        (Kind::Config(_), true) => 5,
    }
}

/// The first of some names and how many more there are; nothing when there is none.
fn list(mut names: impl Iterator<Item = String>) -> Option<String> {
    let first: Vec<String> = names.by_ref().take(LISTED).collect();
    let text = first.join(", ");
    match names.count() {
        0 => (!first.is_empty()).then_some(text),
        more => Some(format!("{text} and {more} more")),
    }
}

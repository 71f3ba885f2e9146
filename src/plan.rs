//! The plan: for every tensor whether it is cast and why, for every file its exact bytes.
//! Pure: it looks at nothing but the opened checkpoint and the options.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::config::Config;
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is cast.
    Cast {
        /// From this dtype to the plan's.
        from: Float,
    },
    /// There is nothing to cast.
    Copy,
    /// It could be cast, but is left as it is.
    Keep,
}

impl Action {
    /// Whether the tensor's values change.
    pub fn is_cast(&self) -> bool {
        matches!(self, Action::Cast { .. })
    }

    /// Whether the audit looks at it: it is cast, or could have been.
    pub fn is_audited(&self) -> bool {
        !matches!(self, Action::Copy)
    }
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
        let shards: HashMap<&Path, PlannedFile> = checkpoint
            .shards()
            .map(|(file, shard)| Ok((file.path.as_path(), chooser.shard(file, shard)?)))
            .collect::<Result<_, Error>>()?;
        let mut files = Vec::with_capacity(checkpoint.files.len());
        for file in &checkpoint.files {
            let text = match &file.kind {
                Kind::OtherWeights => continue,
                Kind::Shard(_) => {
                    files.push(shards[file.path.as_path()].clone());
                    continue;
                }
                Kind::Plain => None,
                Kind::Config(config) => Some(Config::with_dtype(config, to)),
                Kind::Index(index) => Some(index.updated(total_size(file, index, &shards), to)),
            };
            files.push(PlannedFile {
                path: file.path.clone(),
                location: file.location.clone(),
                source: file.identity.clone(),
                bytes: text.as_ref().map_or(file.identity.bytes, |text| text.len() as u64),
                content: text.map_or(Content::Copy, Content::Text),
            });
        }
        let rank: HashMap<&Path, u8> = checkpoint
            .files
            .iter()
            .map(|file| (file.path.as_path(), publication_rank(file)))
            .collect();
        files.sort_by_key(|file| rank[file.path.as_path()]);
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
        let other: Vec<String> = checkpoint
            .files
            .iter()
            .filter(|file| matches!(file.kind, Kind::OtherWeights))
            .map(|file| file.path.display().to_string())
            .collect();
        if !other.is_empty() {
            warnings.push(format!(
                "left behind, because recast converts only safetensors and these hold the old \
                 dtype: {}",
                list(&other)
            ));
        }
        let doubles: Vec<String> = self
            .tensors()
            .filter(|(_, tensor)| tensor.source.dtype.name() == "F64")
            .map(|(_, tensor)| tensor.source.name.clone())
            .collect();
        if !doubles.is_empty() {
            warnings
                .push(format!("carried in fp64, which recast does not cast: {}", list(&doubles)));
        }
        let misnamed: Vec<String> = self
            .files
            .iter()
            .filter(|file| file.tensors().iter().any(|tensor| tensor.action != Action::Copy))
            .filter(|file| {
                let name = file.path.file_name().unwrap_or_default().to_string_lossy();
                name.split(['.', '-', '_'])
                    .any(|part| Float::parse(part).is_some_and(|float| float != self.to))
            })
            .map(|file| file.path.display().to_string())
            .collect();
        if !misnamed.is_empty() {
            warnings.push(format!(
                "named after another dtype than the {} they now hold (names are kept): {}",
                self.to,
                list(&misnamed)
            ));
        }
        if self.tensors().all(|(_, tensor)| tensor.action == Action::Copy) {
            warnings.push(format!("no tensor needed a cast: all floating tensors are {}", self.to));
        }
        warnings
    }
}

impl PlannedFile {
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
        (Action::Cast { from }, format!("{from} to {}", self.to))
    }

    fn shard(&self, file: &SourceFile, shard: &Shard) -> Result<PlannedFile, Error> {
        let mut tensors: Vec<PlannedTensor> = shard
            .tensors
            .iter()
            .map(|tensor| {
                let (action, reason) = self.decide(tensor);
                let (dtype, bytes) = match action {
                    Action::Cast { .. } => {
                        (self.to.dtype(), tensor.elements() * self.to.bytes() as u64)
                    }
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
            Some(&metadata),
            tensors.iter().map(|tensor| {
                let Tensor { name, shape, .. } = &tensor.source;
                (name.as_str(), &tensor.dtype, shape.as_slice(), tensor.bytes)
            }),
        );
        let mut end = header.len() as u64;
        if end - 8 > MAX_HEADER {
            let reason = format!(
                "the header of its result would be {} bytes long, over the format's limit of \
                 {MAX_HEADER}",
                end - 8
            );
            return Err(Error::Header { path: file.location.clone(), reason });
        }
        for tensor in &mut tensors {
            tensor.start = end;
            end += tensor.bytes;
        }
        Ok(PlannedFile {
            path: file.path.clone(),
            location: file.location.clone(),
            source: file.identity.clone(),
            bytes: end,
            content: Content::Shard { header, tensors },
        })
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

/// The tensor bytes an index's shards hold, which is what `total_size` means.
fn total_size(file: &SourceFile, index: &Index, shards: &HashMap<&Path, PlannedFile>) -> u64 {
    let mut by_shard: HashMap<&str, HashMap<&str, u64>> = HashMap::new();
    for (_, shard) in &index.weight_map {
        by_shard.entry(shard).or_insert_with(|| {
            let planned = &shards[file.path.with_file_name(shard).as_path()];
            let sizes = planned.tensors().iter();
            sizes.map(|tensor| (tensor.source.name.as_str(), tensor.bytes)).collect()
        });
    }
    index.weight_map.iter().map(|(tensor, shard)| by_shard[shard.as_str()][tensor.as_str()]).sum()
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

fn list(names: &[String]) -> String {
    let mut text = names[..names.len().min(LISTED)].join(", ");
    if names.len() > LISTED {
        text.push_str(&format!(" and {} more", names.len() - LISTED));
    }
    text
}

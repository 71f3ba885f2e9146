//! The plan: for every tensor whether it is cast and why, for every file its recipe and so its
//! exact bytes. Pure: it looks at nothing but the opened checkpoint and the options.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod tensors;

use crate::cast::Overflow;
use crate::checkpoint::{Checkpoint, Kind, SourceFile};
use crate::checksum::Digest;
use crate::dtype::{Dtype, Float};
use crate::error::Error;
use crate::format::index::Index;
use crate::format::safetensors::{Shard, Tensor};
use crate::place::Place;
use crate::recipe::{self, Extent, Recipe, Span};
use crate::shown::Shown;
use tensors::Chooser;

/// The file that makes a directory of several models a diffusers pipeline.
pub const PIPELINE: &str = "model_index.json";

/// How many names a warning lists before it counts the rest.
const LISTED: usize = 4;

#[derive(Clone, Debug)]
pub struct Options {
    pub to: Float,
    pub keep: Vec<String>,
    /// Whether the built-in list of tensors that loaders need in fp32 holds.
    pub auto_keep: bool,
    /// What becomes of finite values that the target cannot hold.
    pub overflow: Overflow,
}

impl Options {
    /// To that dtype, and nothing else asked for.
    pub fn to(to: Float) -> Options {
        Options { to, keep: Vec::new(), auto_keep: true, overflow: Overflow::Infinity }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Cast,
    /// There is nothing to cast.
    Copy,
    /// It could be cast, but is left as it is.
    Keep,
}

/// What becomes of a tensor of a shard. Its bytes are those of the span with its position in
/// [`Content::Shard`] and one more, which is the header's.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    pub tensor: usize,
    pub action: Action,
    pub reason: Arc<str>,
    pub dtype: Dtype,
    pub bytes: u64,
}

/// What a file of the result is.
#[derive(Clone, Debug)]
pub enum Content {
    /// A header and the tensors that follow it, in order.
    Shard {
        shard: Arc<Shard>,
        tensors: Vec<PlannedTensor>,
    },
    /// A text with other dtypes or sizes.
    Text,
    Copy,
}

#[derive(Clone, Debug)]
pub struct PlannedFile {
    pub path: PathBuf,
    pub executable: bool,
    pub bytes: u64,
    pub content: Content,
    /// How it is made. Its first source is the file it is the result of.
    pub recipe: Recipe,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub source: PathBuf,
    pub single_file: bool,
    pub place: Arc<dyn Place>,
    pub options: Options,
    /// The files, in the order of publication: weights, other files, indexes, configs, and last
    /// the config (or index) at the root.
    pub files: Vec<PlannedFile>,
    pub warnings: Vec<String>,
    /// The digest of all recipes, but for what becomes of values that overflow.
    recipes: Digest,
}

impl Plan {
    pub fn new(checkpoint: &Checkpoint, options: &Options) -> Result<Plan, Error> {
        if let Some((path, method)) = &checkpoint.quantized {
            return Err(Error::Quantized { path: path.clone(), method: method.clone() });
        }
        let mut options = options.clone();
        options.keep.sort();
        options.keep.dedup();
        let (to, overflow) = (options.to, options.overflow);
        let chooser = Chooser::new(checkpoint, &options)?;
        let mut sources: Vec<&SourceFile> = checkpoint.files.iter().collect();
        sources.sort_by_key(|file| publication_rank(file));
        let mut files: Vec<PlannedFile> = Vec::with_capacity(sources.len());
        let add = |files: &mut Vec<PlannedFile>, file: &SourceFile, content, spans: Vec<Span>| {
            let (path, executable) = (file.path().to_owned(), file.executable);
            let recipe = Recipe { sources: vec![file.source.clone()], spans, overflow };
            let bytes = recipe.bytes();
            files.push(PlannedFile { path, executable, bytes, content, recipe });
        };
        // They come before what describes them.
        for (file, shard) in checkpoint.shards() {
            let (content, spans) = chooser.shard(file, shard)?;
            add(&mut files, file, content, spans);
        }
        // Made once, because there may be many indexes, and only where there is one.
        let sizes = LazyCell::new(|| tensor_sizes(&files));
        let mut others = Vec::new();
        for file in sources {
            let text = match &file.kind {
                Kind::Shard(_) | Kind::OtherWeights => continue,
                Kind::Index(index) => index.updated(total_size(file, index, &sizes), to),
                Kind::Config(config) => config.with_dtype(to),
                Kind::Plain => {
                    let extent = Extent { source: 0, start: 0, bytes: file.source.bytes };
                    add(&mut others, file, Content::Copy, vec![Span::Copy(extent)]);
                    continue;
                }
            };
            add(&mut others, file, Content::Text, vec![Span::Literal(text.into_bytes())]);
        }
        files.append(&mut others);
        let hashed = files.iter().map(|file| (file.path.as_path(), file.executable, &file.recipe));
        let recipes = recipe::hash(hashed);
        let mut plan = Plan {
            source: checkpoint.root.clone(),
            single_file: checkpoint.single_file,
            place: Arc::clone(&checkpoint.place),
            options,
            files,
            warnings: Vec::new(),
            recipes,
        };
        if !plan.can_overflow() {
            plan.options.overflow = Overflow::Infinity;
            plan.files.iter_mut().for_each(|file| file.recipe.overflow = Overflow::Infinity);
        }
        plan.warnings = plan.collect_warnings(checkpoint);
        Ok(plan)
    }

    /// The name of carrying the plan out: the same for the same bytes, whatever the options were
    /// called, and wherever and when it is done. With that policy for values that overflow.
    pub fn run(&self, overflow: Overflow) -> Digest {
        match overflow {
            Overflow::Infinity => self.recipes,
            Overflow::Saturate => Digest::of_blocks(&[self.recipes, Digest(1)]),
        }
    }

    /// Whether finite values can become infinite.
    fn can_overflow(&self) -> bool {
        self.files.iter().any(|file| file.recipe.spans.iter().any(Span::can_overflow))
    }

    /// Every tensor with its file, in the order of the files.
    pub fn tensors(&self) -> impl Iterator<Item = (&PlannedFile, &Tensor, &PlannedTensor)> {
        self.files
            .iter()
            .flat_map(|file| file.tensors().map(move |(it, planned)| (file, it, planned)))
    }

    pub fn bytes_read(&self) -> u64 {
        self.files.iter().map(PlannedFile::source_bytes).sum()
    }

    /// Bytes the conversion writes, the report aside.
    pub fn bytes_written(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    fn collect_warnings(&self, checkpoint: &Checkpoint) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(snapshot) = &checkpoint.snapshot {
            warnings
                .push(format!("converting one snapshot of this Hub cache repository: {snapshot}"));
        }
        let other = checkpoint.files.iter().filter(|file| matches!(file.kind, Kind::OtherWeights));
        if let Some(files) = list(other.map(|file| file.path().shown())) {
            warnings.push(format!(
                "left behind, because recast converts only safetensors and these hold the old \
                 dtype: {files}"
            ));
        }
        let doubles = self.tensors().filter(|(_, tensor, _)| tensor.dtype.name() == "F64");
        if let Some(tensors) = list(doubles.map(|(_, tensor, _)| tensor.name.shown())) {
            warnings.push(format!("carried in fp64, which recast does not cast: {tensors}"));
        }
        let to = self.options.to;
        let misnamed = self.files.iter().filter(|file| {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy();
            file.tensors().any(|(_, planned)| planned.action != Action::Copy)
                && name
                    .split(['.', '-', '_'])
                    .any(|part| Float::parse(part).is_some_and(|float| float != to))
        });
        if let Some(files) = list(misnamed.map(|file| file.path.shown())) {
            warnings.push(format!(
                "named after another dtype than the {to} they now hold (names are kept): {files}"
            ));
        }
        if self.tensors().all(|(_, _, planned)| planned.action == Action::Copy) {
            warnings.push(format!("no tensor needed a cast: all floating tensors are {to}"));
        }
        warnings
    }
}

impl PlannedFile {
    /// The tensors of a shard, as they are and what becomes of them; none for any other file.
    pub fn tensors(&self) -> impl Iterator<Item = (&Tensor, &PlannedTensor)> {
        let (shard, tensors) = match &self.content {
            Content::Shard { shard, tensors } => (Some(shard), tensors.as_slice()),
            _ => (None, [].as_slice()),
        };
        let shard = shard.into_iter().flat_map(std::iter::repeat);
        shard.zip(tensors).map(|(shard, planned)| (&shard.tensors[planned.tensor], planned))
    }

    pub fn source_bytes(&self) -> u64 {
        self.recipe.sources[0].bytes
    }
}

/// The bytes of the tensors of each planned shard, by its path.
fn tensor_sizes(shards: &[PlannedFile]) -> HashMap<&Path, HashMap<&str, u64>> {
    let sized = shards.iter().map(|shard| {
        let sizes = shard.tensors().map(|(tensor, planned)| (tensor.name.as_str(), planned.bytes));
        (shard.path.as_path(), sizes.collect())
    });
    sized.collect()
}

/// The tensor bytes an index's shards hold, which is what `total_size` means.
fn total_size(file: &SourceFile, index: &Index, sizes: &HashMap<&Path, HashMap<&str, u64>>) -> u64 {
    let bytes = |(tensor, shard): &(String, String)| {
        sizes[&*file.path().with_file_name(shard)][tensor.as_str()]
    };
    index.weight_map.iter().map(bytes).sum()
}

/// Files that make a directory a model are published after what they describe, the root's last.
fn publication_rank(file: &SourceFile) -> u8 {
    let at_root = file.path().components().count() == 1;
    if file.path() == Path::new(PIPELINE) {
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

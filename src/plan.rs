//! The plan: for every tensor whether it is cast and why, for every file its recipe and so its
//! exact bytes. Pure: it looks at nothing but the opened checkpoint and the options.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod dequantized;
mod part;
mod planned;
mod quantized;
mod results;
mod tensors;
mod warnings;

use crate::cast::Overflow;
use crate::checkpoint::{Checkpoint, Kind, SourceFile};
use crate::checksum::Digest;
use crate::dtype::Castable;
use crate::error::Error;
use crate::format::config::Stated;
use crate::format::listing::PIPELINE;
use crate::format::safetensors::{Shard, Tensor};
use crate::place::Place;
use crate::recipe::{self, Extent, Recipe, Span};
use planned::Sources;
pub use planned::{Action, Content, PlannedTensor, Role};
pub use quantized::Parts;
use results::{check_index, results, total_size};
use tensors::Decisions;
pub use tensors::Options;
pub use warnings::Warning;

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
    /// The key of the state dict in pickles, where it was given.
    pub key: Option<String>,
    pub place: Arc<dyn Place>,
    pub options: Options,
    /// The files, in the order of publication: weights, other files, indexes, configs, and last
    /// the config (or index) at the root.
    pub files: Vec<PlannedFile>,
    /// The shards that loaders do not take unless they are asked to.
    pub not_loaded: HashSet<PathBuf>,
    pub warnings: Vec<Warning>,
    /// The digest of all recipes, but for what becomes of values that overflow.
    recipes: Digest,
}

impl Plan {
    pub fn new(checkpoint: &Checkpoint, options: &Options) -> Result<Plan, Error> {
        let mut options = options.clone();
        let (to, overflow) = (options.to, options.overflow);
        // Where nothing is cast, what is quantized and what is said of it stays as it is.
        let skip = options.skip_quantized || to.is_none();
        let parts = Parts::new(checkpoint, options.unscaled_fp8, skip);
        let mut left_over = parts.examine(skip)?;
        left_over.retain(|_| to.is_some());
        // Where nothing would have been refused or dequantized, they make no difference.
        options.skip_quantized &= parts.described().is_some() && to.is_some();
        options.unscaled_fp8 &= parts.has_unscaled() && to.is_some();
        options.keep.sort();
        options.keep.dedup();
        let decisions = Decisions::new(checkpoint, &parts, &options)?;
        options.auto_keep = options.auto_keep || !decisions.keeps_any(checkpoint);
        let mut sources: Vec<&SourceFile> = checkpoint.files.iter().collect();
        sources.sort_by_key(|file| publication_rank(file));
        let mut files: Vec<PlannedFile> = Vec::with_capacity(sources.len());
        let add = |files: &mut Vec<PlannedFile>, file: &SourceFile, content, spans: Vec<Span>| {
            let (path, executable) = (file.path().to_owned(), file.executable);
            let recipe = Recipe { sources: vec![file.source.clone()], spans, overflow };
            let bytes = recipe.bytes();
            files.push(PlannedFile { path, executable, bytes, content, recipe });
        };
        let shards: Vec<(&SourceFile, &Arc<Shard>)> = checkpoint.shards().collect();
        // They come before what describes them.
        for (number, (file, shard)) in shards.iter().enumerate() {
            let role = |tensor| Role::of(checkpoint, &parts, (number, tensor));
            let mut read = Sources::of(number, &shards);
            let (content, spans) = decisions.shard(file, shard, &role, &left_over, &mut read)?;
            add(&mut files, file, content, spans);
            let others = read.used[1..].iter().map(|other| shards[*other].0.source.clone());
            files.last_mut().expect("just added").recipe.sources.extend(others);
        }
        // Made once, because there may be many indexes, and only where there is one.
        let results = LazyCell::new(|| results(&files));
        let stated = Stated { to, with_fp8: files.iter().any(PlannedFile::casts_fp8) };
        let mut others = Vec::new();
        for file in sources {
            let text = match &file.kind {
                Kind::Shard(_) | Kind::OtherWeights | Kind::StaleIndex => continue,
                Kind::Index(index) => {
                    check_index(file, index, &results)?;
                    let total_size = total_size(file, index, &results);
                    index.updated(total_size, stated, &|tensor, shard| {
                        let of = results.get(&*file.path().with_file_name(shard))?;
                        match of.get(tensor) {
                            Some(result) => result.map(|(source, planned)| planned.name(source)),
                            // Loaders make it of another one.
                            None => Some(tensor),
                        }
                    })
                }
                Kind::Config(config) | Kind::Settings(config) => {
                    config.updated(stated, left_over.contains(file.path()))
                }
                Kind::Sidecar(_) if left_over.contains(file.path()) => continue,
                Kind::Plain | Kind::Sidecar(_) => {
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
            key: checkpoint.key.clone(),
            place: Arc::clone(&checkpoint.place),
            options,
            files,
            not_loaded: checkpoint.not_loaded().map(Path::to_owned).collect(),
            warnings: Vec::new(),
            recipes,
        };
        if !plan.can_overflow() {
            plan.options.overflow = Overflow::Infinity;
            plan.files.iter_mut().for_each(|file| file.recipe.overflow = Overflow::Infinity);
        }
        plan.warnings = plan.collect_warnings(checkpoint, &parts, &left_over);
        if plan.options.auto_keep && decisions.is_nameless() && plan.narrows_wide() {
            plan.warnings.push(Warning::Nameless);
        }
        Ok(plan)
    }

    /// The name of carrying the plan out: the same for the same bytes, whatever the options were
    /// called, and wherever and when it is done. With that policy for values that overflow, and with
    /// or without a file of sums.
    pub fn run(&self, overflow: Overflow, sums: bool) -> Digest {
        let run = match overflow {
            Overflow::Infinity => self.recipes,
            Overflow::Saturate => Digest::of_blocks(&[self.recipes, Digest(1)]),
        };
        if sums { Digest::of_blocks(&[run, Digest(2)]) } else { run }
    }

    fn can_overflow(&self) -> bool {
        self.files.iter().any(|file| file.recipe.spans.iter().any(Span::can_overflow))
    }

    /// Every tensor with its file, in the order of the files.
    pub fn tensors(&self) -> impl Iterator<Item = (&PlannedFile, &Tensor, &PlannedTensor)> {
        self.files
            .iter()
            .flat_map(|file| file.tensors().map(move |(it, planned)| (file, it, planned)))
    }

    /// Every tensor of the source that is not in the result, with its file.
    pub fn dropped(&self) -> impl Iterator<Item = (&PlannedFile, &Tensor)> {
        self.files.iter().flat_map(|file| file.dropped().map(move |tensor| (file, tensor)))
    }

    /// What the pickles of the source hold that is no tensor of the model.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        let shards = self.files.iter().filter_map(|file| match &file.content {
            Content::Shard { shard, .. } => shard.pickled.as_ref(),
            _ => None,
        });
        shards.flat_map(|pickled| &pickled.left_out).map(String::as_str)
    }

    /// The values of all tensors of the result.
    pub fn parameters(&self) -> u64 {
        self.tensors().map(|(_, tensor, planned)| planned.elements(tensor)).sum()
    }

    pub fn bytes_read(&self) -> u64 {
        self.files.iter().map(PlannedFile::source_bytes).sum()
    }

    /// Bytes the conversion writes, the report aside.
    pub fn bytes_written(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

impl PlannedFile {
    /// The tensors of a shard, as they are and what becomes of them; none for any other file.
    pub fn tensors(&self) -> impl Iterator<Item = (&Tensor, &PlannedTensor)> {
        let (shard, tensors) = match &self.content {
            Content::Shard { shard, tensors, .. } => (Some(shard), tensors.as_slice()),
            _ => (None, [].as_slice()),
        };
        let shard = shard.into_iter().flat_map(std::iter::repeat);
        shard.zip(tensors).map(|(shard, planned)| (&shard.tensors[planned.tensor], planned))
    }

    /// The tensors of the source's shard that are the memory of others, each with that.
    pub fn tied(&self) -> impl Iterator<Item = (&str, &str)> {
        let shard = match &self.content {
            Content::Shard { shard, .. } => Some(shard),
            _ => None,
        };
        shard.into_iter().flat_map(|shard| shard.tied())
    }

    /// The tensors of the source's shard that are not in the result.
    pub fn dropped(&self) -> impl Iterator<Item = &Tensor> {
        let (shard, dropped) = match &self.content {
            Content::Shard { shard, dropped, .. } => (Some(shard), dropped.as_slice()),
            _ => (None, [].as_slice()),
        };
        let shard = shard.into_iter().flat_map(std::iter::repeat);
        shard.zip(dropped).map(|(shard, tensor)| &shard.tensors[*tensor])
    }

    /// Whether an 8-bit float is cast or dequantized.
    fn casts_fp8(&self) -> bool {
        self.tensors().any(|(tensor, planned)| {
            let from = tensor.dtype.castable();
            planned.action.is_cast() && from.is_some_and(Castable::is_fp8)
        })
    }

    pub fn source_bytes(&self) -> u64 {
        self.recipe.sources[0].bytes
    }
}

/// Files that make a directory a model are published after what they describe, the root's last.
fn publication_rank(file: &SourceFile) -> u8 {
    let at_root = file.path().components().count() == 1;
    if file.path() == Path::new(PIPELINE) {
        return 6;
    }
    match (&file.kind, at_root) {
        (Kind::Shard(_), _) => 0,
        (
            Kind::Plain
            | Kind::Sidecar(_)
            | Kind::Settings(_)
            | Kind::OtherWeights
            | Kind::StaleIndex,
            _,
        ) => 1,
        (Kind::Index(_), false) => 2,
        (Kind::Config(_), false) => 3,
        (Kind::Index(_), true) => 4,
        (Kind::Config(_), true) => 5,
    }
}

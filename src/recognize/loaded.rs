//! Which shards of a directory a loader takes when it is given the directory: copies, variants and
//! other models in folders below are there too, but loaded only when somebody asks for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// What the files of a checkpoint say of each other.
#[derive(Default)]
pub struct Listing<'a> {
    pub shards: Vec<&'a Path>,
    /// Each index, and the shards it names.
    pub indexes: HashMap<&'a Path, BTreeSet<PathBuf>>,
    /// The folder of each model that lists its parts (the components of a diffusers pipeline, the
    /// modules of sentence-transformers), and the folders of those.
    pub parts: HashMap<PathBuf, BTreeSet<PathBuf>>,
    /// The folder of each config that names its weights, and the file that it names.
    pub named: HashMap<PathBuf, PathBuf>,
}

/// How a loader calls the file with all weights; the index is called after it.
struct Name {
    file: &'static str,
    /// Whether it looks for the index first.
    index_first: bool,
}

const TRANSFORMERS: &str = "model.safetensors";

/// transformers, diffusers and peft: `_get_resolved_checkpoint_files` in transformers 5.24,
/// `ModelMixin.from_pretrained` in diffusers 0.42.
const NAMES: [Name; 3] = [
    Name { file: TRANSFORMERS, index_first: false },
    Name { file: "diffusion_pytorch_model.safetensors", index_first: true },
    Name { file: "adapter_model.safetensors", index_first: false },
];

impl Listing<'_> {
    /// The shards that are not loaded, as positions in `shards`.
    pub fn not_loaded(&self) -> BTreeSet<usize> {
        let files = self.shards.iter().chain(self.indexes.keys());
        let folders: BTreeSet<&Path> = files.map(|file| folder(file)).collect();
        // Of each folder with files that a loader looks for, which those are.
        let taken: HashMap<&Path, BTreeSet<PathBuf>> =
            folders.into_iter().filter_map(|it| Some((it, self.taken(it)?))).collect();
        // An index may name what a loader would also take that is given the folder it is in.
        let mut takers: HashMap<&Path, Vec<&Path>> = HashMap::new();
        for (folder, shards) in &taken {
            shards.iter().for_each(|shard| takers.entry(shard).or_default().push(folder));
        }
        let is_loaded = |shard: &Path| match takers.get(shard) {
            Some(folders) => folders.iter().any(|folder| self.is_reached(folder, &taken)),
            None => !taken.contains_key(folder(shard)) && self.is_reached(folder(shard), &taken),
        };
        let left = (0..self.shards.len()).filter(|number| !is_loaded(self.shards[*number]));
        // Where nothing is what a loader looks for, all are equal.
        Some(left.collect())
            .filter(|left: &BTreeSet<usize>| left.len() < self.shards.len())
            .unwrap_or_default()
    }

    /// What a loader takes of a folder; nothing where it finds no file that it looks for.
    fn taken(&self, folder: &Path) -> Option<BTreeSet<PathBuf>> {
        let single = |file: PathBuf| self.shards.contains(&&*file).then(|| BTreeSet::from([file]));
        let named = self.named.get(folder);
        let named = named
            .and_then(|file| self.indexes.get(&**file).cloned().or_else(|| single(file.clone())));
        let of = |name: &Name| {
            if name.file == TRANSFORMERS && named.is_some() {
                return named.clone();
            }
            let single = single(folder.join(name.file));
            let index = folder.join(format!("{}.index.json", name.file));
            let index = self.indexes.get(&*index).cloned();
            if name.index_first { index.or(single) } else { single.or(index) }
        };
        NAMES.iter().filter_map(of).reduce(|mut all, more| {
            all.extend(more);
            all
        })
    }

    /// Whether whoever is given the whole directory looks into a folder.
    fn is_reached(&self, folder: &Path, taken: &HashMap<&Path, BTreeSet<PathBuf>>) -> bool {
        folder.ancestors().all(|above| match self.parts.get(above) {
            Some(parts) => {
                let is_part =
                    |part: &PathBuf| folder == part || (part != above && folder.starts_with(part));
                // A part that is not in a folder of its own may have folders that it does not list.
                let is_open = parts.contains(above) && !taken.contains_key(above);
                parts.iter().any(is_part) || is_open
            }
            None => above == folder || !taken.contains_key(above),
        })
    }
}

fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new(""))
}

/// Tensors that loaders make of another one (`_tied_weights_keys` in transformers 5.24), and what
/// they make them of: a save that shares memory has only one of the two.
const TIED: [&str; 8] = [
    "lm_head.weight",
    "proj_out.weight",
    "embed_out.weight",
    "output_projection.weight",
    "embed_tokens.weight",
    "output.weight",
    "decoder.weight",
    "shared.weight",
];
const EMBEDDINGS: [&str; 9] = [
    "embed_tokens.weight",
    "wte.weight",
    "shared.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
    "tokens_embed.weight",
    "embed_in.weight",
    "embeddings.weight",
    "lm_head.weight",
];

/// Whether loaders make a tensor of that name of another one, where a model has not both.
pub fn is_tied(tensor: &str) -> bool {
    TIED.iter().any(|last| ends_in(tensor, last))
}

/// Which of several tensors that are the same memory is written: the one that loaders make the
/// others of has the lowest rank.
pub fn tie_rank(tensor: &str) -> usize {
    match tensor {
        _ if ends_in(tensor, "shared.weight") => 0,
        _ if ends_in(tensor, "embed_tokens.weight") => 2,
        _ if is_tied(tensor) => 3,
        _ => 1,
    }
}

/// Whether there is a tensor that others are made of.
pub fn has_embedding<'a>(mut tensors: impl Iterator<Item = &'a &'a str>) -> bool {
    tensors.any(|tensor| EMBEDDINGS.iter().any(|last| ends_in(tensor, last)))
}

/// Whether the last parts of a name are these.
fn ends_in(name: &str, last: &str) -> bool {
    name.strip_suffix(last).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The first shard of a numbered set that is not there, where any is there: `model-00002-of-00003`.
pub fn missing_number<'a>(shards: impl Iterator<Item = &'a Path>) -> Option<PathBuf> {
    let mut sets: BTreeMap<(PathBuf, String, usize, String), BTreeSet<usize>> = BTreeMap::new();
    for shard in shards {
        let name = shard.file_name()?.to_string_lossy();
        if let Some((stem, number, count, rest)) = numbered(&name) {
            let set = (folder(shard).to_owned(), stem.to_owned(), count, rest.to_owned());
            sets.entry(set).or_default().insert(number);
        }
    }
    sets.into_iter().find_map(|((folder, stem, count, rest), numbers)| {
        // From 1, or, as some tools do, from 0.
        let first = usize::from(!numbers.contains(&0));
        let missing = (first..first + count).find(|number| !numbers.contains(number))?;
        Some(folder.join(format!("{stem}-{missing:05}-of-{count:05}{rest}")))
    })
}

/// The parts of `STEM-NUMBER-of-COUNT.REST`, with five digits each.
fn numbered(name: &str) -> Option<(&str, usize, usize, &str)> {
    let at = name.rfind("-of-")?;
    let (before, after) = (&name[..at], &name[at + 4..]);
    let (count, rest) = after.split_at_checked(5)?;
    let (stem, number) = before.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_numbered = digits(number) && digits(count) && rest.starts_with('.');
    is_numbered.then_some((stem, number.parse().ok()?, count.parse().ok()?, rest))
}

#[cfg(test)]
mod tests;

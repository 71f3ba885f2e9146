//! A checkpoint is a tree of files: shards, the indexes that name them, configs, weights in
//! other formats, and everything else. Opening reads headers and small JSON files, checks them
//! against each other, and touches no tensor data.

pub mod config;
pub mod edit;
pub mod file;
pub mod index;
pub mod json;
pub mod shard;

use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::fs::Identity;
use config::Config;
use file::Reach;
use index::Index;
use shard::Shard;

/// The report recast leaves in a converted checkpoint.
pub const REPORT: &str = "recast.json";

/// What a file of the tree is.
#[derive(Debug)]
pub enum Kind {
    /// A safetensors file.
    Shard(Shard),
    /// An index of shards.
    Index(Index),
    /// A model config.
    Config(Config),
    /// Weights in another format, or their index: the old dtype.
    OtherWeights,
    /// A tokenizer, a readme, code: copied as it is.
    Plain,
}

/// A file of the tree.
#[derive(Debug)]
pub struct SourceFile {
    /// Its path below the root; for a checkpoint of one file, its name.
    pub path: PathBuf,
    /// Where it is on disk.
    pub location: PathBuf,
    /// Its length and what else tells it from a later one, links followed.
    pub identity: Identity,
    /// What it is.
    pub kind: Kind,
}

/// A checkpoint on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// The path that was opened.
    pub root: PathBuf,
    /// Whether that is a single file.
    pub single_file: bool,
    /// The files, sorted by path.
    pub files: Vec<SourceFile>,
    /// The `model_type`s the configs name.
    pub model_types: Vec<String>,
    /// The config that says the checkpoint is quantised, and the method it names.
    pub quantised: Option<(PathBuf, String)>,
}

impl Checkpoint {
    /// Opens the file or directory at `path`.
    ///
    /// # Errors
    /// When it holds no shard, when a header, an index or a config is invalid, or when they
    /// contradict each other.
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::NoSuchPath { path: path.to_owned() },
            _ => Error::io("open", path)(error),
        })?;
        let mut checkpoint = Checkpoint {
            root: path.to_owned(),
            single_file: !metadata.is_dir(),
            files: Vec::new(),
            model_types: Vec::new(),
            quantised: None,
        };
        if checkpoint.single_file {
            checkpoint.open_single(path, metadata)?;
        } else {
            checkpoint.open_directory()?;
        }
        if checkpoint.shards().next().is_none() {
            let mut other = checkpoint.files.iter();
            let other_weights = other.find(|file| matches!(file.kind, Kind::OtherWeights));
            return Err(Error::NoShards {
                path: path.to_owned(),
                other_weights: other_weights.map(|file| file.path.clone()),
            });
        }
        checkpoint.check_indexes()?;
        Ok(checkpoint)
    }

    /// The shards with their files.
    pub fn shards(&self) -> impl Iterator<Item = (&SourceFile, &Shard)> {
        self.files.iter().filter_map(|file| match &file.kind {
            Kind::Shard(shard) => Some((file, shard)),
            _ => None,
        })
    }

    fn open_single(&mut self, path: &Path, metadata: fs::Metadata) -> Result<(), Error> {
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        let file = read_file(name, path.to_owned(), metadata)?;
        self.files.push(file);
        // The config beside a lone shard is not part of the job, but it still knows the model.
        let beside = path.with_file_name("config.json");
        let found = fs::symlink_metadata(&beside).ok().filter(|found| !found.is_dir());
        if let Some(found) = found {
            let reach = Reach::of(path.parent().unwrap_or(path))?;
            reach.check(&beside, found.is_symlink())?;
            let (bytes, _) = file::read(&beside, json::MAX_CONFIG)?;
            self.note(&beside, &Config::parse(&beside, bytes)?);
        }
        Ok(())
    }

    fn note(&mut self, path: &Path, config: &Config) {
        self.model_types.extend_from_slice(&config.model_types);
        if let Some(method) = &config.quantised {
            self.quantised.get_or_insert_with(|| (path.to_owned(), method.clone()));
        }
    }

    fn open_directory(&mut self) -> Result<(), Error> {
        let reach = Reach::of(&self.root)?;
        for (path, is_link) in file::list(&self.root)? {
            if path == Path::new(REPORT) {
                continue;
            }
            let location = self.root.join(&path);
            let metadata = reach.check(&location, is_link)?;
            let file = read_file(path, location, metadata)?;
            if let Kind::Config(config) = &file.kind {
                self.note(&file.location, config);
            }
            self.files.push(file);
        }
        Ok(())
    }

    /// The report of the conversion that made the checkpoint, as it stands there; nothing where
    /// there is none that may be read.
    pub fn report(&self) -> Option<Vec<u8>> {
        let location = self.root.join(REPORT);
        let is_link = fs::symlink_metadata(&location).ok()?.is_symlink();
        Reach::of(&self.root).ok()?.check(&location, is_link).ok()?;
        file::read(&location, json::MAX_INDEX).ok().map(|(bytes, _)| bytes)
    }

    /// Every tensor an index names must be in the shard it names, beside the index.
    fn check_indexes(&self) -> Result<(), Error> {
        // Made once, because there may be many indexes, and only where there is one.
        let shards: LazyCell<HashMap<&Path, HashSet<&str>>, _> = LazyCell::new(|| {
            let named = self.shards().map(|(file, shard)| {
                let names = shard.tensors.iter().map(|tensor| tensor.name.as_str());
                (file.path.as_path(), names.collect())
            });
            named.collect()
        });
        for file in &self.files {
            let Kind::Index(index) = &file.kind else { continue };
            for (tensor, shard) in &index.weight_map {
                let held = shards.get(&*file.path.with_file_name(shard));
                if held.is_some_and(|names| names.contains(tensor.as_str())) {
                    continue;
                }
                let (index, shard, tensor) = (file.location.clone(), shard.clone(), tensor.clone());
                return Err(match held {
                    None => Error::MissingShard { index, shard, tensor },
                    Some(_) => Error::MissingTensor { index, shard, tensor },
                });
            }
        }
        Ok(())
    }
}

/// Reads what recast needs to know of a file: all of a small one, the header of a shard, and of
/// any other no more than what the directory says.
fn read_file(path: PathBuf, location: PathBuf, found: fs::Metadata) -> Result<SourceFile, Error> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (kind, metadata) = if name.ends_with(".safetensors") {
        let (shard, metadata) = Shard::read(&location)?;
        (Kind::Shard(shard), metadata)
    } else if index::is_index(&name) {
        let (bytes, metadata) = file::read(&location, json::MAX_INDEX)?;
        (Kind::Index(Index::parse(&location, bytes)?), metadata)
    } else if name == "config.json" {
        let (bytes, metadata) = file::read(&location, json::MAX_CONFIG)?;
        (Kind::Config(Config::parse(&location, bytes)?), metadata)
    } else if is_other_weights(&name) {
        (Kind::OtherWeights, found)
    } else {
        (Kind::Plain, found)
    };
    Ok(SourceFile { path, location, identity: Identity::of(&metadata), kind })
}

/// Weights that are not safetensors, and the indexes of such weights.
fn is_other_weights(name: &str) -> bool {
    const SUFFIXES: [&str; 9] =
        ["bin", "pth", "pt", "ckpt", "h5", "msgpack", "onnx", "onnx_data", "gguf"];
    let name = name.to_ascii_lowercase();
    SUFFIXES.iter().any(|suffix| match name.strip_suffix(".json") {
        Some(stem) => stem.contains(&format!(".{suffix}.index")),
        None => name.ends_with(&format!(".{suffix}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_in_other_formats_are_told_from_the_rest() {
        for name in ["pytorch_model.bin", "consolidated.00.pth", "tf_model.h5", "a.GGUF"] {
            assert!(is_other_weights(name), "{name}");
        }
        assert!(is_other_weights("pytorch_model.bin.index.json"));
        for name in ["tokenizer.json", "README.md", "merges.txt", "tokenizer.model", "bin"] {
            assert!(!is_other_weights(name), "{name}");
        }
    }
}

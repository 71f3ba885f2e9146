//! A checkpoint is a tree of files: shards, the indexes that name them, configs, weights in
//! other formats, and everything else. Opening reads headers and small JSON files, checks them
//! against each other, and touches no tensor data.

pub mod config;
pub mod edit;
pub mod index;
pub mod shard;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::fs::Identity;
use config::Config;
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
    /// Names of hidden folders, which are not part of the model.
    pub hidden: Vec<PathBuf>,
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
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NoSuchPath { path: path.to_owned() });
            }
            Err(error) => return Err(Error::io("open", path)(error)),
        };
        let mut checkpoint = Checkpoint {
            root: path.to_owned(),
            single_file: !metadata.is_dir(),
            files: Vec::new(),
            hidden: Vec::new(),
            model_types: Vec::new(),
            quantised: None,
        };
        if checkpoint.single_file {
            checkpoint.open_single(path, &metadata)?;
        } else {
            checkpoint.walk(Path::new(""))?;
            checkpoint.files.sort_by(|left, right| left.path.cmp(&right.path));
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

    fn open_single(&mut self, path: &Path, metadata: &fs::Metadata) -> Result<(), Error> {
        let name = path.file_name().map(PathBuf::from).unwrap_or_default();
        let file = self.read_file(name, path.to_owned(), metadata)?;
        self.files.push(file);
        // The config beside a lone shard is not part of the job, but it still knows the model.
        let beside = path.with_file_name("config.json");
        if let Ok(bytes) = fs::read(&beside) {
            let config = Config::parse(&beside, bytes)?;
            self.note(&beside, &config);
        }
        Ok(())
    }

    fn note(&mut self, path: &Path, config: &Config) {
        self.model_types.extend_from_slice(&config.model_types);
        if let Some(method) = &config.quantised {
            self.quantised.get_or_insert_with(|| (path.to_owned(), method.clone()));
        }
    }

    fn walk(&mut self, below: &Path) -> Result<(), Error> {
        let directory = self.root.join(below);
        for entry in fs::read_dir(&directory).map_err(Error::io("list", &directory))? {
            let entry = entry.map_err(Error::io("list", &directory))?;
            let (path, location) = (below.join(entry.file_name()), entry.path());
            let kind = entry.file_type().map_err(Error::io("read", &location))?;
            if kind.is_dir() {
                if entry.file_name().to_string_lossy().starts_with('.') {
                    self.hidden.push(path);
                } else if !(below.as_os_str().is_empty() && entry.file_name() == "lost+found") {
                    self.walk(&path)?;
                }
            } else if path != Path::new(REPORT) {
                let metadata = match fs::metadata(&location) {
                    Err(_) if kind.is_symlink() => {
                        let what = "a link that leads nowhere, as an incomplete download leaves";
                        return Err(Error::NotRegular { path: location, what });
                    }
                    found => found.map_err(Error::io("open", &location))?,
                };
                let file = self.read_file(path, location, &metadata)?;
                if let Kind::Config(config) = &file.kind {
                    self.note(&file.location, config);
                }
                self.files.push(file);
            }
        }
        Ok(())
    }

    fn read_file(
        &self,
        path: PathBuf,
        location: PathBuf,
        metadata: &fs::Metadata,
    ) -> Result<SourceFile, Error> {
        if !metadata.is_file() {
            let what = if metadata.is_dir() {
                "a link to a directory"
            } else {
                "a special file (a pipe, socket or device)"
            };
            return Err(Error::NotRegular { path: location, what });
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let read = || fs::read(&location).map_err(Error::io("read", &location));
        let kind = if name.ends_with(".safetensors") {
            Kind::Shard(Shard::read(&location)?)
        } else if index::is_index(&name) {
            Kind::Index(Index::parse(&location, read()?)?)
        } else if name == "config.json" {
            Kind::Config(Config::parse(&location, read()?)?)
        } else if is_other_weights(&name) {
            Kind::OtherWeights
        } else {
            Kind::Plain
        };
        Ok(SourceFile { path, location, identity: Identity::of(metadata), kind })
    }

    /// Every tensor an index names must be in the shard it names, beside the index.
    fn check_indexes(&self) -> Result<(), Error> {
        let shards: HashMap<&Path, &Shard> =
            self.shards().map(|(file, shard)| (file.path.as_path(), shard)).collect();
        let mut tensors: HashMap<&Path, HashSet<&str>> = HashMap::new();
        for file in &self.files {
            let Kind::Index(index) = &file.kind else { continue };
            for (tensor, name) in &index.weight_map {
                let path = file.path.with_file_name(name);
                let fields = || (file.location.clone(), name.clone(), tensor.clone());
                let Some((path, shard)) = shards.get_key_value(path.as_path()) else {
                    let (index, shard, tensor) = fields();
                    return Err(Error::MissingShard { index, shard, tensor });
                };
                let names = tensors.entry(path).or_insert_with(|| {
                    shard.tensors.iter().map(|tensor| tensor.name.as_str()).collect()
                });
                if !names.contains(tensor.as_str()) {
                    let (index, shard, tensor) = fields();
                    return Err(Error::MissingTensor { index, shard, tensor });
                }
            }
        }
        Ok(())
    }
}

/// Weights that are not safetensors, and the indexes of such weights.
fn is_other_weights(name: &str) -> bool {
    const SUFFIXES: [&str; 9] =
        ["bin", "pth", "pt", "ckpt", "h5", "msgpack", "onnx", "onnx_data", "gguf"];
    let name = name.to_ascii_lowercase();
    SUFFIXES.iter().any(|suffix| {
        name.strip_suffix(".json").map_or_else(
            || name.ends_with(&format!(".{suffix}")),
            |stem| stem.contains(&format!(".{suffix}.index")),
        )
    })
}

/// The text of a small JSON file, checked to be JSON of sane depth, and the same as strict JSON.
fn json_text(path: &Path, bytes: Vec<u8>) -> Result<(String, String), Error> {
    let invalid = |reason: String| Error::Json { path: path.to_owned(), reason };
    let text = String::from_utf8(bytes).map_err(|error| invalid(format!("not UTF-8: {error}")))?;
    let strict = edit::strict(&text);
    serde_json::from_str::<serde_json::Value>(&strict)
        .map_err(|error| invalid(format!("not valid JSON: {error}")))?;
    Ok((text, strict))
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

//! A checkpoint is a tree of files: shards, the indexes that name them, configs, weights in
//! other formats, and everything else. Opening reads headers and small JSON files, checks them
//! against each other, and touches no tensor data.

use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checksum::Digest;
use crate::error::Error;
use crate::format::config::Config;
use crate::format::index::{self, Index};
use crate::format::json;
use crate::format::safetensors::Shard;
use crate::place::hub_cache::Snapshot;
use crate::place::local::Local;
use crate::place::{Place, Source, address, read_small};
use crate::recognize::component;
use crate::recognize::quantized::Quantized;

pub const REPORT: &str = "recast.json";

/// The file of the sums that recast can add to a result. A source's own are of other bytes.
pub const SUMS: &str = "SHA256SUMS";

/// The files that quantizing tools write beside the weights, and no others do: AutoGPTQ, AutoAWQ,
/// ModelOpt, transformers before 4.30, and quanto.
const SIDECARS: [&str; 5] = [
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "quantization_config.json",
    "quanto_qmap.json",
];

pub const MAX_REPORT: u64 = json::MAX_INDEX;

#[derive(Debug)]
pub enum Kind {
    Shard(Arc<Shard>),
    Index(Index),
    Config(Config),
    /// Weights in another format, or their index: the old dtype.
    OtherWeights,
    /// An index of shards that are not there, beside the file that loaders take instead of them:
    /// saving a model again in one file leaves the index of an earlier save.
    StaleIndex,
    /// A file that says how weights are quantized, and nothing else.
    Sidecar,
    /// The settings of sentence-transformers, which may state a dtype.
    Settings(Config),
    /// A tokenizer, a readme, code: copied as it is.
    Plain,
}

#[derive(Debug)]
pub struct SourceFile {
    /// What a recipe says of it; the key is its path below the root, or, for a checkpoint of one
    /// file, its name.
    pub source: Source,
    pub location: PathBuf,
    pub executable: bool,
    pub kind: Kind,
}

impl SourceFile {
    pub fn path(&self) -> &Path {
        &self.source.key
    }
}

#[derive(Debug)]
pub struct Checkpoint {
    /// The path that was opened; where that was the folder of a repository in a Hub cache, the
    /// snapshot in it.
    pub root: PathBuf,
    /// Which snapshot that is, and why it was chosen.
    pub snapshot: Option<String>,
    pub single_file: bool,
    pub place: Arc<dyn Place>,
    pub files: Vec<SourceFile>,
    /// What the configs call the models.
    pub models: Vec<Model>,
    /// What files say of quantization.
    pub labels: Vec<Label>,
    /// What the tensors say of it; the shards have the order of [`Checkpoint::shards`].
    pub quantized: Quantized,
}

/// What a config calls the model in its folder and below.
#[derive(Debug)]
pub struct Model {
    pub folder: PathBuf,
    pub model_types: Vec<String>,
    pub class_names: Vec<String>,
}

/// A file that says that weights are quantized.
#[derive(Debug)]
pub struct Label {
    pub path: PathBuf,
    pub location: PathBuf,
    /// The key or the name that says so, and the method where it names one.
    pub says: String,
}

impl Checkpoint {
    pub fn open(path: &Path) -> Result<Checkpoint, Error> {
        address::check_local(path, address::Use::Read)?;
        let metadata = crate::fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => address::missing(path),
            _ => Error::io("open", path)(error),
        })?;
        if !metadata.is_dir() {
            return Checkpoint::open_place(Arc::new(Local::file(path)?), path, true);
        }
        let snapshot = Snapshot::of(path)?;
        let path = snapshot.as_ref().map_or(path, |snapshot| &snapshot.path);
        let mut checkpoint =
            Checkpoint::open_place(Arc::new(Local::directory(path)?), path, false)?;
        checkpoint.snapshot = snapshot.map(|snapshot| snapshot.choice);
        Ok(checkpoint)
    }

    /// Opens what is in a place; `root` is its name for messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_place(
        place: Arc<dyn Place>,
        root: &Path,
        single_file: bool,
    ) -> Result<Checkpoint, Error> {
        let mut checkpoint = Checkpoint {
            root: root.to_owned(),
            snapshot: None,
            single_file,
            place,
            files: Vec::new(),
            models: Vec::new(),
            labels: Vec::new(),
            quantized: Quantized::default(),
        };
        let keys = checkpoint.place.list()?;
        let describes = |key: &PathBuf| [REPORT, SUMS].map(Path::new).contains(&key.as_path());
        for key in keys.iter().filter(|key| single_file || !describes(key)) {
            let file = read_file(&*checkpoint.place, key)?;
            match &file.kind {
                Kind::Config(config) => checkpoint.note(file.path(), &file.location, config),
                Kind::Shard(shard) => {
                    let says = shard.quantization().map(|key| format!("{key} in its metadata"));
                    checkpoint.label(file.path(), &file.location, says);
                }
                Kind::Sidecar => {
                    let says = "which is written for quantized weights".to_owned();
                    checkpoint.label(file.path(), &file.location, Some(says));
                }
                _ => {}
            }
            checkpoint.files.push(file);
        }
        if single_file {
            // The config beside a lone shard is not part of the job, but it still knows the model.
            checkpoint.note_config_beside(Path::new("config.json"))?;
        }
        if checkpoint.shards().next().is_none() {
            let mut other = checkpoint.files.iter();
            let other_weights = other.find(|file| matches!(file.kind, Kind::OtherWeights));
            return Err(Error::NoShards {
                path: checkpoint.root.clone(),
                other_weights: other_weights.map(|file| file.path().to_owned()),
            });
        }
        checkpoint.check_indexes()?;
        let shards: Vec<(String, &Shard)> =
            checkpoint.shards().map(|(file, shard)| (component(file.path()), &**shard)).collect();
        let shards: Vec<(&str, &Shard)> =
            shards.iter().map(|(component, shard)| (component.as_str(), *shard)).collect();
        checkpoint.quantized = Quantized::of(&shards);
        Ok(checkpoint)
    }

    pub fn shards(&self) -> impl Iterator<Item = (&SourceFile, &Arc<Shard>)> {
        self.files.iter().filter_map(|file| match &file.kind {
            Kind::Shard(shard) => Some((file, shard)),
            _ => None,
        })
    }

    fn note_config_beside(&mut self, key: &Path) -> Result<(), Error> {
        match self.place.look(key) {
            Ok(_) => {}
            // A folder of that name is not a config.
            Err(Error::NoSuchPath { .. } | Error::LinkToDirectory { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let (bytes, name) =
            (read_small(&*self.place, key, json::MAX_CONFIG)?, self.place.name(key));
        self.note(key, &name, &Config::parse(&name, bytes)?);
        Ok(())
    }

    fn note(&mut self, path: &Path, location: &Path, config: &Config) {
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let (model_types, class_names) = (config.model_types.clone(), config.class_names.clone());
        self.models.push(Model { folder, model_types, class_names });
        self.label(path, location, config.quantized.clone());
    }

    fn label(&mut self, path: &Path, location: &Path, says: Option<String>) {
        let (path, location) = (path.to_owned(), location.to_owned());
        self.labels.extend(says.map(|says| Label { path, location, says }));
    }

    /// The report of the conversion that made the checkpoint, as it stands there; nothing where
    /// there is none that may be read.
    pub fn report(&self) -> Option<Vec<u8>> {
        let key = Path::new(REPORT);
        if self.single_file {
            return None;
        }
        self.place.look(key).ok()?;
        read_small(&*self.place, key, MAX_REPORT).ok()
    }

    /// Whether a file is an index of shards that are not there, beside the single file that
    /// transformers looks for first. diffusers looks for the index first, so that there a missing
    /// shard means an incomplete download.
    fn is_stale(&self, file: usize) -> bool {
        let file = &self.files[file];
        let Kind::Index(index) = &file.kind else { return false };
        let name = file.path().file_name().unwrap_or_default().to_string_lossy();
        let is_there = |name: &str| {
            let path = file.path().with_file_name(name);
            self.shards().any(|(shard, _)| shard.path() == path)
        };
        let single = name.split(".index.").next().unwrap_or_default();
        single == "model.safetensors"
            && is_there(single)
            && index.weight_map.iter().any(|(_, shard)| !is_there(shard))
    }

    /// Every tensor an index names must be in the shard it names, beside the index.
    fn check_indexes(&mut self) -> Result<(), Error> {
        let stale: Vec<usize> = (0..self.files.len()).filter(|file| self.is_stale(*file)).collect();
        for file in stale {
            self.files[file].kind = Kind::StaleIndex;
        }
        // Made once, because there may be many indexes, and only where there is one.
        let shards: LazyCell<HashMap<&Path, HashSet<&str>>, _> = LazyCell::new(|| {
            let named = self.shards().map(|(file, shard)| {
                let names = shard.tensors.iter().map(|tensor| tensor.name.as_str());
                (file.path(), names.collect())
            });
            named.collect()
        });
        for file in &self.files {
            let Kind::Index(index) = &file.kind else { continue };
            for (tensor, shard) in &index.weight_map {
                let held = shards.get(&*file.path().with_file_name(shard));
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

/// Whether sentence-transformers calls its settings so: `sentence_bert_config.json`, and the same
/// for other models.
fn is_settings(name: &str) -> bool {
    name.starts_with("sentence_") && name.ends_with("_config.json")
}

/// Reads what recast needs to know of a file: all of a small one, the header of a shard, and of
/// any other no more than what its place says.
fn read_file(place: &dyn Place, key: &Path) -> Result<SourceFile, Error> {
    let (found, location) = (place.look(key)?, place.name(key));
    let name = key.file_name().unwrap_or_default().to_string_lossy();
    let mut source = Source {
        key: key.to_owned(),
        bytes: found.marks.bytes,
        head: 0,
        version: Digest::of_head(&[]),
    };
    let mut text = |limit| {
        let bytes = read_small(place, key, limit)?;
        (source.bytes, source.head) = (bytes.len() as u64, bytes.len() as u64);
        source.version = Digest::of_head(&bytes);
        Ok(bytes)
    };
    let kind = if name.ends_with(".safetensors") {
        let object = place.open(key, false)?;
        let shard = Shard::read(&*object, &location)?;
        let end = shard.tensors.last().map_or(shard.head, |tensor| tensor.start + tensor.bytes);
        (source.bytes, source.head, source.version) = (end, shard.head, shard.version);
        Kind::Shard(Arc::new(shard))
    } else if index::is_index(&name) {
        Kind::Index(Index::parse(&location, text(json::MAX_INDEX)?)?)
    } else if name == "config.json" {
        Kind::Config(Config::parse(&location, text(json::MAX_CONFIG)?)?)
    } else if is_settings(&name) {
        Kind::Settings(Config::parse(&location, text(json::MAX_CONFIG)?)?)
    } else if is_other_weights(&name) {
        Kind::OtherWeights
    } else if SIDECARS.contains(&&*name) {
        Kind::Sidecar
    } else {
        Kind::Plain
    };
    let executable = matches!(kind, Kind::Plain | Kind::Sidecar) && found.executable;
    Ok(SourceFile { source, location, executable, kind })
}

/// Weights that are not safetensors, the indexes of such weights, and safetensors under a name that
/// no loader looks for: a download that did not end, or capital letters.
fn is_other_weights(name: &str) -> bool {
    const SUFFIXES: [&str; 23] = [
        // torch and its checkpoints
        "bin",
        "pth",
        "pt",
        "ckpt",
        "distcp",
        "pkl",
        "pickle", // TensorFlow and Flax
        "h5",
        "keras",
        "tflite",
        "msgpack",
        "pb", // ONNX
        "onnx",
        "onnx_data",
        "onnx.data", // others: llama.cpp, rust-bert, Paddle, NeMo, numpy
        "gguf",
        "ggml",
        "ot",
        "pdparams",
        "nemo",
        "npz", // not complete, or not found
        "safetensors",
        "part",
    ];
    let name = name.to_ascii_lowercase();
    // Parts of one file: model.onnx_data_1, bert.ckpt.data-00000-of-00001, bert.ckpt.index.
    let is_part = |suffix: &str| {
        matches!(suffix, "onnx" | "onnx_data" | "ckpt")
            && [".data-", ".index", ".meta", "_"]
                .iter()
                .any(|part| name.contains(&format!(".{suffix}{part}")))
    };
    SUFFIXES.iter().any(|suffix| match name.strip_suffix(".json") {
        Some(stem) => *suffix != "safetensors" && stem.contains(&format!(".{suffix}.index")),
        None => name.ends_with(&format!(".{suffix}")) || is_part(suffix),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_in_other_formats_are_told_from_the_rest() {
        for name in [
            "pytorch_model.bin",
            "consolidated.00.pth",
            "tf_model.h5",
            "a.GGUF",
            "__0_0.distcp",
            "model.onnx.data",
            "model.onnx_data_1",
            "rust_model.ot",
            "model_state.pdparams",
            "bert.ckpt.data-00000-of-00001",
            "bert.ckpt.index",
            "model.tflite",
            "model.nemo",
            "weights.npz",
            "model.pkl",
            "EXTRA.SAFETENSORS",
            "model.safetensors.part",
        ] {
            assert!(is_other_weights(name), "{name}");
        }
        assert!(is_other_weights("pytorch_model.bin.index.json"));
        for name in
            ["tokenizer.json", "README.md", "merges.txt", "tokenizer.model", "bin", "ckpt_notes.md"]
        {
            assert!(!is_other_weights(name), "{name}");
        }
    }
}

//! What a file of a checkpoint is, by its name, and what recast needs to know of it.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Kind, SourceFile};
use crate::checksum::Digest;
use crate::error::{Error, PickleFault};
use crate::format::config::Config;
use crate::format::index::{self, Index};
use crate::format::json;
use crate::format::pickle;
use crate::format::quantization::Quantization;
use crate::format::safetensors::Shard;
use crate::place::{Access, Place, Source, read_small};
use crate::recognize::{loaded, pickles};
use crate::shown::Shown;

/// The files that quantizing tools write beside the weights, and no others do: AutoGPTQ, AutoAWQ,
/// ModelOpt, transformers before 4.30, and quanto.
pub(super) const SIDECARS: [&str; 5] = [
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    "quantization_config.json",
    "quanto_qmap.json",
];

/// Whether sentence-transformers calls its settings so: `sentence_bert_config.json`, and the same
/// for other models.
fn is_settings(name: &str) -> bool {
    name.starts_with("sentence_") && name.ends_with("_config.json")
}

/// Which files of a checkpoint are pickles that are read.
pub(super) struct Pickles<'a> {
    chosen: BTreeSet<PathBuf>,
    key: Option<&'a str>,
}

impl<'a> Pickles<'a> {
    /// Those of a place that holds these files; `key` says which state dict is the model. A single
    /// file was meant, whatever it is called.
    pub fn of(
        place: &dyn Place,
        files: &[PathBuf],
        single_file: bool,
        key: Option<&'a str>,
    ) -> Result<Self, Error> {
        let mut chosen = pickles::chosen(files);
        if single_file {
            let is_other =
                |file: &&PathBuf| file.extension().is_none_or(|suffix| suffix != "safetensors");
            chosen.extend(files.iter().filter(is_other).cloned());
        }
        // What only has a suffix that many files have is looked at.
        for file in std::mem::take(&mut chosen) {
            let is_meant = pickles::is_loaded(&file) || pickles::part_number(&file).is_some();
            if is_meant || pickle::is_one(&*place.open(&file, Access::Kept)?)? {
                chosen.insert(file);
            }
        }
        let refuse = |path: &Path, fault| {
            let path = place.name(path);
            Err(Error::Pickle { path, fault })
        };
        let mut results: HashMap<PathBuf, &PathBuf> = HashMap::new();
        // An index of safetensors that are not there is left behind.
        let is_left = |file: &Path| index::is_index(&name_of(file));
        let indexes = files.iter().filter(|file| pickles::is_index(&name_of(file)));
        for file in chosen.iter().chain(indexes) {
            if pickles::part_number(file).is_some_and(|number| number > 0) {
                return refuse(file, PickleFault::Part);
            }
            let result = pickles::result(file);
            // A folder of that name is in the way, too.
            let is_taken =
                |other: &&PathBuf| *other != file && other.starts_with(&result) && !is_left(other);
            let taken = files.iter().find(is_taken).filter(|_| !single_file);
            if let Some(other) = results.insert(result.clone(), file).or(taken) {
                let (other, result) = (other.shown(), result.shown());
                return refuse(file, PickleFault::SameResult { other, result });
            }
        }
        Ok(Pickles { chosen, key })
    }

    /// Whether the folder of a file has any.
    fn has_in_folder_of(&self, file: &Path) -> bool {
        self.chosen.iter().any(|chosen| chosen.parent() == file.parent())
    }
}

fn name_of(file: &Path) -> Cow<'_, str> {
    file.file_name().unwrap_or_default().to_string_lossy()
}

/// Reads what recast needs to know of a file: all of a small one, the header of a shard, and of
/// any other no more than what its place says.
pub(super) fn read(
    place: &dyn Place,
    key: &Path,
    pickles: &Pickles<'_>,
) -> Result<SourceFile, Error> {
    let (found, location) = (place.look(key)?, place.name(key));
    let name = key.file_name().unwrap_or_default().to_string_lossy();
    let mut source = Source {
        key: key.to_owned(),
        bytes: found.marks.bytes,
        head: 0,
        heads: Vec::new(),
        version: Digest::of_head(&[]),
    };
    let mut result = key.to_owned();
    let mut text = |limit| {
        let bytes = read_small(place, key, limit)?;
        (source.bytes, source.head) = (bytes.len() as u64, bytes.len() as u64);
        source.version = Digest::of_head(&bytes);
        Ok(bytes)
    };
    let kind = if name.ends_with(".safetensors") {
        let object = place.open(key, Access::Kept)?;
        let shard = Shard::read(&*object, &location)?;
        let end = shard.tensors.last().map_or(shard.head, |tensor| tensor.start + tensor.bytes);
        (source.bytes, source.head, source.version) = (end, shard.head, shard.version);
        Kind::Shard(Arc::new(shard))
    } else if pickles.chosen.contains(key) {
        let object = place.open(key, Access::Kept)?;
        let shard = pickle::read(&*object, &location, pickles.key, &loaded::tie_rank)?;
        source.version = shard.version;
        if let Some(facts) = &shard.pickled {
            (source.bytes, source.heads) = (facts.bytes, facts.heads.clone());
        }
        result = pickles::result(key);
        Kind::Shard(Arc::new(shard))
    } else if pickles::is_index(&name) && pickles.has_in_folder_of(key) {
        let mut index = Index::parse(&location, text(json::MAX_INDEX)?)?;
        index.rename_shards(&|shard| {
            pickles::result(Path::new(shard)).to_string_lossy().into_owned()
        });
        result = pickles::result(key);
        Kind::Index(index)
    } else if index::is_index(&name) && pickles.has_in_folder_of(key) {
        // There are no shards in its folder: the pickles are taken instead of them.
        Kind::StaleIndex
    } else if index::is_index(&name) {
        Kind::Index(Index::parse(&location, text(json::MAX_INDEX)?)?)
    } else if name == "config.json" {
        Kind::Config(Config::parse(&location, text(json::MAX_CONFIG)?)?)
    } else if is_settings(&name) {
        Kind::Settings(Config::parse(&location, text(json::MAX_CONFIG)?)?)
    } else if name == "params.json" {
        // Mistral's config, or anything else: then it is no business of recast's.
        let parsed = text(json::MAX_CONFIG).and_then(|bytes| Config::parse(&location, bytes));
        parsed.map_or(Kind::Plain, Kind::Settings)
    } else if is_other_weights(&name) {
        Kind::OtherWeights
    } else if SIDECARS.contains(&&*name) {
        // Whatever is too large, or no text, says nothing.
        let bytes = read_small(place, key, json::MAX_CONFIG).unwrap_or_default();
        Kind::Sidecar(Quantization::parse(&String::from_utf8_lossy(&bytes)))
    } else {
        Kind::Plain
    };
    let executable = matches!(kind, Kind::Plain | Kind::Sidecar(_)) && found.executable;
    Ok(SourceFile { source, result, location, executable, kind })
}

/// Weights that are not safetensors, the indexes of such weights, and safetensors under a name that
/// no loader looks for: a download that did not end, or capital letters.
fn is_other_weights(name: &str) -> bool {
    #[rustfmt::skip]
    const SUFFIXES: [&str; 25] = [
        // torch and its checkpoints
        "bin", "pth", "pt", "pth.tar", "pt.tar", "ckpt", "distcp", "pkl", "pickle",
        // TensorFlow and Flax
        "h5", "keras", "tflite", "msgpack", "pb",
        // ONNX
        "onnx", "onnx_data", "onnx.data",
        // others: llama.cpp, rust-bert, Paddle, NeMo, numpy
        "gguf", "ggml", "ot", "pdparams", "nemo", "npz",
        // not complete, or not found
        "safetensors", "part",
    ];
    let name = name.to_ascii_lowercase();
    // The voices of Qwen2.5-Omni, without which transformers does not load it.
    if name == "spk_dict.pt" {
        return false;
    }
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
        for name in [
            "tokenizer.json",
            "README.md",
            "merges.txt",
            "tokenizer.model",
            "bin",
            "ckpt_notes.md",
            "spk_dict.pt",
        ] {
            assert!(!is_other_weights(name), "{name}");
        }
    }
}

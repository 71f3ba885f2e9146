//! Which pickles of a checkpoint are the model's weights, told by their names, and what each becomes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const SUFFIXES: [&str; 6] = [".bin", ".pt", ".pth", ".ckpt", ".pt.tar", ".pth.tar"];

/// How the files start that transformers, diffusers and peft look for.
const LOADED: [&str; 3] = ["pytorch_model", "diffusion_pytorch_model", "adapter_model"];

/// What trainers write beside weights: transformers, accelerate, DeepSpeed.
const TRAINERS: [&str; 7] = [
    "training_args.",
    "optimizer",
    "scheduler",
    "scaler.",
    "rng_state",
    "random_states_",
    "sampler",
];

/// Whether a file is called like a pickle of weights.
pub fn is_one(path: &Path) -> bool {
    // The voices of Qwen2.5-Omni, which are no weights.
    stem(name(path)).is_some() && name(path) != "spk_dict.pt"
}

/// The files that are read as shards. Where a folder has safetensors, these are its weights; where
/// only other folders have some, as in a pipeline of which one part is pickled, a file that loaders
/// look for is still needed.
pub fn chosen(files: &[PathBuf]) -> BTreeSet<PathBuf> {
    let folder = |file: &'_ PathBuf| file.parent().map(Path::to_owned).unwrap_or_default();
    let is_safe = |file: &&PathBuf| file.extension().is_some_and(|it| it == "safetensors");
    let safe: BTreeSet<PathBuf> = files.iter().filter(is_safe).map(folder).collect();
    let mut folders: BTreeMap<PathBuf, Vec<&PathBuf>> = BTreeMap::new();
    for file in files.iter().filter(|file| is_one(file) && !safe.contains(&folder(file))) {
        folders.entry(folder(file)).or_default().push(file);
    }
    // Where any folder has what loaders look for, others have something else.
    let has_loaded = folders.values().flatten().any(|file| is_loaded(file));
    let of = |files: Vec<&PathBuf>| -> Vec<PathBuf> {
        let is_loaded = |file: &&&PathBuf| is_loaded(file);
        let is_model = |file: &&&PathBuf| {
            let name = name(file);
            !TRAINERS.iter().any(|it| name.starts_with(it)) && !name.contains("optim_states")
        };
        let is_consolidated = |file: &&&PathBuf| part_number(file).is_some();
        let choose = |is: &dyn Fn(&&&PathBuf) -> bool| -> Vec<PathBuf> {
            files.iter().filter(is).map(|file| (*file).clone()).collect()
        };
        let choices = [choose(&is_loaded), choose(&is_consolidated), choose(&is_model)];
        let count = if safe.is_empty() && !has_loaded { choices.len() } else { 1 };
        choices.into_iter().take(count).find(|files| !files.is_empty()).unwrap_or_default()
    };
    folders.into_values().flat_map(of).collect()
}

/// Whether a file is called like what transformers, diffusers and peft look for.
pub fn is_loaded(file: &Path) -> bool {
    let name = name(file);
    name.ends_with(".bin") && LOADED.iter().any(|start| name.starts_with(start))
}

/// The number of a part of a model that is cut by rows or columns, as Llama's are.
pub fn part_number(path: &Path) -> Option<u32> {
    name(path).strip_prefix("consolidated.")?.strip_suffix(".pth")?.parse().ok()
}

/// What a pickle becomes, or the index of some.
pub fn result(path: &Path) -> PathBuf {
    let name = name(path);
    let renamed = match name.split_once(".bin.index.") {
        Some((stem, rest)) => format!("{}.safetensors.index.{rest}", loaded(stem)),
        None => {
            format!("{}.safetensors", loaded(stem(name).unwrap_or(name)))
        }
    };
    path.with_file_name(renamed)
}

/// The name of a pickle without its suffix.
fn stem(name: &str) -> Option<&str> {
    SUFFIXES.iter().find_map(|suffix| name.strip_suffix(suffix)).filter(|stem| !stem.is_empty())
}

/// transformers calls its safetensors otherwise.
fn loaded(stem: &str) -> String {
    match stem.strip_prefix("pytorch_model") {
        Some(rest) => format!("model{rest}"),
        None => stem.to_owned(),
    }
}

/// Whether a file is an index of pickles.
pub fn is_index(name: &str) -> bool {
    name.ends_with(".json") && name.contains(".bin.index.")
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[&str]) -> Vec<String> {
        let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
        chosen(&files).iter().map(|file| file.display().to_string()).collect()
    }

    #[test]
    fn what_loaders_look_for_comes_before_anything_else() {
        let files = ["config.json", "pytorch_model.bin", "training_args.bin", "other.pt"];
        assert_eq!(of(&files), ["pytorch_model.bin"]);
        assert_eq!(of(&["eval/x.pt", "pytorch_model.bin"]), ["pytorch_model.bin"]);
        assert_eq!(of(&["a/x.pt", "b/y.pt", "b/z_optim_states.pt"]), ["a/x.pt", "b/y.pt"]);
        assert_eq!(of(&["optimizer.pt", "rng_state_0.pth", "weights.ckpt"]), ["weights.ckpt"]);
        let parts = ["consolidated.00.pth", "other.bin", "params.json"];
        assert_eq!(of(&parts), ["consolidated.00.pth"]);
    }

    #[test]
    fn safetensors_are_taken_before_pickles() {
        assert_eq!(of(&["pytorch_model.bin", "model.safetensors"]), [""; 0]);
        let llama = ["model.safetensors", "original/consolidated.00.pth"];
        assert_eq!(of(&llama), [""; 0]);
        let sentences = ["model.safetensors", "2_Dense/pytorch_model.bin"];
        assert_eq!(of(&sentences), ["2_Dense/pytorch_model.bin"]);
    }

    #[test]
    fn a_result_is_called_what_loaders_look_for() {
        for (from, to) in [
            ("pytorch_model.bin", "model.safetensors"),
            ("a/pytorch_model-00001-of-00002.bin", "a/model-00001-of-00002.safetensors"),
            ("pytorch_model.bin.index.json", "model.safetensors.index.json"),
            ("pytorch_model.bin.index.fp16.json", "model.safetensors.index.fp16.json"),
            ("pytorch_model.fp16.bin", "model.fp16.safetensors"),
            ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"),
            ("v1.5.ckpt", "v1.5.safetensors"),
            ("a.pth.tar", "a.safetensors"),
            ("weights", "weights.safetensors"),
        ] {
            assert_eq!(result(Path::new(from)), Path::new(to));
        }
    }
}

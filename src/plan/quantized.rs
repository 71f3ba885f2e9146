//! What a plan makes of quantized weights: it refuses them by name, or carries them as they are.
//! And what files say of quantization where no tensor is quantized: it goes.

use std::collections::HashSet;
use std::path::Path;

use super::Warning;
use crate::checkpoint::{Checkpoint, Label, SourceFile};
use crate::error::Error;
use crate::format::safetensors::{Shard, Tensor};
use crate::recognize::quantized::{Part, is_packed};
use crate::shown::{Names, Shown};

/// The files that say that weights are quantized, and no weight is.
pub type LeftOver<'a> = HashSet<&'a Path>;

/// Refuses a checkpoint with quantized weights, unless `skip` says to carry them.
pub fn examine(checkpoint: &Checkpoint, skip: bool) -> Result<LeftOver<'_>, Error> {
    if !skip {
        refuse(checkpoint)?;
    }
    let mut left_over = LeftOver::new();
    for label in &checkpoint.labels {
        let covered = || checkpoint.shards().enumerate().filter(|(_, it)| covers(label, it.0));
        let has_part = |number, shard: &Shard| {
            (0..shard.tensors.len())
                .any(|tensor| checkpoint.quantized.part((number, tensor)).is_some())
        };
        if covered().any(|(number, (_, shard))| has_part(number, shard)) {
            continue;
        }
        let tensors = covered().flat_map(|(_, (_, shard))| &shard.tensors);
        let packed = tensors.filter(|tensor| is_packed(tensor)).map(|tensor| tensor.name.shown());
        match Names::of(packed) {
            Some(tensors) if !skip => {
                let (path, says) = (label.location.clone(), label.says.clone());
                return Err(Error::UnknownQuantization { path, says, tensors });
            }
            Some(_) => {}
            None => {
                left_over.insert(label.path.as_path());
            }
        }
    }
    Ok(left_over)
}

/// Whether a label is about a shard: its own, or one in its folder or below.
fn covers(label: &Label, file: &SourceFile) -> bool {
    let folder = label.path.parent().unwrap_or(Path::new(""));
    match label.path.extension() {
        Some(extension) if extension == "safetensors" => label.path == file.path(),
        _ => file.path().starts_with(folder),
    }
}

fn refuse(checkpoint: &Checkpoint) -> Result<(), Error> {
    let tensors = |wanted: &dyn Fn(Part) -> bool| {
        let found = parts(checkpoint).filter(|(.., part)| wanted(*part));
        let names: Vec<String> = found.map(|(_, tensor, _)| tensor.name.shown()).collect();
        Names::of(names.into_iter())
    };
    let path = || {
        let (file, ..) = parts(checkpoint).next().expect("there is a part");
        file.location.clone()
    };
    if let Some(tensors) = tensors(&|part| matches!(part, Part::Of(_))) {
        let said = Names::of(checkpoint.labels.iter().map(|label| {
            let name = label.path.file_name().unwrap_or_default();
            format!("{}: {}", Path::new(name).shown(), label.says.shown())
        }));
        let schemes = schemes(checkpoint);
        return Err(Error::Quantized { path: path(), schemes, said, tensors });
    }
    if let Some(tensors) = tensors(&|part| part == Part::Codes) {
        return Err(Error::LostScales { path: path(), tensors });
    }
    if let Some(tensors) = tensors(&|part| part == Part::Scale) {
        return Err(Error::LostCodes { path: path(), tensors });
    }
    match tensors(&|part| part == Part::Unscaled) {
        Some(tensors) => Err(Error::UnscaledFp8 { path: path(), tensors }),
        None => Ok(()),
    }
}

/// What is said where the quantized weights are carried, and where a label is left over.
pub fn warnings<'a>(
    checkpoint: &'a Checkpoint,
    left_over: &'a LeftOver<'_>,
) -> impl Iterator<Item = Warning> + 'a {
    let tensors = Names::of(parts(checkpoint).map(|(_, tensor, _)| tensor.name.shown()));
    let carried = tensors.map(|tensors| {
        let schemes = schemes(checkpoint);
        Warning::CarriedQuantized { schemes, tensors }
    });
    let labels = checkpoint.labels.iter().filter(|label| left_over.contains(label.path.as_path()));
    let files = Names::of(labels.map(|label| label.path.shown()));
    carried.into_iter().chain(files.map(|files| Warning::LeftOver { files }))
}

/// How weights are quantized, by the tensors, or else by a file whose word is all there is;
/// nothing where none is.
pub fn described(checkpoint: &Checkpoint) -> Option<String> {
    let schemes = schemes(checkpoint);
    if !schemes.is_empty() {
        return Some(schemes);
    }
    match examine(checkpoint, false) {
        Err(Error::UnknownQuantization { says, .. }) => Some(says),
        _ => None,
    }
}

/// The names of the schemes, each once, in the order in which they are met.
fn schemes(checkpoint: &Checkpoint) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (.., part) in parts(checkpoint) {
        let name = part.name();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

fn parts(checkpoint: &Checkpoint) -> impl Iterator<Item = (&SourceFile, &Tensor, Part)> {
    let shards: Vec<_> = checkpoint.shards().collect();
    checkpoint.quantized.all().map(move |((shard, tensor), part)| {
        let (file, shard) = shards[shard];
        (file, &shard.tensors[tensor], part)
    })
}

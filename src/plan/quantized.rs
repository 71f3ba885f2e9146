//! What a plan makes of quantized weights: it refuses them by name, or carries them as they are.
//! And what files say of quantization where no tensor is quantized: it goes.

use std::collections::HashSet;
use std::path::Path;

use super::Warning;
use crate::checkpoint::{Checkpoint, Label, SourceFile};
use crate::error::Error;
use crate::format::safetensors::{Shard, Tensor};
use crate::recognize::quantized::{At, Part, is_packed};
use crate::shown::{Names, Shown};

/// The files that say that weights are quantized, and no weight is.
pub type LeftOver<'a> = HashSet<&'a Path>;

/// The parts of quantized weights, by the tensors and by what files say.
pub struct Parts<'a> {
    checkpoint: &'a Checkpoint,
    /// Of each shard, whether a file says that its weights are quantized.
    is_labeled: Vec<bool>,
    /// Whether fp8 tensors without scales are plain values.
    unscaled_fp8: bool,
}

impl<'a> Parts<'a> {
    /// Those of a checkpoint whose fp8 tensors without scales are plain values, if `unscaled_fp8`
    /// says so.
    pub fn new(checkpoint: &'a Checkpoint, unscaled_fp8: bool) -> Parts<'a> {
        let is_labeled = checkpoint
            .shards()
            .map(|(file, _)| checkpoint.labels.iter().any(|label| covers(label, file)));
        Parts { checkpoint, is_labeled: is_labeled.collect(), unscaled_fp8 }
    }

    /// What a tensor is part of; nothing for a tensor of its own.
    pub fn part(&self, at: At) -> Option<Part> {
        self.checkpoint.quantized.part(at).and_then(|part| self.judged(at, part))
    }

    fn judged(&self, (shard, _): At, part: Part) -> Option<Part> {
        match part {
            Part::Unscaled if self.is_labeled[shard] => Some(Part::Codes),
            Part::Unscaled if self.unscaled_fp8 => None,
            other => Some(other),
        }
    }

    fn all(&self) -> impl Iterator<Item = (&'a SourceFile, &'a Tensor, Part)> {
        let shards: Vec<_> = self.checkpoint.shards().collect();
        self.checkpoint.quantized.all().filter_map(move |((number, tensor), part)| {
            let (file, shard) = shards[number];
            Some((file, &shard.tensors[tensor], self.judged((number, tensor), part)?))
        })
    }

    /// Whether there are fp8 tensors without scales.
    pub fn has_unscaled(&self) -> bool {
        let parts = self.checkpoint.quantized.all();
        let mut unscaled = parts.filter(|(_, part)| *part == Part::Unscaled);
        unscaled.any(|((shard, _), _)| !self.is_labeled[shard])
    }

    /// Refuses a checkpoint with quantized weights, unless `skip` says to carry them.
    pub fn examine(&self, skip: bool) -> Result<LeftOver<'a>, Error> {
        if !skip {
            self.refuse()?;
        }
        let checkpoint = self.checkpoint;
        let mut left_over = LeftOver::new();
        for label in &checkpoint.labels {
            let covered = || checkpoint.shards().enumerate().filter(|(_, it)| covers(label, it.0));
            let has_part = |number, shard: &Shard| {
                (0..shard.tensors.len()).any(|tensor| self.part((number, tensor)).is_some())
            };
            if covered().any(|(number, (_, shard))| has_part(number, shard)) {
                continue;
            }
            let tensors = covered().flat_map(|(_, (_, shard))| &shard.tensors);
            let packed =
                tensors.filter(|tensor| is_packed(tensor)).map(|tensor| tensor.name.shown());
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

    fn refuse(&self) -> Result<(), Error> {
        let tensors = |wanted: &dyn Fn(Part) -> bool| {
            let found = self.all().filter(|(.., part)| wanted(*part));
            let names: Vec<String> = found.map(|(_, tensor, _)| tensor.name.shown()).collect();
            Names::of(names.into_iter())
        };
        let path = || {
            let (file, ..) = self.all().next().expect("there is a part");
            file.location.clone()
        };
        let said = || {
            Names::of(self.checkpoint.labels.iter().map(|label| {
                let name = label.path.file_name().unwrap_or_default();
                format!("{}: {}", Path::new(name).shown(), label.says.shown())
            }))
        };
        if let Some(tensors) = tensors(&|part| matches!(part, Part::Of(_))) {
            let schemes = self.schemes();
            return Err(Error::Quantized { path: path(), schemes, said: said(), tensors });
        }
        if let Some(tensors) = tensors(&|part| part == Part::Codes) {
            return Err(Error::LostScales { path: path(), said: said(), tensors });
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
    pub fn warnings(&self, left_over: &LeftOver<'_>) -> impl Iterator<Item = Warning> {
        let tensors = Names::of(self.all().map(|(_, tensor, _)| tensor.name.shown()));
        let carried = tensors.map(|tensors| {
            let schemes = self.schemes();
            Warning::CarriedQuantized { schemes, tensors }
        });
        let labels = self.checkpoint.labels.iter();
        let labels = labels.filter(|label| left_over.contains(label.path.as_path()));
        let files = Names::of(labels.map(|label| label.path.shown()));
        carried.into_iter().chain(files.map(|files| Warning::LeftOver { files }))
    }

    /// How weights are quantized, by the tensors, or else by a file whose word is all there is;
    /// nothing where none is.
    pub fn described(&self) -> Option<String> {
        let schemes = self.schemes();
        if !schemes.is_empty() {
            return Some(schemes);
        }
        match self.examine(false) {
            Err(Error::UnknownQuantization { says, .. }) => Some(says),
            _ => None,
        }
    }

    /// The names of the schemes, each once, in the order in which they are met.
    fn schemes(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for (.., part) in self.all() {
            let name = part.name();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.join(", ")
    }
}

/// Whether a label is about a shard: its own, or one in its folder or below.
fn covers(label: &Label, file: &SourceFile) -> bool {
    let folder = label.path.parent().unwrap_or(Path::new(""));
    match label.path.extension() {
        Some(extension) if extension == "safetensors" => label.path == file.path(),
        _ => file.path().starts_with(folder),
    }
}

//! What a plan makes of quantized weights: it dequantizes them, refuses them by name, or carries them
//! as they are. And what files say of quantization where no tensor of the result is quantized: it
//! goes.

use std::collections::HashSet;
use std::mem;
use std::path::Path;

use super::Warning;
use super::dequantized::{Becomes, Dequantized, Faulty};
use crate::checkpoint::{Checkpoint, Label, SourceFile};
use crate::error::{Error, ScaleFault};
use crate::format::safetensors::{Shard, Tensor};
use crate::recognize::quantized::{At, Part, is_packed};
use crate::shown::{Names, Shown};

/// The files that say that weights are quantized, and no weight of the result is.
pub type LeftOver<'a> = HashSet<&'a Path>;

/// The parts of quantized weights, by the tensors and by what files say.
pub struct Parts<'a> {
    checkpoint: &'a Checkpoint,
    /// Of each shard, whether a file says that its weights are quantized.
    is_labeled: Vec<bool>,
    /// Whether fp8 tensors without scales are plain values.
    unscaled_fp8: bool,
    dequantized: Dequantized,
}

impl<'a> Parts<'a> {
    /// Those of a checkpoint whose fp8 tensors without scales are plain values, if `unscaled_fp8`
    /// says so. With `skip`, nothing is dequantized.
    pub fn new(checkpoint: &'a Checkpoint, unscaled_fp8: bool, skip: bool) -> Parts<'a> {
        let is_labeled = checkpoint
            .shards()
            .map(|(file, _)| checkpoint.labels.iter().any(|label| label.covers(file)));
        let dequantized = if skip { Dequantized::default() } else { Dequantized::of(checkpoint) };
        Parts { checkpoint, is_labeled: is_labeled.collect(), unscaled_fp8, dequantized }
    }

    /// What a tensor is part of; nothing for a tensor of its own, and for one of a weight that is
    /// dequantized.
    pub fn part(&self, at: At) -> Option<Part> {
        self.checkpoint.quantized.part(at).and_then(|part| self.judged(at, part))
    }

    /// What becomes of a tensor of a weight that is dequantized.
    pub fn becomes(&self, at: At) -> Option<Becomes<'_>> {
        self.dequantized.becomes(at)
    }

    /// Whether any weight is dequantized.
    pub fn dequantizes(&self) -> bool {
        !self.dequantized.is_empty()
    }

    fn judged(&self, at: At, part: Part) -> Option<Part> {
        let (shard, _) = at;
        match part {
            _ if self.becomes(at).is_some() => None,
            Part::Unscaled if self.is_labeled[shard] => Some(Part::Codes),
            Part::Unscaled if self.unscaled_fp8 => None,
            other => Some(other),
        }
    }

    fn all(&self) -> impl Iterator<Item = (&'a SourceFile, &'a Tensor, Part)> {
        self.placed().map(|(_, file, tensor, part)| (file, tensor, part))
    }

    fn placed(&self) -> impl Iterator<Item = (At, &'a SourceFile, &'a Tensor, Part)> {
        let shards: Vec<_> = self.checkpoint.shards().collect();
        self.checkpoint.quantized.all().filter_map(move |(at, part)| {
            let (file, shard) = shards[at.0];
            Some((at, file, &shard.tensors[at.1], self.judged(at, part)?))
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
            let covered = || checkpoint.shards().enumerate().filter(|(_, it)| label.covers(it.0));
            let has_part = |number, shard: &Shard| {
                (0..shard.tensors.len()).any(|tensor| self.part((number, tensor)).is_some())
            };
            if covered().any(|(number, (_, shard))| has_part(number, shard)) {
                continue;
            }
            if self.is_of_dequantized(label) {
                left_over.insert(label.path.as_path());
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

    /// Whether a label is about weights that are dequantized.
    fn is_of_dequantized(&self, label: &Label) -> bool {
        let covered = self.checkpoint.shards().enumerate().filter(|(_, it)| label.covers(it.0));
        let mut tensors = covered.flat_map(|(number, (_, shard))| {
            (0..shard.tensors.len()).map(move |tensor| (number, tensor))
        });
        tensors.any(|at| matches!(self.becomes(at), Some(Becomes::Values(_))))
    }

    fn refuse(&self) -> Result<(), Error> {
        let is_unknown = |at| !self.dequantized.is_of_faulty(at);
        let unknown = || self.placed().filter(|(at, ..)| is_unknown(*at));
        let tensors = |wanted: &dyn Fn(Part) -> bool| {
            let found = unknown().filter(|(.., part)| wanted(*part));
            let names: Vec<String> = found.map(|(_, _, tensor, _)| tensor.name.shown()).collect();
            Names::of(names.into_iter())
        };
        let path = || {
            let (_, file, ..) = unknown().next().expect("there is a part");
            file.location.clone()
        };
        let said = || {
            Names::of(self.checkpoint.labels.iter().map(|label| {
                let name = label.path.file_name().unwrap_or_default();
                format!("{}: {}", Path::new(name).shown(), label.says.shown())
            }))
        };
        if let Some(tensors) = tensors(&|part| matches!(part, Part::Of(_))) {
            let schemes = listed(unknown().map(|(.., part)| part));
            return Err(Error::Quantized { path: path(), schemes, said: said(), tensors });
        }
        if let [Faulty { codes, scheme, fault }, others @ ..] = self.dequantized.faulty.as_slice() {
            let (file, shard) = self.checkpoint.shards().nth(codes.0).expect("its shard");
            let (path, tensor) = (file.location.clone(), shard.tensors[codes.1].name.clone());
            let (fault, more, scheme) =
                (Box::new(fault.clone()), others.len(), (*scheme).to_owned());
            return Err(Error::Scales { path, tensor, scheme, fault, more });
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
        let labels = labels.filter(|label| !self.is_of_dequantized(label));
        let files = Names::of(labels.map(|label| label.path.shown()));
        carried.into_iter().chain(files.map(|files| Warning::LeftOver { files }))
    }

    /// How weights are quantized that cannot be dequantized, by the tensors, or else by a file whose
    /// word is all there is; nothing where none is.
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

    /// The quantized weights of each scheme, and of each kind of fault.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut kinds = Vec::new();
        let mut add = |scheme: &str, fault: Option<&ScaleFault>, known: bool, bytes: u64| {
            let kind = (known, fault.map(mem::discriminant));
            let mut all = groups.iter_mut().zip(&kinds);
            match all.find(|(group, other)| group.scheme == scheme && **other == kind) {
                Some((group, _)) => {
                    group.weights += 1;
                    group.bytes += bytes;
                }
                None => {
                    let problem = fault.map(ScaleFault::to_string);
                    let unknown = || Some("recast does not dequantize it".to_owned());
                    let problem = if known { problem } else { unknown() };
                    kinds.push(kind);
                    groups.push(Group { scheme: scheme.to_owned(), weights: 1, bytes, problem });
                }
            }
        };
        let shards: Vec<_> = self.checkpoint.shards().collect();
        let bytes = |at: At| shards[at.0].1.tensors[at.1].bytes;
        for scaled in self.dequantized.values() {
            let all = [Some(scaled.codes), Some(scaled.scales), scaled.second];
            add(&scaled.scheme, None, true, all.into_iter().flatten().map(bytes).sum());
        }
        for Faulty { codes, scheme, fault } in &self.dequantized.faulty {
            add(scheme, Some(fault), true, bytes(*codes));
        }
        for (at, _, tensor, part) in self.placed() {
            if !self.dequantized.is_of_faulty(at) {
                add(part.name(), None, false, tensor.bytes);
            }
        }
        groups
    }

    fn schemes(&self) -> String {
        listed(self.all().map(|(.., part)| part))
    }
}

/// Quantized weights of one scheme.
pub struct Group {
    pub scheme: String,
    /// Of a scheme that is not dequantized, its tensors, scales and all.
    pub weights: u64,
    pub bytes: u64,
    /// Why they, or the first of them, are not dequantized.
    pub problem: Option<String>,
}

/// The names of the schemes, each once, in the order in which they are met.
fn listed(parts: impl Iterator<Item = Part>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for part in parts {
        let name = part.name();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

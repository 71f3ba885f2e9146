//! Quantized weights that become plain values: what each tensor of such a weight becomes, and which
//! go with them because they only describe activations or caches.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::checkpoint::Checkpoint;
use crate::error::ScaleFault;
use crate::format::quantization::Quantization;
use crate::format::safetensors::Tensor;
use crate::recognize::component;
use crate::recognize::quantized::{At, Found, Part};
use crate::recognize::scaled::{self, Scaled};
use crate::recognize::schemes::{Beside, beside};

/// What becomes of a tensor that belongs to quantized weights.
pub enum Becomes<'a> {
    /// Codes become these values.
    Values(&'a Arc<Scaled>),
    /// It is not needed any more.
    Gone,
    /// It belongs to none, though it is called so.
    Weight,
}

/// A weight of a known scheme that cannot be dequantized.
#[derive(Debug)]
pub struct Faulty {
    pub codes: At,
    pub scheme: &'static str,
    pub fault: ScaleFault,
}

#[derive(Default)]
pub struct Dequantized {
    values: HashMap<At, Arc<Scaled>>,
    gone: HashSet<At>,
    weights: HashSet<At>,
    pub faulty: Vec<Faulty>,
    /// The tensors of those.
    of_faulty: HashSet<At>,
}

impl Dequantized {
    pub fn of(checkpoint: &Checkpoint) -> Dequantized {
        let mut found = Dequantized::default();
        if checkpoint.quantized.weights().is_empty() {
            return found;
        }
        let shards: Vec<_> = checkpoint.shards().collect();
        // Shared by all shards that the same files are about, because a config may say much.
        let mut said: HashMap<Vec<usize>, Arc<Quantization>> = HashMap::new();
        let stated: Vec<Arc<Quantization>> = shards
            .iter()
            .map(|(file, _)| {
                let labels = checkpoint.labels.iter().enumerate();
                let covering = labels.filter(|(_, label)| label.covers(file));
                let covering: Vec<usize> = covering.map(|(number, _)| number).collect();
                let merged = said.entry(covering).or_insert_with_key(|covering| {
                    let mut all = Quantization::default();
                    let labels = covering.iter().map(|number| &checkpoint.labels[*number]);
                    labels.for_each(|label| all.merge(label.quantization.clone()));
                    Arc::new(all)
                });
                Arc::clone(merged)
            })
            .collect();
        let tensor = |(shard, tensor): At| -> &Tensor { &shards[shard].1.tensors[tensor] };
        for weight in checkpoint.quantized.weights() {
            match scaled::of(weight, &tensor, &stated[weight.codes.0]) {
                None => {}
                Some(Ok(scaled)) => {
                    found.gone.extend([Some(scaled.scales), scaled.second].into_iter().flatten());
                    found.values.insert(scaled.codes, Arc::new(scaled));
                }
                Some(Err(fault)) => {
                    let (codes, scheme) = (weight.codes, weight.scheme.name);
                    found.of_faulty.insert(codes);
                    found.of_faulty.extend(weight.companions().filter_map(|found| match found {
                        Found::At(at) => Some(at),
                        Found::Ambiguous => None,
                    }));
                    found.faulty.push(Faulty { codes, scheme, fault });
                }
            }
        }
        let components: Vec<String> =
            shards.iter().map(|(file, _)| component(file.path())).collect();
        found.sort_out_beside(checkpoint, &components, &tensor);
        found
    }

    /// Tells what is beside the weights, and goes with them, from what is only called so.
    fn sort_out_beside<'a>(
        &mut self,
        checkpoint: &Checkpoint,
        components: &'a [String],
        tensor: &dyn Fn(At) -> &'a Tensor,
    ) {
        let layer = |name: &'a str| name.strip_suffix(".weight").unwrap_or(name);
        let layers: HashSet<(&str, &str)> = self
            .values
            .keys()
            .map(|at| (components[at.0].as_str(), layer(&tensor(*at).name)))
            .chain(self.values.iter().map(|(at, scaled)| {
                (
                    components[at.0].as_str(),
                    scaled.name.strip_suffix(".weight").unwrap_or(&scaled.name),
                )
            }))
            .collect();
        let mut gone = Vec::new();
        for (at, part) in checkpoint.quantized.all() {
            if !matches!(part, Part::Of(_)) || self.becomes(at).is_some() {
                continue;
            }
            let Tensor { name, dtype, .. } = tensor(at);
            let Some((before, kind)) = beside(name) else { continue };
            let is_scalar = tensor(at).elements() == 1;
            let is_of_a_layer = layers.contains(&(components[at.0].as_str(), layer(before)));
            match kind {
                Beside::Marker => gone.push(at),
                Beside::Activations if is_of_a_layer => gone.push(at),
                Beside::Caches if is_scalar => gone.push(at),
                Beside::Activations | Beside::Caches if dtype.is_float() => {
                    self.weights.insert(at);
                }
                _ => {}
            }
        }
        drop(layers);
        self.gone.extend(gone);
    }

    /// What becomes of a tensor of a quantized weight, where that can be dequantized.
    pub fn becomes(&self, at: At) -> Option<Becomes<'_>> {
        match self.values.get(&at) {
            Some(scaled) => Some(Becomes::Values(scaled)),
            None if self.gone.contains(&at) => Some(Becomes::Gone),
            None => self.weights.contains(&at).then_some(Becomes::Weight),
        }
    }

    /// Whether a tensor belongs to a weight of a known scheme that cannot be dequantized.
    pub fn is_of_faulty(&self, at: At) -> bool {
        self.of_faulty.contains(&at)
    }

    /// The weights, in the order of the shards.
    pub fn values(&self) -> Vec<&Arc<Scaled>> {
        let mut values: Vec<&Arc<Scaled>> = self.values.values().collect();
        values.sort_by_key(|scaled| scaled.codes);
        values
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

//! Which tensors belong to quantized weights, told by their names, dtypes, shapes and companions
//! alone. Casting one of them would round a scale or a code, and so every weight made of it.

mod weight;

use crate::format::safetensors::{Shard, Tensor};
use crate::recognize::schemes::{
    Beside, CODES_ONLY, FP8, PACKED, SCALE_WORDS, SCHEMES, SHARED, Scheme, beside,
};
use weight::{BESIDE_CODES, BESIDE_LAYERS};
pub use weight::{Found, Weight};

/// A tensor: the position of its shard, and its own in the shard.
pub type At = (usize, usize);

/// What a tensor is to a quantized weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Its codes, or a scale or the like, in the scheme of that name.
    Of(&'static str),
    /// 8-bit floats without a scale: the values themselves, or codes whose scale is lost.
    Unscaled,
    /// Codes of a weight whose scale is not there.
    Codes,
    /// A scale of a weight whose codes are not there.
    Scale,
}

impl Part {
    /// The scheme, or what is wrong.
    pub fn name(self) -> &'static str {
        match self {
            Part::Of(scheme) => scheme,
            Part::Unscaled => "fp8 without scales",
            Part::Codes => "codes without scales",
            Part::Scale => "scales without codes",
        }
    }
}

/// Whether a tensor is of integers, as codes are, in two or more dimensions.
pub fn is_packed(tensor: &Tensor) -> bool {
    tensor.shape.len() >= 2 && PACKED.contains(&tensor.dtype.name())
}

/// The tensors that belong to quantized weights.
#[derive(Debug, Default)]
pub struct Quantized {
    parts: Vec<Vec<Option<Part>>>,
    weights: Vec<Weight>,
}

impl Quantized {
    /// Looks at all shards, each with the component (the folder) that it is part of: a weight and
    /// its scale may be in different shards of one component.
    pub fn of<'a>(shards: &[(&'a str, &'a Shard)]) -> Quantized {
        let mut parts: Vec<Vec<Option<Part>>> =
            shards.iter().map(|(_, shard)| vec![None; shard.tensors.len()]).collect();
        let mut components: Vec<&str> = shards.iter().map(|(component, _)| *component).collect();
        components.sort_unstable();
        components.dedup();
        let mut weights = Vec::new();
        for component in components {
            let mut component = Component::of(component, shards, &mut parts);
            component.recognize();
            weights.append(&mut component.weights);
        }
        Quantized { parts, weights }
    }

    /// The quantized weights whose codes and companions were found by the name of a scheme.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// What the tensor is part of; nothing for a tensor of its own.
    pub fn part(&self, (shard, tensor): At) -> Option<Part> {
        self.parts[shard][tensor]
    }

    /// All that are part of something, in the order of the shards.
    pub fn all(&self) -> impl Iterator<Item = (At, Part)> {
        self.parts.iter().enumerate().flat_map(|(shard, tensors)| {
            let found = tensors.iter().enumerate();
            found.filter_map(move |(tensor, part)| part.map(|part| ((shard, tensor), part)))
        })
    }
}

/// The tensors of a component by name. A name may be there more than once, as in variants.
struct Component<'a, 'p> {
    names: Vec<(&'a str, At, &'a Tensor)>,
    parts: &'p mut [Vec<Option<Part>>],
    weights: Vec<Weight>,
}

impl<'a, 'p> Component<'a, 'p> {
    fn of(
        component: &str,
        shards: &[(&'a str, &'a Shard)],
        parts: &'p mut [Vec<Option<Part>>],
    ) -> Component<'a, 'p> {
        let own = shards.iter().enumerate().filter(|(_, (name, _))| *name == component);
        let mut names: Vec<_> = own
            .flat_map(|(number, (_, shard))| {
                let tensors = shard.tensors.iter().enumerate();
                tensors.map(move |(index, tensor)| (tensor.name.as_str(), (number, index), tensor))
            })
            .collect();
        names.sort_unstable_by_key(|(name, at, _)| (*name, *at));
        Component { names, parts, weights: Vec::new() }
    }

    fn recognize(&mut self) {
        for scheme in SCHEMES {
            for number in 0..self.names.len() {
                let (name, at, _) = self.names[number];
                if name.ends_with(scheme.scale) && self.is_free(at) {
                    self.claim(scheme, &name[..name.len() - scheme.scale.len()]);
                }
            }
        }
        self.claim_shared_scales();
        self.claim_unknown();
        self.claim_beside();
        self.name_orphans();
        self.name_unscaled();
        self.claim_beside_orphans();
    }

    /// The tensors of that name.
    fn named(&self, name: &str) -> &[(&'a str, At, &'a Tensor)] {
        let start = self.names.partition_point(|(other, ..)| *other < name);
        let count = self.names[start..].iter().take_while(|(other, ..)| *other == name).count();
        &self.names[start..start + count]
    }

    /// Claims a weight whose names begin with `stem`, where it has codes as the scheme has them.
    fn claim(&mut self, scheme: &'static Scheme, stem: &str) {
        let is_codes = |(_, _, codes): &(&str, At, &Tensor)| {
            scheme.dtypes.is_empty() || scheme.dtypes.contains(&codes.dtype.name())
        };
        let mut codes = scheme.codes.iter();
        if stem.is_empty() || !codes.any(|part| self.named(&join(stem, part)).iter().any(is_codes))
        {
            return;
        }
        let name = match scheme.name {
            "GPTQ or AWQ" => self.packing(stem),
            name => name,
        };
        for part in scheme.codes {
            let all: Vec<_> = self.named(&join(stem, part)).to_vec();
            // Of the same name, but in another file, may be the plain weights.
            let codes: Vec<_> = all.into_iter().filter(is_codes).collect();
            let free = codes.iter().filter(|(_, at, _)| self.is_free(*at));
            let weights: Vec<Weight> =
                free.map(|(name, at, _)| self.weight(scheme, stem, (name, *at))).collect();
            self.weights.extend(weights);
            codes.into_iter().for_each(|(_, at, _)| self.mark_one(at, Part::Of(name)));
        }
        for part in [scheme.scale].into_iter().chain(scheme.also.iter().copied()) {
            self.mark(&join(stem, part), Part::Of(name));
        }
    }

    /// A weight with its companions.
    fn weight(&self, scheme: &'static Scheme, stem: &str, codes: (&str, At)) -> Weight {
        // Where the scheme's names begin with `weight`, the stem ends in a dot.
        let layer = stem.strip_suffix(".weight").or(stem.strip_suffix('.')).unwrap_or(stem);
        let own = [scheme.scale].into_iter().chain(scheme.also.iter().copied());
        let own = own.map(|part| (stem, part));
        let all = own
            .chain(BESIDE_CODES.map(|part| (codes.0, part)))
            .chain(BESIDE_LAYERS.map(|part| (layer, part)));
        let found =
            all.filter_map(|(stem, part)| Some((part, self.beside(&join(stem, part), codes)?)));
        Weight { scheme, stem: stem.to_owned(), codes: codes.1, companions: found.collect() }
    }

    /// The tensor of that name that goes with one in another place. That in a shard with a tensor
    /// called as the latter goes with that one: the shard is another copy of the weights.
    fn beside(&self, name: &str, (other, (shard, _)): (&str, At)) -> Option<Found> {
        let copies = self.named(other);
        let is_of_a_copy =
            |found: &At| found.0 != shard && copies.iter().any(|(_, at, _)| at.0 == found.0);
        let all = self.named(name).iter().map(|(_, at, _)| *at);
        let all: Vec<At> = all.filter(|at| !is_of_a_copy(at)).collect();
        let own = all.iter().find(|at| at.0 == shard);
        match (own, all.as_slice()) {
            (Some(at), _) | (None, [at]) => Some(Found::At(*at)),
            (None, []) => None,
            (None, _) => Some(Found::Ambiguous),
        }
    }

    /// AWQ packs the columns of a weight, GPTQ its rows.
    fn packing(&self, stem: &str) -> &'static str {
        let columns = |part: &str| {
            self.named(&join(stem, part)).first().and_then(|(.., tensor)| tensor.shape.last())
        };
        match (columns(".qweight"), columns(".scales")) {
            (Some(codes), Some(scales)) if codes < scales => "AWQ",
            _ => "GPTQ",
        }
    }

    fn mark(&mut self, name: &str, part: Part) {
        let start = self.names.partition_point(|(other, ..)| *other < name);
        for (other, (shard, tensor), _) in &self.names[start..] {
            if *other != name {
                break;
            }
            self.parts[*shard][*tensor].get_or_insert(part);
        }
    }

    fn mark_one(&mut self, (shard, tensor): At, part: Part) {
        self.parts[shard][tensor].get_or_insert(part);
    }

    fn is_free(&self, (shard, tensor): At) -> bool {
        self.parts[shard][tensor].is_none()
    }

    /// One scale may be that of all fp8 tensors below it, such as a table cut into many.
    fn claim_shared_scales(&mut self) {
        let mut shared = Vec::new();
        for number in 0..self.names.len() {
            let (name, at, tensor) = self.names[number];
            if !self.is_free(at) || !FP8.contains(&tensor.dtype.name()) {
                continue;
            }
            let above = name.rmatch_indices('.').map(|(at, _)| &name[..at]);
            let is_one = |scale: &String| {
                self.named(scale).iter().any(|(_, _, scale)| scale.elements() == 1)
            };
            let scale = above.map(|above| format!("{above}.weight_scale")).find(is_one);
            // That of a weight of its own is for nothing else.
            let is_own = |scale: &String| self.named(scale).iter().any(|it| !self.is_free(it.1));
            if let Some(scale) = scale.filter(|scale| !is_own(scale)) {
                let stem = &scale[..scale.len() - SHARED.scale.len()];
                let weight = self.weight(&SHARED, stem, (name, at));
                self.weights.push(weight);
                self.mark_one(at, Part::Of(SHARED.name));
                shared.push(scale);
            }
        }
        shared.iter().for_each(|scale| self.mark(scale, Part::Of(SHARED.name)));
    }

    /// Integers of two or more dimensions beside something like a scale: a scheme of another name.
    fn claim_unknown(&mut self) {
        const UNKNOWN: &str = "an unknown scheme";
        for number in 0..self.names.len() {
            let (name, at, codes) = self.names[number];
            if !self.is_free(at) || !is_packed(codes) {
                continue;
            }
            let layer = &name[..name.rfind('.').map_or(0, |dot| dot + 1)];
            let start = self.names.partition_point(|(other, ..)| *other < layer);
            let beside = self.names[start..]
                .iter()
                .take_while(|(other, ..)| other.starts_with(layer))
                .filter(|(other, _, scale)| {
                    let part = &other[layer.len()..];
                    !part.contains('.')
                        && *other != name
                        && scale.elements() > 1
                        && SCALE_WORDS.iter().any(|word| part.contains(word))
                });
            let beside: Vec<&str> = beside.map(|(other, ..)| *other).collect();
            if !beside.is_empty() {
                self.mark_one(at, Part::Of(UNKNOWN));
                beside.into_iter().for_each(|other| self.mark(other, Part::Of(UNKNOWN)));
            }
        }
    }

    /// What goes with quantized weights and is part of none.
    fn claim_beside(&mut self) {
        let mut parts = self.names.iter().filter_map(|(_, (shard, at), _)| self.parts[*shard][*at]);
        let Some(part) = parts.next() else { return };
        for number in 0..self.names.len() {
            let (name, at, _) = self.names[number];
            if self.is_free(at) && beside(name).is_some() {
                self.mark(name, part);
            }
        }
    }

    /// The same where the codes have lost their scales, so that nothing was claimed before.
    fn claim_beside_orphans(&mut self) {
        let is_codes = |(shard, at): At| self.parts[shard][at] == Some(Part::Codes);
        if !self.names.iter().any(|(_, at, _)| is_codes(*at)) {
            return;
        }
        for number in 0..self.names.len() {
            let (name, at, _) = self.names[number];
            if self.is_free(at) && beside(name).is_some() {
                self.mark_one(at, Part::Scale);
            }
        }
    }

    /// Codes without a scale, and scales without codes.
    fn name_orphans(&mut self) {
        for number in 0..self.names.len() {
            let (name, at, tensor) = self.names[number];
            if !self.is_free(at) {
                continue;
            }
            let (dtype, matrix) = (tensor.dtype.name(), tensor.shape.len() >= 2);
            let scale = |scheme: &Scheme| scheme.unmistakable && name.ends_with(scheme.scale);
            let part = if FP8.contains(&dtype) {
                continue;
            } else if SCHEMES.iter().any(scale) || dtype == "F8_E8M0" {
                Part::Scale
            } else if CODES_ONLY.contains(&dtype) || matrix && is_codes(name, dtype) {
                Part::Codes
            } else {
                continue;
            };
            self.mark_one(at, part);
        }
    }

    /// 8-bit floats that no scale belongs to: in a component with anything else of quantized
    /// weights, their scales are lost.
    fn name_unscaled(&mut self) {
        let is_said = |name: &str| !matches!(beside(name), None | Some((_, Beside::Caches)));
        let is_quantized =
            self.names.iter().any(|(name, at, _)| !self.is_free(*at) || is_said(name));
        let part = if is_quantized { Part::Codes } else { Part::Unscaled };
        for number in 0..self.names.len() {
            let (_, at, tensor) = self.names[number];
            if self.is_free(at) && FP8.contains(&tensor.dtype.name()) {
                self.mark_one(at, part);
            }
        }
    }
}

/// Whether a matrix of that name and dtype holds codes: no plain weight is made of integers.
fn is_codes(name: &str, dtype: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or(name);
    PACKED.contains(&dtype) && (last.ends_with("weight") || last.ends_with("_packed"))
}

fn join(stem: &str, part: &str) -> String {
    [stem, part].concat()
}

#[cfg(test)]
mod tests;

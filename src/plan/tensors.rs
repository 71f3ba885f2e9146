//! What becomes of each tensor of a shard, and how the result's file is made of them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::quantized::{LeftOver, Parts};
use crate::cast::Overflow;
use crate::checkpoint::{Checkpoint, SourceFile};
use crate::checksum::SHA256_DIGITS;
use crate::dtype::{Dtype, Float};
use crate::error::{Error, HeaderFault};
use crate::format::safetensors::{MAX_HEADER, Shard, Tensor};
use crate::keep::Pattern;
use crate::recipe::{Extent, Span};
use crate::recognize::component;
use crate::recognize::quantized::Part;
use crate::recognize::wide::{self, Wide};

#[derive(Clone, Debug)]
pub struct Options {
    pub to: Float,
    pub keep: Vec<String>,
    /// Whether the built-in list of tensors that loaders need in fp32 holds.
    pub auto_keep: bool,
    /// What becomes of finite values that the target cannot hold.
    pub overflow: Overflow,
    /// Whether quantized weights are carried as they are; otherwise they are refused.
    pub skip_quantized: bool,
    /// Whether fp8 tensors without scales are plain values and cast; otherwise they are refused.
    pub unscaled_fp8: bool,
}

impl Options {
    pub fn to(to: Float) -> Options {
        Options {
            to,
            keep: Vec::new(),
            auto_keep: true,
            overflow: Overflow::Infinity,
            skip_quantized: false,
            unscaled_fp8: false,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Cast,
    Copy,
    /// It could be cast, but is left as it is.
    Keep,
}

/// What a tensor is to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A value of its own.
    Weight,
    Quantized(Part),
    State,
}

impl Role {
    /// That of a tensor: the number of its shard, and its position there.
    pub fn of(checkpoint: &Checkpoint, parts: &Parts<'_>, tensor: (usize, usize)) -> Role {
        match parts.part(tensor) {
            Some(part) => Role::Quantized(part),
            None if checkpoint.is_state(tensor) => Role::State,
            None => Role::Weight,
        }
    }
}

/// What becomes of a tensor of a shard. Its bytes are those of the span with its position in
/// [`Content::Shard`] and one more, which is the header's.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    pub tensor: usize,
    pub action: Action,
    pub reason: Arc<str>,
    pub role: Role,
    /// Whether the loader that the config names casts it all the same.
    pub is_kept_in_vain: bool,
    pub dtype: Dtype,
    pub bytes: u64,
}

#[derive(Clone, Debug)]
pub enum Content {
    /// A header and the tensors that follow it, in order.
    Shard {
        shard: Arc<Shard>,
        tensors: Vec<PlannedTensor>,
    },
    /// A text with other dtypes or sizes.
    Text,
    Copy,
}

pub struct Decisions {
    to: Float,
    patterns: Vec<Pattern>,
    /// Of each component, what is wide on purpose.
    wide: HashMap<String, Wide>,
    auto_keep: bool,
}

impl Decisions {
    pub fn new(
        checkpoint: &Checkpoint,
        parts: &Parts<'_>,
        options: &Options,
    ) -> Result<Decisions, Error> {
        let patterns =
            options.keep.iter().map(|text| Pattern::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let shards: Vec<(String, &Shard)> =
            checkpoint.shards().map(|(file, shard)| (component(file.path()), &**shard)).collect();
        let tensors = || {
            shards.iter().flat_map(|(component, shard)| {
                shard.tensors.iter().map(|tensor| (component.as_str(), tensor.name.as_str()))
            })
        };
        for pattern in &patterns {
            if !tensors().any(|(component, name)| pattern.matches(component, name)) {
                return Err(pattern.unmatched(tensors()));
            }
        }
        let (to, auto_keep) = (options.to, options.auto_keep);
        Ok(Decisions { to, patterns, wide: wide(checkpoint, parts, to), auto_keep })
    }

    /// Whether casting also what is wide on purpose makes a difference.
    pub fn keeps_any(&self, checkpoint: &Checkpoint) -> bool {
        checkpoint.shards().any(|(file, shard)| {
            let wide = self.wide.get(&component(file.path()));
            wide.is_some_and(|wide| {
                shard
                    .tensors
                    .iter()
                    .any(|tensor| seen(tensor).and_then(|it| wide.why(it)).is_some())
            })
        })
    }

    /// Whether transformers loads the model and its class does not keep this tensor as it is.
    fn is_in_vain(&self, component: &str, tensor: &Tensor) -> bool {
        let wide = self.wide.get(component);
        wide.zip(seen(tensor)).is_some_and(|(wide, tensor)| wide.is_cast_by_loader(tensor))
    }

    /// Whether there is a component of which nothing tells what model it is.
    pub fn is_nameless(&self) -> bool {
        self.wide.values().any(Wide::is_nameless)
    }

    fn decide(&self, component: &str, tensor: &Tensor) -> (Action, Cow<'_, str>) {
        let Some(from) = tensor.dtype.castable() else {
            return (Action::Copy, format!("{} is not cast", tensor.dtype).into());
        };
        if from == self.to.castable() {
            return (Action::Copy, format!("already {}", self.to).into());
        }
        let mut patterns = self.patterns.iter();
        if let Some(pattern) = patterns.find(|pattern| pattern.matches(component, &tensor.name)) {
            return (Action::Keep, format!("--keep {}", pattern.text()).into());
        }
        let wide = self.wide.get(component).filter(|_| self.auto_keep);
        if let Some(reason) = wide.zip(seen(tensor)).and_then(|(wide, tensor)| wide.why(tensor)) {
            return (Action::Keep, reason.text.into());
        }
        (Action::Cast, format!("{from} to {}", self.to).into())
    }

    pub fn shard(
        &self,
        file: &SourceFile,
        shard: &Arc<Shard>,
        role: &dyn Fn(usize) -> Role,
        left_over: &LeftOver<'_>,
    ) -> Result<(Content, Vec<Span>), Error> {
        let component = component(file.path());
        let mut reasons: HashSet<Arc<str>> = HashSet::new();
        let mut shared = |reason: Cow<'_, str>| {
            if let Some(known) = reasons.get(&*reason) {
                return Arc::clone(known);
            }
            let reason = Arc::from(reason);
            reasons.insert(Arc::clone(&reason));
            reason
        };
        let mut tensors: Vec<PlannedTensor> = shard
            .tensors
            .iter()
            .enumerate()
            .map(|(index, tensor)| {
                let role = role(index);
                let (action, reason) = match role {
                    Role::Quantized(part) => (Action::Copy, carried(part)),
                    Role::State => (Action::Copy, "optimizer state".into()),
                    Role::Weight => self.decide(&component, tensor),
                };
                let (dtype, bytes) = match action {
                    Action::Cast => (self.to.dtype(), tensor.elements() * self.to.bytes() as u64),
                    Action::Copy | Action::Keep => (tensor.dtype.clone(), tensor.bytes),
                };
                PlannedTensor {
                    tensor: index,
                    action,
                    reason: shared(reason),
                    role,
                    is_kept_in_vain: action == Action::Keep && self.is_in_vain(&component, tensor),
                    dtype,
                    bytes,
                }
            })
            .collect();
        let source = |planned: &PlannedTensor| &shard.tensors[planned.tensor];
        // The official writer's order, so that the file is byte-identical to one it writes.
        tensors.sort_by(|left, right| {
            let names = || source(left).name.cmp(&source(right).name);
            right.dtype.cmp(&left.dtype).then_with(names)
        });
        let says = shard.quantization().filter(|_| left_over.contains(file.path()));
        let others = shard.other_hashes().filter(|_| changes(shard, &tensors));
        let removed: Vec<&str> = says.into_iter().chain(others).collect();
        let metadata = metadata(shard.metadata.as_deref(), &removed);
        let hashes: Vec<_> = shard.hashes().collect();
        let header = |digit: &str| {
            let mut metadata = metadata.clone();
            for (key, value) in &mut metadata {
                if let Some((_, before)) = hashes.iter().find(|(hash, _)| hash == key) {
                    *value = format!("{before}{}", digit.repeat(SHA256_DIGITS));
                }
            }
            Shard::header(
                &metadata,
                tensors.iter().map(|planned| {
                    let Tensor { name, shape, .. } = source(planned);
                    (name.as_str(), &planned.dtype, shape.as_slice(), planned.bytes)
                }),
            )
        };
        let (header, at) = match hashes.is_empty() {
            false => with_places(header("0"), &header("1")),
            true => (header(""), Vec::new()),
        };
        let length = header.len() as u64 - 8;
        if length > MAX_HEADER {
            let fault = HeaderFault::ResultTooLong { length, limit: MAX_HEADER };
            return Err(Error::Header { path: file.location.clone(), fault });
        }
        let data = tensors.iter().map(|planned| {
            let Tensor { start, bytes, dtype, .. } = source(planned);
            let values = Extent { source: 0, start: *start, bytes: *bytes };
            match (planned.action, dtype.castable()) {
                (Action::Cast, Some(from)) => Span::Cast { values, from, to: self.to },
                (Action::Keep, Some(from)) => Span::Keep { values, from, to: self.to },
                _ => Span::Copy(values),
            }
        });
        let header = match at.is_empty() {
            true => Span::Literal(header),
            false => Span::Hashed { text: header, at },
        };
        let spans = std::iter::once(header).chain(data).collect();
        Ok((Content::Shard { shard: Arc::clone(shard), tensors }, spans))
    }
}

/// Whether the bytes of a shard's tensors become others, or come in another order.
pub(super) fn changes(shard: &Shard, tensors: &[PlannedTensor]) -> bool {
    let starts = tensors.iter().map(|planned| shard.tensors[planned.tensor].start);
    tensors.iter().any(|planned| planned.action == Action::Cast) || !starts.is_sorted()
}

/// A header, and the places of the digests in it: where it differs from one with other digits.
fn with_places(header: Vec<u8>, other: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let differs = (0..header.len()).filter(|at| header[*at] != other[*at]);
    let places = differs.step_by(SHA256_DIGITS).collect();
    (header, places)
}

/// What is wide on purpose in each component, by the configs in its folder and above it.
fn wide(checkpoint: &Checkpoint, parts: &Parts<'_>, to: Float) -> HashMap<String, Wide> {
    let mut components: HashMap<String, Vec<wide::Tensor<'_>>> = HashMap::new();
    for (number, (file, shard)) in checkpoint.shards().enumerate() {
        let tensors = components.entry(component(file.path())).or_default();
        let own = shard.tensors.iter().enumerate();
        let own =
            own.filter(|(index, _)| Role::of(checkpoint, parts, (number, *index)) == Role::Weight);
        tensors.extend(own.filter_map(|(_, tensor)| seen(tensor)));
    }
    let of = |(component, tensors): (String, Vec<wide::Tensor<'_>>)| {
        let folder = Path::new(&component);
        let models = || checkpoint.models.iter().filter(|it| folder.starts_with(&it.folder));
        let model_types: Vec<String> = models().flat_map(|it| it.model_types.clone()).collect();
        let class_names: Vec<String> = models().flat_map(|it| it.class_names.clone()).collect();
        let wide = Wide::new(to, &model_types, &class_names, tensors.iter().copied());
        (component, wide)
    };
    components.into_iter().map(of).collect()
}

/// A tensor as recognition looks at it, where it is of floats.
fn seen(tensor: &Tensor) -> Option<wide::Tensor<'_>> {
    let bits = tensor.dtype.bits().filter(|_| tensor.dtype.is_float())?;
    Some(wide::Tensor { name: &tensor.name, bits, elements: tensor.elements() })
}

fn carried(part: Part) -> Cow<'static, str> {
    match part {
        Part::Of(scheme) => format!("part of a quantized weight ({scheme})").into(),
        other => other.name().into(),
    }
}

/// The metadata of the result, without the keys `removed`. transformers 4 refuses a file whose
/// metadata lacks `format`, so it is added where missing.
fn metadata(metadata: Option<&[(String, String)]>, removed: &[&str]) -> Vec<(String, String)> {
    let mut metadata = metadata.unwrap_or_default().to_vec();
    metadata.retain(|(key, _)| !removed.contains(&key.as_str()));
    if !metadata.iter().any(|(key, _)| key == "format") {
        metadata.push(("format".to_owned(), "pt".to_owned()));
    }
    metadata
}

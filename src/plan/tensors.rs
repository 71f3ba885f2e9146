//! What becomes of each tensor of a shard, and how the result's file is made of them.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::dequantized::Becomes;
use super::planned::{Action, Content, PlannedTensor, Role, Sources};
use super::quantized::{LeftOver, Parts};
use crate::cast::Overflow;
use crate::checkpoint::{Checkpoint, SourceFile};
use crate::checksum::SHA256_DIGITS;
use crate::dtype::Float;
use crate::error::{Error, HeaderFault, ScaleFault};
use crate::format::safetensors::{MAX_HEADER, Shard, Tensor};
use crate::keep::Pattern;
use crate::recipe::{Extent, Gather, Scaled as Scaling, Span};
use crate::recognize::component;
use crate::recognize::quantized::Part;
use crate::recognize::wide::{self, Wide};

#[derive(Clone, Debug)]
pub struct Options {
    /// What floats become; nothing where all tensors stay as they are stored, in another format.
    pub to: Option<Float>,
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
            to: Some(to),
            keep: Vec::new(),
            auto_keep: true,
            overflow: Overflow::Infinity,
            skip_quantized: false,
            unscaled_fp8: false,
        }
    }
}

pub struct Decisions {
    to: Option<Float>,
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
            shards
                .iter()
                .flat_map(|(component, shard)| shard.names().map(|name| (component.as_str(), name)))
        };
        for pattern in &patterns {
            if !tensors().any(|(component, name)| pattern.matches(component, name)) {
                return Err(pattern.unmatched(tensors()));
            }
        }
        let (to, auto_keep) = (options.to, options.auto_keep);
        if let Some(error) = kept_quantized(checkpoint, parts, &patterns) {
            return Err(error);
        }
        let wide = to.map(|to| wide(checkpoint, parts, to)).unwrap_or_default();
        Ok(Decisions { to, patterns, wide, auto_keep })
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

    /// What becomes of a tensor of its own; `others` are the names of what is the same memory.
    fn decide(&self, component: &str, tensor: &Tensor, others: &[&str]) -> (Action, Cow<'_, str>) {
        let Some(to) = self.to else { return (Action::Copy, "as stored".into()) };
        let Some(from) = tensor.dtype.castable() else {
            return (Action::Copy, format!("{} is not cast", tensor.dtype).into());
        };
        if from == to.castable() {
            return (Action::Copy, format!("already {to}").into());
        }
        let names = || std::iter::once(tensor.name.as_str()).chain(others.iter().copied());
        let matches = |pattern: &&Pattern| names().any(|name| pattern.matches(component, name));
        if let Some(pattern) = self.patterns.iter().find(matches) {
            return (Action::Keep, format!("--keep {}", pattern.text()).into());
        }
        let wide = self.wide.get(component).filter(|_| self.auto_keep);
        if let Some(reason) = wide.zip(seen(tensor)).and_then(|(wide, tensor)| wide.why(tensor)) {
            return (Action::Keep, reason.text.into());
        }
        (Action::Cast, format!("{from} to {to}").into())
    }

    pub fn shard(
        &self,
        file: &SourceFile,
        shard: &Arc<Shard>,
        role: &dyn Fn(usize) -> Role,
        left_over: &LeftOver<'_>,
        sources: &mut Sources<'_>,
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
        let mut tied: HashMap<&str, Vec<&str>> = HashMap::new();
        shard.tied().for_each(|(name, kept)| tied.entry(kept).or_default().push(name));
        let (mut tensors, mut dropped) = (Vec::with_capacity(shard.tensors.len()), Vec::new());
        for (index, tensor) in shard.tensors.iter().enumerate() {
            let role = role(index);
            let (action, reason) = match &role {
                Role::Quantized(part) => (Action::Copy, carried(*part)),
                Role::State => (Action::Copy, "optimizer state".into()),
                Role::Weight => {
                    let others = tied.get(tensor.name.as_str()).map_or(&[][..], Vec::as_slice);
                    self.decide(&component, tensor, others)
                }
                Role::Codes(scaled) => {
                    let to = self.to.map_or("", Float::name);
                    (Action::Dequantize, format!("{} to {to}", scaled.scheme).into())
                }
                Role::Gone => {
                    dropped.push(index);
                    continue;
                }
            };
            let is_kept_in_vain = action == Action::Keep && self.is_in_vain(&component, tensor);
            let (dtype, bytes) = (tensor.dtype.clone(), tensor.bytes);
            let reason = shared(reason);
            let mut planned = PlannedTensor {
                tensor: index,
                action,
                reason,
                role,
                is_kept_in_vain,
                dtype,
                bytes,
            };
            if let (Some(to), true) = (self.to, action.is_cast()) {
                planned.dtype = to.dtype();
                planned.bytes = planned.elements(tensor) * to.bytes() as u64;
            }
            tensors.push(planned);
        }
        let source = |planned: &PlannedTensor| &shard.tensors[planned.tensor];
        check_names(file, shard, &tensors)?;
        // The official writer's order, so that the file is byte-identical to one it writes.
        tensors.sort_by(|left, right| {
            let names = || left.name(source(left)).cmp(right.name(source(right)));
            right.dtype.cmp(&left.dtype).then_with(names)
        });
        let says = shard.quantization().filter(|_| left_over.contains(file.path()));
        let others = shard.other_hashes().filter(|_| changes(shard, &tensors));
        let removed: Vec<&str> = says.chain(others).collect();
        let mut metadata = metadata(shard.metadata.as_deref(), &removed);
        // As the converter of safetensors notes what it leaves out.
        let tied = shard.tied().filter(|(name, _)| *name != "format");
        metadata.extend(tied.map(|(name, kept)| (name.to_owned(), kept.to_owned())));
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
                    let source = source(planned);
                    let (name, shape) = (planned.name(source), planned.shape(source));
                    (name, &planned.dtype, shape, planned.bytes)
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
            let Tensor { start, bytes, dtype, view, .. } = source(planned);
            let from = if view.is_some() { 0 } else { *start };
            let values = Extent { source: 0, start: from, bytes: *bytes };
            let of = match (planned.action, dtype.castable(), self.to, &planned.role) {
                (Action::Cast, Some(from), Some(to), _) => Span::Cast { values, from, to },
                (Action::Keep, Some(from), Some(to), _) => Span::Keep { values, from, to },
                (_, _, Some(to), Role::Codes(scaled)) => {
                    let formula = scaled.formula;
                    let scales = sources.extent(scaled.scales);
                    let second = scaled.second.map(|at| sources.extent(at));
                    Span::Scaled(Box::new(Scaling { codes: values, scales, second, formula, to }))
                }
                _ => Span::Copy(values),
            };
            match view.as_deref().cloned() {
                None => of,
                Some(view) => Span::Gather(Box::new(Gather { view, start: *start, of })),
            }
        });
        let header = match at.is_empty() {
            true => Span::Literal(header),
            false => Span::Hashed { text: header, at },
        };
        let spans = std::iter::once(header).chain(data).collect();
        Ok((Content::Shard { shard: Arc::clone(shard), tensors, dropped }, spans))
    }
}

/// Whether the bytes of a shard's tensors become others, or come in another order.
pub(super) fn changes(shard: &Shard, tensors: &[PlannedTensor]) -> bool {
    let starts = tensors.iter().map(|planned| shard.tensors[planned.tensor].start);
    tensors.len() < shard.tensors.len()
        || tensors.iter().any(|planned| planned.action.is_cast())
        || !starts.is_sorted()
}

/// Two tensors of the result must not have the same name.
fn check_names(file: &SourceFile, shard: &Shard, tensors: &[PlannedTensor]) -> Result<(), Error> {
    let is_renamed = |planned: &&PlannedTensor| {
        let source = &shard.tensors[planned.tensor];
        planned.name(source) != source.name
    };
    if !tensors.iter().any(|planned| is_renamed(&planned)) {
        return Ok(());
    }
    let mut count: HashMap<&str, usize> = HashMap::new();
    for planned in tensors {
        *count.entry(planned.name(&shard.tensors[planned.tensor])).or_default() += 1;
    }
    for planned in tensors.iter().filter(is_renamed) {
        let source = &shard.tensors[planned.tensor];
        let name = planned.name(source);
        if let (2.., Role::Codes(scaled)) = (count[name], &planned.role) {
            let (path, tensor) = (file.location.clone(), source.name.clone());
            let (fault, scheme) =
                (Box::new(ScaleFault::Taken { name: name.to_owned() }), scaled.scheme.clone());
            return Err(Error::Scales { path, tensor, scheme, fault, more: 0 });
        }
    }
    Ok(())
}

/// The error where a pattern matches a tensor of a weight that is dequantized.
fn kept_quantized(
    checkpoint: &Checkpoint,
    parts: &Parts<'_>,
    patterns: &[Pattern],
) -> Option<Error> {
    if patterns.is_empty() || !parts.dequantizes() {
        return None;
    }
    checkpoint.shards().enumerate().find_map(|(number, (file, shard))| {
        let component = component(file.path());
        shard.tensors.iter().enumerate().find_map(|(index, tensor)| {
            let becomes = parts.becomes((number, index));
            matches!(becomes, Some(Becomes::Values(_) | Becomes::Gone)).then_some(())?;
            let pattern = patterns.iter().find(|it| it.matches(&component, &tensor.name))?;
            let (path, tensor) = (file.location.clone(), tensor.name.clone());
            Some(Error::KeptQuantized { pattern: pattern.text().to_owned(), path, tensor })
        })
    })
}

/// A header, and the places of the digests in it: where it differs from one with other digits.
fn with_places(header: Vec<u8>, other: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let differs = (0..header.len()).filter(|at| header[*at] != other[*at]);
    let places = differs.step_by(SHA256_DIGITS).collect();
    (header, places)
}

/// What is wide on purpose in each component, by the configs in its folder and above it.
fn wide(checkpoint: &Checkpoint, parts: &Parts<'_>, to: Float) -> HashMap<String, Wide> {
    let mut components: HashMap<String, (Vec<&str>, Vec<wide::Tensor<'_>>)> = HashMap::new();
    for (number, (file, shard)) in checkpoint.shards().enumerate() {
        let (names, tensors) = components.entry(component(file.path())).or_default();
        // Weights that are quantized are no plain floats, but tell what model it is all the same.
        names.extend(shard.tensors.iter().map(|tensor| tensor.name.as_str()));
        let own = shard.tensors.iter().enumerate();
        let own = own.filter(|(index, _)| {
            matches!(Role::of(checkpoint, parts, (number, *index)), Role::Weight)
        });
        tensors.extend(own.filter_map(|(_, tensor)| seen(tensor)));
    }
    let of = |(component, (names, tensors)): (String, (Vec<&str>, Vec<wide::Tensor<'_>>))| {
        let folder = Path::new(&component);
        let models = || checkpoint.models.iter().filter(|it| folder.starts_with(&it.folder));
        let model_types: Vec<String> = models().flat_map(|it| it.model_types.clone()).collect();
        let class_names: Vec<String> = models().flat_map(|it| it.class_names.clone()).collect();
        let wide = Wide::new(to, &model_types, &class_names, &names, tensors.into_iter());
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

//! What becomes of each tensor of a shard, and how the result's file is made of them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use super::quantized::LeftOver;
use crate::cast::Overflow;
use crate::checkpoint::{Checkpoint, SourceFile};
use crate::dtype::{Dtype, Float};
use crate::error::{Error, HeaderFault};
use crate::format::safetensors::{MAX_HEADER, Shard, Tensor};
use crate::keep::{self, Pattern};
use crate::recipe::{Extent, Span};
use crate::recognize::component;
use crate::recognize::quantized::Part;

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
}

impl Options {
    pub fn to(to: Float) -> Options {
        let (auto_keep, skip_quantized) = (true, false);
        Options { to, keep: Vec::new(), auto_keep, overflow: Overflow::Infinity, skip_quantized }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Cast,
    Copy,
    /// It could be cast, but is left as it is.
    Keep,
}

/// What becomes of a tensor of a shard. Its bytes are those of the span with its position in
/// [`Content::Shard`] and one more, which is the header's.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    pub tensor: usize,
    pub action: Action,
    pub reason: Arc<str>,
    pub is_quantized: bool,
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
    built_in: Vec<keep::Entry>,
}

impl Decisions {
    pub fn new(checkpoint: &Checkpoint, options: &Options) -> Result<Decisions, Error> {
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
        let built_in = if options.auto_keep {
            keep::built_in(options.to, &checkpoint.model_types)
        } else {
            Vec::new()
        };
        Ok(Decisions { to: options.to, patterns, built_in })
    }

    fn decide(&self, component: &str, tensor: &Tensor) -> (Action, Cow<'_, str>) {
        let Some(from) = tensor.dtype.float() else {
            return (Action::Copy, format!("{} is not cast", tensor.dtype).into());
        };
        if from == self.to {
            return (Action::Copy, format!("already {}", self.to).into());
        }
        let mut patterns = self.patterns.iter();
        if let Some(pattern) = patterns.find(|pattern| pattern.matches(component, &tensor.name)) {
            return (Action::Keep, format!("--keep {}", pattern.text()).into());
        }
        if let Some(entry) = self.built_in.iter().find(|entry| entry.matches(&tensor.name)) {
            return (Action::Keep, entry.reason.as_str().into());
        }
        (Action::Cast, format!("{from} to {}", self.to).into())
    }

    pub fn shard(
        &self,
        file: &SourceFile,
        shard: &Arc<Shard>,
        part: &dyn Fn(usize) -> Option<Part>,
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
                let part = part(index);
                let (action, reason) = match part {
                    Some(part) => (Action::Copy, carried(part)),
                    None => self.decide(&component, tensor),
                };
                let (dtype, bytes) = match action {
                    Action::Cast => (self.to.dtype(), tensor.elements() * self.to.bytes() as u64),
                    Action::Copy | Action::Keep => (tensor.dtype.clone(), tensor.bytes),
                };
                let (reason, is_quantized) = (shared(reason), part.is_some());
                PlannedTensor { tensor: index, action, reason, is_quantized, dtype, bytes }
            })
            .collect();
        let source = |planned: &PlannedTensor| &shard.tensors[planned.tensor];
        // The official writer's order, so that the file is byte-identical to one it writes.
        tensors.sort_by(|left, right| {
            let names = || source(left).name.cmp(&source(right).name);
            right.dtype.cmp(&left.dtype).then_with(names)
        });
        let says = shard.quantization().filter(|_| left_over.contains(file.path()));
        let metadata = metadata(shard.metadata.as_deref(), says);
        let header = Shard::header(
            &metadata,
            tensors.iter().map(|planned| {
                let Tensor { name, shape, .. } = source(planned);
                (name.as_str(), &planned.dtype, shape.as_slice(), planned.bytes)
            }),
        );
        let length = header.len() as u64 - 8;
        if length > MAX_HEADER {
            let fault = HeaderFault::ResultTooLong { length, limit: MAX_HEADER };
            return Err(Error::Header { path: file.location.clone(), fault });
        }
        let data = tensors.iter().map(|planned| {
            let Tensor { start, bytes, dtype, .. } = source(planned);
            let values = Extent { source: 0, start: *start, bytes: *bytes };
            match (planned.action, dtype.float()) {
                (Action::Cast, Some(from)) => Span::Cast { values, from, to: self.to },
                (Action::Keep, Some(from)) => Span::Keep { values, from, to: self.to },
                _ => Span::Copy(values),
            }
        });
        let spans = std::iter::once(Span::Literal(header)).chain(data).collect();
        Ok((Content::Shard { shard: Arc::clone(shard), tensors }, spans))
    }
}

fn carried(part: Part) -> Cow<'static, str> {
    match part {
        Part::Of(scheme) => format!("part of a quantized weight ({scheme})").into(),
        other => other.name().into(),
    }
}

/// The metadata of the result, without the key `left_over`. transformers 4 refuses a file whose
/// metadata lacks `format`, so it is added where missing.
fn metadata(
    metadata: Option<&[(String, String)]>,
    left_over: Option<&str>,
) -> Vec<(String, String)> {
    let mut metadata = metadata.unwrap_or_default().to_vec();
    metadata.retain(|(key, _)| Some(key.as_str()) != left_over);
    if !metadata.iter().any(|(key, _)| key == "format") {
        metadata.push(("format".to_owned(), "pt".to_owned()));
    }
    metadata
}

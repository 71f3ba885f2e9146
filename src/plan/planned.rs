//! What becomes of each tensor and each file, as data.

use std::sync::Arc;

use super::dequantized::Becomes;
use super::quantized::Parts;
use crate::checkpoint::{Checkpoint, SourceFile};
use crate::dtype::Dtype;
use crate::format::safetensors::{Shard, Tensor};
use crate::recipe::Extent;
use crate::recognize::quantized::{At, Part};
use crate::recognize::scaled::Scaled;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Cast,
    Copy,
    /// It could be cast, but is left as it is.
    Keep,
    /// Codes become the values that they stand for with their scales.
    Dequantize,
}

impl Action {
    /// Whether the values become others, of the dtype that is asked for.
    pub fn is_cast(self) -> bool {
        matches!(self, Action::Cast | Action::Dequantize)
    }
}

/// What a tensor is to the model.
#[derive(Clone, Debug)]
pub enum Role {
    /// A value of its own.
    Weight,
    /// Part of a quantized weight that is carried.
    Quantized(Part),
    /// The codes of one that is dequantized.
    Codes(Arc<Scaled>),
    /// What is not needed any more where one is dequantized.
    Gone,
    State,
}

impl Role {
    /// That of a tensor: the number of its shard, and its position there.
    pub fn of(checkpoint: &Checkpoint, parts: &Parts<'_>, tensor: (usize, usize)) -> Role {
        match parts.becomes(tensor) {
            Some(Becomes::Values(scaled)) => return Role::Codes(Arc::clone(scaled)),
            Some(Becomes::Gone) => return Role::Gone,
            Some(Becomes::Weight) | None => {}
        }
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

impl PlannedTensor {
    /// What it is called in the result; `source` is what it is made of.
    pub fn name<'a>(&'a self, source: &'a Tensor) -> &'a str {
        match &self.role {
            Role::Codes(scaled) => &scaled.name,
            _ => &source.name,
        }
    }

    pub fn shape<'a>(&'a self, source: &'a Tensor) -> &'a [u64] {
        match &self.role {
            Role::Codes(scaled) => &scaled.shape,
            _ => &source.shape,
        }
    }

    /// The values that it has in the result.
    pub fn elements(&self, source: &Tensor) -> u64 {
        self.shape(source).iter().product()
    }

    pub fn is_weight(&self) -> bool {
        matches!(self.role, Role::Weight)
    }
}

#[derive(Clone, Debug)]
pub enum Content {
    /// A header and the tensors that follow it, in order.
    Shard {
        shard: Arc<Shard>,
        tensors: Vec<PlannedTensor>,
        /// The positions in the shard of those that are not in the result.
        dropped: Vec<usize>,
    },
    /// A text with other dtypes or sizes.
    Text,
    Copy,
}

/// The objects that the recipe of a shard reads: the shard, and others that hold scales.
pub struct Sources<'a> {
    shards: &'a [(&'a SourceFile, &'a Arc<Shard>)],
    /// Which shards, by their positions.
    pub used: Vec<usize>,
}

impl<'a> Sources<'a> {
    pub fn of(shard: usize, shards: &'a [(&'a SourceFile, &'a Arc<Shard>)]) -> Sources<'a> {
        Sources { shards, used: vec![shard] }
    }

    /// Where the bytes of a tensor are.
    pub fn extent(&mut self, (shard, tensor): At) -> Extent {
        let known = self.used.iter().position(|used| *used == shard);
        let source = known.unwrap_or_else(|| {
            self.used.push(shard);
            self.used.len() - 1
        });
        let Tensor { start, bytes, .. } = self.shards[shard].1.tensors[tensor];
        Extent { source, start, bytes }
    }
}

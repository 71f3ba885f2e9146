//! A quantized weight: its codes, and the tensors whose names say that they belong to them.

use super::At;
use crate::recognize::schemes::Scheme;

/// What a layer has beside its weights that changes what the codes of its weights mean, or says how
/// they lie in memory.
pub(super) const BESIDE_LAYERS: [&str; 2] = [".pre_quant_scale", ".comfy_quant"];

/// What stands behind the name of codes, whatever their scale is called.
pub(super) const BESIDE_CODES: [&str; 2] = ["_zero_point", "_g_idx"];

#[derive(Clone, Debug)]
pub struct Weight {
    pub scheme: &'static Scheme,
    /// What the names of its tensors begin with.
    pub stem: String,
    pub codes: At,
    /// The scale, and the other companions, by what stands behind the stem; and what is beside the
    /// codes or the layer, by what stands behind their names.
    pub(super) companions: Vec<(&'static str, Found)>,
}

/// Where a companion is: in the shard of the codes, or else in the one shard that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    At(At),
    /// In several other shards.
    Ambiguous,
}

impl Weight {
    pub fn companions(&self) -> impl Iterator<Item = Found> {
        self.companions.iter().map(|(_, found)| *found)
    }

    /// The companion behind whose stem, or layer, that stands.
    pub fn companion(&self, part: &str) -> Option<Found> {
        let mut companions = self.companions.iter();
        companions.find(|(other, _)| *other == part).map(|(_, found)| *found)
    }
}

//! The span of values that are codes with scales: which ranges of its sources a range of it is made
//! from.

use serde::{Deserialize, Serialize};

use super::Extent;
use crate::cast::scaled::{self, Formula, How, Inputs};
use crate::cast::{Audit, Level, Overflow};
use crate::checksum::BLOCK;
use crate::dtype::Float;

/// Bytes of transposed values that are made at a time. All codes of their planes are read for each
/// of them, because the values of a column of codes come together.
const TRANSPOSED: u64 = 16 * BLOCK;

/// Codes, each times the scale of its block. Codes and scales may be of different sources.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scaled {
    pub codes: Extent,
    pub scales: Extent,
    /// The second scale: one, or one for each plane.
    pub second: Option<Extent>,
    pub formula: Formula,
    pub to: Float,
}

impl Scaled {
    fn values(&self) -> u64 {
        self.codes.bytes * 8 / self.formula.code.bits()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.values() * self.to.bytes() as u64
    }

    /// That of a byte of codes.
    pub(super) fn grain(&self) -> u64 {
        (8 / self.formula.code.bits()) * self.to.bytes() as u64
    }

    pub(super) fn step(&self) -> u64 {
        match self.formula.transposed {
            true => TRANSPOSED,
            false => BLOCK * self.to.bytes() as u64 * 8 / self.formula.code.bits(),
        }
    }

    /// The extents, in the order of the sources' use: all of them.
    pub fn extents(&self) -> impl Iterator<Item = Extent> {
        [Some(self.codes), Some(self.scales), self.second].into_iter().flatten()
    }

    pub(super) fn inputs(&self, start: u64, bytes: u64) -> [Option<Extent>; 3] {
        let each = self.to.bytes() as u64;
        if bytes == 0 {
            return [None; 3];
        }
        let Formula { code, scale, grid, .. } = &self.formula;
        let made_of = self.formula.made_of(start / each, (start + bytes) / each);
        let part = |extent: Extent, (from, to): (u64, u64), bits: u64| Extent {
            source: extent.source,
            start: extent.start + from * bits / 8,
            bytes: (to - from) * bits / 8,
        };
        let row = grid.blocks().1 * scale.bytes() * 8;
        [
            Some(part(self.codes, made_of.codes, code.bits())),
            Some(part(self.scales, made_of.scale_rows, row)),
            self.second,
        ]
    }

    pub(super) fn make(
        &self,
        (level, overflow): (Level, Overflow),
        start: u64,
        inputs: &[&[u8]],
        out: &mut [u8],
        audit: &mut Audit,
    ) {
        if out.is_empty() {
            return;
        }
        let second = if self.second.is_some() { inputs[2] } else { &[] };
        let inputs = Inputs { codes: inputs[0], scales: inputs[1], second };
        let how = How { level, to: self.to, overflow };
        scaled::make(&self.formula, how, start / self.to.bytes() as u64, inputs, out, audit);
    }
}

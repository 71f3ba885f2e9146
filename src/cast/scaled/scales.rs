//! The scales of a range, as binary32, and what is unusual among them.

use super::formula::{Formula, Inputs, MadeOf, Scale, Second, Segment};
use crate::cast::audit::ScaleCounts;
use crate::cast::byte::{E4m3, E8m0};
use crate::cast::double::F64;
use crate::cast::element::{Bf16, F16, F32, INFINITY, MAGNITUDE, Source};

/// The rows of scales of a range.
pub struct Rows<'a> {
    formula: &'a Formula,
    inputs: Inputs<'a>,
    /// The numbers of the first row and the one behind the last.
    range: (u64, u64),
    /// Which scales are decoded: their row, and the numbers of the first and the one behind the
    /// last in it.
    at: Option<(u64, u64, u64)>,
    bits: Vec<u32>,
    are_normal: bool,
    /// Whether any that was decoded has to be counted.
    has_unusual: bool,
    /// Whether any has so many bits that its products may have been rounded to binary32: more than
    /// 24 together with the 4 of a code.
    pub has_long: bool,
}

/// The scales of a segment of codes.
#[derive(Clone, Copy)]
pub struct Window<'a> {
    /// Of each block, in binary32.
    pub bits: &'a [u32],
    /// The codes of a block in a row; of the first block, there are `missing` less.
    pub block: u64,
    pub missing: u64,
    /// Whether no product of a scale and a code is, or comes from, a number that is zero, subnormal
    /// or not finite but for codes that are.
    pub are_normal: bool,
}

/// Magnitudes from here up times a code are normal numbers, because no code but zero is smaller than
/// 2^-17.
const NORMAL_FROM: u32 = (127 - 100) << 23;

impl<'a> Rows<'a> {
    /// # Panics
    /// When there are not as many scales as `made_of` says.
    pub fn new(formula: &'a Formula, inputs: Inputs<'a>, made_of: MadeOf) -> Rows<'a> {
        let range = made_of.scale_rows;
        let bytes = (range.1 - range.0) * formula.grid.blocks().1 * formula.scale.bytes();
        assert_eq!(inputs.scales.len() as u64, bytes, "not the scales of the range");
        let second = matches!(inputs.second.len(), 4..) && inputs.second.len().is_multiple_of(4);
        assert_eq!(second, formula.second.is_some(), "not the second scales");
        let (bits, are_normal) = (Vec::new(), true);
        let (has_unusual, has_long) = (false, false);
        Rows { formula, inputs, range, at: None, bits, are_normal, has_unusual, has_long }
    }

    /// Those of a segment of codes.
    pub fn of(&mut self, segment: Segment) -> Window<'_> {
        let grid = &self.formula.grid;
        let Segment { row, column, columns } = segment;
        let block = grid.block.1;
        let first = column / block;
        self.decode(grid.scale_row(row), (first, (column + columns - 1) / block + 1));
        let Rows { bits, are_normal, .. } = &*self;
        Window { bits, block, missing: column - first * block, are_normal: *are_normal }
    }

    /// Decodes the scales from `first` to `last` of a row.
    fn decode(&mut self, row: u64, (first, last): (u64, u64)) {
        if self.at == Some((row, first, last)) {
            return;
        }
        self.at = Some((row, first, last));
        let Formula { grid, scale, second, .. } = self.formula;
        let (down, across) = grid.blocks();
        let start = ((row - self.range.0) * across + first) * scale.bytes();
        let bytes = &self.inputs.scales[start as usize..];
        let bytes = &bytes[..((last - first) * scale.bytes()) as usize];
        self.bits.clear();
        // A loop for each, so that the compiler makes vector code of it.
        match scale {
            Scale::F32 => self.bits.extend(bytes.chunks_exact(4).map(|it| F32::load(it).to_f32())),
            Scale::F16 => self.bits.extend(bytes.chunks_exact(2).map(|it| F16::load(it).to_f32())),
            Scale::Bf16 => {
                self.bits.extend(bytes.chunks_exact(2).map(|it| Bf16::load(it).to_f32()))
            }
            Scale::E8m0 => self.bits.extend(bytes.iter().map(|byte| E8m0(*byte).to_f32())),
            Scale::E4m3 => self.bits.extend(bytes.iter().map(|byte| E4m3(*byte).to_f32())),
        }
        if let Some(second) = second {
            // One for all planes, or one for each.
            let count = self.inputs.second.len() as u64 / 4;
            let plane = if count == 1 { 0 } else { row / down };
            let other = F32::load(&self.inputs.second[plane as usize * 4..][..4]).to_f32();
            self.bits.iter_mut().for_each(|bits| *bits = combined(*bits, *second, other));
        }
        self.are_normal =
            self.bits.iter().all(|bits| (NORMAL_FROM..INFINITY).contains(&(bits & MAGNITUDE)));
        let is_negative = |bits: &u32| bits & !MAGNITUDE != 0;
        self.has_long |= self.bits.iter().fold(0, |all, bits| all | bits) & 0xF != 0;
        self.has_unusual |= !self.are_normal || self.bits.iter().any(is_negative);
    }

    /// What is unusual among the scales whose blocks begin with a value from `start` to `end`: so
    /// that each is counted once, however the values are cut.
    pub fn counts(&mut self, (start, end): (u64, u64)) -> ScaleCounts {
        let mut counts = ScaleCounts::default();
        if !self.has_unusual {
            return counts;
        }
        let Formula { grid, transposed, .. } = *self.formula;
        let (down, across) = grid.blocks();
        for row in self.range.0..self.range.1 {
            self.decode(row, (0, across));
            let plane = row / down * grid.rows * grid.columns;
            let above = row % down * grid.block.0;
            for (number, bits) in self.bits.iter().enumerate() {
                let before = number as u64 * grid.block.1;
                let at = match transposed {
                    true => before * grid.rows + above,
                    false => above * grid.columns + before,
                };
                if (start..end).contains(&(plane + at)) {
                    counts.add(*bits);
                }
            }
        }
        counts
    }
}

/// A scale and the second one, rounded to binary32. The quotient of two binary32 numbers rounded to
/// binary64 and then to binary32 is what rounding once gives, and no subnormal is an operand.
fn combined(scale: u32, second: Second, other: u32) -> u32 {
    let [scale, other] = [scale, other].map(|bits| f64::from_bits(F64::from_f32(bits).0));
    let value = match second {
        Second::Divides => scale / other,
        Second::Multiplies => scale * other,
    };
    F64(value.to_bits()).to_f32()
}

//! The one loop: cast a block of elements and, in the same pass, gather the three facts that
//! tell whether anything in the block needs counting. It has no branch, so the compiler turns
//! it into vector code for whatever CPU level it is compiled for.

use super::element::{Element, MAGNITUDE};

/// Elements the loop takes at a time: a whole register of the widest level.
pub const LANES: usize = 16;

/// How a CPU level converts binary16. The compiler makes good vector code of everything else;
/// for these two the instructions are worth it (docs/benchmarks.md).
pub trait Binary16 {
    /// Bits of binary16 to bits of the same values in binary32; NaN is quieted.
    fn widen(bits: [u16; LANES]) -> [u32; LANES];
    /// Bits of binary32 to bits of the nearest binary16; NaN keeps its top payload, quieted.
    fn narrow(bits: [u32; LANES]) -> [u16; LANES];
}

/// What a pass over a block saw, in binary32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The largest magnitude; above infinity when there is a NaN.
    pub largest: u32,
    /// One less than the smallest non-zero magnitude; `u32::MAX` when all are zero.
    pub smallest_less_one: u32,
    /// All bits that were set in any value.
    pub union: u32,
}

impl Summary {
    /// Of no elements.
    pub const EMPTY: Summary = Summary { largest: 0, smallest_less_one: u32::MAX, union: 0 };

    #[inline(always)]
    fn add(&mut self, bits: u32) {
        let magnitude = bits & MAGNITUDE;
        self.largest = self.largest.max(magnitude);
        self.smallest_less_one = self.smallest_less_one.min(magnitude.wrapping_sub(1));
        self.union |= bits;
    }

    #[inline(always)]
    fn join(&mut self, other: Summary) {
        self.largest = self.largest.max(other.largest);
        self.smallest_less_one = self.smallest_less_one.min(other.smallest_less_one);
        self.union |= other.union;
    }
}

/// Casts `src` into `dst`: `n * S::BYTES` bytes into `n * D::BYTES`, both at any address.
#[inline(always)]
pub fn cast_block<H: Binary16, S: Element, D: Element>(src: &[u8], dst: &mut [u8]) -> Summary {
    let mut lanes = [Summary::EMPTY; LANES];
    let mut src = src.chunks_exact(LANES * S::BYTES);
    let mut dst = dst.chunks_exact_mut(LANES * D::BYTES);
    for (src, dst) in src.by_ref().zip(dst.by_ref()) {
        let mut values = [S::from_f32(0); LANES];
        for (value, src) in values.iter_mut().zip(src.chunks_exact(S::BYTES)) {
            *value = S::load(src);
        }
        let bits = S::widen::<H>(values);
        for (lane, bits) in lanes.iter_mut().zip(bits) {
            lane.add(bits);
        }
        let values = D::narrow::<H>(bits);
        for (value, dst) in values.into_iter().zip(dst.chunks_exact_mut(D::BYTES)) {
            value.store(dst);
        }
    }
    let mut summary = Summary::EMPTY;
    for lane in lanes {
        summary.join(lane);
    }
    let rest = src.remainder().chunks_exact(S::BYTES);
    for (src, dst) in rest.zip(dst.into_remainder().chunks_exact_mut(D::BYTES)) {
        let bits = S::load(src).to_f32();
        D::from_f32(bits).store(dst);
        summary.add(bits);
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cast::Portable;
    use crate::cast::element::{F16, F32};

    #[test]
    fn a_summary_holds_the_extremes_and_the_union() {
        let src: Vec<u8> = [0.0_f32, -2.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut dst = [0; 6];
        let summary = cast_block::<Portable, F32, F16>(&src, &mut dst);
        assert_eq!(summary.largest, 2.0_f32.to_bits());
        assert_eq!(summary.smallest_less_one, 1.0_f32.to_bits() - 1);
        assert_eq!(summary.union, (-2.0_f32).to_bits() | 1.0_f32.to_bits());
        assert_eq!(dst, [0x00, 0x00, 0x00, 0xC0, 0x00, 0x3C]);
    }
}

//! The one loop: cast a block of elements and, in the same pass, gather the three facts that
//! tell whether anything in the block needs counting. It has no branch, so the compiler turns
//! it into vector code for whatever CPU level it is compiled for.

use serde::{Deserialize, Serialize};

use super::audit::{Audit, Tally};
use super::element::{Element, F16, INFINITY, MAGNITUDE, Source};
use super::lanes::{Instructions, LANES, Summaries, Summary};
use super::memory::Memory;

/// Elements per block: source and result of one block stay in the first-level cache.
pub const BLOCK: usize = 4096;

/// What becomes of a finite value whose magnitude the target cannot hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Infinity, as IEEE 754 rounding says.
    #[default]
    Infinity,
    Saturate,
}

/// One call's work: the bytes, the policy, and the audit it adds to.
pub struct Run<'a> {
    pub src: &'a [u8],
    pub dst: &'a mut [u8],
    pub overflow: Overflow,
    pub audit: &'a mut Audit,
}

/// By the specification, on any CPU.
pub struct Portable;

impl Instructions for Portable {
    #[inline(always)]
    fn widen(bits: [u16; LANES]) -> [u32; LANES] {
        bits.map(|bits| F16(bits).to_f32())
    }
    #[inline(always)]
    fn narrow(bits: [u32; LANES]) -> [u16; LANES] {
        bits.map(|bits| F16::from_f32(bits).0)
    }
    #[inline(always)]
    fn add(summaries: &mut Summaries, bits: [u32; LANES]) {
        let magnitudes = bits.map(|bits| bits & MAGNITUDE);
        for (lane, magnitude) in summaries.largest.iter_mut().zip(magnitudes) {
            *lane = magnitude.max(*lane);
        }
        for (lane, magnitude) in summaries.smallest_less_one.iter_mut().zip(magnitudes) {
            *lane = magnitude.wrapping_sub(1).min(*lane);
        }
        for (lane, bits) in summaries.union.iter_mut().zip(bits) {
            *lane |= bits;
        }
    }
}

/// Casts `src` into `dst`: `n * S::BYTES` bytes into `n * D::BYTES`, both at any address.
#[inline(always)]
pub fn cast_block<H: Instructions, M: Memory, S: Source, D: Element>(
    src: &[u8],
    dst: &mut [u8],
) -> Summary {
    let mut summaries = Summaries::EMPTY;
    let mut src = src.chunks_exact(LANES * S::BYTES);
    let mut dst = dst.chunks_exact_mut(LANES * D::BYTES);
    for (src, dst) in src.by_ref().zip(dst.by_ref()) {
        M::reads(src);
        let mut values = [S::ZERO; LANES];
        for (value, src) in values.iter_mut().zip(src.chunks_exact(S::BYTES)) {
            *value = S::load(src);
        }
        let bits = S::widen::<H>(values);
        H::add(&mut summaries, bits);
        M::put(D::narrow::<H>(bits), dst);
    }
    let mut summary = H::join(summaries);
    let rest = src.remainder().chunks_exact(S::BYTES);
    for (src, dst) in rest.zip(dst.into_remainder().chunks_exact_mut(D::BYTES)) {
        let bits = S::load(src).to_f32();
        D::from_f32(bits).store(dst);
        summary.add(bits);
    }
    summary
}

#[inline(always)]
pub fn run_blocks<H: Instructions, M: Memory, S: Source, D: Element>(run: Run<'_>) {
    let blocks = run.src.chunks(BLOCK * S::BYTES).zip(run.dst.chunks_mut(BLOCK * D::BYTES));
    let mut tally = Tally::after(run.audit);
    for (src, dst) in blocks {
        let summary = cast_block::<H, M, S, D>(src, dst);
        tally.add_block::<S, D>(summary, src);
        if run.overflow == Overflow::Saturate && summary.largest >= D::INFINITE_FROM {
            M::settle();
            saturate::<S, D>(src, dst);
        }
    }
    M::settle();
    run.audit.merge(&tally.finish());
}

/// Replaces the infinities that came from finite values.
#[inline(always)]
fn saturate<S: Source, D: Element>(src: &[u8], dst: &mut [u8]) {
    for (src, dst) in src.chunks_exact(S::BYTES).zip(dst.chunks_exact_mut(D::BYTES)) {
        let bits = S::load(src).to_f32();
        if (D::INFINITE_FROM..INFINITY).contains(&(bits & MAGNITUDE)) {
            D::from_f32((bits & !MAGNITUDE) | D::LARGEST).store(dst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cast::element::{F16, F32};
    use crate::cast::memory::Cached;

    #[test]
    fn a_summary_holds_the_extremes_and_the_union() {
        let src: Vec<u8> = [0.0_f32, -2.0, 1.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut dst = [0; 6];
        let summary = cast_block::<Portable, Cached, F32, F16>(&src, &mut dst);
        assert_eq!(summary.largest, 2.0_f32.to_bits());
        assert_eq!(summary.smallest_less_one, 1.0_f32.to_bits() - 1);
        assert_eq!(summary.union, (-2.0_f32).to_bits() | 1.0_f32.to_bits());
        assert_eq!(dst, [0x00, 0x00, 0x00, 0xC0, 0x00, 0x3C]);
    }
}

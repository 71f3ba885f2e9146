//! The casts of binary64, which go through binary32, as in torch: those to 16 bits round twice. What
//! the audit says is of the binary64 values and of the last result.

use super::audit::Audit;
use super::double::{DROPPED, F64, INFINITY_64, power_of_two};
use super::element::{Element, F32, MAGNITUDE, Source};
use super::kernel::{BLOCK, Overflow, Run, cast_block};
use super::lanes::Instructions;
use super::memory::Cached;
use crate::dtype::Castable;

/// What a pass over a block saw, as [`super::lanes::Summary`] is for the other dtypes.
#[derive(Clone, Copy)]
struct Summary {
    largest: u64,
    smallest_less_one: u64,
    union: u64,
}

/// Rounds a block to binary32.
#[inline(always)]
fn to_singles(src: &[u8], dst: &mut [u8]) -> Summary {
    let (mut largest, mut smallest_less_one, mut union) = (0, u64::MAX, 0);
    for (src, dst) in src.chunks_exact(8).zip(dst.chunks_exact_mut(4)) {
        let value = F64::load(src);
        F32(value.to_f32()).store(dst);
        largest = value.magnitude().max(largest);
        smallest_less_one = value.magnitude().wrapping_sub(1).min(smallest_less_one);
        union |= value.0;
    }
    Summary { largest, smallest_less_one, union }
}

/// Casts a run, block by block.
#[inline(always)]
pub fn run_blocks<H: Instructions, D: Element>(run: Run<'_>) {
    let mut singles = [0; BLOCK * F32::BYTES];
    let blocks = run.src.chunks(BLOCK * F64::BYTES).zip(run.dst.chunks_mut(BLOCK * D::BYTES));
    for (src, dst) in blocks {
        let summary = if const { D::CASTABLE as u8 == Castable::F32 as u8 } {
            to_singles(src, dst)
        } else {
            let singles = &mut singles[..src.len() / F64::BYTES * F32::BYTES];
            let summary = to_singles(src, singles);
            cast_block::<H, Cached, F32, D>(singles, dst);
            summary
        };
        let special = F64(summary.largest).to_f32() >= D::INFINITE_FROM;
        add_block::<D>(run.audit, summary, special, src);
        if run.overflow == Overflow::Saturate && special {
            saturate::<D>(src, dst);
        }
    }
}

/// As [`Audit`] takes in a block of another dtype.
#[inline(always)]
fn add_block<D: Element>(audit: &mut Audit, summary: Summary, special: bool, src: &[u8]) {
    let smallest = F64(summary.smallest_less_one.wrapping_add(1));
    let vanishes = smallest.0 != 0 && smallest.to_f32() <= D::ZERO_UP_TO;
    if special || vanishes {
        return audit.merge(&count::<D>(src));
    }
    audit.max_abs_bits = audit.max_abs_bits.max(summary.largest);
    if audit.exact {
        let dropped = u64::from(D::DROPPED) << DROPPED | ((1 << DROPPED) - 1);
        let normal_from = power_of_two(1 - D::FLOAT.layout().bias as i32);
        let subnormal = smallest.0 != 0 && smallest.0 < normal_from;
        audit.exact = summary.union & dropped == 0 && (!subnormal || count::<D>(src).exact);
    }
}

#[inline(always)]
fn count<D: Element>(src: &[u8]) -> Audit {
    let mut audit = Audit::default();
    let mut inexact = false;
    for src in src.chunks_exact(8) {
        let value = F64::load(src);
        let (magnitude, bits) = (value.magnitude(), value.to_f32());
        let finite = magnitude < INFINITY_64;
        audit.nan += u64::from(magnitude > INFINITY_64);
        audit.inf += u64::from(magnitude == INFINITY_64);
        audit.to_inf += u64::from(finite & (bits & MAGNITUDE >= D::INFINITE_FROM));
        audit.to_zero += u64::from((magnitude > 0) & (bits & MAGNITUDE <= D::ZERO_UP_TO));
        audit.max_abs_bits = audit.max_abs_bits.max(if finite { magnitude } else { 0 });
        let changed = F64::from_f32(D::from_f32(bits).to_f32()) != value;
        inexact |= (magnitude <= INFINITY_64) & changed;
    }
    Audit { exact: !inexact, ..audit }
}

/// Replaces the infinities that came from finite values.
#[inline(always)]
fn saturate<D: Element>(src: &[u8], dst: &mut [u8]) {
    for (src, dst) in src.chunks_exact(8).zip(dst.chunks_exact_mut(D::BYTES)) {
        let value = F64::load(src);
        let bits = value.to_f32();
        if value.magnitude() < INFINITY_64 && bits & MAGNITUDE >= D::INFINITE_FROM {
            D::from_f32((bits & !MAGNITUDE) | D::LARGEST).store(dst);
        }
    }
}

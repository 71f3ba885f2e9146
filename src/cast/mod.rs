//! Casting slices of bytes: pick the kernel for a pair of dtypes and a CPU level, run it block
//! by block, and audit each block while it is in cache. Knows nothing of files or threads.

pub mod audit;
pub mod element;
pub mod kernel;
pub mod level;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use audit::Audit;
pub use level::Level;

use serde::{Deserialize, Serialize};

use crate::dtype::Float;
use element::{Bf16, Element, F16, F32, INFINITY, MAGNITUDE};
use kernel::{Binary16, LANES};

/// Elements per block: source and result of one block stay in the first-level cache.
const BLOCK: usize = 4096;

/// What becomes of a finite value whose magnitude the target cannot hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// Infinity, as IEEE 754 rounding says.
    #[default]
    Infinity,
    /// The largest finite value, with the sign.
    Saturate,
}

/// One call's work: the bytes, the policy, and the audit it adds to.
pub struct Run<'a> {
    src: &'a [u8],
    dst: &'a mut [u8],
    overflow: Overflow,
    audit: &'a mut Audit,
}

/// binary16 by the specification, on any CPU.
struct Portable;

impl Binary16 for Portable {
    #[inline(always)]
    fn widen(bits: [u16; LANES]) -> [u32; LANES] {
        bits.map(|bits| F16(bits).to_f32())
    }
    #[inline(always)]
    fn narrow(bits: [u32; LANES]) -> [u16; LANES] {
        bits.map(|bits| F16::from_f32(bits).0)
    }
}

/// Casts `n` little-endian elements of dtype `from` in `src` to dtype `to` in `dst`, and adds
/// what it did to `audit`. A cast to the same dtype copies the bytes and audits nothing.
///
/// The result does not depend on `level` or on the alignment of either slice.
///
/// # Panics
/// When `src` and `dst` do not hold the same whole number of elements, or the CPU does not run
/// `level`.
pub fn cast(
    level: Level,
    (from, src): (Float, &[u8]),
    (to, dst): (Float, &mut [u8]),
    overflow: Overflow,
    audit: &mut Audit,
) {
    assert!(src.len().is_multiple_of(from.bytes()), "source is not whole elements");
    assert_eq!(src.len() / from.bytes(), dst.len() / to.bytes(), "element counts differ");
    assert!(dst.len().is_multiple_of(to.bytes()), "destination is not whole elements");
    let run = Run { src, dst, overflow, audit };
    match (from, to) {
        (Float::F32, Float::F16) => dispatch::<F32, F16>(level, run),
        (Float::F32, Float::Bf16) => dispatch::<F32, Bf16>(level, run),
        (Float::F16, Float::F32) => dispatch::<F16, F32>(level, run),
        (Float::F16, Float::Bf16) => dispatch::<F16, Bf16>(level, run),
        (Float::Bf16, Float::F32) => dispatch::<Bf16, F32>(level, run),
        (Float::Bf16, Float::F16) => dispatch::<Bf16, F16>(level, run),
        (Float::F32, Float::F32) | (Float::F16, Float::F16) | (Float::Bf16, Float::Bf16) => {
            run.dst.copy_from_slice(run.src);
        }
    }
}

fn dispatch<S: Element, D: Element>(level: Level, run: Run<'_>) {
    assert!(level.available(), "this CPU does not run {}", level.name());
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `available` just said that this CPU has every feature the level enables.
        Level::Avx2 => unsafe { x86::run_avx2::<S, D>(run) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { x86::run_avx512::<S, D>(run) },
        _ => run_blocks::<Portable, S, D>(run),
    }
}

#[inline(always)]
fn run_blocks<H: Binary16, S: Element, D: Element>(run: Run<'_>) {
    let blocks = run.src.chunks(BLOCK * S::BYTES).zip(run.dst.chunks_mut(BLOCK * D::BYTES));
    for (src, dst) in blocks {
        let summary = kernel::cast_block::<H, S, D>(src, dst);
        run.audit.add_block::<S, D>(summary, src);
        if run.overflow == Overflow::Saturate && summary.largest >= D::INFINITE_FROM {
            saturate::<S, D>(src, dst);
        }
    }
}

/// Replaces the infinities that came from finite values.
#[inline(always)]
fn saturate<S: Element, D: Element>(src: &[u8], dst: &mut [u8]) {
    for (src, dst) in src.chunks_exact(S::BYTES).zip(dst.chunks_exact_mut(D::BYTES)) {
        let bits = S::load(src).to_f32();
        if (D::INFINITE_FROM..INFINITY).contains(&(bits & MAGNITUDE)) {
            D::from_f32((bits & !MAGNITUDE) | D::LARGEST).store(dst);
        }
    }
}

#[cfg(test)]
mod tests;

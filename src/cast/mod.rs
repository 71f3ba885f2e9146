//! Casting slices of bytes: pick the kernel for a pair of dtypes and a CPU level, run it block
//! by block, and audit each block while it is in cache. Knows nothing of files or threads.

pub mod audit;
mod byte;
mod double;
pub mod element;
pub mod kernel;
pub mod lanes;
pub mod level;
mod memory;
pub mod scaled;
mod twice;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use audit::Audit;
pub use kernel::Overflow;
pub use level::Level;

use crate::dtype::{Castable, Float};
use byte::{E4m3, E4m3Fnuz, E5m2, E5m2Fnuz};
use double::F64;
use element::{Bf16, Element, F16, F32, Source, with_element};
use kernel::{Portable, Run};
use lanes::Instructions;
#[cfg(not(target_arch = "x86_64"))]
use memory::Cached as Streaming;
use memory::{Cached, Memory};
#[cfg(target_arch = "x86_64")]
use x86::Streaming;

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
    (from, src): (impl Into<Castable>, &[u8]),
    (to, dst): (Float, &mut [u8]),
    overflow: Overflow,
    audit: &mut Audit,
) {
    run::<Cached>(level, from.into(), to, Run { src, dst, overflow, audit });
}

/// As [`cast`], but past the caches where the CPU can: for a result that is larger than they are, in
/// memory that was written before. What the system has only just cleared is in the caches anyway. A
/// source of binary64 is cast as always.
///
/// # Panics
/// As [`cast`] does.
pub fn stream(
    level: Level,
    (from, src): (impl Into<Castable>, &[u8]),
    (to, dst): (Float, &mut [u8]),
    overflow: Overflow,
    audit: &mut Audit,
) {
    let from = from.into();
    let before = dst.as_ptr().align_offset(LINE).min(dst.len());
    if !before.is_multiple_of(to.bytes()) {
        return cast(level, (from, src), (to, dst), overflow, audit);
    }
    let (unaligned, dst) = dst.split_at_mut(before);
    let (first, src) = src.split_at(before / to.bytes() * from.bytes());
    cast(level, (from, first), (to, unaligned), overflow, audit);
    run::<Streaming>(level, from, to, Run { src, dst, overflow, audit });
}

/// Bytes of a line of the caches.
const LINE: usize = 64;

fn run<M: Memory>(level: Level, from: Castable, to: Float, run: Run<'_>) {
    let Run { src, dst, .. } = &run;
    assert!(src.len().is_multiple_of(from.bytes()), "source is not whole elements");
    assert_eq!(src.len() / from.bytes(), dst.len() / to.bytes(), "element counts differ");
    assert!(dst.len().is_multiple_of(to.bytes()), "destination is not whole elements");
    if from == to.into() {
        return run.dst.copy_from_slice(run.src);
    }
    match from {
        Castable::F64 => run_any::<M, F64>(level, to, run),
        Castable::F32 => run_any::<M, F32>(level, to, run),
        Castable::F16 => run_any::<M, F16>(level, to, run),
        Castable::Bf16 => run_any::<M, Bf16>(level, to, run),
        Castable::F8E5m2 => run_any::<M, E5m2>(level, to, run),
        Castable::F8E4m3 => run_any::<M, E4m3>(level, to, run),
        Castable::F8E4m3Fnuz => run_any::<M, E4m3Fnuz>(level, to, run),
        Castable::F8E5m2Fnuz => run_any::<M, E5m2Fnuz>(level, to, run),
    }
}

/// Casts to any dtype, the same one included, and audits it.
fn run_any<M: Memory, S: Source>(level: Level, to: Float, run: Run<'_>) {
    with_element!(to, D => dispatch::<M, S, D>(level, run));
}

fn dispatch<M: Memory, S: Source, D: Element>(level: Level, run: Run<'_>) {
    // In a const block, so that no kernel is compiled for these pairs.
    if const { S::CASTABLE as u8 == D::CASTABLE as u8 && S::BYTES == 2 } {
        unreachable!("16 bits become the same 16 bits by copying");
    }
    assert!(level.available(), "this CPU does not run {}", level.name());
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `available` just said that this CPU has every feature the level enables.
        Level::Avx2 => unsafe { x86::run_avx2::<M, S, D>(run) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx512 => unsafe { x86::run_avx512::<M, S, D>(run) },
        _ => run_blocks::<Portable, Cached, S, D>(run),
    }
}

/// Compiled once for each level.
#[inline(always)]
fn run_blocks<H: Instructions, M: Memory, S: Source, D: Element>(run: Run<'_>) {
    if const { S::CASTABLE as u8 == Castable::F64 as u8 } {
        twice::run_blocks::<H, D>(run);
    } else {
        kernel::run_blocks::<H, M, S, D>(run);
    }
}

#[cfg(test)]
mod tests;

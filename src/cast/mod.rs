//! Casting slices of bytes: pick the kernel for a pair of dtypes and a CPU level, run it block
//! by block, and audit each block while it is in cache. Knows nothing of files or threads.

pub mod audit;
pub mod element;
pub mod kernel;
pub mod lanes;
pub mod level;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use audit::Audit;
pub use kernel::Overflow;
pub use level::Level;

use crate::dtype::Float;
use element::{Bf16, Element, F16, F32, with_element};
use kernel::{Portable, Run, run_blocks};

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
    with_element!(from, S => with_element!(to, D => dispatch::<S, D>(level, run)));
}

fn dispatch<S: Element, D: Element>(level: Level, run: Run<'_>) {
    // In a const block, so that no kernel is compiled for these pairs.
    if const { S::FLOAT as u8 == D::FLOAT as u8 } {
        return run.dst.copy_from_slice(run.src);
    }
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

#[cfg(test)]
mod tests;

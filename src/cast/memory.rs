//! How the loop reaches memory: through the caches, or past them.

use super::element::Element;
use super::lanes::LANES;

pub trait Memory {
    /// Told where each step reads.
    fn reads(src: &[u8]);
    /// Writes what a step made.
    fn put<D: Element>(values: [D; LANES], dst: &mut [u8]);
    /// Comes before anything else reads or writes what was put.
    fn settle();
}

/// As all code reaches it: the CPU decides what its caches hold.
pub struct Cached;

impl Memory for Cached {
    #[inline(always)]
    fn reads(_: &[u8]) {}
    #[inline(always)]
    fn put<D: Element>(values: [D; LANES], dst: &mut [u8]) {
        for (value, dst) in values.into_iter().zip(dst.chunks_exact_mut(D::BYTES)) {
            value.store(dst);
        }
    }
    #[inline(always)]
    fn settle() {}
}

//! What an instruction set may do better than the compiler: the conversions of binary16.

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

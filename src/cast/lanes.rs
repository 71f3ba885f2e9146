//! What an instruction set may do better than the compiler.

/// Elements the loop takes at a time: a whole register of the widest level.
pub const LANES: usize = 16;

/// What a pass over a block saw, in binary32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The largest magnitude; above infinity when there is a NaN.
    pub largest: u32,
    /// One less than the smallest non-zero magnitude; `u32::MAX` when all are zero.
    pub smallest_less_one: u32,
    pub union: u32,
}

/// What the values of each lane were: the summary of a block is that of all lanes.
pub struct Summaries {
    pub largest: [u32; LANES],
    pub smallest_less_one: [u32; LANES],
    pub union: [u32; LANES],
}

impl Summaries {
    pub const EMPTY: Summaries =
        Summaries { largest: [0; LANES], smallest_less_one: [u32::MAX; LANES], union: [0; LANES] };
}

/// What a CPU level does with instructions of its own. The compiler makes good vector code of
/// nearly everything; for these the instructions are worth it (docs/benchmarks.md).
pub trait Instructions {
    /// Bits of binary16 to bits of the same values in binary32; NaN is quieted.
    fn widen(bits: [u16; LANES]) -> [u32; LANES];
    /// Bits of binary32 to bits of the nearest binary16; NaN keeps its top payload, quieted.
    fn narrow(bits: [u32; LANES]) -> [u16; LANES];
    /// Takes in binary32 bits. The compiler may keep each lane in a register of its own: that is a
    /// matter of luck, and made some casts 0.4 times as fast.
    fn add(summaries: &mut Summaries, bits: [u32; LANES]);
    /// The summary of all lanes.
    #[inline(always)]
    fn join(summaries: Summaries) -> Summary {
        Summary {
            largest: join(summaries.largest, u32::max),
            smallest_less_one: join(summaries.smallest_less_one, u32::min),
            union: join(summaries.union, |one, other| one | other),
        }
    }
}

/// Never inlined: a compiler that sees lanes joined may decide to keep them apart in the loop.
#[inline(never)]
fn join(lanes: [u32; LANES], two: impl Fn(u32, u32) -> u32) -> u32 {
    lanes.into_iter().fold(lanes[0], two)
}

//! The specification: what one value becomes, as bit operations without a branch, so that the
//! one loop in `kernel` vectorizes on every CPU.
//!
//! Narrowing rounds once, to nearest, ties to even; subnormals and the sign of zero are kept;
//! NaN stays NaN with its sign and top payload bits, quieted.

use super::lanes::{Instructions, LANES};
use crate::dtype::{Castable, Float};

/// Bits of binary32 infinity; anything above it, the sign aside, is NaN.
pub const INFINITY: u32 = 0x7F80_0000;
/// Everything but the sign of a binary32.
pub const MAGNITUDE: u32 = 0x7FFF_FFFF;
pub const QUIET: u32 = 0x0040_0000;

/// A floating element type to cast from, seen through its binary32 value.
///
/// But for binary64, every value is exact in binary32, so a cast between any two types is
/// `from_f32(to_f32(x))` and still rounds once.
pub trait Source: Copy {
    /// Its row of the dtype table.
    const CASTABLE: Castable;
    /// The bytes of one element, little-endian.
    const BYTES: usize = Self::CASTABLE.bytes();
    /// The one whose bits are all zero.
    const ZERO: Self;

    /// Reads one element from its bytes, which may stand at any address.
    fn load(bytes: &[u8]) -> Self;
    /// The same value in binary32 bits; the nearest to a binary64.
    fn to_f32(self) -> u32;
    /// `to_f32` of many; a level's instructions may do it for binary16.
    #[inline(always)]
    fn widen<H: Instructions>(values: [Self; LANES]) -> [u32; LANES] {
        values.map(Self::to_f32)
    }
}

/// A floating element type to cast to.
pub trait Element: Source {
    /// Its row of the dtype table, which the other constants follow from.
    const FLOAT: Float;
    /// Mantissa bits a cast to this type drops from a binary32 in its normal range.
    const DROPPED: u32 = (1 << (23 - Self::FLOAT.layout().mantissa_bits)) - 1;
    /// The largest finite value, as binary32 bits.
    const LARGEST: u32 = (Self::FLOAT.layout().largest() as f32).to_bits();
    /// Magnitudes of finite binary32 values from here up round to infinity: half a unit in the
    /// last place beyond the largest value, whose mantissa is odd, so that the tie goes up.
    const INFINITE_FROM: u32 = Self::LARGEST + Self::DROPPED / 2 + 1;
    /// Magnitudes from here up keep all but `DROPPED` bits; below, results are subnormal. With the
    /// exponents of binary32, subnormal results drop the same bits.
    const NORMAL_FROM: u32 = match Self::FLOAT.layout().bias {
        127 => 0,
        bias => power_of_two(1 - bias as i32),
    };
    /// Non-zero binary32 magnitudes up to here, half of the smallest value, round to zero.
    const ZERO_UP_TO: u32 = {
        let layout = Self::FLOAT.layout();
        power_of_two(-(layout.bias as i32) - layout.mantissa_bits as i32)
    };

    /// Writes one element's bytes.
    fn store(self, bytes: &mut [u8]);
    /// The nearest value to these binary32 bits.
    fn from_f32(bits: u32) -> Self;
    /// `from_f32` of many; a level's instructions may do it for binary16.
    #[inline(always)]
    fn narrow<H: Instructions>(bits: [u32; LANES]) -> [Self; LANES] {
        bits.map(Self::from_f32)
    }
}

/// IEEE 754 binary32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct F32(pub u32);
/// IEEE 754 binary16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct F16(pub u16);
/// bfloat16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bf16(pub u16);

/// `$body`, in which `$element` is the type of the elements of `$float`, a [`Float`].
macro_rules! with_element {
    ($float:expr, $element:ident => $body:expr) => {
        match $float {
            Float::F32 => {
                type $element = F32;
                $body
            }
            Float::F16 => {
                type $element = F16;
                $body
            }
            Float::Bf16 => {
                type $element = Bf16;
                $body
            }
        }
    };
}
pub(super) use with_element;

/// How the elements of `$bits` are read.
macro_rules! load {
    ($bits:ty) => {
        const ZERO: Self = Self(0);
        #[inline(always)]
        fn load(bytes: &[u8]) -> Self {
            let mut array = [0; size_of::<$bits>()];
            array.copy_from_slice(bytes);
            Self(<$bits>::from_le_bytes(array))
        }
    };
}
pub(super) use load;

macro_rules! store {
    () => {
        #[inline(always)]
        fn store(self, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.0.to_le_bytes());
        }
    };
}

/// The bits of 2^`exponent` in binary32; zero where that is below its subnormal values.
const fn power_of_two(exponent: i32) -> u32 {
    match exponent {
        -126.. => ((exponent + 127) as u32) << 23,
        -149.. => 1 << (exponent + 149),
        _ => 0,
    }
}

#[inline(always)]
pub fn select(condition: bool, then: u32, otherwise: u32) -> u32 {
    if condition { then } else { otherwise }
}

impl Source for F32 {
    const CASTABLE: Castable = Castable::F32;
    load!(u32);

    #[inline(always)]
    fn to_f32(self) -> u32 {
        self.0
    }
}

impl Element for F32 {
    const FLOAT: Float = Float::F32;
    store!();

    #[inline(always)]
    fn from_f32(bits: u32) -> Self {
        F32(select(bits & MAGNITUDE > INFINITY, bits | QUIET, bits))
    }
}

impl Source for Bf16 {
    const CASTABLE: Castable = Castable::Bf16;
    load!(u16);

    #[inline(always)]
    fn to_f32(self) -> u32 {
        u32::from(self.0) << 16
    }
}

impl Element for Bf16 {
    const FLOAT: Float = Float::Bf16;
    store!();

    #[inline(always)]
    fn from_f32(bits: u32) -> Self {
        // Half a unit in the last place, less one when the kept part is even, carries into it.
        let rounded = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1));
        Bf16((select(bits & MAGNITUDE > INFINITY, bits | QUIET, rounded) >> 16) as u16)
    }
}

impl Source for F16 {
    const CASTABLE: Castable = Castable::F16;
    load!(u16);

    #[inline(always)]
    fn widen<H: Instructions>(values: [Self; LANES]) -> [u32; LANES] {
        H::widen(values.map(|value| value.0))
    }

    #[inline(always)]
    fn to_f32(self) -> u32 {
        let bits = u32::from(self.0);
        let sign = (bits & 0x8000) << 16;
        let magnitude = (bits & 0x7FFF) << 13;
        let normal = magnitude + ((127 - 15) << 23);
        let special = magnitude | INFINITY;
        // A subnormal is its mantissa times 2^-24, and both that integer and the product are
        // exact in binary32, so this needs no rounding and no subnormal arithmetic.
        let subnormal = ((bits & 0x03FF) as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
        let quiet = select(magnitude > 0x0F80_0000, QUIET, 0);
        let finite = select(magnitude < 0x0080_0000, subnormal, normal);
        sign | select(magnitude >= 0x0F80_0000, special | quiet, finite)
    }
}

impl Element for F16 {
    const FLOAT: Float = Float::F16;
    store!();

    #[inline(always)]
    fn narrow<H: Instructions>(bits: [u32; LANES]) -> [Self; LANES] {
        H::narrow(bits).map(F16)
    }

    #[inline(always)]
    fn from_f32(bits: u32) -> Self {
        let magnitude = bits & MAGNITUDE;
        let sign = (bits >> 16) & 0x8000;
        // Re-bias the exponent from 127 to 15 and round to even at bit 13. A carry out of the
        // mantissa moves the exponent up, which is right, up to and into infinity.
        let odd = (magnitude >> 13) & 1;
        let normal = magnitude.wrapping_sub((127 - 15) << 23).wrapping_add(0x0FFF + odd) >> 13;
        // Below 2^-14 the sum with 0.5 has its last place at 2^-24, the subnormal step, so the
        // addition itself rounds, to nearest even. Flushing subnormal inputs would not matter:
        // all of them round to zero.
        let half = 126 << 23;
        let subnormal =
            (f32::from_bits(magnitude) + f32::from_bits(half)).to_bits().wrapping_sub(half);
        let finite = select(magnitude < Self::NORMAL_FROM, subnormal, normal);
        let number = select(magnitude >= Self::INFINITE_FROM, 0x7C00, finite);
        let nan = 0x7E00 | ((magnitude >> 13) & 0x03FF);
        F16((sign | select(magnitude > INFINITY, nan, number)) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_articles_bit_walk_is_reproduced_with_its_mistakes_fixed() {
        assert_eq!("3.14".parse::<f32>().map(f32::to_bits), Ok(0x4048_F5C3));
        assert_eq!(F16::from_f32(0x4048_F5C3), F16(0x4248)); // 3.140625, not the truncated 0x4247
        assert_eq!(Bf16::from_f32(0x4048_F5C3), Bf16(0x4049));
        assert_eq!(f32::from_bits(F16(0x3680).to_f32()), 0.40625); // not 'about 3.14'
    }

    fn limits<E: Element>() -> [u32; 5] {
        [E::LARGEST, E::INFINITE_FROM, E::NORMAL_FROM, E::ZERO_UP_TO, E::DROPPED]
    }

    #[test]
    fn the_limits_that_follow_from_the_table_are_the_known_ones() {
        let bits = |value: f32| value.to_bits();
        let largest = half::bf16::MAX.to_f32();
        assert_eq!(limits::<F32>(), [bits(f32::MAX), INFINITY, 0, 0, 0]);
        assert_eq!(
            limits::<F16>(),
            [bits(65504.0), bits(65520.0), bits(2_f32.powi(-14)), bits(2_f32.powi(-25)), 0x1FFF]
        );
        assert_eq!(limits::<Bf16>(), [bits(largest), bits(largest) + 0x8000, 0, 0x8000, 0xFFFF]);
    }

    #[test]
    fn every_16_bit_input_widens_as_the_half_crate_widens_it() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (f32::from_bits(F16(bits).to_f32()), half::f16::from_bits(bits));
            assert_eq!(ours.is_nan(), theirs.is_nan(), "{bits:#06x}");
            assert!(ours.is_nan() || ours.to_bits() == theirs.to_f32_const().to_bits());
            let (ours, theirs) = (f32::from_bits(Bf16(bits).to_f32()), half::bf16::from_bits(bits));
            assert_eq!(ours.is_nan(), theirs.is_nan(), "{bits:#06x}");
            assert!(ours.is_nan() || ours.to_bits() == theirs.to_f32_const().to_bits());
        }
    }

    #[test]
    fn rounding_agrees_with_the_half_crate_around_every_16_bit_value_and_its_ties() {
        for bits in 0..=u16::MAX {
            for (wide, tie) in [
                (F16(bits).to_f32(), 0x1000),
                (u32::from(bits) << 16, 0x8000),
                (0, u32::from(bits)),
            ] {
                for near in [0, 1, tie - 1.min(tie), tie, tie + 1] {
                    for value in [wide.wrapping_add(near), wide.wrapping_sub(near)] {
                        let number = f32::from_bits(value);
                        let (ours, theirs) =
                            (F16::from_f32(value).0, half::f16::from_f32_const(number));
                        assert!(
                            theirs.is_nan() && ours & 0x7FFF > 0x7C00 || ours == theirs.to_bits()
                        );
                        let (ours, theirs) =
                            (Bf16::from_f32(value).0, half::bf16::from_f32_const(number));
                        assert!(
                            theirs.is_nan() && ours & 0x7FFF > 0x7F80 || ours == theirs.to_bits()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn every_nan_keeps_its_sign_and_top_payload_and_is_quiet() {
        for payload in 1..1_u32 << 23 {
            for sign in [0, 0x8000_0000] {
                let bits = sign | INFINITY | payload;
                let top = (sign >> 16) as u16;
                assert_eq!(F16::from_f32(bits).0, top | 0x7E00 | (payload >> 13) as u16);
                assert_eq!(Bf16::from_f32(bits).0, top | 0x7FC0 | (payload >> 16) as u16);
                assert_eq!(F32::from_f32(bits).0, bits | QUIET);
            }
        }
    }
}

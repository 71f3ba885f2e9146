//! The specification of binary64: what a value becomes in binary32, and back.

use super::element::{INFINITY, MAGNITUDE, QUIET, Source, load, select};
use crate::dtype::Castable;

/// Bits of infinity; anything above it, the sign aside, is NaN.
pub const INFINITY_64: u64 = 0x7FF0_0000_0000_0000;
const MAGNITUDE_64: u64 = 0x7FFF_FFFF_FFFF_FFFF;
/// Mantissa bits that binary32 does not have.
pub const DROPPED: u32 = 52 - 23;
/// What is added to an exponent of binary32.
const REBIAS: u64 = (1023 - 127) << 52;
/// Magnitudes from here up round to infinity: half a unit in the last place beyond the largest
/// binary32, whose mantissa is odd, so that the tie goes up.
const INFINITE_FROM: u64 = (f32::MAX as f64).to_bits() + (1 << (DROPPED - 1));

/// The bits of 2^`exponent`, a normal number.
pub const fn power_of_two(exponent: i32) -> u64 {
    ((exponent + 1023) as u64) << 52
}

/// IEEE 754 binary64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct F64(pub u64);

impl F64 {
    /// Everything but the sign.
    #[inline(always)]
    pub fn magnitude(self) -> u64 {
        self.0 & MAGNITUDE_64
    }

    /// The value of binary32 bits, exactly.
    #[inline(always)]
    pub fn from_f32(bits: u32) -> F64 {
        let magnitude = bits & MAGNITUDE;
        let sign = u64::from(bits & !MAGNITUDE) << 32;
        let wide = u64::from(magnitude) << DROPPED;
        // As in the other direction, no subnormal is an operand.
        let subnormal = (f64::from(magnitude) * f64::from_bits(power_of_two(-149))).to_bits();
        let finite = if magnitude < 0x0080_0000 { subnormal } else { wide + REBIAS };
        F64(sign | if magnitude >= INFINITY { wide | INFINITY_64 } else { finite })
    }
}

impl Source for F64 {
    const CASTABLE: Castable = Castable::F64;
    load!(u64);

    #[inline(always)]
    fn to_f32(self) -> u32 {
        let magnitude = self.magnitude();
        let sign = (self.0 >> 32) as u32 & !MAGNITUDE;
        // As binary32 becomes binary16: integers, and one addition that rounds subnormal results.
        let odd = (magnitude >> DROPPED) & 1;
        let half = (1 << (DROPPED - 1)) - 1 + odd;
        let normal = (magnitude.wrapping_sub(REBIAS).wrapping_add(half) >> DROPPED) as u32;
        // Below 2^-126 the sum with 2^-97 has its last place at 2^-149, the subnormal step.
        let step = power_of_two(-97);
        let sum = f64::from_bits(magnitude) + f64::from_bits(step);
        let subnormal = sum.to_bits().wrapping_sub(step) as u32;
        let finite = select(magnitude < power_of_two(-126), subnormal, normal);
        let number = select(magnitude >= INFINITE_FROM, INFINITY, finite);
        let nan = INFINITY | QUIET | ((magnitude >> DROPPED) as u32 & (QUIET - 1));
        sign | select(magnitude > INFINITY_64, nan, number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_to_binary32_agrees_with_the_cpu_around_every_exponent_and_its_ties() {
        for exponent in 0..0x7FF_u64 {
            for mantissa in [0, 1 << 29, 1 << 51, (1 << 52) - 1, (1 << 52) - (1 << 29), 3 << 40] {
                for shift in 0..53 {
                    for near in [0, 1, u64::MAX] {
                        let tie = (1_u64 << shift).wrapping_add(near);
                        let bits = (exponent << 52 | mantissa).wrapping_add(tie) & MAGNITUDE_64;
                        let value = f64::from_bits(bits);
                        if !value.is_nan() {
                            assert_eq!(F64(bits).to_f32(), (value as f32).to_bits(), "{bits:#x}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_top_half_of_a_binary32_comes_back() {
        for top in 0..=u16::MAX {
            for low in [0, 1, 0xFFFF] {
                let bits = u32::from(top) << 16 | low;
                if !f32::from_bits(bits).is_nan() {
                    assert_eq!(F64::from_f32(bits).0, f64::from(f32::from_bits(bits)).to_bits());
                    assert_eq!(F64::from_f32(bits).to_f32(), bits);
                }
            }
        }
    }
}

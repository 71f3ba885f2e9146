//! How the bits of floating numbers are laid out.

/// How the bits of a floating dtype are laid out: the sign, then the exponent, then the mantissa.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Whether there is a sign bit.
    pub signed: bool,
    /// Bits of the exponent.
    pub exponent_bits: u32,
    /// Bits of the mantissa; the leading 1 of a normal number is not stored.
    pub mantissa_bits: u32,
    /// What is added to an exponent before it is stored.
    pub bias: u32,
    /// Which codes are not finite.
    pub special: Special,
}

/// Which codes of a floating dtype are not finite numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// Those of the largest exponent: infinity, and NaN above it, as in IEEE 754.
    LargestExponent,
    /// The one with every bit set, the sign aside: NaN. There is no infinity (`FN`).
    AllOnes,
    /// That of negative zero: NaN. There is no infinity (`FNUZ`).
    NegativeZero,
    /// None: every code is a finite number.
    None,
}

impl Layout {
    pub(super) const fn new(
        exponent_bits: u32,
        mantissa_bits: u32,
        bias: u32,
        special: Special,
    ) -> Layout {
        Layout { signed: true, exponent_bits, mantissa_bits, bias, special }
    }

    pub(super) const fn unsigned(self) -> Layout {
        Layout { signed: false, ..self }
    }

    pub(super) const fn bits(self) -> u64 {
        (self.signed as u32 + self.exponent_bits + self.mantissa_bits) as u64
    }

    /// Whether infinity has a code.
    pub const fn has_infinity(self) -> bool {
        matches!(self.special, Special::LargestExponent)
    }

    /// Whether NaN has a code.
    pub const fn has_nan(self) -> bool {
        !matches!(self.special, Special::None)
    }

    /// Whether it has every number of another layout.
    pub const fn holds(self, other: Layout) -> bool {
        // The smallest number is 2^1 divided by two to the sum of bias and mantissa bits.
        self.mantissa_bits >= other.mantissa_bits
            && self.bias + self.mantissa_bits >= other.bias + other.mantissa_bits
            && self.largest() >= other.largest()
    }

    /// The largest finite value, exactly.
    pub const fn largest(self) -> f64 {
        let (exponent, mantissa) = (self.exponent_bits, self.mantissa_bits);
        let all_ones = (1_u64 << (exponent + mantissa)) - 1;
        let code = match self.special {
            Special::LargestExponent => (((1 << exponent) - 1) << mantissa) - 1,
            Special::AllOnes => all_ones - 1,
            Special::NegativeZero | Special::None => all_ones,
        };
        // Its exponent is not zero, so it is a normal number, and one of binary64 too.
        let exponent = (code >> mantissa) + 1023 - self.bias as u64;
        let fraction = (code & ((1 << mantissa) - 1)) << (52 - mantissa);
        f64::from_bits(exponent << 52 | fraction)
    }
}

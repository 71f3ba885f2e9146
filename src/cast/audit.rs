//! The audit: what the cast did to the numbers, counted per tensor in the same pass.

use serde::{Deserialize, Serialize};

use super::double::F64;
use super::element::{Element, INFINITY, MAGNITUDE, Source};
use super::lanes::Summary;

impl Summary {
    #[inline(always)]
    pub fn add(&mut self, bits: u32) {
        let magnitude = bits & MAGNITUDE;
        self.largest = self.largest.max(magnitude);
        self.smallest_less_one = self.smallest_less_one.min(magnitude.wrapping_sub(1));
        self.union |= bits;
    }
}

/// How many scales of a weight are unusual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScaleCounts {
    pub nan: u64,
    pub inf: u64,
    pub zero: u64,
    pub negative: u64,
}

impl ScaleCounts {
    pub fn merge(&mut self, other: &ScaleCounts) {
        self.nan += other.nan;
        self.inf += other.inf;
        self.zero += other.zero;
        self.negative += other.negative;
    }

    /// Counts a scale, in binary32 bits.
    pub fn add(&mut self, bits: u32) {
        let magnitude = bits & MAGNITUDE;
        self.nan += u64::from(magnitude > INFINITY);
        self.inf += u64::from(magnitude == INFINITY);
        self.zero += u64::from(magnitude == 0);
        self.negative += u64::from(bits != magnitude && (1..=INFINITY).contains(&magnitude));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub struct Audit {
    pub to_inf: u64,
    pub to_zero: u64,
    pub nan: u64,
    pub inf: u64,
    /// Bits of the largest finite magnitude in the source, as binary64.
    pub max_abs_bits: u64,
    /// Every value, NaN aside, survives the round trip; of codes with scales, only where no scale has
    /// so many bits that the product in binary32 may be rounded.
    pub exact: bool,
    /// Of codes with scales: those that are NaN, whatever their scales are.
    pub nan_codes: u64,
    pub scales: ScaleCounts,
}

/// How an audit is written down: there may be very many.
type Row = (u64, u64, u64, u64, u64, bool, [u64; 5]);

impl From<Row> for Audit {
    fn from(row: Row) -> Audit {
        let (to_inf, to_zero, nan, inf, max_abs_bits, exact, scaled) = row;
        let [nan_codes, of_nan, of_inf, zero, negative] = scaled;
        let scales = ScaleCounts { nan: of_nan, inf: of_inf, zero, negative };
        Audit { to_inf, to_zero, nan, inf, max_abs_bits, exact, nan_codes, scales }
    }
}

impl From<Audit> for Row {
    fn from(audit: Audit) -> Row {
        let Audit { to_inf, to_zero, nan, inf, max_abs_bits, exact, nan_codes, scales } = audit;
        let scaled = [nan_codes, scales.nan, scales.inf, scales.zero, scales.negative];
        (to_inf, to_zero, nan, inf, max_abs_bits, exact, scaled)
    }
}

impl Default for Audit {
    fn default() -> Self {
        Audit {
            to_inf: 0,
            to_zero: 0,
            nan: 0,
            inf: 0,
            max_abs_bits: 0,
            exact: true,
            nan_codes: 0,
            scales: ScaleCounts::default(),
        }
    }
}

impl Audit {
    /// The largest finite magnitude in the source.
    pub fn max_abs(&self) -> f64 {
        f64::from_bits(self.max_abs_bits)
    }

    pub fn merge(&mut self, other: &Audit) {
        self.to_inf += other.to_inf;
        self.to_zero += other.to_zero;
        self.nan += other.nan;
        self.inf += other.inf;
        self.max_abs_bits = self.max_abs_bits.max(other.max_abs_bits);
        self.exact &= other.exact;
        self.nan_codes += other.nan_codes;
        self.scales.merge(&other.scales);
    }
}

/// The audit of a run whose values are all exact in binary32.
#[derive(Clone, Copy)]
pub(super) struct Tally {
    audit: Audit,
    /// The largest finite magnitude, in binary32 bits.
    largest: u32,
}

impl Tally {
    /// One that goes on where `audit` is: what is not exact need not be looked at again.
    pub fn after(audit: &Audit) -> Tally {
        Tally { audit: Audit { exact: audit.exact, ..Audit::default() }, largest: 0 }
    }

    /// What is added to the audit. Never inlined, because its constants would take registers that
    /// the loop needs (fp32 to fp16 with AVX2 ran at 0.89 of its speed).
    #[inline(never)]
    pub fn finish(self) -> Audit {
        Audit { max_abs_bits: F64::from_f32(self.largest).0, ..self.audit }
    }

    /// Takes in a block. Nearly always its summary says all there is to say; only a block with
    /// something to count is read a second time, while it is still in the first-level cache.
    #[inline(always)]
    pub fn add_block<S: Source, D: Element>(&mut self, summary: Summary, src: &[u8]) {
        let special = summary.largest >= D::INFINITE_FROM;
        let vanishes = summary.smallest_less_one < D::ZERO_UP_TO;
        if special || vanishes {
            let Tally { audit, largest } = count::<S, D>(src);
            self.audit.merge(&audit);
            self.largest = self.largest.max(largest);
            return;
        }
        self.largest = self.largest.max(summary.largest);
        if self.audit.exact && !const { D::FLOAT.layout().holds(S::CASTABLE.layout()) } {
            let subnormal = summary.smallest_less_one < D::NORMAL_FROM.saturating_sub(1);
            self.audit.exact =
                summary.union & D::DROPPED == 0 && (!subnormal || count::<S, D>(src).audit.exact);
        }
    }
}

#[inline(always)]
fn count<S: Source, D: Element>(src: &[u8]) -> Tally {
    let (mut to_inf, mut to_zero, mut nan, mut inf) = (0_u32, 0_u32, 0_u32, 0_u32);
    let (mut largest, mut inexact) = (0, 0);
    for src in src.chunks_exact(S::BYTES) {
        let bits = S::load(src).to_f32();
        let magnitude = bits & MAGNITUDE;
        let finite = magnitude < INFINITY;
        nan += u32::from(magnitude > INFINITY);
        inf += u32::from(magnitude == INFINITY);
        to_inf += u32::from(finite & (magnitude >= D::INFINITE_FROM));
        to_zero += u32::from(magnitude.wrapping_sub(1) < D::ZERO_UP_TO);
        largest = if finite { magnitude.max(largest) } else { largest };
        let changed = D::from_f32(bits).to_f32() != bits;
        inexact |= u32::from((magnitude <= INFINITY) & changed);
    }
    let audit = Audit {
        to_inf: u64::from(to_inf),
        to_zero: u64::from(to_zero),
        nan: u64::from(nan),
        inf: u64::from(inf),
        exact: inexact == 0,
        ..Audit::default()
    };
    Tally { audit, largest }
}

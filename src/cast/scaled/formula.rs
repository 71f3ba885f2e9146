//! What codes and scales are, and which scale is that of which code.

use serde::{Deserialize, Serialize};

use crate::cast::kernel::Overflow;
use crate::cast::level::Level;
use crate::dtype::Float;

/// What a code is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    E4m3,
    E5m2,
    E4m3Fnuz,
    E5m2Fnuz,
    /// Two in a byte, the first in its lower half.
    E2m1,
}

/// What a scale is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    F32,
    F16,
    Bf16,
    /// A power of two.
    E8m0,
    E4m3,
}

/// What a second scale, which is binary32, does to the scales before they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Second {
    Divides,
    Multiplies,
}

/// Planes of rows and columns of codes, each with a grid of blocks. The last block of a row or a
/// column may be smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grid {
    pub rows: u64,
    pub columns: u64,
    /// Rows and columns of a block.
    pub block: (u64, u64),
}

impl Grid {
    /// Rows and columns of the blocks of a plane.
    pub fn blocks(&self) -> (u64, u64) {
        (self.rows.div_ceil(self.block.0), self.columns.div_ceil(self.block.1))
    }

    /// The row of scales of a row of codes, both counted through all planes.
    pub fn scale_row(&self, row: u64) -> u64 {
        row / self.rows * self.blocks().0 + row % self.rows / self.block.0
    }
}

/// How codes and scales become values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Formula {
    pub code: Code,
    pub scale: Scale,
    pub second: Option<Second>,
    pub grid: Grid,
    /// Whether the values of each plane are transposed.
    pub transposed: bool,
}

/// What values are made of, each as the number of its first and one more than that of its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MadeOf {
    pub codes: (u64, u64),
    /// Counted through all planes.
    pub scale_rows: (u64, u64),
}

impl Formula {
    /// What the values from `start` to `end`, which is not `start`, are made of: of transposed
    /// values, whole planes.
    pub fn made_of(&self, start: u64, end: u64) -> MadeOf {
        let Grid { rows, columns, .. } = self.grid;
        let plane = rows * columns;
        let codes = match self.transposed {
            true => (start / plane * plane, end.next_multiple_of(plane)),
            false => (start, end),
        };
        let first = self.grid.scale_row(codes.0 / columns);
        let last = self.grid.scale_row((codes.1 - 1) / columns);
        MadeOf { codes, scale_rows: (first, last + 1) }
    }
}

impl Code {
    pub const fn bits(self) -> u64 {
        match self {
            Code::E2m1 => 4,
            Code::E4m3 | Code::E5m2 | Code::E4m3Fnuz | Code::E5m2Fnuz => 8,
        }
    }
}

impl Scale {
    pub const fn bytes(self) -> u64 {
        match self {
            Scale::F32 => 4,
            Scale::F16 | Scale::Bf16 => 2,
            Scale::E8m0 | Scale::E4m3 => 1,
        }
    }
}

/// What the values of a range are made of, as [`Formula::made_of`] says, and all second scales,
/// which are one, or one for each plane.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub codes: &'a [u8],
    pub scales: &'a [u8],
    pub second: &'a [u8],
}

/// How values are made, as for a cast.
#[derive(Clone, Copy, Debug)]
pub struct How {
    pub level: Level,
    pub to: Float,
    pub overflow: Overflow,
}

/// A part of a row of codes, counted through all planes.
#[derive(Clone, Copy)]
pub struct Segment {
    pub row: u64,
    pub column: u64,
    pub columns: u64,
}

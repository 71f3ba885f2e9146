//! The one dtype table: what safetensors calls each dtype, how wide it is, where the official
//! writer sorts it, and which ones recast casts. Nothing else switches on dtype names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A floating dtype recast converts between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Float {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
}

impl Float {
    /// The castable dtypes, in the order reports list them.
    pub const ALL: [Float; 3] = [Float::F32, Float::F16, Float::Bf16];

    /// Bytes per element.
    pub const fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::Bf16 => 2,
        }
    }

    /// recast's own short name: `fp32`, `fp16`, `bf16`.
    pub const fn name(self) -> &'static str {
        self.spellings()[0]
    }

    /// The name config files use: `float32`, `float16`, `bfloat16`.
    pub const fn torch_name(self) -> &'static str {
        self.spellings()[1]
    }

    /// The safetensors dtype that stores this float.
    pub fn dtype(self) -> Dtype {
        let row = TABLE.iter().position(|row| row.float == Some(self));
        Dtype::Known(row.expect("every float has a row in the table") as u8)
    }

    /// The float a user or a config file means by `text`, in any of the usual spellings,
    /// with or without torch's prefix.
    pub fn parse(text: &str) -> Option<Float> {
        let text = text.strip_prefix("torch.").unwrap_or(text);
        Float::ALL
            .into_iter()
            .find(|float| float.spellings().iter().any(|name| name.eq_ignore_ascii_case(text)))
    }

    /// Short name, torch name, then the aliases users type.
    const fn spellings(self) -> &'static [&'static str] {
        match self {
            Float::F32 => &["fp32", "float32", "f32", "float"],
            Float::F16 => &["fp16", "float16", "f16", "half"],
            Float::Bf16 => &["bf16", "bfloat16"],
        }
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

struct Row {
    name: &'static str,
    bits: u64,
    float: Option<Float>,
}

const fn row(name: &'static str, bits: u64) -> Row {
    Row { name, bits, float: None }
}

const fn float_row(name: &'static str, float: Float) -> Row {
    Row { name, bits: 8 * float.bytes() as u64, float: Some(float) }
}

/// In the order of `Dtype` in safetensors 0.8 (`safetensors/src/tensor.rs`), which its writer
/// sorts by, descending. Writing in the same order makes the files byte-identical.
const TABLE: [Row; 22] = [
    row("BOOL", 8),
    row("F4", 4),
    row("F6_E2M3", 6),
    row("F6_E3M2", 6),
    row("U8", 8),
    row("I8", 8),
    row("F8_E5M2", 8),
    row("F8_E4M3", 8),
    row("F8_E8M0", 8),
    row("F8_E4M3FNUZ", 8),
    row("F8_E5M2FNUZ", 8),
    row("I16", 16),
    row("U16", 16),
    float_row("F16", Float::F16),
    float_row("BF16", Float::Bf16),
    row("I32", 32),
    row("U32", 32),
    float_row("F32", Float::F32),
    row("C64", 64),
    row("F64", 64),
    row("I64", 64),
    row("U64", 64),
];

/// The dtype a safetensors header names. The order is the writer's: larger is written first;
/// a dtype recast has never heard of is carried as it is and written last.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// A name this version does not know.
    Unknown(Box<str>),
    /// A row of the table.
    Known(u8),
}

impl Dtype {
    /// The dtype called `name` in a header.
    pub fn from_name(name: &str) -> Dtype {
        match TABLE.iter().position(|row| row.name == name) {
            Some(index) => Dtype::Known(index as u8),
            None => Dtype::Unknown(name.into()),
        }
    }

    fn row(&self) -> Option<&'static Row> {
        match self {
            Dtype::Known(index) => Some(&TABLE[usize::from(*index)]),
            Dtype::Unknown(_) => None,
        }
    }

    /// The name headers use.
    pub fn name(&self) -> &str {
        match self {
            Dtype::Known(index) => TABLE[usize::from(*index)].name,
            Dtype::Unknown(name) => name,
        }
    }

    /// Bits per element; `None` for a dtype that is not known.
    pub fn bits(&self) -> Option<u64> {
        self.row().map(|row| row.bits)
    }

    /// The float this dtype is, when recast can cast it.
    pub fn float(&self) -> Option<Float> {
        self.row().and_then(|row| row.float)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_official_writers_order() {
        use safetensors::Dtype as Official;
        let official = [
            Official::BOOL,
            Official::F4,
            Official::F6_E2M3,
            Official::F6_E3M2,
            Official::U8,
            Official::I8,
            Official::F8_E5M2,
            Official::F8_E4M3,
            Official::F8_E8M0,
            Official::F8_E4M3FNUZ,
            Official::F8_E5M2FNUZ,
            Official::I16,
            Official::U16,
            Official::F16,
            Official::BF16,
            Official::I32,
            Official::U32,
            Official::F32,
            Official::C64,
            Official::F64,
            Official::I64,
            Official::U64,
        ];
        assert!(official.is_sorted());
        for (row, official) in TABLE.iter().zip(official) {
            assert_eq!(row.name, official.to_string());
            assert_eq!(row.bits, official.bitsize() as u64);
        }
    }

    #[test]
    fn every_alias_of_the_command_line_is_understood() {
        for (float, names) in [
            (Float::F32, ["fp32", "float32", "f32"].as_slice()),
            (Float::F16, &["fp16", "float16", "half", "f16", "torch.float16"]),
            (Float::Bf16, &["bf16", "bfloat16", "BF16", "torch.bfloat16"]),
        ] {
            for name in names {
                assert_eq!(Float::parse(name), Some(float), "{name}");
            }
        }
        assert_eq!(Float::parse("fp64"), None);
    }
}

//! The one dtype table: what each dtype is called, how its bits are laid out, where the official
//! writer sorts it, and whether recast casts it. Nothing else in the core or in Python keeps such
//! data of its own.

mod layout;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use layout::{Layout, Special};

/// A dtype recast casts to.
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
    /// The targets, in the order reports list them.
    pub const ALL: [Float; 3] = [Float::F32, Float::F16, Float::Bf16];

    /// Bytes per element.
    pub const fn bytes(self) -> usize {
        self.row().bits as usize / 8
    }

    /// recast's own short name: `fp32`, `fp16`, `bf16`.
    pub const fn name(self) -> &'static str {
        let Row { short_name, .. } = self.row();
        short_name
    }

    /// The name config files use: `float32`, `float16`, `bfloat16`.
    pub fn torch_name(self) -> &'static str {
        self.row().torch_name.expect("torch has every float that is cast")
    }

    /// How its bits are laid out.
    pub const fn layout(self) -> Layout {
        self.row().layout.expect("every float has a layout")
    }

    /// The safetensors dtype that stores this float.
    pub const fn dtype(self) -> Dtype {
        Dtype::Known(self.castable().index() as u8)
    }

    /// The float a user or a config file means by `text`, in any of the usual spellings,
    /// with or without torch's prefix.
    pub fn parse(text: &str) -> Option<Float> {
        let castable = Castable::parse(text)?;
        Float::ALL.into_iter().find(|float| float.castable() == castable)
    }

    /// The same as a dtype to cast from.
    pub const fn castable(self) -> Castable {
        match self {
            Float::F32 => Castable::F32,
            Float::F16 => Castable::F16,
            Float::Bf16 => Castable::Bf16,
        }
    }

    const fn row(self) -> &'static Row {
        self.castable().row()
    }
}

impl fmt::Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A dtype recast casts from: what it casts to, and two kinds more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Castable {
    /// IEEE 754 binary64.
    F64,
    F32,
    F16,
    Bf16,
    /// 8 bits, of which 5 are the exponent and 2 the mantissa.
    #[serde(rename = "f8_e5m2")]
    F8E5m2,
    #[serde(rename = "f8_e4m3")]
    F8E4m3,
    #[serde(rename = "f8_e4m3fnuz")]
    F8E4m3Fnuz,
    #[serde(rename = "f8_e5m2fnuz")]
    F8E5m2Fnuz,
}

impl Castable {
    /// Bytes per element.
    pub const fn bytes(self) -> usize {
        self.row().bits as usize / 8
    }

    /// recast's own short name, such as `fp64` and `fp8_e4m3`.
    pub const fn name(self) -> &'static str {
        let Row { short_name, .. } = self.row();
        short_name
    }

    /// How its bits are laid out.
    pub const fn layout(self) -> Layout {
        self.row().layout.expect("every castable dtype has a layout")
    }

    /// Whether it is an 8-bit float, which may as well be a code of a quantized weight.
    pub const fn is_fp8(self) -> bool {
        self.row().bits == 8
    }

    /// The dtype that a user or a config file means by `text`, as [`Float::parse`] has it.
    pub fn parse(text: &str) -> Option<Castable> {
        named(text).and_then(|row| row.castable)
    }

    /// Whether recast casts to it, too.
    pub fn is_target(self) -> bool {
        Float::ALL.into_iter().any(|float| float.castable() == self)
    }

    const fn row(self) -> &'static Row {
        &DTYPES[self.index()]
    }

    const fn index(self) -> usize {
        let mut index = 0;
        // Neither iterators nor `==` of an enum are const.
        while !matches!(DTYPES[index].castable, Some(other) if other as u8 == self as u8) {
            index += 1;
        }
        index
    }
}

impl From<Float> for Castable {
    fn from(float: Float) -> Castable {
        float.castable()
    }
}

impl fmt::Display for Castable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The row of the dtype that `text` names in any of the usual spellings, with or without torch's
/// prefix.
fn named(text: &str) -> Option<&'static Row> {
    let text = text.strip_prefix("torch.").unwrap_or(text);
    DTYPES.iter().find(|row| row.spellings().any(|name| name.eq_ignore_ascii_case(text)))
}

/// What recast knows of a dtype.
#[derive(Debug)]
pub struct Row {
    /// What safetensors headers call it.
    pub name: &'static str,
    /// What recast calls it in text and options.
    pub short_name: &'static str,
    /// What torch calls it, when it has it.
    pub torch_name: Option<&'static str>,
    /// Other names that users and config files give it.
    pub aliases: &'static [&'static str],
    /// Bits per element.
    pub bits: u64,
    /// How they are laid out in a floating dtype.
    pub layout: Option<Layout>,
    /// What it is to the casts, when recast casts it.
    pub castable: Option<Castable>,
}

impl Row {
    /// A dtype whose elements are only ever carried.
    const fn opaque(name: &'static str, bits: u64, torch_name: &'static str) -> Row {
        Row {
            name,
            short_name: torch_name,
            torch_name: Some(torch_name),
            aliases: &[],
            bits,
            layout: None,
            castable: None,
        }
    }

    const fn floating(name: &'static str, short_name: &'static str, layout: Layout) -> Row {
        Row {
            name,
            short_name,
            torch_name: None,
            aliases: &[],
            bits: layout.bits(),
            layout: Some(layout),
            castable: None,
        }
    }

    const fn torch(self, name: &'static str) -> Row {
        Row { torch_name: Some(name), ..self }
    }

    const fn castable(self, castable: Castable, aliases: &'static [&'static str]) -> Row {
        Row { castable: Some(castable), aliases, ..self }
    }

    /// Every name a user or a config file may give it.
    pub fn spellings(&self) -> impl Iterator<Item = &'static str> {
        let torch_name = self.torch_name.filter(|name| *name != self.short_name);
        let names = [Some(self.short_name), torch_name, Some(self.name)];
        names.into_iter().flatten().chain(self.aliases.iter().copied())
    }
}

/// In the order of `Dtype` in safetensors 0.8 (`safetensors/src/tensor.rs`), which its writer
/// sorts by, descending. Writing in the same order makes the files byte-identical.
pub static DTYPES: [Row; 22] = {
    use Special::{AllOnes, LargestExponent, NegativeZero};
    [
        Row::opaque("BOOL", 8, "bool"),
        Row::floating("F4", "fp4", Layout::new(2, 1, 1, Special::None)).torch("float4_e2m1fn_x2"),
        Row::floating("F6_E2M3", "fp6_e2m3", Layout::new(2, 3, 1, Special::None)),
        Row::floating("F6_E3M2", "fp6_e3m2", Layout::new(3, 2, 3, Special::None)),
        Row::opaque("U8", 8, "uint8"),
        Row::opaque("I8", 8, "int8"),
        Row::floating("F8_E5M2", "fp8_e5m2", Layout::new(5, 2, 15, LargestExponent))
            .torch("float8_e5m2")
            .castable(Castable::F8E5m2, &[]),
        Row::floating("F8_E4M3", "fp8_e4m3", Layout::new(4, 3, 7, AllOnes))
            .torch("float8_e4m3fn")
            .castable(Castable::F8E4m3, &[]),
        Row::floating("F8_E8M0", "fp8_e8m0", Layout::new(8, 0, 127, AllOnes).unsigned())
            .torch("float8_e8m0fnu"),
        Row::floating("F8_E4M3FNUZ", "fp8_e4m3fnuz", Layout::new(4, 3, 8, NegativeZero))
            .torch("float8_e4m3fnuz")
            .castable(Castable::F8E4m3Fnuz, &[]),
        Row::floating("F8_E5M2FNUZ", "fp8_e5m2fnuz", Layout::new(5, 2, 16, NegativeZero))
            .torch("float8_e5m2fnuz")
            .castable(Castable::F8E5m2Fnuz, &[]),
        Row::opaque("I16", 16, "int16"),
        Row::opaque("U16", 16, "uint16"),
        Row::floating("F16", "fp16", Layout::new(5, 10, 15, LargestExponent))
            .torch("float16")
            .castable(Castable::F16, &["half"]),
        Row::floating("BF16", "bf16", Layout::new(8, 7, 127, LargestExponent))
            .torch("bfloat16")
            .castable(Castable::Bf16, &[]),
        Row::opaque("I32", 32, "int32"),
        Row::opaque("U32", 32, "uint32"),
        Row::floating("F32", "fp32", Layout::new(8, 23, 127, LargestExponent))
            .torch("float32")
            .castable(Castable::F32, &["float"]),
        Row::opaque("C64", 64, "complex64"),
        Row::floating("F64", "fp64", Layout::new(11, 52, 1023, LargestExponent))
            .torch("float64")
            .castable(Castable::F64, &["double"]),
        Row::opaque("I64", 64, "int64"),
        Row::opaque("U64", 64, "uint64"),
    ]
};

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
        match DTYPES.iter().position(|row| row.name == name) {
            Some(index) => Dtype::Known(index as u8),
            None => Dtype::Unknown(name.into()),
        }
    }

    /// The dtype that torch calls so.
    pub fn of_torch(name: &str) -> Option<Dtype> {
        let index = DTYPES.iter().position(|row| row.torch_name == Some(name))?;
        Some(Dtype::Known(index as u8))
    }

    /// What torch calls it, where it has it.
    pub fn torch_name(&self) -> Option<&'static str> {
        self.row()?.torch_name
    }

    fn row(&self) -> Option<&'static Row> {
        match self {
            Dtype::Known(index) => Some(&DTYPES[usize::from(*index)]),
            Dtype::Unknown(_) => None,
        }
    }

    /// The name headers use.
    pub fn name(&self) -> &str {
        match self {
            Dtype::Known(index) => DTYPES[usize::from(*index)].name,
            Dtype::Unknown(name) => name,
        }
    }

    /// Whether its elements are floating numbers, or scales of such.
    pub fn is_float(&self) -> bool {
        self.row().is_some_and(|row| row.layout.is_some())
    }

    /// Whether its elements may be floating numbers: complex ones are pairs of such, and a dtype
    /// that is not known may be anything.
    pub fn may_be_float(&self) -> bool {
        self.is_float() || matches!(self.name(), "C64") || self.row().is_none()
    }

    /// Bits per element; `None` for a dtype that is not known.
    pub fn bits(&self) -> Option<u64> {
        self.row().map(|row| row.bits)
    }

    /// What it is to the casts, when recast can cast it.
    pub fn castable(&self) -> Option<Castable> {
        self.row().and_then(|row| row.castable)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests;

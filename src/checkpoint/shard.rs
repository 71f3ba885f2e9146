//! A safetensors file: its header, read and checked by the format's rules, and the only memory
//! map in recast.
//!
//! The safetensors crate is not used to read headers because it refuses dtypes it does not know
//! and hides duplicate names; it is the judge of this reader in the tests instead.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::json;
use crate::dtype::Dtype;
use crate::error::Error;

/// The format's cap on the header's length.
pub const MAX_HEADER: u64 = 100_000_000;
/// The reserved header key for string metadata.
pub const METADATA_KEY: &str = "__metadata__";

/// A tensor as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its logical shape; `[]` is a scalar.
    pub shape: Vec<u64>,
    /// Its first byte in the file.
    pub start: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Tensor {
    /// The number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// A shard's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shard {
    /// `__metadata__` in its own order, when it is there.
    pub metadata: Option<Vec<(String, String)>>,
    /// The tensors in the order of their data.
    pub tensors: Vec<Tensor>,
    /// Length of the whole file in bytes.
    pub file_bytes: u64,
}

impl Shard {
    /// Reads and checks the header of a file of `file_bytes` bytes; `path` is for the error
    /// message.
    ///
    /// # Errors
    /// When the file cannot be read or breaks a rule of the format.
    pub fn read(path: &Path, mut file: File, file_bytes: u64) -> Result<Shard, Error> {
        let invalid = |reason: String| Error::Header { path: path.to_owned(), reason };
        let mut length = [0; 8];
        if file_bytes < 8 {
            return Err(invalid(format!(
                "it has {file_bytes} bytes, fewer than the 8 of the header length"
            )));
        }
        file.read_exact(&mut length).map_err(Error::io("read", path))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER {
            return Err(invalid(format!(
                "the header says it is {length} bytes long, over the format's limit of {MAX_HEADER}"
            )));
        }
        if length > file_bytes - 8 {
            return Err(invalid(format!(
                "the header says it is {length} bytes long, but the file ends {} bytes after it starts",
                file_bytes - 8
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(Error::io("read", path))?;
        Shard::parse(&header, file_bytes).map_err(invalid)
    }

    /// Checks a header (the JSON, without its length) against a file of `file_bytes` bytes.
    ///
    /// # Errors
    /// The rule that is broken, in words.
    pub fn parse(header: &[u8], file_bytes: u64) -> Result<Shard, String> {
        let text = std::str::from_utf8(header)
            .map_err(|error| format!("the header is not UTF-8: {error}"))?;
        // The first look is for what the second would skip: it ignores the fields it does not know.
        let RawHeader { metadata, mut entries } = json::check(text)
            .and_then(|()| serde_json::from_str(text))
            .map_err(|error| format!("the header is not the JSON it must be: {error}"))?;
        entries.sort_by_key(|(_, entry)| entry.data_offsets);
        let data_start = 8 + header.len() as u64;
        let mut end = 0;
        let mut tensors = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            let (start, stop) = entry.data_offsets;
            if stop < start {
                return Err(format!(
                    "tensor '{name}' ends (at {stop}) before it starts (at {start})"
                ));
            }
            if start != end {
                let what =
                    if start < end { "overlaps the one before" } else { "leaves a hole before it" };
                return Err(format!(
                    "tensor '{name}' starts at {start} instead of {end}: it {what}"
                ));
            }
            end = stop;
            let dtype = Dtype::from_name(&entry.dtype);
            check_size(&name, &dtype, &entry.shape, stop - start)?;
            tensors.push(Tensor {
                name: name.into_owned(),
                dtype,
                shape: entry.shape,
                start: data_start.saturating_add(start),
                bytes: stop - start,
            });
        }
        let expected = data_start.saturating_add(end);
        if expected != file_bytes {
            let what = if file_bytes < expected {
                "is cut short"
            } else {
                "has bytes after the last tensor"
            };
            return Err(format!("the file {what}: {file_bytes} bytes instead of {expected}"));
        }
        Ok(Shard { metadata, tensors, file_bytes })
    }

    /// The header that describes `tensors` (name, dtype, shape, bytes) one after the other, as
    /// the official writer lays it out: length, JSON, spaces up to a multiple of 8.
    pub fn header<'a>(
        metadata: Option<&[(String, String)]>,
        tensors: impl Iterator<Item = (&'a str, &'a Dtype, &'a [u64], u64)>,
    ) -> Vec<u8> {
        let mut out = vec![0; 8];
        out.push(b'{');
        if let Some(pairs) = metadata {
            write_json(&mut out, METADATA_KEY);
            out.extend_from_slice(b":{");
            for (index, (key, value)) in pairs.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_json(&mut out, key);
                out.push(b':');
                write_json(&mut out, value);
            }
            out.push(b'}');
        }
        let mut start = 0;
        for (name, dtype, shape, bytes) in tensors {
            if out.len() > 9 {
                out.push(b',');
            }
            write_json(&mut out, name);
            out.extend_from_slice(b":{\"dtype\":");
            write_json(&mut out, dtype.name());
            out.extend_from_slice(b",\"shape\":");
            write_json(&mut out, shape);
            out.extend_from_slice(b",\"data_offsets\":");
            write_json(&mut out, &[start, start + bytes]);
            out.push(b'}');
            start += bytes;
        }
        out.push(b'}');
        out.resize(out.len().next_multiple_of(8), b' ');
        let length = (out.len() - 8) as u64;
        out[..8].copy_from_slice(&length.to_le_bytes());
        out
    }
}

fn write_json<T: serde::Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("strings and integers always serialise to memory");
}

fn check_size(name: &str, dtype: &Dtype, shape: &[u64], bytes: u64) -> Result<(), String> {
    let elements = shape
        .iter()
        .try_fold(1_u64, |product, &size| product.checked_mul(size))
        .ok_or_else(|| format!("tensor '{name}' has a shape whose product overflows: {shape:?}"))?;
    let Some(bits) = dtype.bits() else {
        // No dtype has less than a bit to an element, so this bounds what sums of elements reach.
        return match bytes.checked_mul(8) {
            Some(bits) if elements > bits => Err(format!(
                "tensor '{name}' ({dtype} {shape:?}) has more elements than bits: its offsets span \
                 {bytes} bytes"
            )),
            _ => Ok(()),
        };
    };
    let bits = elements
        .checked_mul(bits)
        .ok_or_else(|| format!("tensor '{name}' has a shape whose size overflows: {shape:?}"))?;
    if bits % 8 != 0 {
        return Err(format!("tensor '{name}' ({dtype} {shape:?}) does not end on a whole byte"));
    }
    if bits / 8 != bytes {
        return Err(format!(
            "tensor '{name}' ({dtype} {shape:?}) needs {} bytes, but its offsets span {bytes}",
            bits / 8
        ));
    }
    Ok(())
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

struct RawHeader<'a> {
    metadata: Option<Vec<(String, String)>>,
    entries: Vec<(Cow<'a, str>, Entry<'a>)>,
}

/// Metadata pairs in the order they stand; a map would lose it.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;
        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!(
                            "duplicate metadata key '{key}'"
                        )));
                    }
                    pairs.push((key, value));
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(PairsVisitor)
    }
}

impl<'de> Deserialize<'de> for RawHeader<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that maps tensor names to dtype, shape and data_offsets")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut header = RawHeader { metadata: None, entries: Vec::new() };
                let mut seen = HashSet::new();
                while let Some(Name(name)) = map.next_key::<Name<'de>>()? {
                    if !seen.insert(name.clone()) {
                        map.next_value::<IgnoredAny>()?;
                        return Err(A::Error::custom(format_args!(
                            "tensor '{name}' stands there twice"
                        )));
                    }
                    if name == METADATA_KEY {
                        header.metadata = map.next_value::<Option<Pairs>>()?.map(|pairs| pairs.0);
                    } else {
                        let entry = map.next_value().map_err(|error| {
                            A::Error::custom(format_args!("tensor '{name}': {error}"))
                        })?;
                        header.entries.push((name, entry));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A key, borrowed from the header where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// A multiple of every page size in use.
#[cfg(unix)]
const LARGEST_PAGE: usize = 64 << 10;

/// A shard's bytes, mapped read-only.
///
/// Hazard: when another process truncates the file while it is mapped, touching the lost part
/// raises SIGBUS.
#[derive(Debug)]
pub struct Map(memmap2::Mmap);

impl Map {
    /// Maps all of `file`.
    ///
    /// # Errors
    /// When the system refuses to map it.
    pub fn new(file: &File) -> std::io::Result<Map> {
        // SAFETY: the map is private to this type, read-only, and only ever seen as plain bytes,
        // for which every bit pattern is valid. A writer elsewhere can change what a read
        // returns, never the validity of the memory; truncation is the hazard stated above.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(Map(map))
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
    /// Gives the pages that lie wholly inside a range back to the system; looking at them again
    /// reads them again. So what is resident does not grow with the file.
    #[cfg(unix)]
    pub fn let_go(&self, start: usize, bytes: usize) {
        let start = start.next_multiple_of(LARGEST_PAGE);
        let end = (start + bytes).min(self.0.len()) / LARGEST_PAGE * LARGEST_PAGE;
        if start < end {
            // SAFETY: the map is shared and backed by a file, so dropped pages come back with the
            // same bytes; nothing is lost, as it would be in an anonymous or private map. An
            // error means that the pages stay, which is harmless.
            let _ = unsafe {
                self.0.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    start,
                    end - start,
                )
            };
        }
    }

    /// Gives pages back to the system: not known how on this one.
    #[cfg(not(unix))]
    pub fn let_go(&self, _start: usize, _bytes: usize) {}
}

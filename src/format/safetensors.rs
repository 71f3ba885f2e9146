//! A safetensors file's header, read and checked by the format's rules, and written.
//!
//! The safetensors crate is not used to read headers because it refuses dtypes it does not know
//! and hides duplicate names; it is the judge of this reader in the tests instead.

use std::borrow::Cow;
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Serialize, Serializer};

use super::edit::Object as Members;
use super::json;
use crate::checksum::{Blocks, Digest};
use crate::dtype::Dtype;
use crate::error::{Error, counted};
use crate::place::Object;

/// The format's cap on the header's length.
pub const MAX_HEADER: u64 = 100_000_000;
/// How the text begins that Git LFS leaves in the place of a file it did not fetch.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// The reserved header key for string metadata.
const METADATA_KEY: &str = "__metadata__";

/// A tensor as its header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    /// Its logical shape; `[]` is a scalar.
    pub shape: Vec<u64>,
    /// Its first byte in the file.
    pub start: u64,
    pub bytes: u64,
}

impl Tensor {
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

/// What a shard's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// `__metadata__` in its own order, when it is there.
    pub metadata: Option<Vec<(String, String)>>,
    /// The tensors in the order of their data.
    pub tensors: Vec<Tensor>,
    /// The bytes before the data: the header and its length.
    pub head: u64,
    pub version: Digest,
}

impl Shard {
    /// Reads and checks the header of an object; `path` is its name for messages.
    pub fn read(object: &dyn Object, path: &Path) -> Result<Shard, Error> {
        let bytes = object.marks()?.bytes;
        let invalid = |reason: String| Error::Header { path: path.to_owned(), reason };
        let Some(rest) = bytes.checked_sub(8) else {
            let bytes = counted(bytes, "byte");
            return Err(invalid(format!("it has {bytes}, fewer than the 8 of the header length")));
        };
        let mut buffer = Vec::new();
        let length = object.get(0, 8, &mut buffer)?;
        let length = u64::from_le_bytes(length.try_into().expect("8 bytes"));
        if length > MAX_HEADER {
            // The words of such a text are no length that a header may have.
            let start = object.get(0, LFS_POINTER.len().min(bytes as usize), &mut buffer)?;
            if start == LFS_POINTER {
                return Err(Error::LfsPointer { path: path.to_owned() });
            }
            return Err(invalid(format!(
                "the header says it is {length} bytes long, over the format's limit of {MAX_HEADER}"
            )));
        }
        if length > rest {
            return Err(invalid(format!(
                "the header says it is {} long, but the file ends {} after it starts",
                counted(length, "byte"),
                counted(rest, "byte")
            )));
        }
        let head = object.get(0, 8 + length as usize, &mut buffer)?;
        Shard::parse(head, bytes).map_err(invalid)
    }

    /// Where the blocks lie of a file of `bytes` bytes with this header.
    pub fn blocks(&self, bytes: u64) -> Blocks {
        let starts = self.tensors.iter().map(|tensor| tensor.start);
        Blocks::new(std::iter::once(self.head).chain(starts), bytes)
    }

    /// Checks a header, its length in front, against a file of `file_bytes` bytes.
    fn parse(head: &[u8], file_bytes: u64) -> Result<Shard, String> {
        let header = &head[8..];
        let text = std::str::from_utf8(header)
            .map_err(|error| format!("the header is not UTF-8: {error}"))?;
        let (metadata, mut entries) = members(text)
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
        Ok(Shard { metadata, tensors, head: data_start, version: Digest::of_head(head) })
    }

    /// The header that describes `tensors` (name, dtype, shape, bytes) one after the other, as
    /// the official writer lays it out: length, JSON, spaces up to a multiple of 8.
    pub fn header<'a>(
        metadata: &[(String, String)],
        tensors: impl Iterator<Item = (&'a str, &'a Dtype, &'a [u64], u64)>,
    ) -> Vec<u8> {
        let mut start = 0;
        let tensors = tensors.map(|(name, dtype, shape, bytes)| {
            let data_offsets = (start, start + bytes);
            start += bytes;
            (name, Member::Tensor { dtype: dtype.name(), shape, data_offsets })
        });
        let metadata = std::iter::once((METADATA_KEY, Member::Metadata(metadata)));
        let mut out = vec![0; 8];
        serde_json::Serializer::new(&mut out)
            .collect_map(metadata.chain(tensors))
            .expect("memory takes strings and integers");
        out.resize(out.len().next_multiple_of(8), b' ');
        let length = (out.len() - 8) as u64;
        out[..8].copy_from_slice(&length.to_le_bytes());
        out
    }
}

/// A member of a header that is written.
#[derive(Serialize)]
#[serde(untagged)]
enum Member<'a> {
    Metadata(#[serde(serialize_with = "in_order")] &'a [(String, String)]),
    Tensor { dtype: &'a str, shape: &'a [u64], data_offsets: (u64, u64) },
}

fn in_order<S: Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
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
                "tensor '{name}' ({dtype} {shape:?}) has more elements than bits: its offsets span {}",
                counted(bytes, "byte")
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
            "tensor '{name}' ({dtype} {shape:?}) needs {}, but its offsets span {bytes}",
            counted(bits / 8, "byte")
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

type Parsed<'a> = (Option<Vec<(String, String)>>, Vec<(Cow<'a, str>, Entry<'a>)>);

/// The metadata and the tensors' entries, each in the order they stand in.
fn members(text: &str) -> Result<Parsed<'_>, String> {
    // What comes after it ignores fields that it does not know, whatever is in them.
    json::check(text).map_err(|error| error.to_string())?;
    let header = Members::parse(text).map_err(|error| error.to_string())?;
    if let Some(name) = header.twice() {
        return Err(format!("tensor '{name}' stands there twice"));
    }
    let (mut metadata, mut entries) = (None, Vec::with_capacity(header.0.len()));
    for (name, value) in header.0 {
        if name != METADATA_KEY {
            let entry = serde_json::from_str(value.get())
                .map_err(|error| format!("tensor '{name}': {}", without_place(&error)))?;
            entries.push((name, entry));
        } else if value.get() != "null" {
            let pairs = strings(value.get())
                .map_err(|error| format!("__metadata__: {}", without_place(&error)))?;
            metadata = Some(pairs);
        }
    }
    Ok((metadata, entries))
}

fn strings(text: &str) -> Result<Vec<(String, String)>, serde_json::Error> {
    let object = Members::parse(text)?;
    if let Some(key) = object.twice() {
        return Err(serde_json::Error::custom(format_args!("duplicate metadata key '{key}'")));
    }
    let pairs = object.0.into_iter();
    pairs.map(|(key, value)| Ok((key.into_owned(), serde_json::from_str(value.get())?))).collect()
}

/// What is wrong in a part of the header: a place in the part would be taken for one in the whole.
fn without_place(error: &serde_json::Error) -> String {
    let mut said = error.to_string();
    said.truncate(said.rfind(" at line ").unwrap_or(said.len()));
    said
}

//! A safetensors file: its header, read and checked by the format's rules, and the only memory
//! map in recast.
//!
//! The safetensors crate is not used to read headers because it refuses dtypes it does not know
//! and hides duplicate names; it is the judge of this reader in the tests instead.

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::Read;
use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Serialize, Serializer};

use super::edit::Object;
use super::{file, json};
use crate::dtype::Dtype;
use crate::error::{Error, counted};

/// The format's cap on the header's length.
pub const MAX_HEADER: u64 = 100_000_000;
/// The reserved header key for string metadata.
const METADATA_KEY: &str = "__metadata__";

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

/// What a shard's header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// `__metadata__` in its own order, when it is there.
    pub metadata: Option<Vec<(String, String)>>,
    /// The tensors in the order of their data.
    pub tensors: Vec<Tensor>,
}

impl Shard {
    /// Reads and checks the header of the file at `path`.
    ///
    /// # Errors
    /// When the file cannot be read or breaks a rule of the format.
    pub fn read(path: &Path) -> Result<(Shard, Metadata), Error> {
        let (mut file, found) = file::open(path)?;
        let invalid = |reason: String| Error::Header { path: path.to_owned(), reason };
        let mut length = [0; 8];
        let Some(rest) = found.len().checked_sub(8) else {
            let bytes = counted(found.len(), "byte");
            return Err(invalid(format!("it has {bytes}, fewer than the 8 of the header length")));
        };
        file.read_exact(&mut length).map_err(Error::io("read", path))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER {
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
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(Error::io("read", path))?;
        Ok((Shard::parse(&header, found.len()).map_err(invalid)?, found))
    }

    /// Checks a header (the JSON, without its length) against a file of `file_bytes` bytes.
    fn parse(header: &[u8], file_bytes: u64) -> Result<Shard, String> {
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
        Ok(Shard { metadata, tensors })
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

type Members<'a> = (Option<Vec<(String, String)>>, Vec<(Cow<'a, str>, Entry<'a>)>);

/// The metadata and the tensors' entries, each in the order they stand in.
fn members(text: &str) -> Result<Members<'_>, String> {
    // What comes after it ignores fields that it does not know, whatever is in them.
    json::check(text).map_err(|error| error.to_string())?;
    let header = Object::parse(text).map_err(|error| error.to_string())?;
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
    let object = Object::parse(text)?;
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

//! A safetensors file's header, read and checked by the format's rules, and written.
//!
//! The safetensors crate is not used to read headers because it refuses dtypes it does not know
//! and hides duplicate names; it is the judge of this reader in the tests instead.

use std::borrow::Cow;
use std::path::Path;

use serde::{Deserialize, Serialize, Serializer};

use super::edit::Object as Members;
use super::json;
use crate::checksum::{Blocks, Digest, SHA256_DIGITS};
use crate::dtype::Dtype;
use crate::error::{Error, HeaderFault};
use crate::place::Object;
use crate::view::View;

pub const MAX_HEADER: u64 = 100_000_000;
/// How the text begins that Git LFS leaves in the place of a file it did not fetch.
pub const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
pub const METADATA_KEY: &str = "__metadata__";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    /// Its logical shape; `[]` is a scalar.
    pub shape: Vec<u64>,
    /// Its first byte in the file.
    pub start: u64,
    /// Those of its elements, one after the other.
    pub bytes: u64,
    /// Where its elements are, when they do not lie one after the other, as in a pickle.
    pub view: Option<Box<View>>,
}

impl Tensor {
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// `__metadata__` in its own order, when it is there.
    pub metadata: Option<Vec<(String, String)>>,
    pub tensors: Vec<Tensor>,
    /// The bytes before the data: the header and its length.
    pub head: u64,
    pub version: Digest,
    /// What else is known of it where it is a pickle.
    pub pickled: Option<Pickled>,
}

/// What a pickle has beside tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pickled {
    /// The ranges that the version is the digest of: where they start, and their bytes.
    pub heads: Vec<(u64, u64)>,
    /// The bytes of the file.
    pub bytes: u64,
    /// Tensors that are the memory of another one, each with that, sorted; they are not among the
    /// tensors once it is known that they are not parts of quantized weights.
    pub tied: Vec<(String, String)>,
    /// What is not a tensor of the model.
    pub left_out: Vec<String>,
}

impl Shard {
    /// Reads and checks the header of an object; `path` is its name for messages.
    pub fn read(object: &dyn Object, path: &Path) -> Result<Shard, Error> {
        let bytes = object.marks()?.bytes;
        let invalid = |fault| Error::Header { path: path.to_owned(), fault };
        let Some(rest) = bytes.checked_sub(8) else {
            return Err(invalid(HeaderFault::TooShort { bytes }));
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
            return Err(invalid(HeaderFault::TooLong { length, limit: MAX_HEADER }));
        }
        if length > rest {
            return Err(invalid(HeaderFault::PastEnd { length, rest }));
        }
        let head = object.get(0, 8 + length as usize, &mut buffer)?;
        Shard::parse(head, bytes).map_err(invalid)
    }

    /// The names of all tensors, also of those that are the memory of another one.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let own = self.tensors.iter().map(|tensor| tensor.name.as_str());
        own.chain(self.tied().map(|(name, _)| name))
    }

    /// The tensors that are the memory of another one, each with that.
    pub fn tied(&self) -> impl Iterator<Item = (&str, &str)> {
        let tied = self.pickled.iter().flat_map(|pickled| &pickled.tied);
        tied.map(|(name, kept)| (name.as_str(), kept.as_str()))
    }

    /// The keys of the metadata that say that the tensors are quantized: what SVDQuant, ComfyUI
    /// and torchao write.
    pub fn quantization(&self) -> impl Iterator<Item = &str> {
        const KEYS: [&str; 3] = ["quantization_config", "_quantization_metadata", "quantization"];
        let keys = self.metadata.iter().flatten().map(|(key, _)| key.as_str());
        keys.filter(|key| KEYS.contains(key))
    }

    /// The keys of the metadata that hold a hash of the tensors' bytes, and what stands before its
    /// digits: what kohya's scripts (`addnet_hash_safetensors`) and ModelSpec write. Only where
    /// there is a hash.
    pub fn hashes(&self) -> impl Iterator<Item = (&str, &'static str)> {
        let hash = |(key, value): &'_ (String, String)| match key.as_str() {
            "sshs_model_hash" => is_hash(value).then_some(""),
            "modelspec.hash_sha256" => is_hash(value.strip_prefix("0x")?).then_some("0x"),
            _ => None,
        };
        let members = self.metadata.iter().flatten();
        members.filter_map(move |member| Some((member.0.as_str(), hash(member)?)))
    }

    /// The keys of the metadata that hold something made of the tensors' bytes in a way that is not
    /// known: of a file that was written on the way, or no hash at all.
    pub fn other_hashes(&self) -> impl Iterator<Item = &str> {
        const KEYS: [&str; 3] = ["sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"];
        let keys = self.metadata.iter().flatten().map(|(key, _)| key.as_str());
        let known = |key: &str| self.hashes().any(|(known, _)| known == key);
        keys.filter(move |key| KEYS.contains(key) && !known(key))
    }

    /// Where the blocks lie of a file of `bytes` bytes with this header.
    pub fn blocks(&self, bytes: u64) -> Blocks {
        let starts = self.tensors.iter().map(|tensor| tensor.start);
        Blocks::new(std::iter::once(self.head).chain(starts), bytes)
    }

    /// Checks a header, its length in front, against a file of `file_bytes` bytes.
    fn parse(head: &[u8], file_bytes: u64) -> Result<Shard, HeaderFault> {
        let header = &head[8..];
        let text = std::str::from_utf8(header)
            .map_err(|error| HeaderFault::Utf8 { source: error.into() })?;
        let (metadata, mut entries) = members(text)?;
        entries.sort_by_key(|(_, entry)| entry.data_offsets);
        let data_start = 8 + header.len() as u64;
        let mut end = 0;
        let mut tensors = Vec::with_capacity(entries.len());
        for (name, entry) in entries {
            let (start, stop) = entry.data_offsets;
            let (expected, tensor) = (end, name.into_owned());
            if stop < start {
                return Err(HeaderFault::Backwards { tensor, start, end: stop });
            }
            if start < expected {
                return Err(HeaderFault::Overlap { tensor, start, expected });
            }
            if start > expected {
                return Err(HeaderFault::Hole { tensor, start, expected });
            }
            end = stop;
            let tensor = Tensor {
                name: tensor,
                dtype: Dtype::from_name(&entry.dtype),
                shape: entry.shape,
                start: data_start.saturating_add(start),
                bytes: stop - start,
                view: None,
            };
            check_size(&tensor)?;
            tensors.push(tensor);
        }
        let expected = data_start.saturating_add(end);
        let bytes = file_bytes;
        if bytes < expected {
            return Err(HeaderFault::CutShort { bytes, expected });
        }
        if bytes > expected {
            return Err(HeaderFault::TrailingBytes { bytes, expected });
        }
        let version = Digest::of_head(head);
        Ok(Shard { metadata, tensors, head: data_start, version, pickled: None })
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

#[derive(Serialize)]
#[serde(untagged)]
enum Member<'a> {
    Metadata(#[serde(serialize_with = "in_order")] &'a [(String, String)]),
    Tensor { dtype: &'a str, shape: &'a [u64], data_offsets: (u64, u64) },
}

fn in_order<S: Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
}

fn is_hash(digits: &str) -> bool {
    digits.len() == SHA256_DIGITS && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

fn check_size(tensor: &Tensor) -> Result<(), HeaderFault> {
    let Tensor { name, dtype, shape, bytes, .. } = tensor;
    let (shape, name, bytes) = (|| shape.clone(), || name.clone(), *bytes);
    let elements = tensor.shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
    let elements =
        elements.ok_or_else(|| HeaderFault::ElementsOverflow { tensor: name(), shape: shape() })?;
    let dtype_name = || dtype.to_string();
    let Some(bits) = dtype.bits() else {
        // No dtype has less than a bit to an element, so this bounds what sums of elements reach.
        return match bytes.checked_mul(8) {
            Some(bits) if elements > bits => Err(HeaderFault::TooManyElements {
                tensor: name(),
                dtype: dtype_name(),
                shape: shape(),
                bytes,
            }),
            _ => Ok(()),
        };
    };
    let bits = elements
        .checked_mul(bits)
        .ok_or_else(|| HeaderFault::SizeOverflow { tensor: name(), shape: shape() })?;
    let (dtype, needed) = (dtype_name(), bits / 8);
    match () {
        () if bits % 8 != 0 => {
            Err(HeaderFault::PartOfAByte { tensor: name(), dtype, shape: shape() })
        }
        () if needed != bytes => {
            Err(HeaderFault::WrongSize { tensor: name(), dtype, shape: shape(), needed, bytes })
        }
        () => Ok(()),
    }
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
fn members(text: &str) -> Result<Parsed<'_>, HeaderFault> {
    let syntax = |error: serde_json::Error| HeaderFault::Syntax { source: error.into() };
    // What comes after it ignores fields that it does not know, whatever is in them.
    json::check(text).map_err(syntax)?;
    let header = Members::parse(text).map_err(syntax)?;
    if let Some(name) = header.duplicate() {
        return Err(HeaderFault::DuplicateTensor { tensor: name.to_owned() });
    }
    let (mut metadata, mut entries) = (None, Vec::with_capacity(header.0.len()));
    for (name, value) in header.0 {
        if name != METADATA_KEY {
            let entry = serde_json::from_str(value.get()).map_err(|error| HeaderFault::Entry {
                tensor: name.clone().into_owned(),
                reason: without_place(&error),
            })?;
            entries.push((name, entry));
        } else if value.get() != "null" {
            metadata = Some(strings(value.get())?);
        }
    }
    Ok((metadata, entries))
}

fn strings(text: &str) -> Result<Vec<(String, String)>, HeaderFault> {
    let invalid =
        |error: serde_json::Error| HeaderFault::Metadata { reason: without_place(&error) };
    let object = Members::parse(text).map_err(invalid)?;
    if let Some(key) = object.duplicate() {
        return Err(HeaderFault::DuplicateMetadata { key: key.to_owned() });
    }
    let pairs = object.0.into_iter().map(|(key, value)| {
        Ok((key.into_owned(), serde_json::from_str(value.get()).map_err(invalid)?))
    });
    pairs.collect()
}

/// What is wrong in a part of the header: a place in the part would be taken for one in the whole.
fn without_place(error: &serde_json::Error) -> String {
    let mut said = error.to_string();
    said.truncate(said.rfind(" at line ").unwrap_or(said.len()));
    said
}

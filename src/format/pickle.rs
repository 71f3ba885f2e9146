//! A file that torch.save wrote, as what a safetensors file is: tensors, each with its place in the
//! file. Nothing in it is run or imported.
//!
//! The facts are those of torch/serialization.py and torch/_utils.py in torch 2.15.

mod archive;
mod file;
mod legacy;
mod machine;
mod opcodes;
mod state;
mod value;

use std::collections::HashMap;
use std::path::Path;

use super::safetensors::{LFS_POINTER, METADATA_KEY, Pickled as Facts, Shard, Tensor};
use crate::checksum::Digest;
use crate::error::{Error, PickleFault};
use crate::place::Object;
use crate::shown::Shown;
use crate::view::View;
use archive::{Archive, Entry};
use file::File;
use machine::{Failure, MAX_PICKLE, Pickled};
use value::Storage;

/// Bytes of a file that tell what it is.
const START: u64 = 64;
/// How a zip archive starts.
const ZIP: &[u8] = b"PK\x03\x04";
/// The newest version of the archives that torch 2.15 reads.
const NEWEST: u32 = 10;
/// The bytes that values may take in the result for each byte of the file, and beyond that.
const EXPANDED: u64 = 8;
const EXPANDED_MORE: u64 = 16 << 20;

/// What decides which of several tensors that share memory is kept: the lowest, then the first name.
pub type Rank<'a> = &'a dyn Fn(&str) -> usize;

/// Reads what a file holds; `path` is its name for messages, `key` that of the state dict in it.
///
/// # Errors
/// [`Error::Pickle`] for everything that torch.save does not write of a state dict; else what the
/// place says.
pub fn read(
    object: &dyn Object,
    path: &Path,
    key: Option<&str>,
    rank: Rank<'_>,
) -> Result<Shard, Error> {
    let file = File::new(object, path)?;
    let start = file.get(0, file.bytes.min(START))?;
    if start.starts_with(LFS_POINTER) {
        return Err(Error::LfsPointer { path: path.to_owned() });
    }
    if start.starts_with(ZIP) {
        read_archive(&file, key, rank)
    } else if legacy::is_one(&start) {
        read_legacy(&file, key, rank)
    } else {
        Err(file.fault(PickleFault::NotOne))
    }
}

/// Whether an object starts as what torch.save writes.
///
/// # Errors
/// What the place says.
pub fn is_one(object: &dyn Object) -> Result<bool, Error> {
    let bytes = object.marks()?.bytes.min(START) as usize;
    let mut buffer = Vec::new();
    let start = object.get(0, bytes, &mut buffer)?;
    // A pointer to one is no other format.
    Ok(start.starts_with(ZIP) || legacy::is_one(start) || start.starts_with(LFS_POINTER))
}

fn read_archive(file: &File<'_>, key: Option<&str>, rank: Rank<'_>) -> Result<Shard, Error> {
    let archive = Archive::read(file)?;
    let refuse =
        |problem: &str| Err(file.fault(PickleFault::Archive { problem: problem.to_owned() }));
    let Some(entry) = archive.get("data.pkl") else { return refuse("has no data.pkl") };
    if let Some(order) = archive.get("byteorder") {
        let order = file.get(order.start, order.bytes.min(16))?;
        if order != b"little" {
            let order = String::from_utf8_lossy(&order).shown();
            return Err(file.fault(PickleFault::Byteorder { order }));
        }
    }
    if let Some(version) = archive.get("version") {
        let version = file.get(version.start, version.bytes.min(16))?;
        let number = std::str::from_utf8(&version).ok().and_then(|text| text.trim().parse().ok());
        if !number.is_some_and(|number: u32| (1..=NEWEST).contains(&number)) {
            return refuse("has another version than 1 to 10");
        }
    }
    let place = format!("{}/data.pkl", archive.root.shown());
    if entry.bytes > MAX_PICKLE {
        let (what, limit) = ("bytes".to_owned(), MAX_PICKLE);
        return Err(file.fault(PickleFault::TooMuch { what, limit, place }));
    }
    let text = file.get(entry.start, entry.bytes)?;
    // A file whose checksums were not computed has zeros there.
    if entry.crc != 0 && crc32fast::hash(&text) != entry.crc {
        let problem = "its checksum is another".to_owned();
        return Err(file.fault(PickleFault::Damaged { problem, at: 0, place }));
    }
    let pickled =
        machine::read(&text, 0, &place, false).map_err(|failure| failed(file, failure, &place))?;
    if pickled.end != text.len() {
        let (problem, at) = ("bytes follow its end".to_owned(), pickled.end);
        return Err(file.fault(PickleFault::Damaged { problem, at, place }));
    }
    let find = |key: &str, bytes: u64| match archive.get(&format!("data/{key}")) {
        None => Err("is not there"),
        Some(Entry { bytes: found, .. }) if *found != bytes => {
            Err("has another length than its tensors say")
        }
        Some(entry) => Ok(entry.start),
    };
    let heads = vec![(entry.start, entry.bytes), {
        let directory = &archive.directory;
        (directory.start, directory.end - directory.start)
    }];
    let directory = Digest::of_head(&file.get(heads[1].0, heads[1].1)?);
    let version = Digest::of_blocks(&[Digest::of_head(&text), directory]);
    let made = Making { file, pickled: &pickled, find: &find, rank };
    made.shard(key, heads, version)
}

fn read_legacy(file: &File<'_>, key: Option<&str>, rank: Rank<'_>) -> Result<Shard, Error> {
    let text = legacy::text(file)?;
    let (pickled, keys) =
        legacy::pickles(&text).map_err(|failure| failed(file, failure, "the pickle"))?;
    let mut stated: HashMap<&str, (u64, u64)> = HashMap::new();
    for storage in pickled.storages() {
        let key = pickled.text(storage.key).unwrap_or_default();
        if storage.element.is_none() {
            let problem =
                "has no dtype, as torch itself does not read it in such a file".to_owned();
            return Err(file.fault(PickleFault::Storage { key: key.shown(), problem }));
        }
        let facts = (bytes_of(storage), storage.elements);
        if *stated.entry(key).or_insert(facts) != facts {
            let (key, problem) = (key.shown(), "is described twice and differently".to_owned());
            return Err(file.fault(PickleFault::Storage { key, problem }));
        }
    }
    let places = legacy::storages(file, &keys, &stated)?;
    let find = |key: &str, _| places.get(key).copied().ok_or("is not there");
    let heads = vec![(0, keys.end as u64)];
    let version = Digest::of_blocks(&[Digest::of_head(&text[..keys.end])]);
    let made = Making { file, pickled: &pickled, find: &find, rank };
    made.shard(key, heads, version)
}

fn failed(file: &File<'_>, failure: Failure, place: &str) -> Error {
    file.fault(match failure {
        Failure::Fault(fault) => *fault,
        Failure::Ends { at } => {
            let (problem, place) = ("it is cut short".to_owned(), place.to_owned());
            PickleFault::Damaged { problem, at, place }
        }
    })
}

/// Bytes of an element of a storage.
fn bytes_of(storage: &Storage) -> u64 {
    storage.element.map_or(1, value::Element::bytes)
}

/// Where the data of a storage are that has a key, and as many bytes; or what is wrong with it.
type Find<'a> = dyn Fn(&str, u64) -> Result<u64, &'static str> + 'a;

struct Making<'a, 'p> {
    file: &'a File<'a>,
    pickled: &'p Pickled<'p>,
    find: &'a Find<'a>,
    rank: Rank<'a>,
}

impl Making<'_, '_> {
    fn shard(
        &self,
        key: Option<&str>,
        heads: Vec<(u64, u64)>,
        version: Digest,
    ) -> Result<Shard, Error> {
        self.check_storages()?;
        let state = state::find(self.pickled, key).map_err(|fault| self.file.fault(fault))?;
        let mut tensors = Vec::with_capacity(state.tensors.len());
        for (name, tensor) in state.tensors {
            tensors.push(self.tensor(name, tensor)?);
        }
        let tied = tied(&tensors, self.rank);
        let limit = self.file.bytes.saturating_mul(EXPANDED).saturating_add(EXPANDED_MORE);
        let is_own =
            |tensor: &&Tensor| tied.binary_search_by(|(name, _)| name.cmp(&tensor.name)).is_err();
        let own = tensors.iter().filter(is_own);
        let bytes = own.fold(0, |sum: u64, tensor| sum.saturating_add(tensor.bytes));
        if bytes > limit {
            return Err(self.file.fault(PickleFault::Expanded { bytes, limit }));
        }
        tensors.sort_by(|left, right| (left.start, &left.name).cmp(&(right.start, &right.name)));
        let facts = Facts { heads, bytes: self.file.bytes, tied, left_out: state.left_out };
        Ok(Shard { metadata: None, tensors, head: 0, version, pickled: Some(facts) })
    }

    fn storage_fault(&self, storage: &Storage, problem: &str) -> Error {
        let key = self.pickled.text(storage.key).unwrap_or_default().shown();
        self.file.fault(PickleFault::Storage { key, problem: problem.to_owned() })
    }

    /// Whether every storage is there, and is described once, also one that no tensor of the model
    /// lies in: a file is whole, or it is not read.
    fn check_storages(&self) -> Result<(), Error> {
        let mut seen: HashMap<&str, u64> = HashMap::new();
        let mut parts: HashMap<&str, (&str, u64, u64)> = HashMap::new();
        for storage in self.pickled.storages() {
            let key = self.pickled.text(storage.key).unwrap_or_default();
            let bytes = storage.elements.checked_mul(bytes_of(storage));
            let bytes = bytes.ok_or_else(|| self.storage_fault(storage, "is too long"))?;
            if *seen.entry(key).or_insert(bytes) != bytes {
                return Err(self.storage_fault(storage, "is described twice and differently"));
            }
            (self.find)(key, bytes).map_err(|problem| self.storage_fault(storage, problem))?;
            if let Some(part) = storage.part {
                let own = self.pickled.text(part.key).unwrap_or_default();
                let facts = (key, part.start, part.elements);
                if *parts.entry(own).or_insert(facts) != facts {
                    return Err(self.storage_fault(storage, "has two parts of one key"));
                }
            }
        }
        match parts.into_iter().find(|(key, _)| seen.contains_key(key)) {
            None => Ok(()),
            Some((key, _)) => {
                let (key, problem) = (key.shown(), "is a part of another one, too".to_owned());
                Err(self.file.fault(PickleFault::Storage { key, problem }))
            }
        }
    }

    fn tensor(&self, name: &str, tensor: &value::Tensor) -> Result<Tensor, Error> {
        let refuse = |problem: &str| {
            let (tensor, problem) = (name.shown(), problem.to_owned());
            self.file.fault(PickleFault::Tensor { tensor, problem })
        };
        let value::Tensor { storage, element, offset, sizes, strides } = tensor;
        if name == METADATA_KEY {
            return Err(refuse("is called as safetensors calls something else"));
        }
        let Some(dtype) = element.dtype() else {
            return Err(refuse(&format!("is of {}, which safetensors does not have", element.0)));
        };
        let width = element.bytes();
        let product = |sizes: &[u64]| {
            sizes.iter().try_fold(1_u64, |product, size| product.checked_mul(*size))
        };
        let too_large = || refuse("has sizes whose product is too large");
        let elements = product(sizes).ok_or_else(too_large)?;
        let bytes = elements.checked_mul(width).ok_or_else(too_large)?;
        // Also where one of them is zero, no loader has to multiply what overflows.
        let sizes_but_zeros: Vec<u64> = sizes.iter().map(|size| (*size).max(1)).collect();
        product(&sizes_but_zeros).and_then(|all| all.checked_mul(width)).ok_or_else(too_large)?;
        let beyond = || refuse("reaches beyond its storage");
        let unit = bytes_of(storage);
        let part = storage.part.map(|part| (part.start, part.elements));
        let (from, length) = part.unwrap_or((0, storage.elements));
        if from.checked_add(length).is_none_or(|end| end > storage.elements) {
            return Err(beyond());
        }
        let (from, length) = (from * unit, length * unit);
        let last = sizes.iter().zip(strides).try_fold(0_u64, |sum, (size, stride)| {
            sum.checked_add(size.saturating_sub(1).checked_mul(*stride)?)
        });
        let needed = match elements {
            0 => Some(0),
            _ => last.and_then(|last| last.checked_add(1)?.checked_mul(width)),
        };
        let first = offset.checked_mul(width).ok_or_else(beyond)?;
        let end = needed.and_then(|needed| first.checked_add(needed));
        if elements > 0 && end.is_none_or(|end| end > length) {
            return Err(beyond());
        }
        let key = self.pickled.text(storage.key).unwrap_or_default();
        let data = (self.find)(key, storage.elements * unit);
        let data = data.map_err(|problem| self.storage_fault(storage, problem))?;
        // An empty tensor lies nowhere.
        let start = data + from + if elements > 0 { first } else { 0 };
        let view = View::of(width, sizes, strides).filter(|_| elements > 0).map(Box::new);
        Ok(Tensor { name: name.to_owned(), dtype, shape: sizes.clone(), start, bytes, view })
    }
}

/// The tensors that are the same memory in the same order as another one, each with that, sorted.
fn tied(tensors: &[Tensor], rank: Rank<'_>) -> Vec<(String, String)> {
    let mut same: HashMap<_, Vec<&Tensor>> = HashMap::new();
    for tensor in tensors.iter().filter(|tensor| tensor.bytes > 0) {
        let Tensor { dtype, shape, start, view, .. } = tensor;
        same.entry((*start, dtype, shape, view)).or_default().push(tensor);
    }
    let mut tied = Vec::new();
    for group in same.into_values().filter(|group| group.len() > 1) {
        let kept = group.iter().map(|tensor| &tensor.name).min_by_key(|name| (rank(name), *name));
        let kept = kept.expect("several");
        let others = group.iter().map(|tensor| &tensor.name).filter(|name| *name != kept);
        tied.extend(others.map(|name| (name.clone(), kept.clone())));
    }
    tied.sort();
    tied
}

#[cfg(test)]
mod tests;

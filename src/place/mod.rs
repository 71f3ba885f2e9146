//! Where the objects of a checkpoint are, for reading: a directory. An object has a key
//! (a path below the place's root), bytes, and marks, by which the place tells that nothing changed.

pub mod address;
pub mod hub_cache;
pub mod links;
pub mod local;
pub mod regular;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checksum::Digest;
use crate::error::{Error, JsonFault};
use crate::names;

/// What a place can say of an object without reading it. Equal marks mean the same bytes; different
/// ones mean that only reading tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    pub bytes: u64,
    /// Everything else: on a local disk inode and times.
    pub rest: String,
}

/// An object at a version: what a result is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its key in its place.
    #[serde(with = "names")]
    pub key: PathBuf,
    pub bytes: u64,
    /// How many bytes at its start the version is the digest of: a header, or a whole small text.
    pub head: u64,
    /// The ranges whose digests it is the digest of instead, where there are any: where they start,
    /// and their bytes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<(u64, u64)>,
    /// The digest of those.
    pub version: Digest,
}

/// How an object is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// What is read stays in the system's memory, as is usual.
    Kept,
    /// What was not there before does not stay.
    Once,
    /// Through a memory map.
    Mapped,
}

impl Access {
    /// That of reading, and writing, so many bytes in all.
    pub fn of(bytes: u64) -> Access {
        if crate::fs::is_too_large(bytes) { Access::Once } else { Access::Kept }
    }
}

#[derive(Clone, Debug)]
pub struct ObjectInfo {
    pub marks: Marks,
    pub executable: bool,
}

pub trait Place: Send + Sync + std::fmt::Debug {
    fn list(&self) -> Result<Vec<PathBuf>, Error>;

    /// What is at `key` now. Opens nothing.
    fn look(&self, key: &Path) -> Result<ObjectInfo, Error>;

    /// Opens the object at `key`, to be read in that way where the place can.
    fn open(&self, key: &Path, access: Access) -> Result<Box<dyn Object>, Error>;

    fn name(&self, key: &Path) -> PathBuf;
}

/// Reads the small object at `key`: all of it, when that is no more than `limit` bytes.
pub fn read_small(place: &dyn Place, key: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let object = place.open(key, Access::Kept)?;
    let bytes = object.marks()?.bytes;
    if bytes > limit {
        return Err(Error::json(&place.name(key))(JsonFault::TooLarge { bytes, limit }));
    }
    let mut buffer = Vec::new();
    Ok(object.get(0, bytes as usize, &mut buffer)?.to_vec())
}

pub trait Object: Send + Sync {
    fn marks(&self) -> Result<Marks, Error>;

    /// `bytes` bytes from `start`, in `buffer` where they have to be read first.
    ///
    /// # Errors
    /// [`Error::Changed`] when it ends before; else what the place says.
    fn get<'a>(
        &'a self,
        start: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Error>;

    /// Reads the bytes from `start` into `out`, all of it.
    ///
    /// # Errors
    /// As [`Object::get`].
    fn fill(&self, start: u64, out: &mut [u8]) -> Result<(), Error> {
        let mut buffer = Vec::new();
        out.copy_from_slice(self.get(start, out.len(), &mut buffer)?);
        Ok(())
    }

    /// Says that a range will not be looked at again.
    fn release(&self, _start: u64, _bytes: usize) {}
}

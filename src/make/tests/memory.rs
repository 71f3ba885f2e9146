//! A place and sinks in memory.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Made, Sink, Sinks};
use crate::error::Error;
use crate::held;
use crate::place::{Access, Marks, Object, ObjectInfo, Place};

type Bytes = Arc<Vec<u8>>;

#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<PathBuf, Bytes>>);

impl Memory {
    /// Puts an object at `key`, in the place of one that may be there.
    pub fn put(&self, key: impl Into<PathBuf>, bytes: impl Into<Vec<u8>>) {
        held(&self.0).insert(key.into(), Arc::new(bytes.into()));
    }

    fn find(&self, key: &Path) -> Result<Bytes, Error> {
        let found = held(&self.0).get(key).map(Arc::clone);
        found.ok_or_else(|| Error::NoSuchPath { path: key.to_owned(), model: None })
    }
}

impl Place for Memory {
    fn list(&self) -> Result<Vec<PathBuf>, Error> {
        let mut keys: Vec<PathBuf> = held(&self.0).keys().cloned().collect();
        keys.sort();
        Ok(keys)
    }

    fn look(&self, key: &Path) -> Result<ObjectInfo, Error> {
        self.find(key).map(|bytes| ObjectInfo { marks: marks(&bytes), executable: false })
    }

    fn open(&self, key: &Path, _access: Access) -> Result<Box<dyn Object>, Error> {
        Ok(Box::new(Opened { key: key.to_owned(), bytes: self.find(key)? }))
    }

    fn name(&self, key: &Path) -> PathBuf {
        key.to_owned()
    }
}

struct Opened {
    key: PathBuf,
    bytes: Bytes,
}

impl Object for Opened {
    fn marks(&self) -> Result<Marks, Error> {
        Ok(marks(&self.bytes))
    }

    fn get<'a>(
        &'a self,
        start: u64,
        bytes: usize,
        _buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Error> {
        let start = usize::try_from(start).ok();
        let range = start.and_then(|start| self.bytes.get(start..start.checked_add(bytes)?));
        range.ok_or_else(|| Error::Changed { path: self.key.clone() })
    }
}

/// An object that is put again has another allocation, unless nobody holds the old one.
fn marks(bytes: &Bytes) -> Marks {
    Marks { bytes: bytes.len() as u64, rest: format!("{:p}", bytes.as_ptr()) }
}

/// Files in memory, by their numbers: the bytes, and what was made.
#[derive(Debug, Default)]
pub struct MemorySinks(Mutex<Vec<(usize, Vec<u8>, Made)>>);

impl MemorySinks {
    pub fn files(self) -> Vec<(usize, Vec<u8>, Made)> {
        let mut files = std::mem::take(&mut *held(&self.0));
        files.sort_by_key(|(number, ..)| *number);
        files
    }
}

#[derive(Debug, Default)]
pub struct Growing(Mutex<Vec<u8>>);

impl Sink for Growing {
    fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let mut held = held(&self.0);
        let start = offset as usize;
        let end = start + bytes.len();
        let missing = end.saturating_sub(held.len());
        held.try_reserve(missing).map_err(|_| {
            Error::create(&PathBuf::from("memory"))(std::io::ErrorKind::OutOfMemory.into())
        })?;
        if missing > 0 {
            held.resize(end, 0);
        }
        held[start..end].copy_from_slice(bytes);
        Ok(())
    }
}

impl Sinks for MemorySinks {
    type Sink = Growing;

    fn create(&self, _number: usize) -> Result<Growing, Error> {
        Ok(Growing::default())
    }

    fn finish(
        &self,
        number: usize,
        sink: Growing,
        made: Made,
        _stopped: &dyn Fn() -> bool,
    ) -> Result<(), Error> {
        held(&self.0).push((number, std::mem::take(&mut *held(&sink.0)), made));
        Ok(())
    }
}

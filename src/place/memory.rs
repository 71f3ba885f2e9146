//! Objects in memory: for tests, and for whoever has a checkpoint there.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::{Found, Marks, Object, Place};
use crate::error::Error;
use crate::held;

type Bytes = Arc<Vec<u8>>;

/// Objects by their keys.
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

    fn look(&self, key: &Path) -> Result<Found, Error> {
        self.find(key).map(|bytes| Found { marks: marks(&bytes), executable: false })
    }

    fn open(&self, key: &Path, _mmap: bool) -> Result<Box<dyn Object>, Error> {
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

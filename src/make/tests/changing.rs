//! Places whose objects change while they are read.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::memory::Memory;
use crate::error::Error;
use crate::held;
use crate::place::{Access, Marks, Object, ObjectInfo, Place};

/// A place whose object with the scales has other values and other marks once it was read a number
/// of times.
#[derive(Debug)]
pub struct Rewritten(pub Memory, pub usize);

impl Place for Rewritten {
    fn list(&self) -> Result<Vec<PathBuf>, Error> {
        self.0.list()
    }

    fn look(&self, key: &Path) -> Result<ObjectInfo, Error> {
        self.0.look(key)
    }

    fn open(&self, key: &Path, access: Access) -> Result<Box<dyn Object>, Error> {
        let object = self.0.open(key, access)?;
        let is_it = key == Path::new("scales");
        Ok(if is_it { Box::new(Other(object, AtomicUsize::new(0), self.1)) } else { object })
    }

    fn name(&self, key: &Path) -> PathBuf {
        self.0.name(key)
    }
}

struct Other(Box<dyn Object>, AtomicUsize, usize);

impl Other {
    fn is_other(&self) -> bool {
        self.1.load(Ordering::Relaxed) > self.2
    }
}

impl Object for Other {
    fn marks(&self) -> Result<Marks, Error> {
        let marks = self.0.marks()?;
        Ok(if self.is_other() { Marks { rest: "another".to_owned(), ..marks } } else { marks })
    }

    fn get<'a>(
        &'a self,
        start: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Error> {
        *buffer = self.0.get(start, bytes, &mut Vec::new())?.to_vec();
        self.1.fetch_add(1, Ordering::Relaxed);
        if self.is_other() {
            buffer.iter_mut().for_each(|byte| *byte ^= 1);
        }
        Ok(buffer)
    }
}

/// A place whose objects have other values, and no other marks, when they are read again.
#[derive(Debug)]
pub struct Changing(pub Memory);

impl Place for Changing {
    fn list(&self) -> Result<Vec<PathBuf>, Error> {
        self.0.list()
    }

    fn look(&self, key: &Path) -> Result<ObjectInfo, Error> {
        self.0.look(key)
    }

    fn open(&self, key: &Path, access: Access) -> Result<Box<dyn Object>, Error> {
        Ok(Box::new(Changed(self.0.open(key, access)?, Mutex::default())))
    }

    fn name(&self, key: &Path) -> PathBuf {
        self.0.name(key)
    }
}

struct Changed(Box<dyn Object>, Mutex<HashSet<u64>>);

impl Object for Changed {
    fn marks(&self) -> Result<Marks, Error> {
        self.0.marks()
    }

    fn get<'a>(
        &'a self,
        start: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Error> {
        *buffer = self.0.get(start, bytes, &mut Vec::new())?.to_vec();
        if bytes > 0 && !held(&self.1).insert(start) {
            buffer[0] ^= 1;
        }
        Ok(buffer)
    }
}

//! A pickled file while its head is read.

use std::path::Path;

use crate::error::{Error, PickleFault};
use crate::place::Object;

pub struct File<'a> {
    pub object: &'a dyn Object,
    /// Its name for messages.
    pub path: &'a Path,
    pub bytes: u64,
}

impl<'a> File<'a> {
    pub fn new(object: &'a dyn Object, path: &'a Path) -> Result<File<'a>, Error> {
        Ok(File { object, path, bytes: object.marks()?.bytes })
    }

    /// Bytes that must be in the file.
    pub fn get(&self, start: u64, bytes: u64) -> Result<Vec<u8>, Error> {
        let mut buffer = Vec::new();
        Ok(self.object.get(start, bytes as usize, &mut buffer)?.to_vec())
    }

    pub fn fault(&self, fault: PickleFault) -> Error {
        Error::Pickle { path: self.path.to_owned(), fault }
    }
}

//! Files made into memory.

use std::path::PathBuf;
use std::sync::Mutex;

use super::sink::{Made, Sink, Sinks};
use crate::error::Error;
use crate::held;

/// Files in memory, by their numbers: the bytes, and what was made.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Vec<(usize, Vec<u8>, Made)>>);

impl Memory {
    /// What was made, in the order of the numbers.
    pub fn files(self) -> Vec<(usize, Vec<u8>, Made)> {
        let mut files = std::mem::take(&mut *held(&self.0));
        files.sort_by_key(|(number, ..)| *number);
        files
    }
}

/// A file that grows in memory.
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

impl Sinks for Memory {
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

//! A source file being read: through a map whose pages are let go once they are used, or by
//! positioned reads into a worker's own buffer.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::checkpoint::file;
use crate::checkpoint::shard::Map;
use crate::error::Error;
use crate::fs;
use crate::plan::PlannedFile;

/// Bytes asked for ahead where reading waits for a disk.
const AHEAD: u64 = 8 << 20;

/// Bytes a read must have for its speed to tell memory from a disk.
const TELLING: usize = 256 << 10;

/// An open source file.
pub struct Source {
    path: PathBuf,
    file: File,
    map: Option<Map>,
}

impl Source {
    /// Opens a file as it was when it was planned.
    pub fn open(planned: &PlannedFile, mmap: bool) -> Result<Source, Error> {
        let path = planned.location.clone();
        let (file, found) = file::open(&path)?;
        unchanged(planned, &found)?;
        fs::will_read_in_order(&file);
        let map = if mmap { Some(Map::new(&file).map_err(Error::io("map", &path))?) } else { None };
        Ok(Source { path, file, map })
    }

    /// Fails when the file was written since it was planned.
    pub fn check(&self, planned: &PlannedFile) -> Result<(), Error> {
        unchanged(planned, &self.file.metadata().map_err(Error::io("read", &self.path))?)
    }

    /// `bytes` bytes from `start`, read into `buffer` where there is no map.
    pub fn get<'a>(
        &'a self,
        start: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Error> {
        if let Some(map) = &self.map {
            let range = map.bytes().get(start as usize..start as usize + bytes);
            return range.ok_or_else(|| Error::Changed { path: self.path.clone() });
        }
        buffer.resize(buffer.len().max(bytes), 0);
        let out = &mut buffer[..bytes];
        let started = Instant::now();
        fs::read_at(&self.file, out, start).map_err(failed(&self.path))?;
        if bytes >= TELLING && started.elapsed() > Duration::from_nanos(bytes as u64) {
            // Slower than 1 GB/s is not memory but a disk, which may as well work on the next
            // pieces while this one is cast and written.
            fs::start_reading(&self.file, start + bytes as u64, AHEAD);
        }
        Ok(out)
    }

    /// Copies `bytes` bytes from `start` to `offset` of `out` without looking at them; `false`
    /// where the system cannot.
    pub fn copy_to(
        &self,
        start: u64,
        (out, offset): (&File, u64),
        bytes: usize,
    ) -> Result<bool, Error> {
        fs::copy_range((&self.file, start), (out, offset), bytes).map_err(failed(&self.path))
    }

    /// Says that a range will not be looked at again.
    pub fn done(&self, start: u64, bytes: usize) {
        if let Some(map) = &self.map {
            map.let_go(start as usize, bytes);
        }
    }
}

/// Fails when the file at a planned file's place is not the one that was planned.
pub fn check(planned: &PlannedFile) -> Result<(), Error> {
    let path = planned.location.as_path();
    unchanged(planned, &std::fs::metadata(path).map_err(Error::io("read", path))?)
}

fn unchanged(planned: &PlannedFile, found: &Metadata) -> Result<(), Error> {
    if fs::Identity::of(found) == planned.source {
        return Ok(());
    }
    Err(Error::Changed { path: planned.location.clone() })
}

/// A source that ends too early was cut short since it was planned.
fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |error| match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Error::Changed { path: path.to_owned() },
        _ => Error::io("read", path)(error),
    }
}

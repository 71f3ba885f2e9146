//! A source file being read: through a map whose pages are let go once they are used, or by
//! positioned reads into a worker's own buffer.

use std::fs::File;
use std::path::Path;

use super::Io;
use crate::checkpoint::shard::Map;
use crate::error::Error;
use crate::fs;

/// An open source file.
pub enum Source {
    /// Mapped.
    Map(Map),
    /// Read piece by piece.
    Read(File),
}

impl Source {
    /// Opens the file at `path`, which the plan says has `bytes` bytes.
    pub fn open(path: &Path, bytes: u64, io: Io) -> Result<Source, Error> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let found = file.metadata().map_err(Error::io("read", path))?;
        if found.len() != bytes {
            return Err(Error::Changed { path: path.to_owned() });
        }
        match io {
            Io::Mmap => Ok(Source::Map(Map::new(&file).map_err(Error::io("map", path))?)),
            Io::Auto | Io::Read => {
                fs::will_read_in_order(&file);
                Ok(Source::Read(file))
            }
        }
    }

    /// `bytes` bytes from `start`, read into `buffer` where there is no map.
    pub fn get<'a>(
        &'a self,
        path: &Path,
        start: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Error> {
        let changed = || Error::Changed { path: path.to_owned() };
        match self {
            Source::Map(map) => {
                let start = start as usize;
                map.bytes().get(start..start + bytes).ok_or_else(changed)
            }
            Source::Read(file) => {
                buffer.resize(buffer.len().max(bytes), 0);
                let out = &mut buffer[..bytes];
                match fs::read_at(file, out, start) {
                    Ok(()) => Ok(out),
                    Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                        Err(changed())
                    }
                    Err(error) => Err(Error::io("read", path)(error)),
                }
            }
        }
    }

    /// Says that a range will not be looked at again.
    pub fn done(&self, start: u64, bytes: usize) {
        if let Source::Map(map) = self {
            map.let_go(start as usize, bytes);
        }
    }
}

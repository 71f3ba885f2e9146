//! A directory of the local file system: regular files of a sensible size, read through a map
//! whose pages are released after use, or by positioned reads into a worker's own buffer.

use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::links::LinkPolicy;
use super::regular;
use super::{Access, Marks, Object, ObjectInfo, Place};
use crate::error::Error;
use crate::fs;

/// Bytes asked for ahead where reading waits for a disk.
const AHEAD: u64 = 8 << 20;

/// Bytes a read must have for its speed to tell memory from a disk.
const TELLING: usize = 256 << 10;

/// A directory, or one file of it.
#[derive(Clone, Debug)]
pub struct Local {
    root: PathBuf,
    links: LinkPolicy,
    /// The only file, which the user named and so trusts.
    single: Option<PathBuf>,
}

impl Local {
    pub fn directory(root: &Path) -> Result<Local, Error> {
        Ok(Local { root: root.to_owned(), links: LinkPolicy::of(root)?, single: None })
    }

    /// The file at `path`, beside which others may be read, but of the same directory.
    pub fn file(path: &Path) -> Result<Local, Error> {
        let name = path.file_name().map(PathBuf::from);
        // The parent of a bare file name is empty, and means here.
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let single = Local::directory(parent.unwrap_or(Path::new(".")))?;
        Ok(Local { single: name, ..single })
    }
}

impl Place for Local {
    fn list(&self) -> Result<Vec<PathBuf>, Error> {
        match &self.single {
            Some(name) => Ok(vec![name.clone()]),
            None => Ok(regular::list(&self.root)?.into_iter().map(|(key, _)| key).collect()),
        }
    }

    fn look(&self, key: &Path) -> Result<ObjectInfo, Error> {
        let path = self.root.join(key);
        let found = if self.single.as_deref() == Some(key) {
            regular::regular(&path)?
        } else {
            let own = fs::look(&path).map_err(Error::io("open", &path))?;
            let own = own.ok_or_else(|| Error::NoSuchPath { path: path.clone(), model: None })?;
            self.links.check(&path, own.is_symlink())?
        };
        Ok(ObjectInfo { marks: marks(&found), executable: is_executable(&found) })
    }

    fn open(&self, key: &Path, access: Access) -> Result<Box<dyn Object>, Error> {
        self.look(key)?;
        let path = self.root.join(key);
        let (file, found) = regular::open(&path)?;
        fs::will_read_in_order(&file);
        let map = match access {
            Access::Mapped => Some(Map::new(&file).map_err(Error::io("map", &path))?),
            Access::Kept | Access::Once => None,
        };
        let once = access == Access::Once;
        let lets_go = once && !fs::is_cached(&file, found.len());
        Ok(Box::new(Opened { path, file, map, once, lets_go }))
    }

    fn name(&self, key: &Path) -> PathBuf {
        // A file that was named alone is named as the user did.
        let here = self.root == Path::new(".") && self.single.is_some();
        if here { key.to_owned() } else { self.root.join(key) }
    }
}

#[cfg(unix)]
fn is_executable(found: &Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o100 != 0
}

#[cfg(not(unix))]
fn is_executable(_found: &Metadata) -> bool {
    false
}

struct Opened {
    path: PathBuf,
    file: File,
    map: Option<Map>,
    /// Whether what is read does not stay in the system's memory.
    once: bool,
    /// Whether it was not in memory before: readers of one file leave some of it there that each of
    /// them has read ahead for the other.
    lets_go: bool,
}

impl Object for Opened {
    fn marks(&self) -> Result<Marks, Error> {
        fs::metadata_of(&self.file)
            .map(|found| marks(&found))
            .map_err(Error::io("read", &self.path))
    }

    fn get<'a>(
        &'a self,
        start: u64,
        bytes: usize,
        buffer: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Error> {
        let changed = || Error::Changed { path: self.path.clone() };
        if let Some(map) = &self.map {
            return map.bytes().get(start as usize..start as usize + bytes).ok_or_else(changed);
        }
        buffer.resize(buffer.len().max(bytes), 0);
        let out = &mut buffer[..bytes];
        self.fill(start, out)?;
        Ok(out)
    }

    fn fill(&self, start: u64, out: &mut [u8]) -> Result<(), Error> {
        let started = Instant::now();
        let read = if self.once { fs::read_once_at } else { fs::read_at };
        read(&self.file, out, start).map_err(|error| match error.kind() {
            // A source that ends too early was cut short since it was opened.
            std::io::ErrorKind::UnexpectedEof => Error::Changed { path: self.path.clone() },
            _ => Error::io("read", &self.path)(error),
        })?;
        let bytes = out.len();
        if self.lets_go {
            fs::let_go_of(&self.file, start, bytes as u64);
        }
        if !self.once && bytes >= TELLING && started.elapsed() > Duration::from_nanos(bytes as u64)
        {
            // Slower than 1 GB/s is not memory but a disk, which may as well work on the next
            // pieces while this one is cast and written.
            fs::start_reading(&self.file, start + bytes as u64, AHEAD);
        }
        Ok(())
    }

    fn release(&self, start: u64, bytes: usize) {
        if let Some(map) = &self.map {
            map.release(start as usize, bytes);
        }
    }
}

/// Device numbers and link counts say nothing of the content; the time of the last change to the
/// inode does, also where the time of the last write was put back.
pub fn marks(found: &Metadata) -> Marks {
    #[cfg(unix)]
    let rest = {
        use std::os::unix::fs::MetadataExt;
        let (written, changed) =
            ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        format!(
            "inode {}, written {}.{:09}, changed {}.{:09}",
            found.ino(),
            written.0,
            written.1,
            changed.0,
            changed.1
        )
    };
    #[cfg(not(unix))]
    let rest = format!("written {:?}", found.modified().ok());
    Marks { bytes: found.len(), rest }
}

/// A multiple of every page size in use.
#[cfg(unix)]
const LARGEST_PAGE: usize = 64 << 10;

/// A file's bytes, mapped read-only.
///
/// Hazard: when another process truncates the file while it is mapped, touching the lost part
/// raises SIGBUS.
#[derive(Debug)]
struct Map(memmap2::Mmap);

impl Map {
    fn new(file: &File) -> std::io::Result<Map> {
        // SAFETY: the map is private to this type, read-only, and only ever seen as plain bytes,
        // for which every bit pattern is valid. A writer elsewhere can change what a read
        // returns, never the validity of the memory; truncation is the hazard stated above.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        #[cfg(unix)]
        let _ = map.advise(memmap2::Advice::Sequential);
        Ok(Map(map))
    }

    fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Gives the pages of a range back to the system, up to the last, which what follows is in too;
    /// looking at them again reads them again. So what is resident does not grow with the file.
    #[cfg(unix)]
    fn release(&self, start: usize, bytes: usize) {
        let end = (start + bytes).min(self.0.len()) / LARGEST_PAGE * LARGEST_PAGE;
        let start = start / LARGEST_PAGE * LARGEST_PAGE;
        if start < end {
            // SAFETY: the map is shared and backed by a file, so dropped pages come back with the
            // same bytes; nothing is lost, as it would be in an anonymous or private map. An
            // error means that the pages stay, which is harmless.
            let _ = unsafe {
                self.0.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    start,
                    end - start,
                )
            };
        }
    }

    #[cfg(not(unix))]
    fn release(&self, _start: usize, _bytes: usize) {}
}

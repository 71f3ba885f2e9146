//! Reading and writing without taking the page cache from others: what a model brings in that is
//! larger than the memory that is left pushes out what other programs will read again.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{point, read_at, write_at};
use crate::error::Error;

/// A run that reads and writes more than one part in so many of the memory that is available lets go
/// of what it has read and written. Anything smaller stays, because it is loaded next.
const SHARE: u64 = 2;

/// Bytes behind what was just written that are let go of where the system does not do it by itself.
#[cfg(target_os = "linux")]
const BEHIND: u64 = 64 << 20;

/// Whether `bytes` bytes, read and written, are more than the page cache should be asked to hold.
pub fn is_too_large(bytes: u64) -> bool {
    available().is_some_and(|available| bytes > available / SHARE)
}

/// The memory that programs can have without swapping, page cache that can go included.
#[cfg(target_os = "linux")]
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(not(target_os = "linux"))]
fn available() -> Option<u64> {
    None
}

/// As [`read_at`]. Pages that were not in the cache before do not stay there where the system can do
/// that; where it cannot, the caller has to let go of them ([`is_cached`], [`let_go_of`]).
///
/// # Errors
/// As [`read_at`].
#[cfg(target_os = "linux")]
pub fn read_once_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    use rustix::io::preadv2;
    point("read")?;
    let mut done = 0;
    while done < out.len() {
        let buffer = &mut [io::IoSliceMut::new(&mut out[done..])];
        match preadv2(file, buffer, offset + done as u64, DONT_CACHE) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) if is_unknown(error) => {
                return read_at(file, &mut out[done..], offset + done as u64);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Whether most of a file of `bytes` bytes is in the cache, by a few samples of it.
#[cfg(target_os = "linux")]
pub fn is_cached(file: &File, bytes: u64) -> bool {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::{ReadWriteFlags, preadv2};
    const SAMPLES: u64 = 32;
    // Not at the start, which was read to plan; and at the start of a page, whatever its size.
    let samples =
        (SAMPLES / 4..SAMPLES).map(|number| bytes / SAMPLES * number / LARGEST_PAGE * LARGEST_PAGE);
    let (mut found, mut asked) = (0, 0);
    for offset in samples {
        // What was never written is read without a disk.
        match seek(file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => continue,
            Err(rustix::io::Errno::NXIO) => break,
            _ => {}
        }
        let mut byte = [0];
        // What would have to be read first is an error.
        let flags = ReadWriteFlags::NOWAIT | DONT_CACHE;
        let read = preadv2(file, &mut [io::IoSliceMut::new(&mut byte)], offset, flags);
        found += u32::from(match read {
            Err(error) if is_unknown(error) => is_resident(file, offset),
            read => read.is_ok(),
        });
        asked += 1;
    }
    2 * found > asked
}

/// A page is at most as large as this on any CPU, and begins at a multiple of it.
#[cfg(target_os = "linux")]
const LARGEST_PAGE: u64 = 64 << 10;

/// Whether the page that begins at `offset` is in the cache, without reading it. The system says yes
/// of every page of a file that this user neither owns nor may write, and so does an error.
#[cfg(target_os = "linux")]
fn is_resident(file: &File, offset: u64) -> bool {
    // SAFETY: nothing is read through the map, so that it does not matter who changes the file.
    let Ok(map) = (unsafe { memmap2::MmapOptions::new().offset(offset).len(1).map(file) }) else {
        return true;
    };
    let mut page = 1;
    // SAFETY: the map begins at this address, that of a page, because `offset` is one. The system
    // writes one byte a page.
    let answered = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), &mut page) };
    answered != 0 || page & 1 == 1
}

/// Lets go of the pages of a range that are on the disk and that nobody has mapped.
#[cfg(target_os = "linux")]
pub fn let_go_of(file: &File, start: u64, bytes: u64) {
    // Advice: an error changes nothing.
    let bytes = std::num::NonZeroU64::new(bytes);
    let _ = rustix::fs::fadvise(file, start, bytes, rustix::fs::Advice::DontNeed);
}

/// As [`write_at`]. The pages go as soon as they are on the disk.
///
/// # Errors
/// As [`write_at`].
#[cfg(target_os = "linux")]
pub fn write_once_at(file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<(), Error> {
    use rustix::io::pwritev2;
    #[cfg(feature = "faults")]
    super::fault::write(|| {
        std::os::unix::fs::FileExt::write_all_at(file, &bytes[..bytes.len() / 2], offset)
    })
    .map_err(Error::io("write", path))?;
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        match pwritev2(file, &[io::IoSlice::new(&bytes[done..])], at, DONT_CACHE) {
            Ok(0) => return Err(Error::io("write", path)(io::ErrorKind::WriteZero.into())),
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) if is_unknown(error) => {
                write_at(file, path, &bytes[done..], at)?;
                super::start_writeback(file, offset, bytes.len() as u64);
                // What is not on the disk yet stays, and goes when all of it is.
                let_go_of(file, offset.saturating_sub(BEHIND), bytes.len() as u64);
                return Ok(());
            }
            Err(error) => return Err(Error::io("write", path)(error.into())),
        }
    }
    Ok(())
}

/// `RWF_DONTCACHE`, since Linux 6.14.
#[cfg(target_os = "linux")]
const DONT_CACHE: rustix::io::ReadWriteFlags = rustix::io::ReadWriteFlags::from_bits_retain(0x80);

/// What a kernel, or a file system, says that does not know it.
#[cfg(target_os = "linux")]
fn is_unknown(error: rustix::io::Errno) -> bool {
    use rustix::io::Errno;
    matches!(error, Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)
}

#[cfg(not(target_os = "linux"))]
pub fn read_once_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<()> {
    read_at(file, out, offset)
}

#[cfg(not(target_os = "linux"))]
pub fn write_once_at(file: &File, path: &Path, bytes: &[u8], offset: u64) -> Result<(), Error> {
    write_at(file, path, bytes, offset)
}

#[cfg(not(target_os = "linux"))]
pub fn is_cached(_file: &File, _bytes: u64) -> bool {
    true
}

#[cfg(not(target_os = "linux"))]
pub fn let_go_of(_file: &File, _start: u64, _bytes: u64) {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// A disk, and a file system that has no pages to let go of, so that the plain calls are made.
    fn folders() -> Vec<tempfile::TempDir> {
        let memory = tempfile::tempdir_in("/dev/shm").ok();
        std::iter::once(tempfile::tempdir().expect("a folder")).chain(memory).collect()
    }

    #[test]
    fn what_is_read_and_written_once_has_the_same_bytes() {
        let bytes: Vec<u8> = (0..3_000_001_u32).map(|number| (number * 7) as u8).collect();
        for folder in folders() {
            let path = folder.path().join("file");
            let file = crate::fs::create_new(&path, false).expect("created");
            for (start, end) in [(999_999, 3_000_001), (0, 5), (5, 999_999)] {
                let offset = start as u64;
                write_once_at(&file, &path, &bytes[start..end], offset).expect("written");
            }
            crate::fs::sync_file(&file, &path, bytes.len() as u64, &|| false).expect("synced");
            let_go_of(&file, 0, bytes.len() as u64);
            assert!(std::fs::read(&path).expect("read") == bytes);
            let file = File::open(&path).expect("opened");
            let mut read = vec![0; 1_500_001];
            read_once_at(&file, &mut read, 1_499_999).expect("read");
            assert!(read == bytes[1_499_999..3_000_000]);
            let end = read_once_at(&file, &mut read, 1_500_001).expect_err("too short");
            assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn what_is_more_than_half_of_the_memory_is_too_large() {
        let memory = available().expect("Linux says it");
        assert!(is_too_large(memory) && !is_too_large(memory / 4));
    }
}

//! The zip archive that torch.save writes, by its own rules rather than by those of zip: every entry
//! is stored, lies alone, and is described the same in both places, and no byte belongs to none. So
//! there is one way to read the file, and no other reader can see another model in it.
//!
//! The zip crate is not used because it follows the central directory and looks at nothing else.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

use super::file::File;
use crate::error::{Error, PickleFault};
use crate::shown::Shown;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const BEHIND: u32 = 0x0807_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;

/// The bytes of each without names and the like.
const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: u64 = 22;
const END_64_BYTES: u64 = 56;
const LOCATOR_64_BYTES: u64 = 20;

/// The most entries that are read.
const MAX_ENTRIES: u64 = 1 << 19;
/// The longest central directory that is read.
const MAX_DIRECTORY: u64 = 64 << 20;

/// The flags of what cannot be read: encrypted, patched, strongly encrypted, masked.
const OTHER_FLAGS: u16 = 1 | 1 << 5 | 1 << 6 | 1 << 13;
/// A copy of checksum and sizes lies behind the data, and zeros stand for them before it.
const DESCRIBED_BEHIND: u16 = 1 << 3;

#[derive(Clone, Debug)]
pub struct Entry {
    pub start: u64,
    pub bytes: u64,
    pub crc: u32,
}

pub struct Archive {
    /// The folder that everything is in.
    pub root: String,
    /// By names below that.
    entries: HashMap<String, Entry>,
    pub directory: Range<u64>,
}

/// An entry as the central directory describes it.
struct Central<'a> {
    name: &'a str,
    flags: u16,
    method: u16,
    crc: u32,
    packed: u64,
    bytes: u64,
    offset: u64,
    is_folder: bool,
}

/// What is looked for by its name.
const KNOWN: [&str; 4] = ["data.pkl", "byteorder", "version", "constants.pkl"];
/// The attribute of a folder.
const FOLDER: u32 = 0x10;

fn refuse<T>(file: &File<'_>, problem: impl Into<String>) -> Result<T, Error> {
    Err(file.fault(PickleFault::Archive { problem: problem.into() }))
}

impl Archive {
    pub fn read(file: &File<'_>) -> Result<Archive, Error> {
        let (directory, count) = directory(file)?;
        let text = file.get(directory.start, directory.end - directory.start)?;
        let found = central(file, &text, count)?;
        if found.iter().any(|each| each.name.ends_with("/constants.pkl")) {
            return Err(file.fault(PickleFault::TorchScript));
        }
        let mut archive = Archive { root: String::new(), entries: HashMap::new(), directory };
        let mut names = HashSet::with_capacity(found.len());
        // By where they start, to see that none lies in another.
        let mut places: BTreeMap<u64, (Entry, bool)> = BTreeMap::new();
        for (number, each) in found.iter().enumerate() {
            let name = each.name.shown();
            let Some((root, below)) = each.name.split_once('/') else {
                return refuse(file, format!("has '{name}' beside its folder"));
            };
            if each.name.contains(char::is_control) || each.is_folder || below.is_empty() {
                return refuse(file, format!("has '{name}', which is no file"));
            }
            // Some readers do not tell capital letters from others.
            let lower = below.to_ascii_lowercase();
            let is_known = KNOWN.contains(&lower.as_str()) && lower != below;
            if is_known || lower.ends_with("/data.pkl") {
                let known = lower.rsplit('/').next().unwrap_or_default();
                return refuse(file, format!("has '{name}', which may be taken for '{known}'"));
            }
            if number == 0 {
                root.clone_into(&mut archive.root);
            } else if root != archive.root {
                let first = archive.root.shown();
                return refuse(file, format!("has two folders, '{first}' and '{}'", root.shown()));
            }
            let entry = local(file, each)?;
            let is_described_behind = each.flags & DESCRIBED_BEHIND != 0;
            if places.insert(each.offset, (entry.clone(), is_described_behind)).is_some() {
                return refuse(file, format!("has two entries at byte {}", each.offset));
            }
            let is_first = names.insert(lower);
            archive.entries.insert(below.to_owned(), entry);
            if !is_first {
                return refuse(file, format!("has '{name}' more than once"));
            }
        }
        check_places(file, &places, archive.directory.start)?;
        Ok(archive)
    }

    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }
}

/// Where the central directory lies, and how many entries it says it has.
fn directory(file: &File<'_>) -> Result<(Range<u64>, u64), Error> {
    let Some(end) = file.bytes.checked_sub(END_BYTES) else {
        return refuse(file, "is cut short");
    };
    let text = file.get(end, END_BYTES)?;
    let mut fields = Fields(&text);
    if fields.u32() != END {
        return refuse(file, "does not end with its directory, so that it is cut short or longer");
    }
    let disks = [fields.u16(), fields.u16()];
    let counts = [fields.u16(), fields.u16()];
    let (bytes, start, comment) = (fields.u32(), fields.u32(), fields.u16());
    if disks != [0, 0] || counts[0] != counts[1] || comment != 0 {
        return refuse(file, "is one of several parts, or has a comment");
    }
    let short = [u64::from(counts[0]), u64::from(bytes), u64::from(start)];
    let (found, stop) = match wide(file, end)? {
        None => (short, end),
        Some((long, stop)) => {
            let limits = [u64::from(u16::MAX), u64::from(u32::MAX), u64::from(u32::MAX)];
            let agrees = |at: usize| short[at] == long[at] || short[at] == limits[at];
            if !(0..3).all(agrees) {
                return refuse(file, "states the place of its directory twice and differently");
            }
            (long, stop)
        }
    };
    let [count, bytes, start] = found;
    if start.checked_add(bytes) != Some(stop) {
        return refuse(file, "has a directory that does not lie where it ends");
    }
    if bytes > MAX_DIRECTORY {
        let what = "bytes in its directory".to_owned();
        let place = "the zip archive".to_owned();
        return Err(file.fault(PickleFault::TooMuch { what, limit: MAX_DIRECTORY, place }));
    }
    Ok((start..stop, count))
}

/// What the end of a zip64 archive says, and where that starts.
fn wide(file: &File<'_>, end: u64) -> Result<Option<([u64; 3], u64)>, Error> {
    let Some(at) = end.checked_sub(LOCATOR_64_BYTES) else { return Ok(None) };
    let text = file.get(at, LOCATOR_64_BYTES)?;
    let mut fields = Fields(&text);
    if fields.u32() != LOCATOR_64 {
        return Ok(None);
    }
    let (disk, start, disks) = (fields.u32(), fields.u64(), fields.u32());
    if disk != 0 || disks > 1 || start.checked_add(END_64_BYTES) != Some(at) {
        return refuse(file, "has a zip64 end that does not lie where it ends");
    }
    let text = file.get(start, END_64_BYTES)?;
    let mut fields = Fields(&text);
    let (kind, length) = (fields.u32(), fields.u64());
    let (_made_by, _needs) = (fields.u16(), fields.u16());
    let disks = [fields.u32(), fields.u32()];
    let counts = [fields.u64(), fields.u64()];
    if kind != END_64 || length != END_64_BYTES - 12 || disks != [0, 0] || counts[0] != counts[1] {
        return refuse(file, "has a zip64 end that makes no sense");
    }
    Ok(Some(([counts[0], fields.u64(), fields.u64()], start)))
}

fn central<'a>(file: &File<'_>, text: &'a [u8], count: u64) -> Result<Vec<Central<'a>>, Error> {
    let (mut found, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let Some((fixed, behind)) = rest.split_at_checked(CENTRAL_BYTES) else {
            return refuse(file, "has a directory that is cut short");
        };
        let mut fields = Fields(fixed);
        if fields.u32() != CENTRAL {
            return refuse(file, "has a directory that holds something else");
        }
        let (_made_by, _needs) = (fields.u16(), fields.u16());
        let (flags, method) = (fields.u16(), fields.u16());
        let (_time, _date, crc) = (fields.u16(), fields.u16(), fields.u32());
        let (packed, bytes) = (fields.u32(), fields.u32());
        let lengths = [fields.u16(), fields.u16(), fields.u16()].map(usize::from);
        let (disk, _internal, external) = (fields.u16(), fields.u16(), fields.u32());
        let offset = fields.u32();
        let parts = behind.split_at_checked(lengths[0]).and_then(|(name, behind)| {
            let (extra, behind) = behind.split_at_checked(lengths[1])?;
            Some((name, extra, behind.get(lengths[2]..)?))
        });
        let Some((name, extra, behind)) = parts else {
            return refuse(file, "has a directory that is cut short");
        };
        rest = behind;
        let Ok(name) = std::str::from_utf8(name) else {
            return refuse(file, "has an entry whose name is not UTF-8");
        };
        let Some([bytes, packed, offset]) = sizes(extra, [bytes, packed, offset]) else {
            return refuse(file, format!("does not say how long '{}' is", name.shown()));
        };
        if disk != 0 {
            return refuse(file, "is one of several parts");
        }
        let is_folder = name.ends_with('/') || external & FOLDER != 0;
        found.push(Central { name, flags, method, crc, packed, bytes, offset, is_folder });
    }
    if found.len() as u64 > MAX_ENTRIES {
        let (what, place) = ("entries".to_owned(), "the zip archive".to_owned());
        return Err(file.fault(PickleFault::TooMuch { what, limit: MAX_ENTRIES, place }));
    }
    if found.len() as u64 != count {
        return refuse(file, format!("says that it has {count} entries and has {}", found.len()));
    }
    if found.is_empty() {
        return refuse(file, "is empty");
    }
    Ok(found)
}

/// Numbers of which those that are too large for their fields are in the extra field of zip64.
fn sizes(extra: &[u8], fields: [u32; 3]) -> Option<[u64; 3]> {
    let mut wide = Fields(extra_of_zip64(extra)?);
    let mut found = [0; 3];
    for (found, field) in found.iter_mut().zip(fields) {
        *found = match field {
            u32::MAX if wide.0.len() >= 8 => wide.u64(),
            u32::MAX => return None,
            field => u64::from(field),
        };
    }
    Some(found)
}

/// The extra field of zip64, empty where there is none; nothing where the fields are damaged.
fn extra_of_zip64(mut extra: &[u8]) -> Option<&[u8]> {
    let mut found: &[u8] = &[];
    while !extra.is_empty() {
        let (head, rest) = extra.split_at_checked(4)?;
        let mut fields = Fields(head);
        let (id, length) = (fields.u16(), usize::from(fields.u16()));
        let (field, rest) = rest.split_at_checked(length)?;
        if id == 1 {
            if !found.is_empty() {
                return None;
            }
            found = field;
        }
        extra = rest;
    }
    Some(found)
}

/// Where the data of an entry are, which what stands before them has to describe as the directory
/// does.
fn local(file: &File<'_>, central: &Central<'_>) -> Result<Entry, Error> {
    let name = central.name.shown();
    if central.method != 0 || central.packed != central.bytes {
        return refuse(file, format!("has '{name}' compressed"));
    }
    if central.flags & OTHER_FLAGS != 0 {
        return refuse(file, format!("has '{name}' encrypted"));
    }
    let outside = || format!("has '{name}' beyond its end");
    let length = LOCAL_BYTES + central.name.len() as u64;
    if central.offset.checked_add(length).is_none_or(|end| end > file.bytes) {
        return refuse(file, outside());
    }
    let text = file.get(central.offset, length)?;
    let mut fields = Fields(&text);
    let kind = fields.u32();
    let (_needs, flags, method) = (fields.u16(), fields.u16(), fields.u16());
    let (_time, _date, crc) = (fields.u16(), fields.u16(), fields.u32());
    let (packed, bytes) = (fields.u32(), fields.u32());
    let (name_length, extra_length) = (fields.u16(), u64::from(fields.u16()));
    let is_same = kind == LOCAL
        && (flags, method) == (central.flags, central.method)
        && usize::from(name_length) == central.name.len()
        && &text[LOCAL_BYTES as usize..] == central.name.as_bytes();
    let differs = || format!("describes '{name}' twice and differently");
    if !is_same || central.offset + length + extra_length > file.bytes {
        return refuse(file, differs());
    }
    let extra = file.get(central.offset + length, extra_length)?;
    let start = central.offset + length + extra_length;
    if flags & DESCRIBED_BEHIND == 0 || (crc, packed, bytes) != (0, 0, 0) {
        let stated = sizes(&extra, [bytes, packed, 0]);
        if stated != Some([central.bytes, central.packed, 0]) || crc != central.crc {
            return refuse(file, differs());
        }
    }
    if start.checked_add(central.bytes).is_none_or(|end| end > file.bytes) {
        return refuse(file, outside());
    }
    Ok(Entry { start, bytes: central.bytes, crc: central.crc })
}

/// From the first byte to the directory, each entry must start where the one before it ends; but for
/// the copy of its sizes that lies behind it where it says so.
fn check_places(
    file: &File<'_>,
    places: &BTreeMap<u64, (Entry, bool)>,
    directory: u64,
) -> Result<(), Error> {
    let mut at = 0;
    let starts = places.keys().copied().skip(1).chain([directory]);
    for ((start, (entry, is_described_behind)), next) in places.iter().zip(starts) {
        if *start != at {
            return refuse(file, format!("has bytes at {at} that belong to no entry"));
        }
        let end = entry.start + entry.bytes;
        let Some(gap) = next.checked_sub(end) else {
            return refuse(file, format!("has entries that overlap at byte {next}"));
        };
        let is_right = match (is_described_behind, gap) {
            (false, 0) => true,
            (true, 16 | 24) => describes(&file.get(end, gap)?, entry),
            _ => false,
        };
        if !is_right {
            return refuse(file, format!("has bytes at {end} that belong to no entry"));
        }
        at = next;
    }
    Ok(())
}

/// Whether what lies behind an entry is the copy of its checksum and sizes.
fn describes(text: &[u8], entry: &Entry) -> bool {
    let mut fields = Fields(text);
    let (kind, crc) = (fields.u32(), fields.u32());
    let sizes = match text.len() {
        16 => [fields.u32().into(), fields.u32().into()],
        _ => [fields.u64(), fields.u64()],
    };
    kind == BEHIND && crc == entry.crc && sizes == [entry.bytes; 2]
}

/// Numbers from their bytes, little-endian, which must be there.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().expect("enough bytes");
        self.0 = rest;
        *field
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

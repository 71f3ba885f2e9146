//! What is at a destination, and whether a model may be put there: a new or empty directory that is
//! not part of the source, or, where that is asked for, one with an old model.

use std::collections::{BTreeSet, HashSet};
use std::path::{Component, Path, PathBuf};

use super::folder::{Folder, RunName, STAGING};
use super::own_files::read_own_with_time;
use super::run_folder::RunFolder;
use crate::checkpoint::{MAX_REPORT, REPORT};
use crate::checksum::SHA256_DIGITS;
use crate::checksum::{Blocks, Digest, Hasher};
use crate::error::{DestinationFault, Difference, Error};
use crate::fs;
use crate::make::check::{self, Reading};
use crate::place::local::Local;
use crate::place::{Access, Place, address, regular};
use crate::plan::Plan;
use crate::recipe::Span;
use crate::report::Identity;
use crate::shown::counted;

#[derive(Debug)]
pub struct Destination {
    /// Its files, the hidden folders' aside.
    pub files: Vec<PathBuf>,
    /// The report there, when it is one that recast wrote.
    pub report: Option<Identity>,
    /// Tells it from what it is after anybody put another model there.
    pub fingerprint: Digest,
}

impl Destination {
    pub fn look(dest: &Path) -> Result<Destination, Error> {
        match fs::metadata(dest) {
            Ok(found) if !found.is_dir() => return refuse(dest, DestinationFault::NotADirectory),
            Err(error) if !fs::is_missing(&error) => return Err(Error::create(dest)(error)),
            _ => {}
        }
        // Before the names: a publication under way puts the report there when the rest is.
        let report = match read_own_with_time(&dest.join(REPORT), MAX_REPORT) {
            // A link or a special file of that name is no report.
            Err(Error::NotOurs { .. }) => None,
            found => found?,
        };
        let listed = match regular::list(dest) {
            Err(Error::Io { path, source, .. }) => return Err(Error::Create { path, source }),
            found => found?,
        };
        let mut hasher = Hasher::default();
        let mut note = |bytes: &[u8]| {
            std::io::Write::write_all(&mut hasher, bytes).expect("a hash takes everything");
        };
        let (text, written) = report.unzip();
        // The time tells a result that was made again from one that was damaged.
        note(format!("{written:?}").as_bytes());
        note(text.as_deref().unwrap_or_default());
        for (path, _) in &listed {
            // Only lengths: what is to be replaced may be touched.
            let place = dest.join(path);
            let found = fs::look(&place).map_err(Error::io("read", &place))?;
            let bytes = found.map_or(0, |found| found.len());
            note(path.as_os_str().as_encoded_bytes());
            note(&[0]);
            note(&bytes.to_le_bytes());
        }
        let report = text.and_then(|text| serde_json::from_slice::<Identity>(&text).ok());
        let files = listed.into_iter().map(|(path, _)| path).collect();
        Ok(Destination { files, report, fingerprint: hasher.finish() })
    }
}

/// Fails when a result cannot be put at `dest`, in the place of what is there: an unexpected file,
/// something that cannot be renamed, a directory that cannot be changed. Everything that a
/// publication will do is looked at here, because once begun there is only one way.
pub fn check_way(
    plan: &Plan,
    dest: &Path,
    there: &Destination,
    more: &[&str],
) -> Result<(), Error> {
    let reported = there.report.iter().flat_map(|report| &report.files);
    let new = plan.files.iter().map(|file| file.path.as_path());
    let new: Vec<&Path> = new.chain(more.iter().map(Path::new)).collect();
    let known: HashSet<&Path> =
        reported.map(|file| file.path.as_path()).chain(new.iter().copied()).collect();
    if let Some(path) = there.files.iter().find(|path| !known.contains(path.as_path())) {
        return Err(Error::UnexpectedFile { path: dest.join(path) });
    }
    if fs::look(dest).map_err(Error::io("read", dest))?.is_none() {
        return Ok(());
    }
    let mount = fs::mount(&dest.join(STAGING)).or_else(|| fs::mount(dest));
    let paths = new.iter().copied().chain(there.files.iter().map(PathBuf::as_path));
    let mut folders = BTreeSet::new();
    for path in paths {
        let place = dest.join(path);
        match fs::look(&place).map_err(Error::io("read", &place))? {
            Some(found) if found.is_dir() => {
                return refuse(&place, DestinationFault::DirectoryInTheWay);
            }
            Some(_) if fs::mount(&place) != mount => {
                return refuse(&place, DestinationFault::MountPoint);
            }
            _ => {}
        }
        folders.extend(path.ancestors().skip(1));
    }
    for folder in folders {
        let is_top = folder.as_os_str().is_empty();
        let place = if is_top { dest.to_owned() } else { dest.join(folder) };
        let Some(found) = fs::look(&place).map_err(Error::io("read", &place))? else { continue };
        if !found.is_dir() && !is_top {
            return refuse(&place, DestinationFault::FileInTheWay);
        }
        if found.is_dir() && fs::mount(&place) != mount {
            return refuse(&place, DestinationFault::OtherFileSystem);
        }
        fs::check_may_change(&place).map_err(Error::create(&place))?;
    }
    Ok(())
}

fn refuse<T>(path: &Path, fault: DestinationFault) -> Result<T, Error> {
    Err(Error::Destination { path: path.to_owned(), fault })
}

/// Fails when a file of a finished result is not what the plan makes of it, as far as lengths and
/// headers tell.
pub fn check_lengths(plan: &Plan, dest: &Path, report: &Identity) -> Result<(), Error> {
    let place = Local::directory(dest)?;
    for file in &plan.files {
        let path = dest.join(&file.path);
        let damaged = || Error::Damaged { path: path.clone() };
        let found = fs::look(&path).map_err(Error::io("read", &path))?;
        if !found.is_some_and(|found| found.is_file() && found.len() == file.bytes) {
            return Err(damaged());
        }
        let (head, unknown) = match file.recipe.spans.first() {
            Some(Span::Literal(head)) => (head, [].as_slice()),
            Some(Span::Hashed { text, at }) => (text, at.as_slice()),
            _ => continue,
        };
        let (object, mut buffer) = (place.open(&file.path, Access::Kept)?, Vec::new());
        let mut found = object.get(0, head.len(), &mut buffer)?.to_vec();
        // The digits of a digest that only making all of it tells.
        for digits in unknown.iter().map(|at| *at..at + SHA256_DIGITS) {
            found[digits.clone()].copy_from_slice(&head[digits]);
        }
        if found != *head {
            return Err(damaged());
        }
    }
    for file in report.files.iter().filter(|file| file.source.is_none()) {
        let path = dest.join(&file.path);
        let found = fs::look(&path).map_err(Error::io("read", &path))?;
        if !found.is_some_and(|found| found.is_file() && found.len() == file.bytes) {
            return Err(Error::Damaged { path });
        }
    }
    Ok(())
}

/// Reads a finished result and the source it was made of, and compares them with the checksums in
/// the report; gives what was compared, in words. `progress` is called with the bytes read, and
/// stops it by returning `false`.
pub fn check_content(
    plan: &Plan,
    dest: &Path,
    report: &Identity,
    threads: Option<usize>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<String, Error> {
    let there = Local::directory(dest)?;
    let access = Access::of(plan.bytes_read() + plan.bytes_written());
    let listed = &report.files;
    let find = |path: &Path| listed.iter().find(|file| file.path == path);
    let mut readings: Vec<Reading<'_, Digest>> = Vec::new();
    let mut expected = Vec::new();
    for file in &plan.files {
        let path = dest.join(&file.path);
        let known = find(&file.path).ok_or_else(|| Error::Damaged { path: path.clone() })?;
        let source = known.source.as_ref().ok_or_else(|| Error::Damaged { path: path.clone() })?;
        let there = &there;
        readings.push(Box::new(move |read| {
            check::digest(&*there.open(&file.path, access)?, &file.recipe.blocks(), read)
        }));
        expected.push((known.xxh3_128, Error::Damaged { path }));
        let differences = vec![Difference::Content { path: source.path.clone() }];
        let other = Error::OtherResult { path: dest.to_owned(), differences };
        readings.push(Box::new(move |read| {
            check::source(&*plan.place, &file.recipe, 0, access, read).map(|(_, digest)| digest)
        }));
        expected.push((source.xxh3_128, other));
    }
    let mut total = plan.bytes_written() + plan.bytes_read();
    // What only describes the others.
    for file in listed.iter().filter(|file| file.source.is_none()) {
        let there = &there;
        readings.push(Box::new(move |read| {
            let blocks = Blocks::new([], file.bytes);
            check::digest(&*there.open(&file.path, access)?, &blocks, read)
        }));
        expected.push((file.xxh3_128, Error::Damaged { path: dest.join(&file.path) }));
        total += file.bytes;
    }
    let found = check::all(&readings, threads, &mut |done| progress(done, total))?;
    for (digest, (known, error)) in found.into_iter().zip(expected) {
        if digest != known {
            return Err(error);
        }
    }
    Ok(format!(
        "compared the checksums of {} and of the source, {total} bytes",
        counted(listed.len() as u64, "file")
    ))
}

/// Checks where `dest` is: never the source, never inside it, never what holds it.
pub fn check_place(plan: &Plan, dest: &Path) -> Result<(), Error> {
    address::check_local(dest, address::Use::Write)?;
    if dest.as_os_str().is_empty() {
        return refuse(dest, DestinationFault::EmptyName);
    }
    if plan.files.iter().any(|file| file.path.starts_with(STAGING)) {
        return refuse(dest, DestinationFault::NamedLikeStaging);
    }
    match fs::metadata(dest) {
        // As for a name that is too long: nothing can be there.
        Err(error) if !fs::is_missing(&error) => return Err(Error::create(dest)(error)),
        _ => {}
    }
    let (existing, missing) = split_at_existing(dest)?;
    if missing.components().any(|part| part == Component::ParentDir) {
        // Creating what is missing would change where the path leads.
        return refuse(dest, DestinationFault::ParentOfMissing);
    }
    let source = source_directory(plan)?;
    if dest.exists() {
        for holder in source.ancestors().skip(usize::from(!plan.single_file)) {
            if is_same(holder, dest)? {
                return refuse(dest, DestinationFault::HoldsSource);
            }
            if is_same(holder, &dest.join(STAGING)).unwrap_or(false) {
                return refuse(dest, DestinationFault::SourceInStaging);
            }
        }
    }
    if plan.single_file {
        return Ok(());
    }
    if dest.exists() && is_same(&existing, &source)? {
        return refuse(dest, DestinationFault::IsSource);
    }
    for above in existing.ancestors() {
        if is_same(above, &source)? {
            return refuse(dest, DestinationFault::InsideSource);
        }
    }
    Ok(())
}

/// Fails when a run that was just set up at `dest` can be seen from the source: then they are the
/// same place by a way that no device and inode number tells, as through FUSE.
pub fn check_alias(plan: &Plan, dest: &Path, run: &RunName) -> Result<(), Error> {
    let source = source_directory(plan)?;
    let dest = std::fs::canonicalize(dest).map_err(Error::io("resolve", dest))?;
    let sees = |place: &Path| Folder::of(place).run(run).exists();
    if let Some(holder) = source.ancestors().find(|holder| sees(holder)) {
        let is_source = holder == source && !plan.single_file;
        let fault =
            if is_source { DestinationFault::IsSource } else { DestinationFault::HoldsSource };
        return refuse(&dest, fault);
    }
    for above in dest.ancestors().skip(1).take_while(|_| !plan.single_file) {
        let below = dest.strip_prefix(above).unwrap_or(&dest);
        if sees(&source.join(below)) {
            return refuse(&dest, DestinationFault::InsideSource);
        }
    }
    Ok(())
}

/// Fails when two files of a result would be one, because the file system of a run's folder takes
/// names that differ only in case for the same.
pub fn check_names(plan: &Plan, more: &[&str], folder: &RunFolder) -> Result<(), Error> {
    let names = plan.files.iter().map(|file| file.path.as_path()).chain(more.iter().map(Path::new));
    let mut seen = HashSet::new();
    let Some(twin) =
        names.into_iter().find(|name| !seen.insert(name.to_string_lossy().to_lowercase()))
    else {
        return Ok(());
    };
    let probe = folder.path().join("NEW");
    if fs::look(&probe).map_err(Error::io("read", &probe))?.is_none() {
        return Ok(());
    }
    refuse(twin, DestinationFault::SameButForCase)
}

/// The directory that the source's files are in, links resolved.
fn source_directory(plan: &Plan) -> Result<PathBuf, Error> {
    let path = std::fs::canonicalize(&plan.source).map_err(Error::io("resolve", &plan.source))?;
    Ok(if plan.single_file { path.parent().unwrap_or(&path).to_owned() } else { path })
}

/// The part of `path` that exists, links resolved, and the part below it that does not.
fn split_at_existing(path: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let absolute = std::path::absolute(path).map_err(Error::io("resolve", path))?;
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let missing = absolute.strip_prefix(existing).unwrap_or(&absolute).to_owned();
    Ok((std::fs::canonicalize(existing).map_err(Error::io("resolve", existing))?, missing))
}

/// Whether two paths lead to the same directory, bind mounts seen through.
#[cfg(unix)]
fn is_same(left: &Path, right: &Path) -> Result<bool, Error> {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| {
        fs::metadata(path).map(|found| (found.dev(), found.ino())).map_err(Error::io("read", path))
    };
    Ok(identity(left)? == identity(right)?)
}

#[cfg(not(unix))]
fn is_same(left: &Path, right: &Path) -> Result<bool, Error> {
    let resolve = |path: &Path| std::fs::canonicalize(path).map_err(Error::io("resolve", path));
    Ok(resolve(left)? == resolve(right)?)
}

/// Fails when the file system that `dest` is on, or will be, has no room for files of these sizes.
pub fn check_space(dest: &Path, sizes: impl Iterator<Item = u64>) -> Result<(), Error> {
    let place = dest.ancestors().find(|path| path.exists()).unwrap_or(dest);
    let Some((free, block)) = fs::free_space(place) else { return Ok(()) };
    let needed = sizes.map(|bytes| bytes.next_multiple_of(block.max(1))).sum();
    if needed > free {
        return Err(Error::NoSpace { path: dest.to_owned(), needed, free });
    }
    Ok(())
}

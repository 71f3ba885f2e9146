//! A published result against the checksums in its report, without its source.

use std::path::{Path, PathBuf};

use super::destination::Destination;
use super::folder::STAGING;
use crate::checkpoint::REPORT;
use crate::checksum::{Blocks, Digest};
use crate::error::{Error, causes};
use crate::format::safetensors::Shard;
use crate::fs;
use crate::make::check::{self, Reading};
use crate::place::local::Local;
use crate::place::{Access, Place};
use crate::recipe::FORMAT;
use crate::report::File;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub files: usize,
    pub bytes: u64,
    pub damaged: Vec<(PathBuf, Damage)>,
}

causes! {
    /// What can be wrong with a file of a result, behind its name.
    #[derive(Clone, Copy, PartialEq, Eq)]
    Damage
    "finding" {
        Missing "is missing";
        Unreadable "is damaged";
        Link "is a link";
        Length "has another length";
        Bytes "has other bytes";
        Extra "is not part of the result";
    }
}

/// Reads the files of the result at `dest` and compares them with the checksums in its report.
/// `progress` is called with the bytes read and all of them, and stops it by returning `false`.
pub fn check_published(
    dest: &Path,
    threads: Option<usize>,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Checked, Error> {
    let there = match Destination::look(dest) {
        Err(Error::Create { path, source }) => return Err(Error::io("open", &path)(source)),
        // What it says is of use to those who would write there.
        Err(Error::Destination { path, .. }) => return Err(Error::NoReport { path }),
        found => found?,
    };
    let Some(report) = there.report.filter(|report| report.format == FORMAT) else {
        return Err(Error::NoReport { path: dest.join(REPORT) });
    };
    let files = &report.files;
    // Whoever wrote the report.
    let bytes = files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
    let access = Access::of(bytes);
    let readings: Vec<Reading<'_, Option<Damage>>> = files
        .iter()
        .map(|file| -> Reading<'_, _> {
            Box::new(move |read| match problem(dest, file, access, read) {
                // What cannot be opened or read for what it is, is a finding.
                Err(Error::Stopped) => Err(Error::Stopped),
                Err(Error::Io { path, action, source }) if !fs::is_missing(&source) => {
                    Err(Error::Io { path, action, source })
                }
                Err(Error::Io { .. } | Error::NoSuchPath { .. }) => Ok(Some(Damage::Missing)),
                Err(_) => Ok(Some(Damage::Unreadable)),
                Ok(found) => Ok(found),
            })
        })
        .collect();
    let found = check::all(&readings, threads, &mut |done| progress(done, bytes))?;
    let named = files.iter().zip(found);
    let mut damaged: Vec<_> =
        named.filter_map(|(file, problem)| Some((file.path.clone(), problem?))).collect();
    let known =
        |path: &Path| path == Path::new(REPORT) || files.iter().any(|file| file.path == path);
    let others = there.files.into_iter().filter(|path| !path.starts_with(STAGING) && !known(path));
    damaged.extend(others.map(|path| (path, Damage::Extra)));
    Ok(Checked { files: files.len(), bytes, damaged })
}

pub fn problem(
    dest: &Path,
    file: &File,
    access: Access,
    read: &dyn Fn(u64) -> bool,
) -> Result<Option<Damage>, Error> {
    let (path, place) = (dest.join(&file.path), Local::directory(dest)?);
    let failed = |error| Error::io("read", &path)(error);
    let folder = file.path.parent().unwrap_or(Path::new(""));
    if let Some(found) = fs::look(&path).map_err(failed)?
        && (found.is_symlink() || fs::leads_elsewhere(dest, folder).map_err(failed)?)
    {
        return Ok(Some(Damage::Link));
    }
    if place.look(&file.path)?.marks.bytes != file.bytes {
        return Ok(Some(Damage::Length));
    }
    let object = place.open(&file.path, access)?;
    let blocks = if file.path.extension().is_some_and(|extension| extension == "safetensors") {
        Shard::read(&*object, &file.path)?.blocks(file.bytes)
    } else {
        Blocks::new([], file.bytes)
    };
    let digest: Digest = check::digest(&*object, &blocks, read)?;
    Ok((digest != file.xxh3_128).then_some(Damage::Bytes))
}

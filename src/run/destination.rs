//! What may be written into: a new or empty directory that is not part of the source; one where
//! this very run was interrupted; or, where that is asked for, one with an old model.

use std::collections::HashSet;
use std::fs;
use std::io::{BufReader, ErrorKind};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::identity::Identity;
use super::journal::Record;
use super::{Options, STAGING};
use crate::checkpoint::shard::Shard;
use crate::checkpoint::{REPORT, file};
use crate::error::Error;
use crate::plan::{Content, Plan};

/// What is at a destination.
#[derive(Debug)]
pub enum Found {
    /// The result of this very run.
    Done,
    /// A place for it.
    Place {
        /// What an interrupted run of the same left.
        resume: Option<Box<Record>>,
        /// Files of an old model, which make way when the new one is ready.
        replaced: Vec<PathBuf>,
    },
}

/// The part of `recast.json` that says what it is the report of.
#[derive(Deserialize)]
struct Report {
    identity: Identity,
}

/// Finds what is at `dest`, and whether the plan may be carried out there. Writes nothing.
///
/// # Errors
/// When `dest` is the source or inside it, holds something else, or what another run began.
pub fn check(plan: &Plan, dest: &Path, options: &Options) -> Result<Found, Error> {
    check_place(plan, dest)?;
    let identity = Identity::new(plan, options.on_overflow);
    let entries: Vec<PathBuf> = match file::list(dest) {
        Ok(found) => found.into_iter().map(|(path, _)| path).collect(),
        Err(Error::Io { source, .. }) => match source.kind() {
            ErrorKind::NotFound => {
                return Ok(Found::Place { resume: None, replaced: Vec::new() });
            }
            ErrorKind::NotADirectory => {
                let hint = "give a directory that does not exist yet";
                return refuse("exists and is not a directory", hint, dest);
            }
            _ => return Err(Error::Create { path: dest.to_owned(), source }),
        },
        Err(error) => return Err(error),
    };
    // In this order, because a run that is about to end leaves its report before it takes its
    // journal away.
    let begun = Record::read(&dest.join(STAGING), options.sync)?;
    let report = file::open(&dest.join(REPORT)).ok().map(|(file, _)| BufReader::new(file));
    let report = report.and_then(|file| serde_json::from_reader::<_, Report>(file).ok());
    let finished = report.map(|report| report.identity);
    let mismatch = |there: &Identity, finished| Error::Mismatch {
        path: dest.to_owned(),
        finished,
        differences: there.differences(&identity),
    };
    let same = |there: &Identity| there.differences(&identity).is_empty();
    if let Some(there) = &finished
        && !options.overwrite
        && same(there)
    {
        damaged(plan, dest)?;
        return Ok(Found::Done);
    }
    // What a run that began to publish moved is known to be its own, and must be finished.
    let mut known: HashSet<PathBuf> = HashSet::from([PathBuf::from(REPORT)]);
    let mut publishing = false;
    let mut resume = None;
    if let Some(record) = begun {
        if !same(&record.identity) && !options.overwrite {
            return Err(mismatch(&record.identity, false));
        }
        if let Some(replaced) = &record.publishing {
            publishing = same(&record.identity);
            known.extend(replaced.iter().cloned());
            known.extend(record.identity.paths());
        }
        if same(&record.identity) {
            resume = Some(Box::new(record));
        }
    }
    if !entries.is_empty() && !publishing && !options.overwrite {
        let hint = "give a new or empty directory, or --overwrite to replace the model there";
        return match &finished {
            Some(there) => Err(mismatch(there, true)),
            None => refuse("the destination is not empty", hint, dest),
        };
    }
    known.extend(finished.iter().flat_map(Identity::paths));
    known.extend(plan.files.iter().map(|file| file.path.clone()));
    if let Some(stranger) = entries.iter().find(|path| !known.contains(*path)) {
        return Err(Error::Stranger { path: dest.join(stranger) });
    }
    Ok(Found::Place { resume, replaced: entries })
}

/// Fails when a file of a finished result is not what the plan makes of it, as far as lengths and
/// headers tell.
fn damaged(plan: &Plan, dest: &Path) -> Result<(), Error> {
    for file in &plan.files {
        let path = dest.join(&file.path);
        let right_length = fs::metadata(&path).is_ok_and(|found| found.len() == file.bytes);
        let right_header = || match &file.content {
            Content::Shard { tensors, .. } => Shard::read(&path).is_ok_and(|(shard, _)| {
                tensors.iter().zip(&shard.tensors).all(|(planned, found)| {
                    (&planned.source.name, &planned.dtype) == (&found.name, &found.dtype)
                })
            }),
            _ => true,
        };
        if !right_length || !right_header() {
            return Err(Error::Damaged { path });
        }
    }
    Ok(())
}

fn refuse<T>(reason: &'static str, hint: &'static str, dest: &Path) -> Result<T, Error> {
    Err(Error::Destination { path: dest.to_owned(), reason, hint })
}

/// Checks where `dest` is: never the source, never inside it.
fn check_place(plan: &Plan, dest: &Path) -> Result<(), Error> {
    if dest.as_os_str().is_empty() {
        return refuse("the name of the destination is empty", "give a directory", dest);
    }
    if plan.files.iter().any(|file| file.path.starts_with(STAGING)) {
        return refuse(
            "the source has a file called '.recast', which is what recast calls its own folder",
            "rename that file, or convert without it",
            dest,
        );
    }
    let (existing, missing) = split_at_existing(dest)?;
    if missing.components().any(|part| part == Component::ParentDir) {
        // Creating what is missing would change where the path leads.
        let hint = "give a plain path";
        return refuse("goes up ('..') from a directory that does not exist", hint, dest);
    }
    let source = fs::canonicalize(&plan.source).map_err(Error::io("resolve", &plan.source))?;
    let elsewhere = "give another directory";
    if dest.exists() {
        for holder in source.ancestors().skip(1) {
            if is_same(holder, dest)? && !plan.single_file {
                return refuse("the destination holds the source", elsewhere, dest);
            }
            if is_same(holder, &dest.join(STAGING)).unwrap_or(false) {
                let hint = "move it out first";
                return refuse("the source is what an earlier run left there", hint, dest);
            }
        }
    }
    if plan.single_file {
        return Ok(());
    }
    if dest.exists() && is_same(&existing, &source)? {
        return refuse("the destination is the source", elsewhere, dest);
    }
    for above in existing.ancestors() {
        if is_same(above, &source)? {
            let hint = "give a directory outside it";
            return refuse("the destination is inside the source", hint, dest);
        }
    }
    Ok(())
}

/// The part of `path` that exists, links resolved, and the part below it that does not.
fn split_at_existing(path: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let absolute = std::path::absolute(path).map_err(Error::io("resolve", path))?;
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let missing = absolute.strip_prefix(existing).unwrap_or(&absolute).to_owned();
    Ok((fs::canonicalize(existing).map_err(Error::io("resolve", existing))?, missing))
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

/// Whether two paths lead to the same directory.
#[cfg(not(unix))]
fn is_same(left: &Path, right: &Path) -> Result<bool, Error> {
    let resolve = |path: &Path| fs::canonicalize(path).map_err(Error::io("resolve", path));
    Ok(resolve(left)? == resolve(right)?)
}

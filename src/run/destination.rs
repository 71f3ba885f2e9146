//! What may be written into: a new or empty directory that is not part of the source.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::STAGING;
use crate::error::Error;
use crate::plan::Plan;

/// Checks that the plan may be carried out at `dest`. Writes nothing.
///
/// # Errors
/// When `dest` is not an empty directory, or is the source or inside it.
pub fn check(plan: &Plan, dest: &Path) -> Result<(), Error> {
    let refuse = |reason, hint| Err(Error::Destination { path: dest.to_owned(), reason, hint });
    if dest.as_os_str().is_empty() {
        return refuse("the name of the destination is empty", "give a directory");
    }
    let (existing, missing) = split_at_existing(dest)?;
    if missing.components().any(|part| part == Component::ParentDir) {
        // Creating what is missing would change where the path leads.
        return refuse("goes up ('..') from a directory that does not exist", "give a plain path");
    }
    let source = fs::canonicalize(&plan.source).map_err(Error::io("resolve", &plan.source))?;
    if dest.exists() {
        for holder in source.ancestors().skip(1) {
            if is_same(holder, dest)? && !plan.single_file {
                return refuse("the destination holds the source", "give another directory");
            }
            if is_same(holder, &dest.join(STAGING)).unwrap_or(false) {
                return refuse("the source is what an earlier run left there", "move it out first");
            }
        }
    }
    if !plan.single_file {
        for (above, ancestor) in existing.ancestors().enumerate() {
            if is_same(ancestor, &source)? {
                return if above == 0 && dest.exists() {
                    refuse("the destination is the source", "give another directory")
                } else {
                    refuse("the destination is inside the source", "give a directory outside it")
                };
            }
        }
    }
    let entries = match fs::read_dir(dest) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            return refuse(
                "exists and is not a directory",
                "give a directory that does not exist yet",
            );
        }
        Err(error) => return Err(Error::create(dest)(error)),
    };
    for entry in entries {
        let name = entry.map_err(Error::io("list", dest))?.file_name();
        // A run that died leaves its staging folder; a fresh ext4 mount has lost+found.
        if name != STAGING && name != "lost+found" {
            return refuse(
                "the destination is not empty",
                "give a new or empty directory, or empty this one",
            );
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

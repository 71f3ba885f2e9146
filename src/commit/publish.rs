//! Forward: a publication that has begun is carried to its end by whoever comes. An old model makes
//! way, the staged files are renamed into place, what makes a directory a model last. Every path
//! goes through the publication's own name, so that whoever slept meanwhile finds nothing to spoil.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::destination::Destination;
use super::folder::{Folder, RunName};
use super::own_files::{not_ours, put, read_own};
use super::published::{self, Damage};
use super::run_folder::RunFolder;
use crate::checkpoint::{MAX_REPORT, REPORT};
use crate::error::Error;
use crate::format::index;
use crate::format::listing::PIPELINE;
use crate::fs;
use crate::names;
use crate::place::Access;
use crate::report::{File, Identity};

/// How often the folder of a file is made again that another process removed because it was empty.
const FOLDERS: usize = 8;
/// The most bytes of the list of what makes way that are read.
const LIMIT: u64 = 100_000_000;

/// What makes way: the files of the old model, or nothing may.
type OldList = Option<Vec<String>>;

/// Carries the publication of `run` at `dest` to its end, as far as nobody else did.
pub fn forward(folder: &Folder, dest: &Path, run: &RunName, sync: bool) -> Result<(), Error> {
    let publication = Publication { dest, from: folder.publication(run), run, sync };
    // That it has begun must last before anything that was done because of it.
    let begun = if sync { fs::sync_dir(folder.path()) } else { Ok(()) };
    let result =
        begun.and_then(|()| publication.carry_out()).and_then(|()| folder.end_publication(run));
    match result {
        // Somebody else was faster; what is there now is looked at again.
        Err(_) if !publication.from.exists() => Ok(()),
        result => result,
    }
}

struct Publication<'a> {
    dest: &'a Path,
    from: RunFolder,
    run: &'a RunName,
    sync: bool,
}

impl Publication<'_> {
    fn carry_out(&self) -> Result<(), Error> {
        self.from.check()?;
        let Some(old) = self.decide()? else { return Ok(()) };
        self.move_old_out(&old)?;
        self.move_new_in(&old)
    }

    /// What makes way is decided once, by the first who comes, and only what the run was to replace.
    fn decide(&self) -> Result<OldList, Error> {
        let path = self.from.old_list();
        for _ in 0..2 {
            if let Some(text) = read_own(&path, LIMIT)? {
                let list: Option<OldList> = serde_json::from_slice(&text).ok();
                let is_below = |name: &String| {
                    names::decode(name).is_some_and(|path| names::stays_below(&path))
                };
                return list
                    .filter(|list| list.iter().flatten().all(is_below))
                    .ok_or_else(|| not_ours(&path));
            }
            let there = Destination::look(self.dest)?;
            let list: OldList = if self.from.replaces()? == Some(there.fingerprint) {
                Some(there.files.iter().map(|path| names::encode(path).into_owned()).collect())
            } else {
                None
            };
            put(&path, &serde_json::to_vec(&list).expect("strings"), self.sync)?;
            if self.sync {
                fs::sync_dir(self.from.path())?;
            }
        }
        Err(not_ours(&path))
    }

    fn move_old_out(&self, old: &[String]) -> Result<(), Error> {
        let mut leaving: Vec<PathBuf> = old.iter().filter_map(|name| names::decode(name)).collect();
        // What makes it a model goes first, and each of those for good before anything else does.
        leaving.sort_by_key(|path| (!decides(path), path.components().count()));
        let mut directories = BTreeSet::new();
        for path in &leaving {
            let (from, to) = (self.dest.join(path), self.from.old_files().join(path));
            let below = path.parent().unwrap_or(Path::new(""));
            let elsewhere = fs::leads_elsewhere(self.dest, below);
            if elsewhere.map_err(Error::io("read", &from))? {
                return Err(Error::UnexpectedFile { path: self.dest.join(below) });
            }
            fs::create_dirs(&self.from.old_files(), below).map_err(Error::create(&to))?;
            match fs::rename_new(&from, &to) {
                Ok(_) => {}
                // Moved before: what is there now is new.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) if fs::is_missing(&error) => {}
                Err(error) => return Err(Error::io("move away", &from)(error)),
            }
            directories.insert(self.dest.join(below));
            if decides(path) {
                self.sync_dirs(&directories)?;
            }
        }
        self.sync_dirs(&directories)
    }

    fn move_new_in(&self, old: &[String]) -> Result<(), Error> {
        let report = self.report()?;
        let mut files: Vec<(&Path, Option<&File>)> = Vec::new();
        for file in &report.files {
            files.push((&file.path, Some(file)));
        }
        // The report is there when the directory becomes a model.
        let last = files.len().saturating_sub(1);
        files.insert(last, (Path::new(REPORT), None));
        let mut directories: BTreeSet<PathBuf> = self
            .dest
            .parent()
            .map(Path::to_owned)
            .into_iter()
            .chain([self.dest.to_owned()])
            .collect();
        for (path, bytes) in &files[..=last] {
            self.move_in(path, *bytes)?;
            directories.extend(path.ancestors().skip(1).map(|parent| self.dest.join(parent)));
        }
        self.sync_dirs(&directories)?;
        // What is not in its place was lost, and must not become part of a model.
        for (path, bytes) in &files[..=last] {
            if !self.is_in_place(path, *bytes)? {
                return Err(self.lost(path));
            }
        }
        if let Some((path, bytes)) = files.get(last + 1) {
            self.move_in(path, *bytes)?;
            directories.extend(path.ancestors().skip(1).map(|parent| self.dest.join(parent)));
            self.sync_dirs(&directories)?;
        }
        for name in old {
            let path = names::decode(name).unwrap_or_default();
            for folder in path.ancestors().skip(1).filter(|path| *path != Path::new("")) {
                fs::remove_empty_dir(&self.dest.join(folder));
            }
        }
        Ok(())
    }

    /// The report of what is being published, wherever it is by now.
    fn report(&self) -> Result<Identity, Error> {
        let staged = self.from.new_files().join(REPORT);
        for path in [&staged, &self.dest.join(REPORT)] {
            let Some(text) = read_own(path, MAX_REPORT)? else { continue };
            let report = serde_json::from_slice::<Identity>(&text).ok();
            let ours = |report: &Identity| report.run == self.run.hash;
            return report.filter(ours).ok_or_else(|| not_ours(path));
        }
        Err(self.lost(Path::new(REPORT)))
    }

    fn move_in(&self, path: &Path, file: Option<&File>) -> Result<(), Error> {
        let (from, to) = (self.from.new_files().join(path), self.dest.join(path));
        let parent = path.parent().unwrap_or(Path::new(""));
        self.from.check_below(parent)?;
        for _ in 0..FOLDERS {
            fs::create_dirs(self.dest, parent).map_err(Error::create(&to))?;
            match fs::rename_new(&from, &to) {
                Ok(_) => return Ok(()),
                Err(error) if fs::is_missing(&error) => {
                    if fs::look(&from).map_err(Error::io("read", &from))?.is_none() {
                        break;
                    }
                    // Somebody slow removed the folder, which was empty: once more.
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    // Two who made a lost file again are harmless.
                    let is_same = match file {
                        Some(file) => {
                            published::problem(self.dest, file, Access::of(file.bytes), &|_| true)
                        }
                        None => read_own(&from, MAX_REPORT).and_then(|ours| {
                            let theirs = read_own(&to, MAX_REPORT)?;
                            Ok((ours != theirs).then_some(Damage::Bytes))
                        }),
                    };
                    return match is_same {
                        Ok(None) => Ok(()),
                        Err(error @ Error::Io { .. }) => Err(error),
                        _ => Err(Error::UnexpectedFile { path: to }),
                    };
                }
                Err(error) => return Err(Error::io("rename into place", &to)(error)),
            }
        }
        // It was moved before: then it is there.
        if self.is_in_place(path, file)? { Ok(()) } else { Err(self.lost(path)) }
    }

    /// The error that only the command of this run can get over, because it makes the file again.
    fn lost(&self, path: &Path) -> Error {
        let about = self.from.about().ok().flatten();
        let command = about.map(|about| about.arguments());
        Error::LostFile { path: self.dest.join(path), old: self.from.old_files(), command }
    }

    fn is_in_place(&self, path: &Path, file: Option<&File>) -> Result<bool, Error> {
        let path = self.dest.join(path);
        let found = fs::look(&path).map_err(Error::io("read", &path))?;
        let is_whole = |bytes| file.is_none_or(|file| file.bytes == bytes);
        Ok(found.is_some_and(|found| found.is_file() && is_whole(found.len())))
    }

    fn sync_dirs(&self, directories: &BTreeSet<PathBuf>) -> Result<(), Error> {
        if self.sync {
            for directory in directories {
                match fs::sync_dir(directory) {
                    // Removed by whoever came before: then nothing in it has to last.
                    Err(Error::Io { source, .. }) if fs::is_missing(&source) => {}
                    result => result?,
                }
            }
        }
        Ok(())
    }
}

/// Whether a file of an old model is one without which it is none, or its report.
fn decides(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let whole = [REPORT, PIPELINE].map(Path::new).contains(&path);
    whole || name == "config.json" || index::is_index(&name)
}

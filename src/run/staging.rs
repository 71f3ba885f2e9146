//! The staging folder, `DEST/.recast`: the lock, the journal, the staged files and, during
//! publication, the old model. Entering it decides what an earlier run left that can be relied on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::destination::{self, Found};
use super::identity::Identity;
use super::journal::{Journal, Record};
use super::lock::Lock;
use super::{FileAudits, Options, STAGING};
use crate::checkpoint::REPORT;
use crate::error::Error;
use crate::fs;
use crate::plan::{Plan, PlannedFile};

/// A staging folder that this run holds. Dropped, it stays for the same run to go on; unless
/// nothing is worth it.
#[derive(Debug)]
pub struct Staging {
    pub dest: PathBuf,
    /// `DEST/.recast`.
    pub folder: PathBuf,
    /// What the run is.
    pub identity: Identity,
    /// Directories that did not exist before, the innermost first.
    pub created: Vec<PathBuf>,
    /// Files of an old model, which make way.
    pub replaced: Vec<PathBuf>,
    /// For every file of the plan that an earlier run staged, its audits.
    pub resumed: Vec<Option<FileAudits>>,
    pub lock: Lock,
    /// Missing until the folder is known to be this run's.
    journal: Option<Arc<Journal>>,
}

impl Staging {
    /// Enters the staging folder of `dest`; nothing when the run was done before.
    ///
    /// # Errors
    /// When the destination is refused or has no room, another run is at work, or the system
    /// refuses. Nothing that was not there stays behind.
    pub fn enter(
        plan: &Plan,
        dest: &Path,
        options: &Options,
        wait: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Staging>, Error> {
        let dest = std::path::absolute(dest).map_err(Error::io("resolve", dest))?;
        let folder = dest.join(STAGING);
        let done = matches!(destination::check(plan, &dest, options)?, Found::Done);
        if !folder.exists() {
            if done {
                return Ok(None);
            }
            // Before anything is written: a full disk has no room for a lock either.
            check_space(&dest, plan.files.iter())?;
        }
        let created: Vec<PathBuf> =
            dest.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
        let lock = match Lock::acquire(&folder, wait) {
            Ok(lock) => lock,
            // Whoever is there is about to clear up.
            Err(Error::Busy { .. }) if done => return Ok(None),
            Err(error) => {
                fs::remove_empty_dir(&folder);
                created.iter().for_each(|path| fs::remove_empty_dir(path));
                return Err(error);
            }
        };
        let mut staging = Staging {
            dest,
            folder,
            identity: Identity::new(plan, options.on_overflow),
            created,
            replaced: Vec::new(),
            resumed: vec![None; plan.files.len()],
            lock,
            journal: None,
        };
        // Nobody else writes from here on, so what is there now is what counts.
        match destination::check(plan, &staging.dest, options)? {
            Found::Place { resume, replaced } => {
                staging.replaced = replaced;
                staging.prepare(plan, options.sync, resume)?;
                Ok(Some(staging))
            }
            Found::Done => {
                // What this run left when it was killed at its very end, but nobody else's.
                let begun = Record::read(&staging.folder, options.sync)?;
                if begun.is_none_or(|it| it.identity.differences(&staging.identity).is_empty()) {
                    staging.clear()?;
                }
                Ok(None)
            }
        }
    }

    fn prepare(
        &mut self,
        plan: &Plan,
        sync: bool,
        resume: Option<Box<Record>>,
    ) -> Result<(), Error> {
        let journal = if let Some(record) = resume {
            self.replaced.extend(record.publishing.iter().flatten().cloned());
            self.replaced.sort();
            self.replaced.dedup();
            self.resume(plan, &record);
            // What is staged but not whole is made again, and needs the room.
            for file in self.missing(plan) {
                fs::remove_file(&self.path().join(&file.path))?;
            }
            check_space(&self.dest, self.missing(plan))?;
            Journal::open(&self.folder, sync, &record, &self.resumed)?
        } else {
            self.clear()?;
            check_space(&self.dest, self.missing(plan))?;
            Journal::create(&self.folder, &self.identity, sync)?
        };
        self.journal = Some(Arc::new(journal));
        fs::create_dirs(&self.path())
    }

    /// Takes over what an earlier run staged, as far as it is still there.
    fn resume(&mut self, plan: &Plan, record: &Record) {
        let has = |path: &Path, bytes| path.metadata().is_ok_and(|found| found.len() == bytes);
        let staged = self.path();
        for ((file, audits), slot) in plan.files.iter().zip(&record.staged).zip(&mut self.resumed) {
            let staged = staged.join(&file.path);
            let published = || {
                record.publishing.is_some()
                    && !staged.exists()
                    && has(&self.dest.join(&file.path), file.bytes)
            };
            let whole = audits.as_ref().is_some_and(|audits| audits.len() == file.tensors().len());
            if whole && (has(&staged, file.bytes) || published()) {
                slot.clone_from(audits);
            }
        }
    }

    /// The files that are still to be made.
    fn missing<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = &'a PlannedFile> {
        let files = plan.files.iter().zip(&self.resumed);
        files.filter(|(_, resumed)| resumed.is_none()).map(|(file, _)| file)
    }

    /// The folder of the staged model.
    pub fn path(&self) -> PathBuf {
        self.folder.join("staged")
    }

    /// The folder that an old model is moved to.
    pub fn old(&self) -> PathBuf {
        self.folder.join("old")
    }

    /// How many files an earlier run had staged.
    pub fn resumed_files(&self) -> usize {
        self.resumed.iter().flatten().count()
    }

    /// The journal.
    ///
    /// # Panics
    /// Before the folder is prepared, which nobody outside sees.
    pub fn journal(&self) -> &Arc<Journal> {
        self.journal.as_ref().expect("prepared")
    }

    pub fn is_publishing(&self) -> bool {
        self.journal.as_ref().is_some_and(|journal| journal.is_publishing())
    }

    /// Removes the folder after publication.
    pub fn remove(mut self) -> Result<(), Error> {
        self.journal = None;
        self.clear()
    }

    /// Removes the folder and what was made for it, unless publication has begun.
    pub fn discard(self) -> Result<(), Error> {
        if self.is_publishing() { Ok(()) } else { self.remove() }
    }

    /// Moves the staged files where no run looks for any, and returns where that is.
    pub fn reject(mut self) -> Result<PathBuf, Error> {
        self.journal = None;
        // First of all: with it, the same run would go on with files that are wrong.
        Journal::remove(&self.folder)?;
        fs::rename(&self.path(), &self.rejected())?;
        Ok(self.rejected())
    }

    /// The folder of a model that failed its verification; the next run removes it.
    fn rejected(&self) -> PathBuf {
        self.folder.join("rejected")
    }

    /// Removes everything but the locks, the journal first: without it, the rest means nothing.
    fn clear(&self) -> Result<(), Error> {
        Journal::remove(&self.folder)?;
        fs::remove_tree(&self.path())?;
        fs::remove_tree(&self.old())?;
        fs::remove_tree(&self.rejected())?;
        fs::remove_file(&self.folder.join(REPORT))
    }
}

/// Fails when the file system that `dest` is on, or will be, has no room for `files`.
fn check_space<'a>(dest: &Path, files: impl Iterator<Item = &'a PlannedFile>) -> Result<(), Error> {
    let place = dest.ancestors().find(|path| path.exists()).unwrap_or(dest);
    let Some((free, block)) = fs::free_space(place) else { return Ok(()) };
    let needed = files.map(|file| file.bytes.next_multiple_of(block.max(1))).sum();
    if needed > free {
        return Err(Error::NoSpace { path: dest.to_owned(), needed, free });
    }
    Ok(())
}

/// What another run may go on with stays, and only that.
impl Drop for Staging {
    fn drop(&mut self) {
        // Nobody is left to tell of an error; the next run clears up what stays.
        let journal = self.journal.take().inspect(|journal| journal.close());
        match journal {
            Some(journal) if journal.has_work() => {
                let files = self.identity.files.iter().enumerate();
                for (_, file) in files.filter(|(index, _)| !journal.has(*index)) {
                    let _ = fs::remove_file(&self.path().join(&file.path));
                }
            }
            Some(_) => drop(self.clear()),
            None => {}
        }
        if self.lock.remove_if_alone() {
            self.created.iter().for_each(|path| fs::remove_empty_dir(path));
        }
    }
}

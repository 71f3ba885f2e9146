//! Publish: rename the staged files into place, the files that make a directory a model last,
//! then the report.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{STAGING, TensorAudit};
use crate::checkpoint::REPORT;
use crate::error::Error;
use crate::fs;
use crate::plan::Plan;

/// The folder below the staging folder that holds a model that failed verification.
const REJECTED: &str = "rejected";

/// A complete model below `DEST/.recast`, which nobody takes for one yet.
#[derive(Debug)]
pub struct Staged {
    plan: Arc<Plan>,
    dest: PathBuf,
    /// Directories that did not exist before, the innermost first.
    created: Vec<PathBuf>,
    /// How many files of the plan have been renamed into place.
    published: usize,
    sync: bool,
    /// Whether its files stay although it is not published.
    rejected: bool,
    /// What the cast did to each tensor that is, or could have been, cast.
    pub audits: Vec<TensorAudit>,
    /// How many threads staged it.
    pub threads: usize,
}

impl Staged {
    /// An empty staging folder in `dest`. One that an earlier run left is removed.
    pub(super) fn create(
        plan: &Arc<Plan>,
        dest: &Path,
        threads: usize,
        sync: bool,
    ) -> Result<Staged, Error> {
        let dest = std::path::absolute(dest).map_err(Error::io("resolve", dest))?;
        let created = dest.ancestors().take_while(|path| !path.exists()).map(Path::to_owned);
        let staged = Staged {
            plan: Arc::clone(plan),
            created: created.collect(),
            dest,
            published: 0,
            sync,
            rejected: false,
            audits: Vec::new(),
            threads,
        };
        fs::remove_tree(&staged.dest.join(STAGING))?;
        fs::create_dirs(&staged.path())?;
        Ok(staged)
    }

    /// The folder that holds the staged model.
    pub fn path(&self) -> PathBuf {
        self.dest.join(STAGING).join("staged")
    }

    /// Renames every file into place. The last one, which makes the directory a model, only after
    /// all other names are durable.
    ///
    /// # Errors
    /// When the system refuses; `discard` then takes back what was published.
    pub fn publish(&mut self) -> Result<(), Error> {
        let plan = Arc::clone(&self.plan);
        let staged = self.path();
        let mut directories = BTreeSet::from([self.dest.clone()]);
        for (index, file) in plan.files.iter().enumerate() {
            let to = self.dest.join(&file.path);
            for parent in file.path.ancestors().skip(1) {
                directories.insert(self.dest.join(parent));
            }
            fs::create_dirs(to.parent().unwrap_or(&self.dest))?;
            if index + 1 == plan.files.len() {
                self.sync_dirs(&directories)?;
            }
            fs::rename(&staged.join(&file.path), &to)?;
            self.published = index + 1;
        }
        self.sync_dirs(&directories)
    }

    /// Leaves the report and removes the staging folder.
    ///
    /// # Errors
    /// When the system refuses; the model is published all the same.
    pub fn finish(&mut self, report: &str) -> Result<(), Error> {
        let staging = self.dest.join(STAGING);
        let temporary = staging.join(REPORT);
        let file = fs::create_new(&temporary)?;
        fs::write_at(&file, &temporary, report.as_bytes(), 0)?;
        if self.sync {
            fs::sync_file(&file, &temporary, report.len() as u64, &|| false)?;
        }
        fs::rename(&temporary, &self.dest.join(REPORT))?;
        fs::remove_tree(&staging)?;
        self.sync_dirs(&BTreeSet::from([self.dest.clone()]))
    }

    /// Takes everything back: the destination is as it was before. What was rejected stays.
    ///
    /// # Errors
    /// When the system refuses to remove something.
    pub fn discard(&mut self) -> Result<(), Error> {
        if self.rejected {
            return Ok(());
        }
        // In reverse, so that what makes it a model goes first.
        for file in self.plan.files[..self.published].iter().rev() {
            fs::remove_file(&self.dest.join(&file.path))?;
        }
        self.published = 0;
        for file in &self.plan.files {
            for parent in file.path.ancestors().skip(1).filter(|path| *path != Path::new("")) {
                fs::remove_empty_dir(&self.dest.join(parent));
            }
        }
        fs::remove_tree(&self.dest.join(STAGING))?;
        for directory in &self.created {
            fs::remove_empty_dir(directory);
        }
        Ok(())
    }

    /// Gives the model up for good but leaves its files, for inspection, where no run takes them
    /// for a staged model; returns where that is.
    ///
    /// # Errors
    /// When the system refuses; the model is then where it was.
    pub fn reject(&mut self) -> Result<PathBuf, Error> {
        let rejected = self.dest.join(STAGING).join(REJECTED);
        fs::rename(&self.path(), &rejected)?;
        self.rejected = true;
        Ok(rejected)
    }

    fn is_published(&self) -> bool {
        self.published == self.plan.files.len()
    }

    fn sync_dirs(&self, directories: &BTreeSet<PathBuf>) -> Result<(), Error> {
        if self.sync {
            for directory in directories {
                fs::sync_dir(directory)?;
            }
        }
        Ok(())
    }
}

/// A staged model that nobody published, however that came about, leaves nothing behind.
impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_published() {
            // Nobody is left to tell; `discard` is the way to hear of errors.
            let _ = self.discard();
        }
    }
}

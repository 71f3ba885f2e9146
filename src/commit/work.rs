//! What a conversion does with the files of its run: makes them, has them judged, describes them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::destination::{self, Destination};
use super::folder::{Folder, RunName};
use super::seal::Seal;
use super::stage::{Stage, State};
use super::sums;
use super::terms::{Hooks, Left, OnOverflow, Options, Outcome};
use crate::cast::{Audit, Level, Overflow};
use crate::checkpoint::{REPORT, SUMS};
use crate::checksum::Digest;
use crate::error::Error;
use crate::fs;
use crate::make::{self, make};
use crate::place::Access;
use crate::plan::Plan;
use crate::report::{self, Identity};

/// What a verification came to.
pub enum Verdict {
    /// There was none.
    None,
    Passed(String),
    Failed,
}

pub struct Conversion<'a> {
    pub(super) plan: &'a Plan,
    pub(super) options: &'a Options,
    pub(super) level: Level,
    /// How sources and results are read, and so whether what is written stays in memory.
    pub(super) access: Access,
    pub(super) run: Digest,
    pub(super) dest: PathBuf,
    /// As the user named it.
    pub(super) named: PathBuf,
    pub(super) folder: Folder,
    /// Directories that did not exist before, the innermost first.
    pub(super) created: Vec<PathBuf>,
    /// What the destination held when this began: only that may be replaced.
    pub(super) seen: Option<Digest>,
    /// A model of the same recipes that is there but is damaged, or of another source.
    pub(super) known_other: Option<Digest>,
    /// The run that this one works on.
    pub(super) mine: Option<RunName>,
    /// Held where the file system cannot promise that a rename replaces nothing.
    pub(super) lock: Option<File>,
    /// Whether no other process can do harm: the system sees to that, or this has the lock.
    pub(super) is_alone: bool,
    /// What this run published, to be looked at once more.
    pub(super) published: Option<Outcome>,
    pub(super) resumed: usize,
    pub(super) checked_place: bool,
    /// Whether this carried a publication of the same to its end.
    pub(super) completed: bool,
}

impl<'a> Conversion<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        dest: &Path,
        options: &'a Options,
    ) -> Result<Conversion<'a>, Error> {
        // Nothing that the place of an empty name would be.
        let named = if dest.as_os_str().is_empty() { Path::new("/") } else { dest };
        let absolute = std::path::absolute(named).map_err(Error::io("resolve", dest))?;
        let mut conversion = Conversion {
            plan,
            options,
            level: Level::current()?,
            access: Access::of(plan.bytes_read() + plan.bytes_written()),
            run: Digest::default(),
            folder: Folder::of(&absolute),
            dest: absolute,
            named: dest.to_owned(),
            created: Vec::new(),
            seen: None,
            known_other: None,
            mine: None,
            lock: None,
            is_alone: false,
            published: None,
            resumed: 0,
            checked_place: false,
            completed: false,
        };
        conversion.run = conversion.run_under(plan.options.overflow);
        Ok(conversion)
    }

    /// The name of the run under a policy for values that overflow.
    pub(super) fn run_under(&self, overflow: Overflow) -> Digest {
        self.plan.run(overflow, self.options.sha256)
    }

    pub(super) fn is_mine(&self, report: &Identity) -> bool {
        let stops = self.options.on_overflow == OnOverflow::Error;
        report::is_of(report, self.plan, |overflow| self.run_under(overflow), stops)
    }

    /// The name of the file of sums, where one is asked for.
    pub(super) fn sums(&self) -> Option<&'static str> {
        self.options.sha256.then_some(SUMS)
    }

    /// The names of files that describe the others.
    pub(super) fn more(&self) -> Vec<&'static str> {
        self.sums().into_iter().chain([REPORT]).collect()
    }
}

impl Conversion<'_> {
    /// Makes all files that are not staged yet.
    pub(super) fn stage(&mut self, stage: &Stage<'_>, hooks: &mut dyn Hooks) -> Result<(), Error> {
        let total = self.plan.bytes_written();
        self.look_at(stage, hooks)?;
        stage.remove_dead_parts();
        let missing = stage.missing();
        self.resumed = self.resumed.max(self.plan.files.len() - missing.len());
        let sizes = missing.iter().map(|number| self.plan.files[*number].bytes);
        destination::check_space(&self.dest, sizes)?;
        let before =
            total - missing.iter().map(|number| self.plan.files[*number].bytes).sum::<u64>();
        let files: Vec<make::File<'_>> = missing
            .into_iter()
            .map(|number| make::File { number, recipe: &self.plan.files[number].recipe })
            .collect();
        let options = make::Options {
            level: self.level,
            threads: self.options.threads,
            access: if self.options.mmap { Access::Mapped } else { self.access },
            stop_at_overflow: self.options.on_overflow == OnOverflow::Error,
        };
        let progress = &mut |done| hooks.progress(before + done, total);
        let overflowed = make(&files, &*self.plan.place, stage, &options, progress)?;
        if !overflowed.is_empty() {
            return Err(Error::Overflow { overflow: report::overflow(self.plan, &overflowed) });
        }
        // Staged under another policy, and right under that one only.
        let audits = audits_of(&stage.seals());
        if self.options.on_overflow == OnOverflow::Error
            && report::totals(self.plan, &audits).to_inf > 0
        {
            let found: Vec<_> = audits.into_iter().enumerate().collect();
            return Err(Error::Overflow { overflow: report::overflow(self.plan, &found) });
        }
        Ok(())
    }

    /// Looks at what is staged, which may take reading the source: on a thread, so that the caller
    /// can stop it.
    fn look_at(&self, stage: &Stage<'_>, hooks: &mut dyn Hooks) -> Result<(), Error> {
        let readings: [make::check::Reading<'_, State>; 1] = [Box::new(|read| stage.look(read))];
        let (written, read) = (self.plan.bytes_written(), self.plan.bytes_read());
        // Mostly there is nothing to read, and one total from start to end.
        let progress = &mut |done| hooks.progress(done, if done > 0 { read } else { written });
        let found = make::check::all(&readings, Some(1), progress)?;
        if found.contains(&State::Stale) { Err(Error::Stale) } else { Ok(()) }
    }

    pub(super) fn verified(
        &self,
        stage: &Stage<'_>,
        hooks: &mut dyn Hooks,
    ) -> Result<Verdict, Error> {
        if !self.options.verify {
            return Ok(Verdict::None);
        }
        if let Some(found) = stage.folder().verified()? {
            return Ok(Verdict::Passed(found));
        }
        match hooks.verify(&stage.folder().new_files()) {
            Err(Error::Stopped) => Err(Error::Stopped),
            // Moved away meanwhile: whatever it found, or failed at, says nothing.
            _ if !stage.folder().exists() => Err(Error::Stale),
            Err(_) => Err(Error::Stopped),
            Ok(Some(found)) => {
                stage.folder().note_verified(&found)?;
                Ok(Verdict::Passed(found))
            }
            Ok(None) => Ok(Verdict::Failed),
        }
    }

    /// Puts the report, and what else describes the files, among them.
    pub(super) fn describe(&self, stage: &Stage<'_>) -> Result<report::Made, Error> {
        let seals = stage.seals();
        let files = self.plan.files.iter().zip(&seals).map(|(file, seal)| {
            let source = &file.recipe.sources[0];
            let (path, bytes, xxh3_128) = (source.key.clone(), source.bytes, seal.sources[0].1);
            let source = Some(report::SourceFile { path, bytes, xxh3_128 });
            let (path, bytes, xxh3_128) = (file.path.clone(), file.bytes, seal.digest);
            report::File { path, bytes, xxh3_128, source }
        });
        let mut files: Vec<report::File> = files.collect();
        if self.options.sha256 {
            let text =
                sums::of(&files, &stage.folder().new_files(), self.options.threads, self.access)?;
            stage.put(SUMS, &|out| out.write_all(&text))?;
            let (path, bytes) = (PathBuf::from(SUMS), text.len() as u64);
            let file = report::File { path, bytes, xxh3_128: Digest::of_head(&text), source: None };
            files.insert(files.len() - 1, file);
        }
        let (audits, on_overflow) = (audits_of(&seals), self.options.on_overflow.name());
        let made = report::Made { run: self.run, on_overflow, files, audits };
        stage.put(REPORT, &|out| made.write(self.plan, out))?;
        Ok(made)
    }

    /// A publication cannot go on because a staged file is lost. Whoever makes the same can make it
    /// again.
    pub(super) fn restore(
        &mut self,
        run: &RunName,
        error: Error,
        hooks: &mut dyn Hooks,
    ) -> Result<(), Error> {
        let Error::LostFile { path, .. } = &error else { return Err(error) };
        let lost = self.plan.files.iter().position(|file| self.dest.join(&file.path) == *path);
        let (Some(number), true) = (lost, run.hash == self.run) else { return Err(error) };
        let stage =
            Stage::new(self.plan, self.folder.publication(run), self.options.sync, self.access);
        let files = [make::File { number, recipe: &self.plan.files[number].recipe }];
        let options = make::Options {
            level: self.level,
            threads: self.options.threads,
            access: if self.options.mmap { Access::Mapped } else { self.access },
            stop_at_overflow: false,
        };
        let total = self.plan.bytes_written();
        let progress = &mut |done| hooks.progress(done, total);
        match make(&files, &*self.plan.place, &stage, &options, progress) {
            // The source is not what it was: nobody can make that file from it again.
            Err(Error::Stale) => Err(error),
            result => result.map(drop),
        }
    }

    /// Removes what is of no use to anybody, and says what is left.
    pub(super) fn clear_up(&mut self, error: Option<&Error>) -> Left {
        let publishing = || self.folder.look().is_ok_and(|contents| contents.publishing.is_some());
        let mut left = Left::Nothing;
        if let Some(error) = error {
            if publishing() {
                left = Left::Publishing;
            } else if let Some(run) = self.mine.clone() {
                let folder = self.folder.run(&run);
                let is_useful = error.is_resumable()
                    && fs::list(&folder.seals()).is_ok_and(|seals| !seals.is_empty());
                if is_useful {
                    let stage = Stage::new(self.plan, folder, false, self.access);
                    stage.remove_dead_parts();
                    left = Left::Staged;
                } else {
                    let _ = self.folder.displace(&run);
                }
                let there = Destination::look(&self.dest).ok().and_then(|there| there.report);
                if self.published.is_some() && there.is_some_and(|report| self.is_mine(&report)) {
                    left = Left::Published;
                }
            }
        }
        let lock = self.folder.lock();
        if self.lock.is_none() && matches!(fs::look(&lock), Ok(Some(_))) {
            // A run that was killed left its file, or another one works and holds it.
            self.lock = fs::lock(&lock).ok().flatten();
        }
        if self.lock.is_some() {
            // Before it is released: whoever takes the next one takes another file's.
            let _ = fs::remove_file(&lock);
        }
        self.lock = None;
        self.folder.remove_if_empty();
        for path in &self.created {
            fs::remove_empty_dir(path);
        }
        left
    }
}

fn audits_of(seals: &[Arc<Seal>]) -> Vec<Vec<Audit>> {
    seals.iter().map(|seal| seal.audits.clone()).collect()
}

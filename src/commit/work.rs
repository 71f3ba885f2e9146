//! What a conversion does with the files of its run: makes them, has them judged, describes them.

use std::path::PathBuf;
use std::sync::Arc;

use super::conversion::{Conversion, Next};
use super::destination::{self, Destination};
use super::folder::RunName;
use super::seal::Seal;
use super::stage::{Stage, State};
use super::{Hooks, Left, OnOverflow, sums};
use crate::cast::Audit;
use crate::checkpoint::{REPORT, SUMS};
use crate::checksum::Digest;
use crate::error::Error;
use crate::fs;
use crate::make::{self, make};
use crate::report;

/// What a verification came to.
pub enum Verdict {
    /// There was none.
    None,
    Passed(String),
    Failed,
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
            mmap: self.options.mmap,
            stop_at_overflow: self.options.on_overflow == OnOverflow::Error,
        };
        let progress = &mut |done| hooks.progress(before + done, total);
        let overflowed = make(&files, &*self.plan.place, stage, &options, progress)?;
        if !overflowed.is_empty() {
            return Err(Error::Overflow { summary: report::overflow(self.plan, &overflowed) });
        }
        // Staged under another policy, and right under that one only.
        let audits = audits_of(&stage.seals());
        if self.options.on_overflow == OnOverflow::Error
            && report::totals(self.plan, &audits).to_inf > 0
        {
            let found: Vec<_> = audits.into_iter().enumerate().collect();
            return Err(Error::Overflow { summary: report::overflow(self.plan, &found) });
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
            Err(Error::Cancelled) => Err(Error::Cancelled),
            // Moved away meanwhile: whatever it found, or failed at, says nothing.
            _ if !stage.folder().exists() => Err(Error::Stale),
            Err(_) => Err(Error::Cancelled),
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
            let text = sums::of(&files, &stage.folder().new_files(), self.options.threads)?;
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
    ) -> Result<Next, Error> {
        let Error::Lost { path } = &error else { return Err(error) };
        let lost = self.plan.files.iter().position(|file| self.dest.join(&file.path) == *path);
        let (Some(number), true) = (lost, run.hash == self.run) else { return Err(error) };
        let stage = Stage::new(self.plan, self.folder.publication(run), self.options.sync);
        let files = [make::File { number, recipe: &self.plan.files[number].recipe }];
        let options = make::Options {
            level: self.level,
            threads: self.options.threads,
            mmap: self.options.mmap,
            stop_at_overflow: false,
        };
        let total = self.plan.bytes_written();
        let progress = &mut |done| hooks.progress(done, total);
        match make(&files, &*self.plan.place, &stage, &options, progress) {
            // The source is not what it was: nobody can make that file from it again.
            Err(Error::Stale) => Err(error),
            result => result.map(|_| Next::Again),
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
                    let stage = Stage::new(self.plan, folder, false);
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
        if self.lock.is_some() {
            // Before it is let go: whoever takes the next one takes another file's.
            let _ = fs::remove_file(&self.folder.lock());
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

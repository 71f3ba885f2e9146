//! A conversion: it looks at what is there, does what comes next, and looks again, until its result
//! is there or may not be. Whatever happens between two looks, the next one sees it.

use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::destination::{self, Destination};
use super::folder::{Contents, Folder, RunName};
use super::stage::{Stage, State};
use super::work::Verdict;
use super::{Hooks, OnOverflow, Options, Outcome, publish, seal};
use crate::cast::{Level, Overflow};
use crate::checkpoint::{MAX_REPORT, REPORT, SUMS};
use crate::checksum::Digest;
use crate::error::Error;
use crate::fs;
use crate::plan::Plan;
use crate::report::{self, Identity, Summary};

/// How often a source may seem to change between two looks before a run gives up.
const LOOKS: usize = 16;
/// How often a run looks again before it says that it gets nowhere.
const ROUNDS: usize = 1000;

pub struct Conversion<'a> {
    pub(super) plan: &'a Plan,
    pub(super) options: &'a Options,
    pub(super) level: Level,
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
    /// Whether it is known that others do no harm, or held that there are none.
    pub(super) is_alone: bool,
    /// What this run published, to be looked at once more.
    pub(super) published: Option<Outcome>,
    pub(super) resumed: usize,
    pub(super) checked_place: bool,
    /// Whether this carried a publication of the same to its end.
    pub(super) completed: bool,
}

/// What a round came to.
pub enum Next {
    Again,
    Ended(Box<Outcome>),
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
        let run = self.plan.run(overflow);
        if self.options.sha256 { Digest::of_blocks(&[run, Digest(2)]) } else { run }
    }

    pub(super) fn is_mine(&self, report: &Identity) -> bool {
        let stops = self.options.on_overflow == OnOverflow::Error;
        report::is_of(report, self.plan, |overflow| self.run_under(overflow), stops)
    }

    /// The name of the file of sums, where one is asked for.
    fn sums(&self) -> Option<&'static str> {
        self.options.sha256.then_some(SUMS)
    }

    /// The names of files that describe the others.
    pub(super) fn more(&self) -> Vec<&'static str> {
        self.sums().into_iter().chain([REPORT]).collect()
    }

    pub(super) fn carry_out(&mut self, hooks: &mut dyn Hooks) -> Result<Outcome, Error> {
        destination::check_place(self.plan, &self.named)?;
        for _ in 0..ROUNDS {
            match self.round(hooks) {
                Ok(Next::Ended(outcome)) => return Ok(*outcome),
                Ok(Next::Again) => {}
                // What is staged was moved away by another run, or is of another state of the source.
                Err(Error::Stale) => self.give_up_staged()?,
                Err(error) if self.is_gone(&error) => {}
                Err(error) => return Err(error),
            }
            let total = self.plan.bytes_written();
            if !hooks.progress(if self.published.is_some() { total } else { 0 }, total) {
                return Err(Error::Cancelled);
            }
        }
        Err(Error::Contended { path: self.named.clone() })
    }

    /// Looks at what is there and does what comes next.
    fn round(&mut self, hooks: &mut dyn Hooks) -> Result<Next, Error> {
        let contents = self.folder.look()?;
        let has_work =
            contents.publishing.is_some() || contents.runs.iter().any(|run| run.hash == self.run);
        if has_work && !self.is_alone {
            let exclusive = self.folder.renames_exclusively()?;
            self.hold(exclusive)?;
        }
        if let Some(run) = &contents.publishing {
            if let Err(error) = publish::forward(&self.folder, &self.dest, run, self.options.sync) {
                return self.restore(run, error, hooks);
            }
            self.completed |= run.hash == self.run;
            return Ok(Next::Again);
        }
        let there = Destination::look(&self.dest)?;
        match self.look_at_destination(&there, &contents, hooks) {
            Ok(None) => {}
            Ok(Some(outcome)) => return Ok(Next::Ended(Box::new(outcome))),
            // Somebody published while this looked: what it saw is not what is there.
            Err(_) if !self.is_settled(&there)? => return Ok(Next::Again),
            Err(error) => return Err(error),
        }
        let mine = contents.runs.into_iter().filter(|run| run.hash == self.run).min();
        let Some(run) = mine else {
            self.set_up()?;
            return Ok(Next::Again);
        };
        let folder = self.folder.run(&run);
        if folder.replaces()? != self.seen {
            // Set up when something else was there.
            self.folder.displace(&run)?;
            return Ok(Next::Again);
        }
        // Of equal runs that were set up at one moment, all use the first.
        if let Some(other) = self.mine.replace(run.clone())
            && other != run
        {
            self.folder.displace(&other)?;
        }
        if !self.checked_place {
            destination::check_alias(self.plan, &self.dest, &run)?;
            destination::check_names(self.plan, &self.more(), &folder)?;
            self.checked_place = true;
        }
        let stage = Stage::new(self.plan, folder, self.options.sync);
        self.stage(&stage, hooks)?;
        let verified = match self.verified(&stage, hooks)? {
            Verdict::None => None,
            Verdict::Passed(found) => Some(found),
            Verdict::Failed => {
                let rejected = Outcome::Rejected(self.folder.reject(&run)?);
                return Ok(Next::Ended(Box::new(rejected)));
            }
        };
        let made = self.describe(&stage)?;
        // Once more, because from here on there is only one way.
        let mut looks = 0;
        loop {
            match stage.look(&|_| true)? {
                State::Stale => return Err(Error::Stale),
                State::Right => break,
                // All of one moment, or it could be of several states of the source.
                State::Touched if looks < LOOKS => looks += 1,
                State::Touched => return Err(Error::Contended { path: self.plan.source.clone() }),
            }
        }
        if !stage.missing().is_empty() {
            return Ok(Next::Again);
        }
        let there = Destination::look(&self.dest)?;
        match destination::check_way(self.plan, &self.dest, &there, &self.more()) {
            Err(_) if !self.is_settled(&there)? => return Ok(Next::Again),
            result => result?,
        }
        if self.seen != Some(there.fingerprint) {
            return Ok(Next::Again);
        }
        stage.sync_names()?;
        match self.folder.begin_publication(&run) {
            Ok(()) => {
                // What is there from now on is to be looked at for itself, also where lengths alone
                // do not tell it from what was there.
                self.known_other = None;
                self.published =
                    Some(Outcome::Made { made, resumed_files: self.resumed, verified });
                Ok(Next::Again)
            }
            // Moved away, or another publication is under way.
            Err(error) if fs::is_missing(&error) => Ok(Next::Again),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists
                ) =>
            {
                Ok(Next::Again)
            }
            Err(error) => Err(Error::io("rename into place", self.folder.path())(error)),
        }
    }

    /// What is at the destination: this run's result, or what it may replace.
    fn look_at_destination(
        &mut self,
        there: &Destination,
        contents: &Contents,
        hooks: &mut dyn Hooks,
    ) -> Result<Option<Outcome>, Error> {
        let known = self.known_other == Some(there.fingerprint);
        if let Some(report) = there.report.as_ref().filter(|report| !known && self.is_mine(report))
        {
            match self.done(report, hooks) {
                Ok(outcome) => {
                    // What is staged of it is of no use to anybody.
                    for run in contents.runs.iter().filter(|run| run.hash == self.run) {
                        self.folder.displace(run)?;
                    }
                    self.folder.sweep(contents, true);
                    return Ok(Some(outcome));
                }
                Err(Error::Damaged { .. } | Error::Mismatch { .. }) if self.options.overwrite => {
                    self.known_other = Some(there.fingerprint);
                }
                Err(error) => return Err(error),
            }
        }
        self.folder.sweep(contents, self.seen.is_none());
        if self.seen.is_none() {
            self.check_first(there, &contents.runs)?;
            for run in contents.runs.iter().filter(|run| run.hash != self.run) {
                self.folder.displace(run)?;
            }
            self.seen = Some(there.fingerprint);
        } else if self.seen != Some(there.fingerprint) {
            return Err(Error::Replaced { path: self.named.clone() });
        }
        Ok(None)
    }

    /// Whether the destination is still what it was, and nobody is publishing there.
    fn is_settled(&self, there: &Destination) -> Result<bool, Error> {
        let is_quiet = self.folder.look()?.publishing.is_none();
        Ok(is_quiet && Destination::look(&self.dest)?.fingerprint == there.fingerprint)
    }

    /// What must hold when a run begins at a destination.
    pub(super) fn check_first(&self, there: &Destination, runs: &[RunName]) -> Result<(), Error> {
        if !self.options.overwrite {
            if let Some(report) = &there.report {
                return Err(self.mismatch(Some(report), true));
            }
            if !there.files.is_empty() {
                let reason = "the destination is not empty";
                let hint =
                    "give a new or empty directory, or --overwrite to replace the model there";
                return Err(Error::Destination { path: self.named.clone(), reason, hint });
            }
            if let Some(other) = runs.iter().find(|run| run.hash != self.run) {
                let about = self.folder.run(other).about()?;
                return Err(self.mismatch(about.as_ref(), false));
            }
        }
        destination::check_way(self.plan, &self.dest, there, &self.more())?;
        if !runs.iter().any(|run| run.hash == self.run) {
            // Before anything is written: a full disk has no room for a note either.
            let sizes = self.plan.files.iter().map(|file| file.bytes);
            destination::check_space(&self.dest, sizes)?;
        }
        Ok(())
    }

    fn mismatch(&self, there: Option<&Identity>, finished: bool) -> Error {
        let name = self.options.on_overflow.name();
        let unknown = || vec!["of which nothing more is known".to_owned()];
        let differences =
            there.map_or_else(unknown, |it| it.differences(self.plan, self.run, name, self.sums()));
        Error::Mismatch { path: self.named.clone(), finished, differences }
    }

    /// The result is there: made by this run, or before it.
    fn done(&mut self, report: &Identity, hooks: &mut dyn Hooks) -> Result<Outcome, Error> {
        destination::check_lengths(self.plan, &self.dest, report)?;
        match self.published.take() {
            // What is there is what this run made, and not another of the same recipes.
            Some(Outcome::Made { made, resumed_files, verified }) if made.files == report.files => {
                return Ok(Outcome::Made { made, resumed_files, verified });
            }
            _ => {}
        }
        let threads = self.options.threads;
        let progress = &mut |done, total| hooks.progress(done, total);
        let compared =
            destination::check_content(self.plan, &self.dest, report, threads, progress)?;
        let path = self.dest.join(REPORT);
        let text = seal::read_own(&path, MAX_REPORT)?.unwrap_or_default();
        let summary = serde_json::from_slice::<Summary>(&text).ok();
        let summary = summary.filter(|summary| summary.audit.is_some());
        let summary = summary.ok_or(Error::Damaged { path })?;
        Ok(Outcome::Done { summary, compared, completed: self.completed })
    }

    /// Makes the destination and sets this run up in it.
    fn set_up(&mut self) -> Result<(), Error> {
        if self.created.is_empty() {
            let missing = self.dest.ancestors().take_while(|path| !path.exists());
            self.created = missing.map(Path::to_owned).collect();
        }
        fs::create_dirs_anywhere(&self.dest)?;
        if self.options.sync {
            for parent in self.created.iter().filter_map(|path| path.parent()) {
                fs::sync_dir(parent)?;
            }
        }
        self.folder.create()?;
        let name = self.options.on_overflow.name();
        let about = Identity::begun(self.plan, self.run, name, self.sums());
        let (run, exclusive) = self.folder.set_up(&about, self.seen.unwrap_or_default())?;
        self.mine = Some(run);
        self.hold(exclusive)
    }

    /// Takes the lock where the system does not make sure that a rename replaces nothing.
    fn hold(&mut self, exclusive: bool) -> Result<(), Error> {
        self.is_alone = true;
        if !exclusive && self.lock.is_none() {
            let path = self.folder.lock();
            self.lock = fs::lock(&path).map_err(|error| match error.kind() {
                ErrorKind::WouldBlock => Error::Busy { path: self.named.clone() },
                _ => Error::create(&path)(error),
            })?;
        }
        Ok(())
    }

    /// Whether an error says only that a run's files were moved away meanwhile.
    fn is_gone(&self, error: &Error) -> bool {
        let (path, source) = match error {
            Error::Io { path, source, .. } | Error::Create { path, source } => (path, source),
            _ => return false,
        };
        fs::is_missing(source) && path.starts_with(self.folder.path())
    }

    fn give_up_staged(&mut self) -> Result<(), Error> {
        self.mine.take().map_or(Ok(()), |run| self.folder.displace(&run))
    }
}

//! A conversion: it looks at what is there, does what comes next, and looks again, until its result
//! is there or may not be. Whatever happens between two looks, the next one sees it.

use std::io::ErrorKind;
use std::path::Path;

use super::destination::{self, Destination};
use super::folder::{Contents, RunName};
use super::own_files::read_own;
use super::publish;
use super::stage::{Stage, State};
use super::terms::{Hooks, Outcome};
use super::work::{Conversion, Verdict};
use crate::checkpoint::{MAX_REPORT, REPORT};
use crate::error::{DestinationFault, Difference, Error};
use crate::fs;
use crate::report::{Identity, Summary};

/// How often a source may seem to change between two looks before a run gives up.
const LOOKS: usize = 16;
/// How often a run looks again before it says that it gets nowhere.
const ROUNDS: usize = 1000;

pub enum Next {
    Again,
    Ended(Box<Outcome>),
}

impl Conversion<'_> {
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
                return Err(Error::Stopped);
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
                self.restore(run, error, hooks)?;
                return Ok(Next::Again);
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
        let stage = Stage::new(self.plan, folder, self.options.sync, self.access);
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
                Err(Error::Damaged { .. } | Error::OtherResult { .. })
                    if self.options.overwrite =>
                {
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

    pub(super) fn check_first(&self, there: &Destination, runs: &[RunName]) -> Result<(), Error> {
        if !self.options.overwrite {
            if let Some(report) = &there.report {
                let differences = self.differences(Some(report));
                return Err(Error::OtherResult { path: self.named.clone(), differences });
            }
            if !there.files.is_empty() {
                let fault = DestinationFault::NotEmpty;
                return Err(Error::Destination { path: self.named.clone(), fault });
            }
            if let Some(other) = runs.iter().find(|run| run.hash != self.run) {
                let about = self.folder.run(other).about()?;
                let differences = self.differences(about.as_ref());
                return Err(Error::OtherRun { path: self.named.clone(), differences });
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

    fn differences(&self, there: Option<&Identity>) -> Vec<Difference> {
        let name = self.options.on_overflow.name();
        let unknown = || vec![Difference::Unknown];
        there.map_or_else(unknown, |it| it.differences(self.plan, self.run, name, self.sums()))
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
        let text = read_own(&path, MAX_REPORT)?.unwrap_or_default();
        let summary = serde_json::from_slice::<Summary>(&text).ok();
        let summary = summary.filter(|summary| summary.audit.is_some());
        let summary = summary.ok_or(Error::Damaged { path })?;
        Ok(Outcome::Done { summary, compared, completed: self.completed })
    }

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
        let about = Identity::planned(self.plan, self.run, name, self.sums());
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

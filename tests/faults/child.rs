//! This program once more, as a run that something happens to.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use recast::checkpoint::Checkpoint;
use recast::commit::{self, Outcome};
use recast::dtype::Float;
use recast::error::Error;
use recast::fs::fault::{self, Fault, Lack};
use recast::plan::{self, Plan};

/// The environment variable that makes this program such a run.
const CHILD: &str = "RECAST_FAULT_CHILD";

/// A conversion.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    pub source: &'a Path,
    pub dest: &'a Path,
    pub to: Float,
    pub overwrite: bool,
    pub threads: usize,
    pub lack: Lack,
}

impl Run<'_> {
    /// Carries it out; whether the result was made now, or was there.
    pub fn convert(&self) -> Result<&'static str, Error> {
        fault::pretend(self.lack);
        let checkpoint = Checkpoint::open(self.source, None)?;
        let plan = Plan::new(&checkpoint, &plan::Options::to(self.to))?;
        let options = commit::Options {
            threads: Some(self.threads),
            overwrite: self.overwrite,
            ..commit::Options::default()
        };
        let result = commit::convert(&plan, self.dest, &options, &mut |_, _| true);
        match result.map_err(|(error, _)| error)? {
            Outcome::Made { .. } => Ok("made"),
            Outcome::Done { .. } => Ok("already done"),
            Outcome::Rejected(_) => unreachable!("nothing judges it"),
        }
    }

    /// The same in a process of its own, to which `fault` happens at a point.
    pub fn start(&self, at: usize, fault: &str) -> Child {
        let Run { source, dest, to, overwrite, threads, lack } = self;
        let (source, dest) = (source.display(), dest.display());
        let lack = *lack == Lack::ExclusiveRename;
        let arguments =
            format!("{source}\n{dest}\n{to}\n{overwrite}\n{threads}\n{lack}\n{at}\n{fault}");
        let this = std::env::current_exe().expect("this program");
        let command = &mut Command::new(this);
        command.env(CHILD, arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("started")
    }
}

/// Is such a run, when this program was started as one.
pub fn be_one() -> bool {
    #[expect(clippy::disallowed_methods, reason = "of this test only")]
    let Ok(arguments) = std::env::var(CHILD) else { return false };
    let mut arguments = arguments.lines();
    let mut next = || arguments.next().expect("an argument");
    let (source, dest) = (PathBuf::from(next()), PathBuf::from(next()));
    let to = Float::parse(next()).expect("a dtype");
    let (overwrite, threads) = (next() == "true", next().parse().expect("a number"));
    let lack = if next() == "true" { Lack::ExclusiveRename } else { Lack::Nothing };
    let at = next().parse().expect("a number");
    let fault = match next() {
        "abort" => Some(Fault::Abort),
        "freeze" => Some(Fault::Freeze),
        _ => None,
    };
    if let Some(fault) = fault {
        fault::arm(at, fault);
    }
    let run = Run { source: &source, dest: &dest, to, overwrite, threads, lack };
    match run.convert() {
        Ok(what) => print!("{what}"),
        Err(error) => {
            eprint!("{error}");
            std::process::exit(1);
        }
    }
    true
}

/// How a process ended, and what it said.
pub fn ended(child: Child) -> (bool, String) {
    let output = child.wait_with_output().expect("ended");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    (output.status.success(), said)
}

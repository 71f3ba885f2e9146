//! File systems that lack something: one at a time where a rename may replace, and no two files of
//! one name where case does not count.

use std::fs;
use std::path::Path;

use recast::dtype::Float;
use recast::error::{DestinationFault, Error};
use recast::fs::fault::Lack;
use rustix::process::{Pid, Signal, kill_process};

use crate::child::{Run, ended};
use crate::frozen::stands_still;
use crate::trees::{self, assert_same, is_loadable, model, tree};

pub fn run(root: &Path) {
    one_at_a_time(root);
    names_in_two_cases(root);
}

/// A run is stopped before every call, and another begins: it is refused, or it ends before the
/// first goes on; in the end there is a whole model. Where the first is killed, nobody waits for it.
fn one_at_a_time(root: &Path) {
    let (source, dest) = (root.join("one"), root.join("one-out"));
    trees::single(&source);
    let (to, lack) = (Float::Bf16, Lack::ExclusiveRename);
    let run = Run { source: &source, dest: &dest, to, overwrite: false, threads: 1, lack };
    run.convert().expect("an undisturbed run");
    let expected = tree(&dest);
    let (mut points, mut refused) = (0, 0);
    for at in 1.. {
        fs::remove_dir_all(&dest).expect("removed");
        let child = run.start(at, "freeze");
        if !stands_still(&child) {
            assert!(ended(child).0, "the last");
            break;
        }
        let second = run.convert();
        match second {
            Err(Error::Busy { .. }) => refused += 1,
            result => drop(result.unwrap_or_else(|error| panic!("at {at}: {error}"))),
        }
        let found = model(&dest);
        assert!(!is_loadable(&found) || found == expected, "at {at}: half a model");
        let signal = if at % 2 == 0 { Signal::CONT } else { Signal::KILL };
        kill_process(Pid::from_child(&child), signal).expect("sent");
        let (done, said) = ended(child);
        assert!(done || signal == Signal::KILL, "at {at}: {said}");
        run.convert().unwrap_or_else(|error| panic!("at {at}: the rerun: {error}"));
        assert_same(&tree(&dest), &expected, &format!("at {at}"));
        points += 1;
    }
    fs::remove_dir_all(&dest).expect("removed");
    assert!(refused > points / 2, "{refused} of {points} were refused");
    println!("file systems: {points} points without exclusive renames, {refused} seconds refused");
}

fn names_in_two_cases(root: &Path) {
    let (source, dest) = (root.join("case"), root.join("case-out"));
    trees::single(&source);
    let (to, lack) = (Float::Bf16, Lack::Case);
    let run = Run { source: &source, dest: &dest, to, overwrite: false, threads: 1, lack };
    run.convert().expect("names that differ");
    fs::remove_dir_all(&dest).expect("removed");
    fs::write(source.join("Config.json"), "{}").expect("written");
    let error = run.convert().expect_err("two names for one file");
    let fault = DestinationFault::SameButForCase;
    assert_eq!(error.to_string(), format!("config.json: {fault}"), "{error}");
    assert!(!dest.exists(), "nothing is left");
    Run { lack: Lack::Nothing, ..run }.convert().expect("case counts");
    fs::remove_dir_all(&dest).expect("removed");
    // Where the report would not be told from a file of the source.
    fs::remove_file(source.join("Config.json")).expect("removed");
    fs::write(source.join("RECAST.json"), "{}").expect("written");
    let error = run.convert().expect_err("the report is that file");
    assert!(error.to_string().ends_with(&fault.to_string()), "{error}");
    println!("file systems: names that differ only in case are refused where case does not count");
}

//! A run is stopped before every call to the file system, others come and go, and it goes on: it
//! loses nothing and spoils nothing, and says what happened.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;

use recast::dtype::Float;
use recast::fs::fault::Lack;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::child::{Run, ended};
use crate::trees::{self, Tree, assert_same, copy, is_loadable, model, tree};

/// What happens while the run stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    /// The same command, to its end.
    Same,
    /// Another conversion that replaces whatever is there, to its end.
    Other,
    /// The other, which is killed at some call.
    OtherKilled,
}

struct Layout<'a> {
    name: &'static str,
    run: Run<'a>,
    before: Option<PathBuf>,
}

pub fn run(root: &Path, quick: bool) {
    let (source, other, dest) = (root.join("frozen"), root.join("frozen-old"), root.join("out"));
    trees::single(&source);
    fs::write(source.join("tokenizer.json"), "{}").expect("written");
    trees::nested(&other);
    let old = root.join("frozen-before");
    let (to, lack) = (Float::Bf16, Lack::Nothing);
    let run = Run { source: &source, dest: &dest, to, overwrite: false, threads: 1, lack };
    Run { source: &other, dest: &old, ..run }.convert().expect("the old model");
    let layouts = [
        Layout { name: "a new model", run, before: None },
        Layout { name: "an old model", run: Run { overwrite: true, ..run }, before: Some(old) },
    ];
    let mut total = 0;
    for layout in &layouts {
        for meanwhile in [Meanwhile::Same, Meanwhile::Other, Meanwhile::OtherKilled] {
            if quick && (layout.before.is_none() || meanwhile != Meanwhile::Other) {
                continue;
            }
            let mut said = BTreeMap::new();
            let count = every_point(layout, meanwhile, &mut said);
            println!("frozen: {}, {meanwhile:?}: {count} points: {said:?}", layout.name);
            total += count;
        }
    }
    println!("frozen: {total} points in all, each followed by a whole result");
}

/// The tree that a run makes where nothing is.
fn expected(run: &Run<'_>) -> Tree {
    let _ = fs::remove_dir_all(run.dest);
    Run { overwrite: false, ..*run }.convert().expect("an undisturbed run");
    let found = tree(run.dest);
    fs::remove_dir_all(run.dest).expect("removed");
    found
}

fn every_point(
    layout: &Layout<'_>,
    meanwhile: Meanwhile,
    said: &mut BTreeMap<String, usize>,
) -> usize {
    let first = layout.run;
    let second = match meanwhile {
        Meanwhile::Same => first,
        _ => Run { to: Float::F16, overwrite: true, ..first },
    };
    let (firsts, seconds) = (expected(&first), expected(&second));
    let before = layout.before.as_deref().map(tree);
    // Before it has looked at the destination, it is as good as started after the others.
    let mut has_looked = !first.overwrite || meanwhile == Meanwhile::Same;
    for at in 1.. {
        let what = format!("{}, {meanwhile:?}, at {at}", layout.name);
        let _ = fs::remove_dir_all(first.dest);
        if let Some(before) = &layout.before {
            copy(before, first.dest);
        }
        let child = first.start(at, "freeze");
        if !stands_still(&child) {
            ended(child);
            assert_same(&tree(first.dest), &firsts, &format!("{what}: undisturbed"));
            return at - 1;
        }
        // What it has published may make way for the other before it says so.
        if meanwhile == Meanwhile::OtherKilled {
            // Somewhere else each time, also after its end.
            ended(second.start(1 + at * 37 % 400, "abort"));
        } else {
            let (done, said) = ended(second.start(0, "nothing"));
            assert!(done, "{what}: the second run: {said}");
            assert_same(&model(first.dest), &seconds, &format!("{what}: the second run's result"));
        }
        let middle = model(first.dest);
        let is_whole =
            |found: &Tree| *found == firsts || *found == seconds || before.as_ref() == Some(found);
        assert!(is_whole(&middle) || !is_loadable(&middle), "{what}: half a model");
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::CONT).expect("goes on");
        let (done, text) = ended(child);
        let found = model(first.dest);
        let names = found.keys().collect::<Vec<_>>();
        if !has_looked && meanwhile == Meanwhile::Other {
            has_looked = !(done && found == firsts);
        }
        match meanwhile {
            Meanwhile::OtherKilled => {
                assert!(
                    is_whole(&found) || !is_loadable(&found),
                    "{what}: half a model: {names:?}"
                );
                // It may have looked last before the other took it apart, which loses nothing.
                let all = tree(first.dest);
                let is_there = |(name, bytes): (&PathBuf, &Vec<u8>)| {
                    let kept = Path::new("old").join(name);
                    all.iter().any(|(path, other)| {
                        other == bytes && (path == name || path.ends_with(&kept))
                    })
                };
                let is_kept = found == seconds || firsts.iter().all(is_there);
                assert!(!done || is_kept, "{what}: it says done, and there is {names:?}");
            }
            _ if !has_looked => {}
            _ => {
                assert_same(&found, &seconds, &format!("{what}: the second run's result after it"))
            }
        }
        // An error says what happened; its first line without the path is enough here.
        let text = text.lines().next().unwrap_or_default().to_owned();
        let text = text.rsplit_once(": ").map_or(text.clone(), |(_, text)| text.to_owned());
        *said.entry(text).or_default() += 1;
        second.convert().unwrap_or_else(|error| panic!("{what}: the rerun: {error}"));
        assert_same(&tree(first.dest), &seconds, &format!("{what}: the rerun"));
    }
    unreachable!()
}

/// Waits until a process stands still; not, when it came to its end.
pub fn stands_still(child: &Child) -> bool {
    let pid = WaitId::Pid(Pid::from_child(child));
    // Only looked at: whoever waits for its end later must find it.
    let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let status = waitid(pid, options).expect("a child").expect("waited");
    status.stopped()
}

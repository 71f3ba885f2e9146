//! Every call fails once, or is the last: after each, what is in the destination is a right model
//! or none, and the same run done again makes the tree that an undisturbed run makes.

use std::fs;
use std::path::{Path, PathBuf};

use recast::dtype::Float;
use recast::error::Error;
use recast::fs::fault::{self, Fault, Lack};

use crate::child::{Run, ended};
use crate::trees::{self, Tree, copy, is_loadable, model, tree};

struct Layout {
    name: &'static str,
    source: PathBuf,
    /// What the destination holds before the run.
    before: Option<PathBuf>,
    overwrite: bool,
    lack: Lack,
    expected: Tree,
}

/// The layouts that `quick` leaves in: a new model in folders, and an old one replaced by it.
const QUICK: [&str; 2] = ["nested", "overwritten"];

pub fn run(root: &Path, quick: bool) {
    let mut total = 0;
    for layout in layouts(root) {
        if quick && !QUICK.contains(&layout.name) {
            continue;
        }
        let mut counts = Vec::new();
        for fault in [Fault::Abort, Fault::Eio, Fault::Enospc] {
            counts.push(every_point(root, &layout, fault));
        }
        println!("faults: {} points, {counts:?} for abort, EIO, ENOSPC", layout.name);
        total += counts.iter().sum::<usize>();
    }
    println!("faults: {total} points in all, each followed by a rerun that made the right tree");
}

fn plain<'a>(source: &'a Path, dest: &'a Path, to: Float) -> Run<'a> {
    Run { source, dest, to, overwrite: false, threads: 2, lack: Lack::Nothing }
}

fn layouts(root: &Path) -> Vec<Layout> {
    let places = ["single", "sharded", "nested"].map(|name| root.join(name));
    let [single, sharded, nested] = &places;
    trees::single(single);
    trees::sharded(sharded);
    trees::nested(nested);
    let expected = |source: &Path| {
        let dest = root.join("expected");
        plain(source, &dest, Float::Bf16).convert().expect("an undisturbed run");
        let found = tree(&dest);
        fs::remove_dir_all(&dest).expect("removed");
        found
    };
    let clean = |name, source: &PathBuf| Layout {
        name,
        source: source.clone(),
        before: None,
        overwrite: false,
        lack: Lack::Nothing,
        expected: expected(source),
    };
    let mut layouts =
        vec![clean("single file", single), clean("sharded", sharded), clean("nested", nested)];
    // The same run, killed when half of its files were staged.
    let half = root.join("half");
    kill_when(&plain(sharded, &half, Float::Bf16), |staged| staged >= 4);
    layouts.push(Layout { name: "resumed", before: Some(half), ..clean("", sharded) });
    let old = root.join("old");
    plain(nested, &old, Float::F16).convert().expect("the old model");
    let overwritten = |name, lack| Layout {
        name,
        before: Some(old.clone()),
        overwrite: true,
        lack,
        ..clean("", nested)
    };
    layouts.push(overwritten("overwritten", Lack::Nothing));
    layouts.push(overwritten("overwritten, without exclusive renames", Lack::ExclusiveRename));
    layouts
}

/// Kills runs ever later until enough files are sealed.
pub fn kill_when(run: &Run<'_>, enough: impl Fn(usize) -> bool) {
    for at in 1.. {
        let _ = fs::remove_dir_all(run.dest);
        assert!(!ended(run.start(at, "abort")).0, "died before it was done");
        let is_seal = |path: &PathBuf| path.parent().is_some_and(|parent| parent.ends_with("seal"));
        if enough(tree(run.dest).keys().filter(|path| is_seal(path)).count()) {
            return;
        }
    }
}

/// Runs once for every point, and gives how many there were.
fn every_point(root: &Path, layout: &Layout, fault: Fault) -> usize {
    let dest = root.join("dest");
    let (source, to, threads) = (layout.source.as_path(), Float::Bf16, 2);
    let (overwrite, lack) = (layout.overwrite, layout.lack);
    let run = Run { source, dest: &dest, to, overwrite, threads, lack };
    let old = layout.before.as_deref().filter(|_| layout.overwrite).map(tree);
    for at in 1.. {
        let what = format!("{}, {fault:?} at {at}", layout.name);
        if let Some(before) = &layout.before {
            copy(before, &dest);
        }
        let survived = if fault == Fault::Abort {
            ended(run.start(at, "abort")).0
        } else {
            fault::arm(at, fault);
            let result = run.convert();
            let passed = fault::disarm();
            if let Err(error) = &result {
                assert!(
                    matches!(error, Error::Io { .. } | Error::Full { .. } | Error::Create { .. }),
                    "{what}: {error}"
                );
            }
            passed < at
        };
        check_whole(layout, &dest, old.as_ref(), &what);
        Run { overwrite: layout.overwrite && !survived, ..run }
            .convert()
            .unwrap_or_else(|error| panic!("{what}: the rerun: {error}"));
        let found = tree(&dest);
        let names = found.keys().collect::<Vec<_>>();
        assert!(found == layout.expected, "{what}: the rerun made another tree: {names:?}");
        fs::remove_dir_all(&dest).expect("removed");
        if survived {
            return at - 1;
        }
    }
    unreachable!()
}

/// Where the file that makes a directory a model is there, all of it is.
fn check_whole(layout: &Layout, dest: &Path, old: Option<&Tree>, what: &str) {
    let found = model(dest);
    let whole = found == layout.expected || old.is_some_and(|old| found == *old);
    let names = found.keys().collect::<Vec<_>>();
    assert!(whole || !is_loadable(&found), "{what}: half a model: {names:?}");
}

//! What a power cut, or somebody, leaves of a run's folder: the same run makes the right tree of it.

use std::fs;
use std::path::{Path, PathBuf};

use recast::dtype::Float;
use recast::fs::fault::Lack;

use crate::child::Run;
use crate::every_call::kill_when;
use crate::trees::{self, assert_same, copy, tree};

type Spoil = fn(&Path);

/// What happens to the folder of a run, which holds `new`, `seal` and notes.
const WAYS: [(&str, Spoil); 9] = [
    ("a seal that is cut short", |run| cut(&first(&run.join("seal")))),
    ("a seal that is empty", |run| fs::write(first(&run.join("seal")), "").expect("written")),
    ("a seal that is lost", |run| fs::remove_file(first(&run.join("seal"))).expect("removed")),
    ("a seal of another file", |run| {
        let seals = files(&run.join("seal"));
        let config = seals.iter().max_by_key(|path| fs::read(path).expect("read").len());
        fs::copy(config.expect("a seal"), first(&run.join("seal"))).expect("copied");
    }),
    ("a file that is cut short", |run| cut(&first(&run.join("new")))),
    ("a file that is lost", |run| fs::remove_file(first(&run.join("new"))).expect("removed")),
    ("notes that are empty", |run| {
        for note in ["replaces", "about.json"] {
            fs::write(run.join(note), "").expect("written");
        }
    }),
    ("a folder that is lost", |run| fs::remove_dir_all(run.join("seal")).expect("removed")),
    ("a verification that is cut short", |run| {
        fs::write(run.join("verified.json"), "{").expect("written");
    }),
];

pub fn run(root: &Path) {
    let (source, half, dest) = (root.join("spoiled"), root.join("spoiled-half"), root.join("dest"));
    trees::sharded(&source);
    let (to, lack) = (Float::Bf16, Lack::Nothing);
    let run = Run { source: &source, dest: &dest, to, overwrite: false, threads: 1, lack };
    run.convert().expect("an undisturbed run");
    let expected = tree(&dest);
    kill_when(&Run { dest: &half, ..run }, |staged| staged >= 4);
    for (what, spoil) in WAYS {
        fs::remove_dir_all(&dest).expect("removed");
        copy(&half, &dest);
        let folder = fs::read_dir(dest.join(".recast")).expect("listed").flatten().next();
        let folder = folder.expect("a run").path();
        let inner = fs::read_dir(&folder).expect("listed").flatten().next().expect("a run").path();
        spoil(&inner);
        run.convert().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_same(&tree(&dest), &expected, what);
    }
    fs::remove_dir_all(&dest).expect("removed");
    println!("spoiled: {} folders, each followed by a run that made the right tree", WAYS.len());
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("listed").flatten().map(|entry| entry.path());
    let mut found: Vec<PathBuf> = entries.filter(|path| path.is_file()).collect();
    found.sort();
    found
}

fn first(folder: &Path) -> PathBuf {
    files(folder).remove(0)
}

fn cut(path: &Path) {
    let bytes = fs::read(path).expect("read");
    fs::write(path, &bytes[..bytes.len() / 2]).expect("written");
}

//! Every call to the file system of a whole run is made to fail, and to be the last one before the
//! process dies; after each, what is in the destination is a right model or none, and the same run
//! done again makes the tree that an undisturbed run makes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use recast::checkpoint::Checkpoint;
use recast::dtype::Float;
use recast::error::Error;
use recast::fault::{self, Fault};
use recast::plan::{self, Plan};
use recast::run;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// The environment variable that makes this program the run that dies at a point.
const CHILD: &str = "RECAST_FAULT_CHILD";

struct Layout {
    name: &'static str,
    source: PathBuf,
    /// What the destination holds before the run.
    before: Option<PathBuf>,
    overwrite: bool,
    expected: Tree,
}

fn main() {
    if let Ok(child) = std::env::var(CHILD) {
        return die(&child);
    }
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let root = base.join(format!("recast-faults-{}", std::process::id()));
    fs::create_dir_all(&root).expect("a folder for the test");
    let mut total = 0;
    for layout in layouts(&root) {
        let mut counts = Vec::new();
        for fault in [Fault::Abort, Fault::Eio, Fault::Enospc] {
            counts.push(every_point(&root, &layout, fault));
        }
        println!("faults: {} points, {counts:?} for abort, EIO, ENOSPC", layout.name);
        total += counts.iter().sum::<usize>();
    }
    println!("faults: {total} points in all, each followed by a rerun that made the right tree");
    fs::remove_dir_all(&root).expect("removed");
}

fn layouts(root: &Path) -> Vec<Layout> {
    let single = root.join("single");
    shard(&single.join("model.safetensors"), 1);
    fs::write(single.join("config.json"), r#"{"torch_dtype": "float32"}"#).expect("written");
    let sharded = root.join("sharded");
    let mut map = Vec::new();
    for number in 1..=4 {
        let name = format!("model-{number:05}-of-00004.safetensors");
        shard(&sharded.join(&name), number);
        map.push(format!("\"{number}.a\": \"{name}\", \"{number}.b\": \"{name}\""));
    }
    let index = format!("{{\"weight_map\": {{{}}}}}", map.join(", "));
    fs::write(sharded.join("model.safetensors.index.json"), index).expect("written");
    fs::write(sharded.join("config.json"), r#"{"dtype": "float32"}"#).expect("written");
    fs::write(sharded.join("tokenizer.json"), "{}").expect("written");
    let nested = root.join("nested");
    for (number, part) in [(5, "unet"), (6, "vae/decoder")] {
        shard(&nested.join(part).join("diffusion.safetensors"), number);
        let config = nested.join(part).join("config.json");
        fs::write(config, r#"{"dtype": "float32"}"#).expect("written");
    }
    fs::write(nested.join("model_index.json"), "{}").expect("written");
    let expected = |source: &Path| {
        let dest = root.join("expected");
        convert(source, &dest, Float::Bf16, false).expect("an undisturbed run");
        let found = tree(&dest);
        fs::remove_dir_all(&dest).expect("removed");
        found
    };
    let clean = |name, source: &PathBuf| Layout {
        name,
        source: source.clone(),
        before: None,
        overwrite: false,
        expected: expected(source),
    };
    let mut layouts =
        vec![clean("single file", &single), clean("sharded", &sharded), clean("nested", &nested)];
    // The same run, killed when half of its files were staged.
    let half = root.join("half");
    kill_where(&sharded, &half, |dest| dest.join(".recast/journal"), 3);
    layouts.push(Layout { name: "resumed", before: Some(half), ..clean("", &sharded) });
    let old = root.join("old");
    convert(&nested, &old, Float::F16, false).expect("the old model");
    layouts.push(Layout {
        name: "overwritten",
        before: Some(old),
        overwrite: true,
        ..clean("", &nested)
    });
    layouts
}

/// Kills runs ever later until `file` has more than `lines` lines.
fn kill_where(source: &Path, dest: &Path, file: impl Fn(&Path) -> PathBuf, lines: usize) {
    for at in 1.. {
        let _ = fs::remove_dir_all(dest);
        assert!(!run_child(source, dest, at, false), "died before it was done");
        let text = fs::read_to_string(file(dest)).unwrap_or_default();
        if text.lines().count() > lines {
            return;
        }
    }
}

/// Runs once for every point, and gives how many there were.
fn every_point(root: &Path, layout: &Layout, fault: Fault) -> usize {
    let dest = root.join("dest");
    let old = layout.before.as_deref().filter(|_| layout.overwrite).map(tree);
    for at in 1.. {
        let what = format!("{}, {fault:?} at {at}", layout.name);
        if let Some(before) = &layout.before {
            copy(before, &dest);
        }
        let survived = if fault == Fault::Abort {
            run_child(&layout.source, &dest, at, layout.overwrite)
        } else {
            fault::arm(at, fault);
            let result = convert(&layout.source, &dest, Float::Bf16, layout.overwrite);
            let passed = fault::disarm();
            if let Err(error) = &result {
                assert!(
                    matches!(error, Error::Io { .. } | Error::Create { .. }),
                    "{what}: {error}"
                );
            }
            passed < at
        };
        check_whole(layout, &dest, old.as_ref(), &what);
        convert(&layout.source, &dest, Float::Bf16, layout.overwrite && !survived)
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
    let mut found = tree(dest);
    found.retain(|path, _| !path.starts_with(".recast") && path != Path::new("recast.json"));
    if !["config.json", "model_index.json"].iter().any(|name| found.contains_key(Path::new(name))) {
        return;
    }
    let is = |tree: &Tree| {
        let mut tree = tree.clone();
        tree.remove(Path::new("recast.json"));
        found == tree
    };
    let whole = is(&layout.expected) || old.is_some_and(is);
    assert!(whole, "{what}: half a model: {:?}", found.keys().collect::<Vec<_>>());
}

/// Whether a run that dies at a point was done before it came there.
fn run_child(source: &Path, dest: &Path, at: usize, overwrite: bool) -> bool {
    let arguments = format!("{}\n{}\n{at}\n{overwrite}", source.display(), dest.display());
    let this = std::env::current_exe().expect("this program");
    let output = Command::new(this).env(CHILD, arguments).output().expect("started");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "at {at}: {text}");
    output.status.success()
}

fn die(arguments: &str) {
    let mut arguments = arguments.lines();
    let mut next = || arguments.next().expect("an argument");
    let (source, dest) = (PathBuf::from(next()), PathBuf::from(next()));
    fault::arm(next().parse().expect("a number"), Fault::Abort);
    convert(&source, &dest, Float::Bf16, next() == "true").expect("nothing fails");
}

fn convert(source: &Path, dest: &Path, to: Float, overwrite: bool) -> Result<(), Error> {
    let checkpoint = Checkpoint::open(source)?;
    let options = plan::Options { to, keep: vec![], auto_keep: true };
    let plan = Arc::new(Plan::new(&checkpoint, &options)?);
    let options = run::Options { threads: Some(2), overwrite, ..run::Options::default() };
    let Some(mut staged) = run::stage(&plan, dest, &options, &mut |_| true)? else { return Ok(()) };
    staged.publish()?;
    let report = format!("{{\"identity\": {}}}", staged.identity);
    staged.finish(&report)
}

fn shard(path: &Path, number: usize) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("made");
    let data: Vec<u8> = (0..4000u32)
        .flat_map(|index| (index as f32 * 0.37 + number as f32).to_le_bytes())
        .collect();
    let view = |shape: Vec<usize>, bytes: &'static [u8]| {
        TensorView::new(Dtype::F32, shape, bytes).expect("right")
    };
    let data: &'static [u8] = data.leak();
    let tensors = [
        (format!("{number}.a"), view(vec![2000], &data[..8000])),
        (format!("{number}.b"), view(vec![2, 1000], &data[8000..])),
    ];
    safetensors::serialize_to_file(tensors, None, path).expect("written");
}

fn tree(root: &Path) -> Tree {
    let mut found = Tree::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("listed").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).expect("read");
                found.insert(path.strip_prefix(root).expect("below").to_owned(), bytes);
            }
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in tree(from) {
        let to = to.join(path);
        fs::create_dir_all(to.parent().expect("a folder")).expect("made");
        fs::write(to, bytes).expect("written");
    }
}

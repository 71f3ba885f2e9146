//! Models to convert, and trees of files as data.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

pub type Tree = BTreeMap<PathBuf, Vec<u8>>;

/// A folder of the kind that tests are quick in.
pub fn root() -> PathBuf {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    let root = base.join(format!("recast-faults-{}", std::process::id()));
    fs::create_dir_all(&root).expect("a folder for the test");
    root
}

/// A shard and a config.
pub fn single(path: &Path) {
    shard(&path.join("model.safetensors"), 1);
    fs::write(path.join("config.json"), r#"{"torch_dtype": "float32"}"#).expect("written");
}

/// Four shards with an index, a config and a tokenizer.
pub fn sharded(path: &Path) {
    let mut map = Vec::new();
    for number in 1..=4 {
        let name = format!("model-{number:05}-of-00004.safetensors");
        shard(&path.join(&name), number);
        map.push(format!("\"{number}.a\": \"{name}\", \"{number}.b\": \"{name}\""));
    }
    let index = format!("{{\"weight_map\": {{{}}}}}", map.join(", "));
    fs::write(path.join("model.safetensors.index.json"), index).expect("written");
    fs::write(path.join("config.json"), r#"{"dtype": "float32"}"#).expect("written");
    fs::write(path.join("tokenizer.json"), "{}").expect("written");
}

/// A pipeline with models in folders.
pub fn nested(path: &Path) {
    for (number, part) in [(5, "unet"), (6, "vae/decoder")] {
        shard(&path.join(part).join("diffusion.safetensors"), number);
        let config = path.join(part).join("config.json");
        fs::write(config, r#"{"dtype": "float32"}"#).expect("written");
    }
    fs::write(path.join("model_index.json"), "{}").expect("written");
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

/// Every file below a folder.
pub fn tree(root: &Path) -> Tree {
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

/// The files of the model in a folder: those of recast's own folder aside.
pub fn model(root: &Path) -> Tree {
    let mut found = tree(root);
    found.retain(|path, _| !path.starts_with(".recast"));
    found
}

/// Whether a loader would take a tree for a model.
pub fn is_loadable(tree: &Tree) -> bool {
    ["config.json", "model_index.json"].iter().any(|name| tree.contains_key(Path::new(name)))
}

/// Fails when two trees are not the same, and names the files that are not.
pub fn assert_same(found: &Tree, expected: &Tree, what: &str) {
    let names = found.keys().chain(expected.keys());
    let mut others: Vec<_> = names.filter(|name| found.get(*name) != expected.get(*name)).collect();
    others.dedup();
    assert!(others.is_empty(), "{what}: {others:?}");
}

/// A copy of a folder, empty folders too.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("listed") {
        let path = entry.expect("listed").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).expect("copied");
        }
    }
}

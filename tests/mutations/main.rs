//! Thousands of damaged files, the same ones every time: no reader panics or hangs, and a header
//! is accepted exactly when the official library accepts it, a written-down list of differences
//! aside (docs/architecture.md).
//!
//! `RECAST_MUTATIONS=1000000 RECAST_SEED=7 cargo test --release --test mutations` looks further.

mod damage;
mod tree;

use std::collections::HashMap;
use std::path::Path;

use recast::checkpoint::{Checkpoint, Kind};
use recast::dtype::Float;
use recast::format::config::{Config, Stated};
use recast::format::index::Index;
use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use serde::Deserialize;
use serde_json::{Value, json};

use damage::{Random, files, join, mutate_file, mutate_text};
use tree::{Tree, of_python};

#[expect(clippy::disallowed_methods, reason = "of this test only")]
fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// Runs `check` on the numbered mutations; a panic in it says which one it was.
fn for_each_mutation(mut check: impl FnMut(&mut Random)) {
    let seed = from_environment("RECAST_SEED", 0);
    for number in 0..from_environment("RECAST_MUTATIONS", 20_000) {
        let mut random = Random(seed.wrapping_mul(0x1_0000_0001).wrapping_add(number << 20));
        let run = std::panic::AssertUnwindSafe(|| check(&mut random));
        if let Err(panic) = std::panic::catch_unwind(run) {
            eprintln!("at mutation {number} of seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// What recast must say to a file, and by which listed difference where the library says
/// otherwise.
fn expected(file: &[u8]) -> (bool, Option<&'static str>) {
    let official = SafeTensors::deserialize(file).is_ok();
    let header = file.get(..8).and_then(|length| {
        let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
        file.get(8..8_usize.checked_add(length)?)
    });
    let Some((header, tree)) = header.and_then(|header| Some((header, Tree::parse(header)?)))
    else {
        return (official, None);
    };
    let metadata_twice = tree.get("__metadata__").is_some_and(Tree::has_a_key_twice);
    if tree.has_a_key_twice() || metadata_twice {
        return (false, official.then_some("a name twice"));
    }
    let entries = || tree.members().iter().filter(|(name, _)| name != "__metadata__");
    let dtype = |entry: &Value| entry.get("dtype").or_else(|| entry.get(0)).cloned();
    if entries().any(|(_, entry)| dtype(&entry.value()).is_some_and(|dtype| dtype.is_object())) {
        return (false, official.then_some("a dtype that is an object"));
    }
    // A dtype the library does not know is to be treated like as many bytes.
    let mut known = tree.value();
    let mut renamed = false;
    for (name, entry) in entries() {
        let entry = entry.value();
        let unknown = |dtype: &Value| dtype.is_string() && Dtype::deserialize(dtype).is_err();
        if !dtype(&entry).is_some_and(|dtype| unknown(&dtype)) {
            continue;
        }
        let field = |key, at: usize| entry.get(key).or_else(|| entry.get(at)).cloned();
        let fields = field("shape", 1).zip(field("data_offsets", 2));
        let Some((shape, offsets)) = fields.and_then(|(shape, offsets)| {
            let shape: Vec<u64> = serde_json::from_value(shape).ok()?;
            Some((shape, serde_json::from_value::<(u64, u64)>(offsets).ok()?))
        }) else {
            return (false, None);
        };
        let bytes = offsets.1.saturating_sub(offsets.0);
        let elements = shape.iter().try_fold(1_u64, |product, &size| product.checked_mul(size));
        if elements
            .is_none_or(|elements| elements / 8 > bytes || elements > bytes.saturating_mul(8))
        {
            return (false, None);
        }
        let (dtype, shape) = (json!("U8"), json!([bytes]));
        let place = &mut known[name];
        if place.is_array() {
            (place[0], place[1]) = (dtype, shape);
        } else {
            (place["dtype"], place["shape"]) = (dtype, shape);
        }
        renamed = true;
    }
    if !renamed {
        return (official, None);
    }
    // The same tree loses a field that stands twice; the library is asked about that first.
    let fields_twice = entries().any(|(_, entry)| entry.has_a_key_twice());
    let text = known.to_string();
    let data = &file[8 + header.len()..];
    let accepts = !fields_twice && SafeTensors::deserialize(&join(text.as_bytes(), data)).is_ok();
    (accepts, (accepts && !official).then_some("an unknown dtype"))
}

#[test]
fn a_damaged_file_gets_the_official_librarys_verdict_and_never_a_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.safetensors");
    let files = files();
    let (mut accepted, mut rejected, mut differences) = (0, 0, HashMap::new());
    for_each_mutation(|random| {
        let file = mutate_file(&files[random.below(files.len())], random);
        std::fs::write(&path, &file).expect("written");
        let ours = Checkpoint::open(&path, None);
        // A new file each time: some file systems write one that is replaced to the disk at once.
        std::fs::remove_file(&path).expect("removed");
        let (accepts, difference) = expected(&file);
        let shown = String::from_utf8_lossy(&file[..file.len().min(400)]);
        assert_eq!(ours.is_ok(), accepts, "{:?} for {shown:?}", ours.err());
        match (&ours, difference) {
            (_, Some(difference)) => *differences.entry(difference).or_insert(0) += 1,
            (Ok(ours), None) => {
                accepted += 1;
                assert_same_content(ours, &file);
            }
            (Err(error), None) => {
                rejected += 1;
                assert!(error.to_string().contains("model.safetensors"), "{error}");
                assert_eq!(error.class(), "HeaderError", "{error}");
            }
        }
    });
    println!("{accepted} accepted, {rejected} rejected by both; different: {differences:?}");
    assert!(accepted > rejected / 50 && rejected > accepted / 50, "too few of one kind");
}

fn assert_same_content(ours: &Checkpoint, file: &[u8]) {
    let (header, official) = SafeTensors::read_metadata(file).expect("accepted before");
    let Kind::Shard(shard) = &ours.files[0].kind else { panic!("not a shard") };
    let expected = official.tensors();
    assert_eq!(shard.tensors.len(), expected.len());
    for tensor in &shard.tensors {
        let expected = expected[&tensor.name];
        let (start, end) = expected.data_offsets;
        assert_eq!(tensor.dtype.name(), expected.dtype.to_string());
        assert!(tensor.shape.iter().copied().eq(expected.shape.iter().map(|&size| size as u64)));
        assert_eq!(tensor.start, (8 + header + start) as u64);
        assert_eq!(tensor.bytes, (end - start) as u64);
    }
    let metadata = shard.metadata.clone().map(|pairs| pairs.into_iter().collect());
    assert_eq!(metadata, *official.metadata());
}

const INDEXES: [&str; 4] = [
    r#"{"metadata":{"total_size":20,"dtype":"float32"},"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#,
    "{\n  \"weight_map\": {\n    \"a\": \"x.safetensors\"\n  }\n}\n",
    r#"{"metadata":{},"weight_map":{},"other":[{"weight_map":1}],"deep":{"metadata":{"total_size":1}}}"#,
    r#"{"metadata":null,"weight_map":{"é\"":"größe.safetensors","c":"d"}}"#,
];

fn index_is_good(tree: &Tree) -> bool {
    let Some(map @ Tree::Object(members)) = tree.get("weight_map") else { return false };
    let metadata_twice = tree.get("metadata").is_some_and(Tree::has_a_key_twice);
    let stays = |name: &str| {
        let mut parts = name.split('/');
        parts.all(|part| !["", ".", ".."].contains(&part))
            && !name.chars().any(|c| "\\:\0".contains(c))
    };
    !tree.has_a_key_twice()
        && !metadata_twice
        && !map.has_a_key_twice()
        && members.iter().all(|(_, name)| matches!(name, Tree::Text(name) if stays(name)))
}

#[test]
fn a_damaged_index_is_read_as_it_stands_or_refused_and_edited_only_where_it_states_a_size() {
    let (mut accepted, mut rejected) = (0, 0);
    for_each_mutation(|random| {
        let mut bytes = random.pick(&INDEXES).as_bytes().to_vec();
        for _ in 0..=random.below(3) {
            mutate_text(&mut bytes, random);
        }
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let tree = Tree::parse_as_python(&bytes).filter(index_is_good);
        let ours = Index::parse(Path::new("model.safetensors.index.json"), bytes);
        assert_eq!(ours.is_ok(), tree.is_some(), "{:?} for {shown:?}", ours.err());
        let (Ok(ours), Some(tree)) = (ours, tree) else {
            rejected += 1;
            return;
        };
        accepted += 1;
        let stated = tree.get("weight_map").expect("good").members().iter();
        let stated = stated.map(|(tensor, shard)| (tensor.clone(), shard.value()));
        let read = ours.weight_map.iter().map(|(tensor, shard)| (tensor.clone(), json!(shard)));
        assert!(read.eq(stated), "{shown:?}");

        let mut before = tree.value();
        if !before["metadata"].is_object() {
            before["metadata"] = json!({});
        }
        let named = before["metadata"]["dtype"].as_str().and_then(Float::parse);
        before["metadata"]["total_size"] = json!(7);
        if named.is_some() {
            before["metadata"]["dtype"] = Value::Null;
        }
        let mut after: Value = serde_json::from_str(&of_python(&ours.updated(
            7,
            all_state(Float::F16),
            &|name, _| Some(name),
        )))
        .expect(&shown);
        if named.is_some() {
            after["metadata"]["dtype"] = Value::Null;
        } else if before["metadata"].get("dtype").is_none() {
            assert!(after["metadata"].get("dtype").is_none(), "{shown:?}");
        } else {
            before["metadata"]["dtype"].take();
            after["metadata"]["dtype"].take();
        }
        assert_eq!(after, before, "{shown:?}");
    });
    println!("{accepted} accepted, {rejected} rejected");
    assert!(accepted > rejected / 50 && rejected > accepted / 50, "too few of one kind");
}

const CONFIGS: [&str; 2] = [
    r#"{"dtype":"float32","text_config":{"torch_dtype":"torch.float16","n":[1.5e-3,{"dtype":"float32"}]}}"#,
    r#"{"model_type":"llama","quantization_config":null,"dtype":7,"a":{"b":{"dtype":"bf16"}}}"#,
];

#[test]
fn a_damaged_config_is_refused_or_edited_only_where_it_states_a_dtype() {
    let (mut accepted, mut rejected) = (0, 0);
    for_each_mutation(|random| {
        let mut bytes = random.pick(&CONFIGS).as_bytes().to_vec();
        for _ in 0..=random.below(3) {
            mutate_text(&mut bytes, random);
        }
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let tree = Tree::parse_as_python(&bytes);
        let ours = Config::parse(Path::new("config.json"), bytes);
        assert_eq!(ours.is_ok(), tree.is_some(), "{:?} for {shown:?}", ours.err());
        let (Ok(ours), Some(mut tree)) = (ours, tree) else {
            rejected += 1;
            return;
        };
        accepted += 1;
        state_dtype(&mut tree);
        let after: Value =
            serde_json::from_str(&of_python(&ours.updated(all_state(Float::Bf16), false)))
                .expect(&shown);
        assert_eq!(after, tree.value(), "{shown:?}");
    });
    println!("{accepted} accepted, {rejected} rejected");
    assert!(accepted > rejected / 50 && rejected > accepted / 50, "too few of one kind");
}

/// What converting to bf16 must make of a config.
fn state_dtype(tree: &mut Tree) {
    match tree {
        Tree::List(items) => items.iter_mut().for_each(state_dtype),
        Tree::Object(members) => {
            for (key, value) in
                members.iter_mut().filter(|(key, _)| key != "transformers.js_config")
            {
                if key == "dtype" || key == "torch_dtype" {
                    match &mut *value {
                        Tree::List(items) => items.iter_mut().for_each(rename),
                        Tree::Object(parts) => parts.iter_mut().for_each(|(_, part)| rename(part)),
                        value => rename(value),
                    }
                }
                state_dtype(value);
            }
        }
        _ => {}
    }
}

fn all_state(to: Float) -> Stated {
    Stated { to: Some(to), with_fp8: false }
}

/// The name of a float becomes bf16's.
fn rename(value: &mut Tree) {
    let Tree::Text(name) = value else { return };
    let plain = name.strip_prefix("torch.");
    let prefix = if plain.is_some() { "torch." } else { "" };
    let floats = ["float32", "float", "fp32", "f32", "float16", "half", "fp16", "f16"];
    let floats = floats.iter().chain(&["bfloat16", "bf16", "float64", "double", "fp64", "f64"]);
    if floats.copied().any(|float| float.eq_ignore_ascii_case(plain.unwrap_or(name))) {
        *name = format!("{prefix}bfloat16");
    }
}

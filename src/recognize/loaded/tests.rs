use super::*;

/// The shards of a listing that are not loaded, by their paths.
fn left(shards: &[&'static str], change: impl FnOnce(&mut Listing<'static>)) -> Vec<&'static str> {
    let paths = shards.iter().map(|shard| Path::new(*shard)).collect();
    let mut listing = Listing { shards: paths, ..Listing::default() };
    change(&mut listing);
    listing.not_loaded().into_iter().map(|number| shards[number]).collect()
}

fn index(listing: &mut Listing<'static>, path: &'static str, shards: &[&str]) {
    listing.indexes.insert(Path::new(path), shards.iter().map(PathBuf::from).collect());
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn transformers_takes_the_single_file_before_the_index() {
    let shards = ["model-00001-of-00001.safetensors", "model.safetensors"];
    let found = left(&shards, |it| index(it, INDEX, &["model-00001-of-00001.safetensors"]));
    assert_eq!(found, ["model-00001-of-00001.safetensors"]);
}

#[test]
fn diffusers_takes_the_index_before_the_single_file() {
    let shards = ["diffusion_pytorch_model-1.safetensors", "diffusion_pytorch_model.safetensors"];
    let found = left(&shards, |it| {
        let path = "diffusion_pytorch_model.safetensors.index.json";
        index(it, path, &["diffusion_pytorch_model-1.safetensors"]);
    });
    assert_eq!(found, ["diffusion_pytorch_model.safetensors"]);
}

#[test]
fn copies_and_variants_beside_what_is_loaded_are_left() {
    let shards = ["consolidated.safetensors", "model-1.safetensors", "model.fp16.safetensors"];
    let found = left(&shards, |it| index(it, INDEX, &["model-1.safetensors"]));
    assert_eq!(found, ["consolidated.safetensors", "model.fp16.safetensors"]);
}

#[test]
fn where_no_loader_finds_a_file_it_looks_for_all_count() {
    let shards = ["ae.safetensors", "flux.safetensors", "loras/x.safetensors"];
    assert_eq!(left(&shards, |_| ()), [""; 0]);
}

#[test]
fn shards_in_folders_count_where_an_index_names_them() {
    let shards = ["a/1.safetensors", "a/2.safetensors", "b/1.safetensors"];
    let found = left(&shards, |it| index(it, INDEX, &["a/1.safetensors", "a/2.safetensors"]));
    assert_eq!(found, ["b/1.safetensors"]);
}

#[test]
fn a_model_below_a_model_is_left_unless_it_is_a_module() {
    let shards =
        ["2_Dense/model.safetensors", "checkpoint-5/model.safetensors", "model.safetensors"];
    let found = left(&shards, |it| {
        it.parts.insert("".into(), ["".into(), "2_Dense".into()].into());
    });
    assert_eq!(found, ["checkpoint-5/model.safetensors"]);
}

#[test]
fn a_pipeline_takes_its_components() {
    let shards = [
        "flux.safetensors",
        "old/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    let found = left(&shards, |it| {
        it.parts.insert("".into(), ["text_encoder".into(), "vae".into()].into());
    });
    assert_eq!(
        found,
        ["flux.safetensors", "old/model.safetensors", "text_encoder/model.fp16.safetensors"]
    );
}

#[test]
fn shards_that_would_be_taken_of_their_own_folder_too_count() {
    let shards = ["a/model.safetensors", "b/model.safetensors", "c/model.safetensors"];
    // The order of hashed folders differs between any two.
    for _ in 0..20 {
        let found = left(&shards, |it| index(it, INDEX, &shards[..2]));
        assert_eq!(found, ["c/model.safetensors"]);
    }
}

#[test]
fn a_model_of_parts_in_a_checkpoint_beside_such_a_model_is_left() {
    let shards = ["a/model.safetensors", "old/a/model.safetensors"];
    let found = left(&shards, |it| {
        it.parts.insert("".into(), ["a".into()].into());
        it.parts.insert("old".into(), ["old/a".into()].into());
    });
    assert_eq!(found, ["old/a/model.safetensors"]);
}

#[test]
fn what_a_module_at_the_root_does_not_list_counts_where_no_file_is_at_the_root() {
    let shards = ["2_Dense/model.safetensors", "query_0/model.safetensors"];
    let found = left(&shards, |it| {
        it.parts.insert("".into(), ["".into(), "2_Dense".into()].into());
    });
    assert_eq!(found, [""; 0]);
}

#[test]
fn what_a_config_names_is_taken_before_anything_else() {
    let shards = ["a.safetensors", "model.safetensors"];
    for file in ["a.safetensors", "a.safetensors.index.json"] {
        let found = left(&shards, |it| {
            index(it, "a.safetensors.index.json", &["a.safetensors"]);
            it.named.insert("".into(), file.into());
        });
        assert_eq!(found, ["model.safetensors"]);
    }
    let found = left(&shards, |it| drop(it.named.insert("".into(), "gone".into())));
    assert_eq!(found, ["a.safetensors"]);
}

#[test]
fn a_missing_number_is_named() {
    let missing = |names: &[&str]| {
        let found = missing_number(names.iter().map(|name| Path::new(*name)));
        found.map(|path| path.display().to_string())
    };
    let one = "m/model-00001-of-00003.safetensors";
    let three = "m/model-00003-of-00003.safetensors";
    assert_eq!(missing(&[one, three]).as_deref(), Some("m/model-00002-of-00003.safetensors"));
    assert_eq!(missing(&[one, "m/model-00002-of-00003.safetensors", three]), None);
    assert_eq!(missing(&["a-00000-of-00002.safetensors", "a-00001-of-00002.safetensors"]), None);
    assert_eq!(missing(&["model.safetensors", "out-of-place.safetensors", "-of-.x"]), None);
    let best = missing(&["best-of-8-00001-of-00002.safetensors"]);
    assert_eq!(best.as_deref(), Some("best-of-8-00002-of-00002.safetensors"));
    let variant = missing(&["model-00002-of-00002.fp16.safetensors"]);
    assert_eq!(variant.as_deref(), Some("model-00001-of-00002.fp16.safetensors"));
}

#[test]
fn a_tied_tensor_is_told_by_the_last_parts_of_its_name() {
    assert!(is_tied("lm_head.weight") && is_tied("model.decoder.embed_tokens.weight"));
    assert!(!is_tied("model.norm.weight") && !is_tied("my_lm_head.weight"));
    assert!(has_embedding(["model.norm.weight", "model.shared.weight"].iter()));
    assert!(!has_embedding(["model.norm.weight", "mywte.weight"].iter()));
}

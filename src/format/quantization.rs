//! What a config says of how weights are quantized: the blocks that have a scale each, and words
//! that tell schemes apart whose tensors are called the same.

use serde_json::{Map, Value};

use super::edit;

/// Nothing here says which weights are meant: the tensors do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quantization {
    /// Rows and columns of the blocks, of every group of weights.
    pub blocks: Vec<(u64, u64)>,
    /// The names of methods, algorithms, formats and producers, in lower case.
    pub words: Vec<String>,
    /// Whether the weights are rotated, so that activations have to be, too.
    pub rotates: bool,
}

impl Quantization {
    /// What a JSON text says, a whole file or a member of one; nothing where it is none.
    pub fn parse(text: &str) -> Quantization {
        let mut found = Quantization::default();
        if let Ok(Value::Object(members)) = serde_json::from_str(&edit::strict(text)) {
            found.collect(&members);
        }
        found.unique();
        found
    }

    pub fn merge(&mut self, other: Quantization) {
        add(&mut self.blocks, other.blocks);
        add(&mut self.words, other.words);
        self.rotates |= other.rotates;
        self.unique();
    }

    /// Each once, because a config may say the same of every layer, and each weight looks at all.
    fn unique(&mut self) {
        self.blocks.sort_unstable();
        self.blocks.dedup();
        self.words.sort_unstable();
        self.words.dedup();
    }

    pub fn says(&self, word: &str) -> bool {
        self.words.iter().any(|other| other.contains(word))
    }

    fn collect(&mut self, members: &Map<String, Value>) {
        let is_algorithm = members.contains_key("quant_algo");
        for (key, value) in members {
            match (key.as_str(), value) {
                ("quant_method" | "quant_algo" | "format" | "name", Value::String(word)) => {
                    let word = word.to_lowercase();
                    add(&mut self.blocks, block_of(&word));
                    add(&mut self.words, [word]);
                }
                ("weight_block_size", value) => add(&mut self.blocks, pair(value)),
                ("group_size", value) if is_algorithm => add(&mut self.blocks, group(value)),
                ("weights", Value::Object(weights)) => {
                    let structure = weights.get("block_structure").and_then(pair);
                    let group = weights.get("group_size").and_then(group);
                    add(&mut self.blocks, structure.or(group));
                }
                ("transform_config", Value::Object(members)) => {
                    self.rotates |= !members.is_empty();
                }
                // What is said of activations is about other blocks.
                ("input_activations" | "output_activations" | "kv_cache_scheme", _) => {}
                (_, Value::Object(inner)) => self.collect(inner),
                _ => {}
            }
        }
    }
}

/// Adds what is not there yet: a config may say the same of each of many layers.
fn add<T: PartialEq>(all: &mut Vec<T>, more: impl IntoIterator<Item = T>) {
    for it in more {
        if !all.contains(&it) {
            all.push(it);
        }
    }
}

/// The blocks of what has a name of its own.
fn block_of(word: &str) -> Option<(u64, u64)> {
    match word {
        // ModelOpt's blocks of weights.
        "fp8_pb_wo" => Some((128, 128)),
        _ if word.starts_with("mxfp8") => Some((1, 32)),
        _ => None,
    }
}

/// Two sizes, as a list or, in old files, as a text such as `128x128`.
fn pair(value: &Value) -> Option<(u64, u64)> {
    let sizes: Option<Vec<u64>> = match value {
        Value::Array(sizes) => sizes.iter().map(Value::as_u64).collect(),
        Value::String(text) => text.split('x').map(|size| size.parse().ok()).collect(),
        _ => None,
    };
    match *sizes.unwrap_or_default() {
        [rows, columns] if rows > 0 && columns > 0 => Some((rows, columns)),
        _ => None,
    }
}

fn group(value: &Value) -> Option<(u64, u64)> {
    value.as_u64().filter(|columns| *columns > 0).map(|columns| (1, columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_those_of_weights() {
        let blocks = |text: &str| Quantization::parse(text).blocks;
        for (text, expected) in [
            (r#"{"quant_method": "fp8", "weight_block_size": [128, 64]}"#, [(128, 64)].as_slice()),
            (r#"{"quant_method": "fp8", "weight_block_size": null}"#, &[]),
            (
                r#"{"config_groups": {"group_0": {"weights": {"strategy": "block",
                    "block_structure": [128, 128], "group_size": null},
                    "input_activations": {"group_size": 128}}}}"#,
                &[(128, 128)],
            ),
            (
                r#"{"config_groups": {"a": {"weights": {"group_size": 32}},
                    "b": {"weights": {"block_structure": "64x128"}}}}"#,
                &[(1, 32), (64, 128)],
            ),
            (r#"{"quantization": {"quant_algo": "FP8_PB_WO"}}"#, &[(128, 128)]),
            (r#"{"quantization": {"quant_algo": "NVFP4", "group_size": 16}}"#, &[(1, 16)]),
            (r#"{"format": "mxfp8-quantized"}"#, &[(1, 32)]),
            (
                r#"{"quantized_layers": {"a": {"quant_algo": "NVFP4", "group_size": 16},
                    "b": {"quant_algo": "NVFP4", "group_size": 16}}}"#,
                &[(1, 16)],
            ),
            (r#"{"weight_block_size": [0, 128], "x": Infinity}"#, &[]),
            (r#"{"weight_block_size": ["x", 128, 128]}"#, &[]),
            (r#"{"weight_block_size": [128.0, 128]}"#, &[]),
            ("[]", &[]),
        ] {
            assert_eq!(blocks(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_said_of_every_layer_counts_once() {
        let layer = r#"{"quant_algo": "NVFP4", "group_size": 16}"#;
        let text =
            format!(r#"{{"quantized_layers": {{"a": {layer}, "b": {layer}, "c": {layer}}}}}"#);
        let mut found = Quantization::parse(&text);
        found.merge(found.clone());
        assert_eq!((found.blocks, found.words), (vec![(1, 16)], vec!["nvfp4".to_owned()]));
    }

    #[test]
    fn words_are_found_wherever_they_stand() {
        let text = r#"{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}"#;
        let found = Quantization::parse(text);
        assert!(found.says("modelopt") && found.says("fp8") && !found.says("nvfp4"));
        assert!(!found.rotates);
        assert!(Quantization::parse(r#"{"transform_config": {"a": 1}}"#).rotates);
        assert!(!Quantization::parse(r#"{"transform_config": {}}"#).rotates);
    }
}

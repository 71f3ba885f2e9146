//! `config.json`: the dtypes it states, the model types it names, and whether it says that the
//! checkpoint is quantized.

use std::path::Path;

use serde_json::value::RawValue;

use super::edit::{self, Edit, Object};
use super::json;
use super::quantization::Quantization;
use crate::dtype::{Castable, Float};
use crate::error::Error;

/// What becomes of the dtypes that are stated.
#[derive(Clone, Copy, Debug)]
pub struct Stated {
    /// What every float becomes; nothing where all stay.
    pub to: Option<Float>,
    /// Whether 8-bit floats count: where they are carried, they are stated still.
    pub with_fp8: bool,
}

#[derive(Debug)]
pub struct Config {
    text: String,
    /// Every `model_type` in the file, nested ones too.
    pub model_types: Vec<String>,
    /// Every `_class_name`, which is what diffusers calls a model's class.
    pub class_names: Vec<String>,
    /// Whether it says anywhere that embeddings are not tied.
    pub unties: bool,
    /// The file with the weights, where it names one (`transformers_weights` in transformers 5.24).
    pub weights: Option<String>,
    /// What it says of quantization: the key, and the method where it names one.
    pub quantized: Option<String>,
    pub quantization: Quantization,
}

impl Config {
    /// Reads a config's bytes; `path` is for the error message.
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Config, Error> {
        let (text, strict) = json::text(path, bytes)?;
        let (mut model_types, mut class_names) = (Vec::new(), Vec::new());
        let (mut unties, mut quantized) = (false, None);
        let mut quantization = Quantization::default();
        walk(&strict, &mut |key, value| match key {
            "model_type" => model_types.extend(string(value)),
            "_class_name" => class_names.extend(string(value)),
            // DeepSeek-V4's experts, whose codes look like integers.
            "expert_dtype" => quantization.words.extend(string(value)),
            "tie_word_embeddings" => unties |= value.get() == "false",
            _ if is_quantization(key, value) => {
                quantized.get_or_insert_with(|| describe(key, value));
                quantization.merge(Quantization::parse(value.get()));
            }
            _ => {}
        });
        let weights = Object::parse(&strict).ok();
        let weights = weights.and_then(|object| string(object.get("transformers_weights")?));
        Ok(Config { text, model_types, class_names, unties, weights, quantized, quantization })
    }

    /// The text with every `dtype` and `torch_dtype` that names a float saying what is `stated`, and
    /// without what it says of quantization where that is left over from other weights.
    pub fn updated(&self, stated: Stated, left_over: bool) -> String {
        let strict = edit::strict(&self.text);
        let mut edits: Vec<Edit> = Vec::new();
        walk(&strict, &mut |key, value| {
            if key == "dtype" || key == "torch_dtype" {
                edits.extend(dtype_edits(&strict, value, stated));
            }
        });
        if left_over {
            edits.extend(edit::removals(&strict, &is_quantization));
        }
        // A dtype within what is removed, or that is met twice, needs no edit of its own.
        edits.sort_by_key(|(range, _)| (range.start, std::cmp::Reverse(range.end)));
        let mut end = 0;
        edits.retain(|(range, _)| {
            let is_within = range.end <= end;
            end = end.max(range.end);
            !is_within
        });
        edit::apply(&self.text, edits)
    }
}

/// Whether a member says that weights are quantized: what transformers, older compressed-tensors
/// and MLX or Mistral write.
fn is_quantization(key: &str, value: &RawValue) -> bool {
    let is_object = value.get().starts_with('{');
    match key {
        "quantization_config" | "compression_config" => value.get() != "null",
        "quantization" => is_object,
        _ => false,
    }
}

/// The key, and the method where the value names one.
fn describe(key: &str, value: &RawValue) -> String {
    let object = Object::parse(value.get()).ok();
    let method = object.and_then(|object| {
        ["quant_method", "quant_algo", "method"].iter().find_map(|name| string(object.get(name)?))
    });
    method.map_or_else(|| key.to_owned(), |method| format!("{key}, method '{method}'"))
}

/// The settings of another library, whose `dtype` has values of its own.
const FOREIGN: &str = "transformers.js_config";

/// Calls `visit` with every member of every nested object of a JSON text.
fn walk<'a>(text: &'a str, visit: &mut dyn FnMut(&str, &'a RawValue)) {
    if let Ok(items) = serde_json::from_str::<Vec<&RawValue>>(text) {
        items.iter().filter(|item| is_nested(item)).for_each(|item| walk(item.get(), visit));
    }
    let Ok(object) = Object::parse(text) else { return };
    for (key, value) in object.0.into_iter().filter(|(key, _)| key != FOREIGN) {
        visit(&key, value);
        if is_nested(value) {
            walk(value.get(), visit);
        }
    }
}

fn is_nested(value: &RawValue) -> bool {
    value.get().starts_with(['{', '['])
}

/// The edits of a stated dtype, or of each in an object (transformers states one for each part of
/// a model) or a list.
fn dtype_edits(text: &str, value: &RawValue, stated: Stated) -> Vec<Edit> {
    let members = Object::parse(value.get()).map(|object| object.0).unwrap_or_default();
    let items = serde_json::from_str::<Vec<&RawValue>>(value.get()).unwrap_or_default();
    let own = [value].into_iter().chain(items).chain(members.into_iter().map(|(_, value)| value));
    own.filter_map(|value| dtype_edit(text, value, stated)).collect()
}

/// The edit of a stated dtype, when `value` is the name of a float.
pub fn dtype_edit(text: &str, value: &RawValue, stated: Stated) -> Option<Edit> {
    let Stated { to: Some(to), with_fp8 } = stated else { return None };
    let name = string(value)?;
    Castable::parse(&name).filter(|from| with_fp8 || !from.is_fp8())?;
    let prefix = if name.starts_with("torch.") { "torch." } else { "" };
    Some((edit::span(text, value), format!("\"{prefix}{}\"", to.torch_name())))
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const F16: Stated = Stated { to: Some(Float::F16), with_fp8: false };
    const BF16: Stated = Stated { to: Some(Float::Bf16), with_fp8: false };

    fn config(text: &str) -> Config {
        Config::parse(Path::new("config.json"), text.into()).expect("valid")
    }

    #[test]
    fn only_dtype_names_change_and_every_other_byte_stays() {
        let text = "{\n \"b\": 1e-05, \"torch_dtype\": \"float16\",\t\"vocab\": {\"dtype\": 7},\n \
                    \"text_config\": {\"dtype\": \"torch.float32\", \"z\": \"\\u00e9\"},\n \
                    \"a\": {\"dtype\": null, \"torch_dtype\": \"auto\"}}\n\n";
        let expected =
            text.replace("torch.float32", "torch.bfloat16").replace("\"float16", "\"bfloat16");
        assert_eq!(config(text).updated(BF16, false), expected);
    }

    #[test]
    fn what_python_writes_for_infinity_and_nan_is_read_and_kept() {
        let text = r#"{"limit": [0.0, Infinity, -Infinity, NaN], "s": "NaN \" Infinity", "dtype": "float32"}"#;
        let expected = text.replace("float32", "float16");
        assert_eq!(config(text).updated(F16, false), expected);
    }

    #[test]
    fn quantization_is_seen_wherever_it_stands() {
        for text in [
            r#"{"quantization_config": {"quant_method": "gptq"}}"#,
            r#"{"text_config": {"quantization_config": {"quant_method": "gptq"}}}"#,
        ] {
            let says = "quantization_config, method 'gptq'";
            assert_eq!(config(text).quantized.as_deref(), Some(says));
        }
        assert_eq!(config(r#"{"quantization_config": null}"#).quantized, None);
    }

    #[test]
    fn dtypes_in_objects_and_lists_change_and_those_of_other_libraries_stay() {
        for (before, after) in [
            (
                r#"{"dtype": {"": "float32", "text_config": "torch.float64", "x": 1}}"#,
                r#"{"dtype": {"": "float16", "text_config": "torch.float16", "x": 1}}"#,
            ),
            (r#"{"dtype": ["bfloat16", "int8"]}"#, r#"{"dtype": ["float16", "int8"]}"#),
            (
                r#"{"a": [{"torch_dtype": "double"}, 3]}"#,
                r#"{"a": [{"torch_dtype": "float16"}, 3]}"#,
            ),
            (
                r#"{"transformers.js_config": {"dtype": "fp32"}}"#,
                r#"{"transformers.js_config": {"dtype": "fp32"}}"#,
            ),
        ] {
            assert_eq!(config(before).updated(F16, false), after);
        }
    }

    #[test]
    fn a_stated_fp8_changes_only_where_fp8_is_cast() {
        let text = r#"{"torch_dtype": "float8_e4m3fn", "a": {"dtype": "torch.float8_e5m2"}}"#;
        assert_eq!(config(text).updated(F16, false), text);
        let with_fp8 = Stated { with_fp8: true, ..F16 };
        let expected = r#"{"torch_dtype": "float16", "a": {"dtype": "torch.float16"}}"#;
        assert_eq!(config(text).updated(with_fp8, false), expected);
    }

    #[test]
    fn a_leftover_is_removed_and_every_other_byte_stays() {
        for (before, after) in [
            (r#"{"a": 1, "quantization_config": {"b": [1, {}]}, "c": 2}"#, r#"{"a": 1, "c": 2}"#),
            (r#"{"quantization_config": {"dtype": "float32"}, "c": 2}"#, r#"{ "c": 2}"#),
            (r#"{ "compression_config": {} }"#, "{ }"),
            (r#"{"a": {"quantization": {"bits": 4}}, "b": 1}"#, r#"{"a": {}, "b": 1}"#),
            (r#"{"a": [[{"quantization": {}}, 2]]}"#, r#"{"a": [[{}, 2]]}"#),
            (
                r#"{"dtype": "float32", "quantization_config": {}, "quantization": {}}"#,
                r#"{"dtype": "float16"}"#,
            ),
            (r#"{"quantization_config": {}, "compression_config": {}, "z": 0}"#, r#"{ "z": 0}"#),
        ] {
            assert_eq!(config(before).updated(F16, true), after);
        }
    }

    #[test]
    fn model_types_are_found_in_nested_configs() {
        let types = config(r#"{"model_type": "x", "text_config": {"model_type": "t5"}}"#);
        assert_eq!(types.model_types, ["x", "t5"]);
    }
}

//! `config.json`: the dtypes it states, the model types it names, and whether it says that the
//! checkpoint is quantized.

use std::path::Path;

use serde_json::value::RawValue;

use super::edit::{self, Edit, Object};
use super::json;
use crate::dtype::Float;
use crate::error::Error;

#[derive(Debug)]
pub struct Config {
    text: String,
    /// Every `model_type` in the file, nested ones too.
    pub model_types: Vec<String>,
    /// The quantization method, when the config has a `quantization_config`.
    pub quantized: Option<String>,
}

impl Config {
    /// Reads a config's bytes; `path` is for the error message.
    pub fn parse(path: &Path, bytes: Vec<u8>) -> Result<Config, Error> {
        let (text, strict) = json::text(path, bytes)?;
        let (mut model_types, mut quantized) = (Vec::new(), None);
        walk(&strict, &mut |key, value| match key {
            "model_type" => model_types.extend(string(value)),
            "quantization_config" if value.get() != "null" => {
                let object = Object::parse(value.get()).ok();
                let method = object.and_then(|object| string(object.get("quant_method")?));
                quantized = Some(method.unwrap_or_else(|| "unknown".into()));
            }
            _ => {}
        });
        Ok(Config { text, model_types, quantized })
    }

    /// The text with every `dtype` and `torch_dtype` that names a float saying `to`.
    pub fn with_dtype(&self, to: Float) -> String {
        let strict = edit::strict(&self.text);
        let mut edits: Vec<Edit> = Vec::new();
        walk(&strict, &mut |key, value| {
            if key == "dtype" || key == "torch_dtype" {
                edits.extend(dtype_edit(&strict, value, to));
            }
        });
        edit::apply(&self.text, edits)
    }
}

/// Calls `visit` with every member of every nested object of a JSON text.
fn walk<'a>(text: &'a str, visit: &mut dyn FnMut(&str, &'a RawValue)) {
    let Ok(object) = Object::parse(text) else { return };
    for (key, value) in object.0 {
        visit(&key, value);
        if value.get().starts_with('{') {
            walk(value.get(), visit);
        }
    }
}

/// The edit that makes a stated dtype say `to`, when `value` is the name of a float.
pub fn dtype_edit(text: &str, value: &RawValue, to: Float) -> Option<Edit> {
    let name = string(value)?;
    Float::parse(&name)?;
    let prefix = if name.starts_with("torch.") { "torch." } else { "" };
    Some((edit::span(text, value), format!("\"{prefix}{}\"", to.torch_name())))
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(config(text).with_dtype(Float::Bf16), expected);
    }

    #[test]
    fn what_python_writes_for_infinity_and_nan_is_read_and_kept() {
        let text = r#"{"limit": [0.0, Infinity, -Infinity, NaN], "s": "NaN \" Infinity", "dtype": "float32"}"#;
        let expected = text.replace("float32", "float16");
        assert_eq!(config(text).with_dtype(Float::F16), expected);
    }

    #[test]
    fn quantization_is_seen_wherever_it_stands() {
        for text in [
            r#"{"quantization_config": {"quant_method": "gptq"}}"#,
            r#"{"text_config": {"quantization_config": {"quant_method": "gptq"}}}"#,
        ] {
            assert_eq!(config(text).quantized.as_deref(), Some("gptq"));
        }
        assert_eq!(config(r#"{"quantization_config": null}"#).quantized, None);
    }

    #[test]
    fn model_types_are_found_in_nested_configs() {
        let types = config(r#"{"model_type": "x", "text_config": {"model_type": "t5"}}"#);
        assert_eq!(types.model_types, ["x", "t5"]);
    }
}

//! The files with which a directory says what models it is made of.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::edit::{self, Object};

/// The file that makes a directory of several models a diffusers pipeline.
pub const PIPELINE: &str = "model_index.json";
/// The file that makes a directory a chain of modules of sentence-transformers.
pub const MODULES: &str = "modules.json";

/// The folders of the components that a `model_index.json` lists: each maps its name to a library
/// and a class, and one that is left out to nulls. Nothing where the text is no such file.
pub fn components(text: &str) -> Vec<String> {
    let strict = edit::strict(text);
    let members = Object::parse(&strict).map(|object| object.0).unwrap_or_default();
    let is_class = |value: &RawValue| serde_json::from_str::<[String; 2]>(value.get()).is_ok();
    let listed = members.into_iter().filter(|(_, value)| is_class(value));
    listed.map(|(name, _)| name.into_owned()).collect()
}

/// The folders of the modules that a `modules.json` lists. Nothing where the text is no such file.
pub fn modules(text: &str) -> Vec<String> {
    #[derive(Deserialize)]
    struct Module {
        path: String,
    }
    let modules = serde_json::from_str::<Vec<Module>>(&edit::strict(text)).unwrap_or_default();
    modules.into_iter().map(|module| module.path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_components_of_a_pipeline_are_those_with_a_class() {
        let text = r#"{"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"], "guidance": 3.5,
                       "safety_checker": [null, null], "tokenizer": ["transformers", "T"]}"#;
        assert_eq!(components(text), ["vae", "tokenizer"]);
        assert_eq!(components("[]"), [""; 0]);
    }

    #[test]
    fn the_modules_of_sentence_transformers_have_a_path() {
        let text = r#"[{"idx": 0, "name": "0", "path": "", "type": "T"}, {"path": "2_Dense"}]"#;
        assert_eq!(modules(text), ["", "2_Dense"]);
        assert_eq!(modules("{}"), [""; 0]);
    }
}

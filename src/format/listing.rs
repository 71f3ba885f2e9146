//! The files with which a directory says what models it is made of.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::edit::{self, Object};

/// The file that makes a directory of several models a diffusers pipeline.
pub const PIPELINE: &str = "model_index.json";
/// The file that makes a directory a chain of modules of sentence-transformers.
pub const MODULES: &str = "modules.json";

/// How many networks a component is looked for that is made of several.
const MOST_NETWORKS: usize = 100;

/// The folders of the components that a `model_index.json` lists: each maps its name to a library
/// and a class, and one that is left out to nulls. Nothing where the text is no such file.
pub fn components(text: &str) -> Vec<String> {
    let strict = edit::strict(text);
    let members = Object::parse(&strict).map(|object| object.0).unwrap_or_default();
    let class = |value: &RawValue| serde_json::from_str::<[String; 2]>(value.get()).ok();
    let listed = members.iter().filter_map(|(name, value)| Some((name, class(value)?)));
    let folders = listed.flat_map(|(name, [_, class])| {
        // `MultiControlNetModel` has its second network in `controlnet_1`.
        let networks = if class.starts_with("Multi") { MOST_NETWORKS } else { 1 };
        let others = (1..networks).map(move |number| format!("{name}_{number}"));
        std::iter::once(name.to_string()).chain(others)
    });
    folders.collect()
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
        let several = components(r#"{"controlnet": ["diffusers", "MultiControlNetModel"]}"#);
        assert_eq!(several[..2], ["controlnet", "controlnet_1"]);
        assert_eq!(components("[]"), [""; 0]);
    }

    #[test]
    fn the_modules_of_sentence_transformers_have_a_path() {
        let text = r#"[{"idx": 0, "name": "0", "path": "", "type": "T"}, {"path": "2_Dense"}]"#;
        assert_eq!(modules(text), ["", "2_Dense"]);
        assert_eq!(modules("{}"), [""; 0]);
    }
}

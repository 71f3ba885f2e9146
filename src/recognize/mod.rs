//! What the tensors of a checkpoint are, told by the tensors themselves; what configs say of them
//! only confirms it or contradicts it.

pub mod loaded;
pub mod optimizer;
pub mod pickles;
pub mod quantized;
mod rules;
pub mod scaled;
pub mod schemes;
pub mod wide;

use std::borrow::Cow;
use std::path::Path;

/// The component that a file of a checkpoint is part of: its folder below the root, with slashes
/// on every system; empty for a file at the root.
pub fn component(file: &Path) -> String {
    let folders = file.parent().into_iter().flat_map(Path::components);
    let names: Vec<Cow<str>> = folders.map(|folder| folder.as_os_str().to_string_lossy()).collect();
    names.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_the_folder_of_a_file() {
        assert_eq!(component(Path::new("model.safetensors")), "");
        assert_eq!(component(&Path::new("a").join("b").join("c")), "a/b");
    }
}

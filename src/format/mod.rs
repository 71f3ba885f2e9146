//! What an object of a checkpoint holds: tensors, an index of them, a config. Texts are edited, not
//! written anew.

pub mod config;
pub mod edit;
pub mod index;
pub mod json;
pub mod listing;
pub mod pickle;
pub mod quantization;
pub mod safetensors;

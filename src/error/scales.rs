//! Why a quantized weight of a known scheme cannot be made into plain values.

use super::causes::causes;
use crate::shown::Shown;

/// What is wrong with the scales of a weight, or with what they are beside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(pub Vec<u64>);

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sizes: Vec<String> = self.0.iter().map(u64::to_string).collect();
        write!(f, "[{}]", sizes.join(", "))
    }
}

fn example() -> Shape {
    Shape(vec![1])
}

causes! {
    /// Why.
    #[derive(Clone, PartialEq, Eq)]
    ScaleFault
    "fault" {
        Unstated { scale: String = "SCALE", shape: Shape = example(), codes: Shape = example() }
            "its scale '{}' of shape {shape} is one of blocks, and no config states their size: the \
             codes have shape {codes}", scale.shown();
        Shape { scale: String = "SCALE", shape: Shape = example(), codes: Shape = example(),
                blocks: String = "BLOCKS" }
            "its scale '{}' has shape {shape}, which fits codes of shape {codes} neither as a whole, \
             nor by rows, nor in blocks of {blocks}", scale.shown();
        Blocks { scale: String = "SCALE", blocks: String = "BLOCKS" }
            "its scale '{}' fits blocks of several sizes that configs state: {blocks}",
            scale.shown();
        Dtype { scale: String = "SCALE", dtype: String = "DTYPE" }
            "its scale '{}' is {}, which is no dtype of such scales", scale.shown(), dtype.shown();
        Codes { shape: Shape = example(), dtype: String = "DTYPE" }
            "its codes are {} of shape {shape}, which is not what the scheme has", dtype.shown();
        Missing { scale: &'static str = "SUFFIX" }
            "its scale, whose name ends in '{scale}', is not there";
        Several { scale: &'static str = "SUFFIX" }
            "its scale, whose name ends in '{scale}', is in more than one other shard";
        ZeroPoints
            "its codes have zero points";
        Scattered
            "its elements do not lie one after the other in the file";
        Reordered
            "its columns are in another order than its groups ('g_idx')";
        Second
            "it has a second scale, which is not known of codes of 8 bits";
        Smoothed
            "its inputs have to be scaled too ('pre_quant_scale')";
        Rotated
            "its inputs have to be rotated too ('transform_config')";
        Swizzled
            "ComfyUI stores the scales of such codes in tiles";
        Layout { scheme: &'static str = "SCHEME", says: &'static str = "NAME" }
            "it may be {scheme}, or something else whose tensors are called the same, and no config \
             says '{says}'";
        Taken { name: String = "TENSOR" }
            "its values would be called '{}', as another tensor is", name.shown();
        Experts
            "the scales of such experts may be those of rows or of columns";
    }
}

//! How quantization schemes spell their tensors. A quantized weight is a tensor of codes with
//! companions (scales, zero points) whose names share a stem with it; what a config says of it is
//! not looked at here.

/// What a scheme calls its tensors. The stem is what stands before `scale` in a scale's name.
#[derive(Debug)]
pub struct Scheme {
    /// What people call the scheme.
    pub name: &'static str,
    /// What the name of a scale ends in.
    pub scale: &'static str,
    /// What follows the stem in the name of the codes.
    pub codes: &'static [&'static str],
    /// The dtypes that codes have.
    pub dtypes: &'static [&'static str],
    /// What follows the stem in the names of other companions.
    pub also: &'static [&'static str],
    /// Whether nothing else is called so: such a scale without codes means a damaged checkpoint,
    /// while `weight_scale` may be a parameter like any other.
    pub unmistakable: bool,
}

/// The dtypes of plain 8-bit floats.
pub const FP8: &[&str] = &["F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"];

/// The dtypes that hold nothing but codes or block scales.
pub const CODES_ONLY: &[&str] = &["F4", "F6_E2M3", "F6_E3M2", "F8_E8M0"];

/// The dtypes that codes are packed in. Not I64 and BOOL, which are position numbers and masks.
pub const PACKED: &[&str] = &["U8", "I8", "I16", "U16", "I32", "U32"];

const ANY: &[&str] = &[];
const BYTES: &[&str] = &["I8", "U8"];

const fn scheme(
    name: &'static str,
    scale: &'static str,
    codes: &'static [&'static str],
    dtypes: &'static [&'static str],
) -> Scheme {
    Scheme { name, scale, codes, dtypes, also: &[], unmistakable: false }
}

impl Scheme {
    const fn also(self, also: &'static [&'static str]) -> Scheme {
        Scheme { also, ..self }
    }

    const fn unmistakable(self) -> Scheme {
        Scheme { unmistakable: true, ..self }
    }
}

/// The schemes; the first that fits a scale is its scheme. Names and dtypes are those that the
/// named libraries write.
pub const SCHEMES: &[Scheme] = &[
    // bitsandbytes keeps 4-bit codes in any dtype (`bnb_4bit_quant_storage`).
    scheme("bitsandbytes 4-bit", ".quant_map", &[""], ANY)
        .also(&[
            ".absmax",
            ".nested_absmax",
            ".nested_quant_map",
            ".quant_state.bitsandbytes__nf4",
            ".quant_state.bitsandbytes__fp4",
        ])
        .unmistakable(),
    scheme("bitsandbytes 4-bit", ".absmax", &[""], BYTES),
    scheme("bitsandbytes int8", ".SCB", &[".weight"], &["I8"])
        .also(&[".weight_format"])
        .unmistakable(),
    scheme("SVDQuant", ".wscales", &[".qweight"], PACKED)
        .also(&[
            ".wtscale",
            ".wcscales",
            ".wzeros",
            ".smooth",
            ".smooth_orig",
            ".smooth_factor",
            ".smooth_factor_orig",
            ".lora_down",
            ".lora_up",
            ".proj_down",
            ".proj_up",
        ])
        .unmistakable(),
    scheme("GPTQ", ".g_idx", &[".qweight"], PACKED).also(&[".qzeros", ".scales"]).unmistakable(),
    scheme("GPTQ or AWQ", ".qzeros", &[".qweight"], PACKED).also(&[".scales"]).unmistakable(),
    scheme("FP-Quant", ".weight_global_scale", &[".qweight"], PACKED).also(&[
        ".act_global_scale",
        ".scales",
        ".forward_hadamard_matrix",
        ".backward_hadamard_matrix",
    ]),
    scheme("GPTQ", ".scales", &[".qweight"], PACKED),
    scheme("Marlin", ".s", &[".B", ".B_24"], &["I32"]).also(&[".B_meta", ".workspace"]),
    // Not by `q_scale`, which attention with normalized queries has as well.
    scheme("EXL2", ".q_scale_max", &[".q_weight"], PACKED)
        .also(&[".q_scale", ".q_groups", ".q_group_map", ".q_invperm", ".q_perm"])
        .unmistakable(),
    scheme("EXL3", ".suh", &[".trellis"], PACKED).also(&[".svh", ".mcg", ".mul1"]).unmistakable(),
    // transformers calls the biases `qbiases`.
    scheme("MLX", ".scales", &[".weight"], &["U32"]).also(&[".biases", ".qbiases"]),
    scheme("HIGGS", ".tables2", &[".weight"], &["I16"]).also(&[".scales", ".tables"]),
    scheme("AQLM", ".codebooks", &[".codes"], PACKED).also(&[".scales"]),
    scheme("VPTQ", ".centroids.weight", &[".indices"], PACKED).also(&[
        ".res_centroids.weight",
        ".outlier_centroids.weight",
        ".weight_scale",
        ".weight_bias",
        ".perm",
    ]),
    scheme("HQQ", ".zero", &[".W_q"], ANY).also(&[".scale", ".zero_scale", ".scale_zero"]),
    scheme("EETQ", ".weight_scales", &[".weight", ".qweight"], BYTES),
    scheme("MXFP4", "_scales", &["_blocks"], &["U8"]),
    scheme("MXFP4", ".scales", &[".blocks"], &["U8"]),
    scheme("NVFP4", "_global_scale", &["_packed"], &["U8"]).also(&["_scale"]).unmistakable(),
    scheme("compressed-tensors packed", "_scale", &["_packed"], PACKED).also(&[
        "_shape",
        "_zero_point",
        "_g_idx",
    ]),
    // Only the whole name is unmistakable: PoolFormer has parameters called `layer_scale_2`.
    scheme("ModelOpt NVFP4", "weight_scale_2", &["weight", "weight_packed"], &["U8", "F4"])
        .also(&["weight_scale"])
        .unmistakable(),
    scheme("ModelOpt NVFP4", "_scale_2", &["", "_packed"], &["U8", "F4"]).also(&["_scale"]),
    scheme("ModelOpt NVFP4", "_weight_scale_2", &[""], &["U8", "F4"]).also(&["_weight_scale"]),
    // Before `_scale`, and for a layer whose own weight is called `weight`.
    scheme("fp8", "_scale_inv", &[""], FP8).also(&["_scale_2"]).unmistakable(),
    scheme("fp8", "_scale", &[""], FP8).also(&["_scale_2", "_zero_point", "_g_idx"]),
    scheme("fp8", "_weight_scale", &[""], FP8),
    scheme("fp8", ".scale", &[".weight"], FP8),
    scheme("Mistral fp8", ".qscale_weight", &[".weight"], FP8)
        .also(&[".qscale_act"])
        .unmistakable(),
    scheme("ComfyUI fp8", ".scale_weight", &[".weight"], FP8)
        .also(&[".scale_input"])
        .unmistakable(),
    scheme("packed fp4", ".scale", &[".weight"], BYTES),
    scheme("int8", "_scale", &[""], &["I8"]).also(&["_zero_point", "_g_idx"]),
    scheme("packed", "_scale", &[""], &["U8", "I32", "U32", "F4"]).also(&[
        "_zero_point",
        "_g_idx",
        "_scale_2",
    ]),
    scheme("quanto", "._scale", &["._data"], ANY).also(&["._shift", "._zeropoint"]).unmistakable(),
    scheme("torchao", "_scale", &["_qdata"], ANY).also(&[
        "_zero_point",
        "_scale_and_zero",
        "_per_tensor_scale",
        "_act_pre_scale",
    ]),
];

/// One scale for all fp8 tensors below it.
pub static SHARED: Scheme = scheme("fp8", ".weight_scale", &[], FP8);

/// What a tensor beside quantized weights is for, which is no part of any weight's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Quantized activations.
    Activations,
    /// A quantized cache, which unquantized weights may have as well.
    Caches,
    /// It marks a layer or a file as quantized.
    Marker,
    /// What the inputs of a layer are multiplied by: without it, the weights are others.
    Inputs,
}

/// What the last part of the name of such a tensor is called.
const BESIDE: &[(&str, Beside)] = &[
    ("input_scale", Beside::Activations),
    ("input_global_scale", Beside::Activations),
    ("input_zero_point", Beside::Activations),
    ("output_scale", Beside::Activations),
    ("output_global_scale", Beside::Activations),
    ("output_zero_point", Beside::Activations),
    ("activation_scale", Beside::Activations),
    ("act_scale", Beside::Activations),
    ("scale_input", Beside::Activations),
    ("qscale_act", Beside::Activations),
    ("pre_quant_scale", Beside::Inputs),
    ("comfy_quant", Beside::Marker),
    ("scaled_fp8", Beside::Marker),
    ("q_scale", Beside::Caches),
    ("k_scale", Beside::Caches),
    ("v_scale", Beside::Caches),
    ("kv_scale", Beside::Caches),
    ("prob_scale", Beside::Caches),
];

/// What a tensor of that name is for, if anything beside weights, and what stands before that.
pub fn beside(name: &str) -> Option<(&str, Beside)> {
    BESIDE.iter().find_map(|(last, kind)| {
        let rest = name.strip_suffix(last)?;
        match rest.as_bytes().last() {
            None => Some((rest, *kind)),
            Some(b'.' | b'_') => Some((&rest[..rest.len() - 1], *kind)),
            _ => None,
        }
    })
}

/// What the name of a tensor has somewhere that goes with packed codes of a scheme not named here.
pub const SCALE_WORDS: &[&str] = &["scale", "zeros", "zero_point", "absmax", "codebook", "quant"];

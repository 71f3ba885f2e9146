//! What the name of a tensor says by itself, whatever the model is called.

use crate::dtype::Float;

/// Tensors that are wide on purpose in every model that has them.
pub(super) struct Rule {
    /// Looked for in `.NAME.`, as in `libraries.json`: a dot at an end is the end of a part.
    pub names: &'static [&'static str],
    /// The component must have a tensor for each of these too.
    pub with: &'static [&'static str],
    /// Whether only single numbers are meant.
    pub scalar: bool,
    pub targets: &'static [Float],
    /// The family that `with` and `names` are the mark of.
    pub family: Option<&'static str>,
    pub reason: &'static str,
    pub source: &'static str,
}

const BOTH: &[Float] = &[Float::F16, Float::Bf16];

const RULE: Rule = Rule {
    names: &[],
    with: &[],
    scalar: false,
    targets: BOTH,
    family: None,
    reason: "",
    source: "",
};

pub(super) const RULES: &[Rule] = &[
    Rule {
        names: &[".e_score_correction_bias.", ".expert_bias.", ".router_bias."],
        reason: "router bias: rounding it changes which experts are chosen",
        source: "sgl-project/sglang#37133, vllm-project/vllm#47777, #50761",
        ..RULE
    },
    // A gate of anything else may have a bias as well.
    Rule {
        names: &[".ffn.gate.bias."],
        with: &[".ffn.gate.weight.", ".ffn.experts."],
        reason: "router bias: rounding it changes which experts are chosen",
        source: "e_score_correction_bias in DeepSeek's own names (inference/convert.py)",
        ..RULE
    },
    Rule {
        names: &[".A_log.", ".A_logs."],
        reason: "logarithm of a recurrent decay: errors grow exponentially",
        source: "state-spaces/mamba#923, ml-explore/mlx-lm#1028",
        ..RULE
    },
    Rule {
        names: &[".dt_bias."],
        reason: "time-step bias of a recurrent layer: errors add up over the sequence",
        source: "the section Precision of state-spaces/mamba's README",
        ..RULE
    },
    Rule {
        names: &["attn.sinks.", ".attn_sink.", ".attn_sinks."],
        reason: "attention sinks: they are added to fp32 attention scores",
        source: "Avarok-Cybersecurity/atlas#341",
        ..RULE
    },
    Rule {
        names: &[".time_decay.", ".time_first.", ".time_faaaa."],
        with: &[".time_decay."],
        targets: &[Float::F16],
        reason: "recurrent decay: the loader keeps it in fp32",
        source: "transformers 5.24 _keep_in_fp32_modules of RWKV",
        ..RULE
    },
    Rule {
        names: &[".inv_freq."],
        reason: "rotary frequencies: positions multiply their errors",
        source: "EleutherAI/gpt-neox#1003, huggingface/transformers#29496",
        ..RULE
    },
    Rule {
        names: &[
            "alphas_cumprod.",
            ".alphas_cumprod_prev.",
            ".betas.",
            ".posterior_variance.",
            ".posterior_log_variance_clipped.",
            ".posterior_mean_coef1.",
            ".posterior_mean_coef2.",
        ],
        with: &[".alphas_cumprod."],
        reason: "noise schedule: samplers compute with it in fp32",
        source: "AUTOMATIC1111/stable-diffusion-webui#14071",
        ..RULE
    },
    Rule {
        names: &[".model_ema.decay."],
        scalar: true,
        reason: "decay of a moving average: in 16 bits 0.9999 is 1",
        source: "ldm/modules/ema.py of CompVis/stable-diffusion",
        ..RULE
    },
    Rule {
        names: &[".k_scale.", ".v_scale.", ".kv_scale."],
        scalar: true,
        reason: "scale of the key-value cache: engines read it as fp32",
        source: "vllm-project/vllm#4893, huggingface/text-generation-inference#2628",
        ..RULE
    },
    Rule {
        names: &[".DenseReluDense.wo."],
        with: &[".SelfAttention.q."],
        targets: &[Float::F16],
        family: Some("T5"),
        reason: "the T5 family's output projection overflows fp16",
        source: "transformers 5.24 _keep_in_fp32_modules; huggingface/diffusers#8778",
        ..RULE
    },
    Rule {
        names: &[".scale_shift_table.", ".time_embedder.", ".norm2."],
        with: &[".condition_embedder.time_embedder.", ".scale_shift_table.", ".attn1.norm_q."],
        family: Some("Wan"),
        reason: WAN,
        source: WAN_SOURCE,
        ..RULE
    },
    // The same model by its authors' names: diffusers' converter maps `norm3` to `norm2`.
    Rule {
        names: &[".modulation.", ".time_embedding.", ".norm3."],
        with: &[".time_embedding.0.", ".time_projection.1.", ".head.modulation.", ".norm3."],
        family: Some("Wan"),
        reason: WAN,
        source: WAN_SOURCE,
        ..RULE
    },
];

const WAN: &str = "Wan's timestep modulation and norms: in bf16 the model makes other videos";
const WAN_SOURCE: &str = "diffusers 0.42 _keep_in_fp32_modules; huggingface/diffusers#10992";

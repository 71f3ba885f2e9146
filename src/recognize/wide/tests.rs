use super::*;

fn tensor(name: &str) -> Tensor<'_> {
    Tensor { name, bits: 32, elements: 8 }
}

/// What is wide in a component of these plain floats and nothing else.
fn wide_of(to: Float, labels: &[String], tensors: &[Tensor<'_>]) -> Wide {
    let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name).collect();
    Wide::new(to, labels, labels, &names, tensors.iter().copied())
}

/// The reason for each of `names`, in a component of nothing else.
fn reasons(to: Float, model: &str, names: &[&str]) -> Vec<Option<&'static str>> {
    let labels = [model.to_owned()];
    let tensors: Vec<Tensor<'_>> = names.iter().map(|name| tensor(name)).collect();
    let wide = wide_of(to, &labels, &tensors);
    names.iter().map(|name| wide.why(tensor(name)).map(|reason| reason.text)).collect()
}

fn kept(to: Float, model: &str, names: &[&str]) -> Vec<bool> {
    reasons(to, model, names).iter().map(Option::is_some).collect()
}

#[test]
fn every_entry_and_rule_says_for_what_and_why() {
    for entry in LIBRARIES.iter() {
        assert!(!entry.names.is_empty() && !entry.reason.is_empty() && !entry.source.is_empty());
        assert!(entry.model_types.is_empty() != entry.class_names.is_empty());
        assert!(entry.targets.iter().all(|name| Float::parse(name).is_some()));
    }
    for rule in RULES {
        assert!(!rule.names.is_empty() && !rule.reason.is_empty() && !rule.source.is_empty());
        assert!(!rule.targets.contains(&Float::F32));
    }
}

#[test]
fn loaders_keep_their_lists_for_their_targets_and_models() {
    let names = ["encoder.block.0.layer.1.DenseReluDense.wo.weight", "shared.weight"];
    assert_eq!(kept(Float::F16, "t5", &names), [true, false]);
    assert_eq!(kept(Float::Bf16, "t5", &names), [false, false]);
    assert_eq!(kept(Float::F16, "llama", &names), [false, false]);
    let names = ["blocks.0.norm2.weight", "blocks.0.attn1.norm_q.weight"];
    assert_eq!(kept(Float::Bf16, "WanTransformer3DModel", &names), [true, false]);
}

#[test]
fn names_on_disk_are_known() {
    for (model, name) in [
        ("hy_v3", "model.layers.1.mlp.expert_bias"),
        ("bailing_hybrid", "model.layers.1.mlp.gate.expert_bias"),
        ("bailing_hybrid", "model.layers.1.attention.q_conv1d.weight"),
        ("deepseek_v4", "layers.0.attn.attn_sink"),
        ("deepseek_v4", "layers.3.ffn.gate.bias"),
        ("deepseek_v4", "layers.0.hc_attn_base"),
        ("deepseek_v4", "layers.0.hc_ffn_fn"),
        ("kimi_k2", "model.layers.1.mlp.gate.e_score_correction_bias"),
        ("kimi_k25", "language_model.model.layers.1.mlp.gate.weight"),
        ("dots3_note", "vision_encoder.blocks.25.mlp.gate_weight"),
    ] {
        for to in [Float::F16, Float::Bf16] {
            assert_eq!(kept(to, model, &[name]), [true], "{model} {name}");
        }
    }
}

#[test]
fn some_names_speak_for_themselves() {
    for name in [
        "model.layers.3.mlp.gate.e_score_correction_bias",
        "model.layers.3.mlp.expert_bias",
        "backbone.layers.0.mixer.A_log",
        "backbone.layers.0.mixer.dt_bias",
        "model.layers.0.self_attn.sinks",
        "layers.0.attn.attn_sink",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "alphas_cumprod",
    ] {
        assert_eq!(kept(Float::Bf16, "", &[name]), [true], "{name}");
        assert_eq!(kept(Float::F32, "", &[name]), [false], "{name}");
    }
    for name in [
        "model.layers.0.mlp.gate.bias",
        "encoder.my_A_log.weight",
        "kitchen.sinks",
        "betas",
        "blocks.0.norm1.weight",
        "model.expert_biases",
    ] {
        assert_eq!(kept(Float::F16, "", &[name]), [false], "{name}");
    }
}

#[test]
fn some_names_speak_only_beside_others() {
    let names = ["layers.3.ffn.gate.bias", "layers.3.ffn.gate.weight", "layers.3.ffn.experts.0.w1"];
    assert_eq!(kept(Float::Bf16, "", &names), [true, false, false]);
    assert_eq!(kept(Float::Bf16, "", &names[..2]), [false, false]);
    assert_eq!(kept(Float::Bf16, "", &["betas", "sqrt_alphas_cumprod"]), [false, false]);
    assert_eq!(kept(Float::Bf16, "", &["betas", "alphas_cumprod"]), [true, true]);
}

#[test]
fn a_scale_of_the_cache_is_one_number() {
    let wide = wide_of(Float::Bf16, &[], &[tensor("attn.k_scale")]);
    assert!(wide.why(Tensor { elements: 1, ..tensor("attn.k_scale") }).is_some());
    assert!(wide.why(tensor("attn.k_scale")).is_none());
}

#[test]
fn a_family_is_recognized_by_its_names() {
    let prefix = "text_encoders.t5xxl.transformer.encoder.block.0.layer";
    let (q, wo) = (format!("{prefix}.0.SelfAttention.q"), format!("{prefix}.1.DenseReluDense.wo"));
    let (q, wo) = (format!("{q}.weight"), format!("{wo}.weight"));
    let seen = |to, names: &[&String]| {
        let tensors: Vec<Tensor<'_>> = names.iter().map(|name| tensor(name)).collect();
        let wide = wide_of(to, &[], &tensors);
        (wide.family, wide.why(tensor(&wo)).is_some())
    };
    assert_eq!(seen(Float::F16, &[&q, &wo]), (Some("T5"), true));
    assert_eq!(seen(Float::Bf16, &[&q, &wo]), (Some("T5"), false));
    assert_eq!(seen(Float::F16, &[&wo]), (None, false));
    let names = [
        "time_embedding.0.weight",
        "time_projection.1.weight",
        "head.modulation",
        "blocks.0.modulation",
        "blocks.0.norm3.weight",
        "blocks.0.self_attn.q.weight",
    ];
    let expected = [true, false, true, true, true, false];
    assert_eq!(kept(Float::Bf16, "", &names), expected);
}

#[test]
fn few_wide_tensors_in_a_16_bit_component_are_deliberate() {
    let narrow = |elements| Tensor { name: "a", bits: 16, elements };
    let wide = |elements| Tensor { name: "b", bits: 32, elements };
    let why = |tensors: &[Tensor<'_>]| wide_of(Float::Bf16, &[], tensors).why(wide(1));
    assert_eq!(why(&[narrow(19), wide(1)]), Some(ITSELF));
    assert_eq!(why(&[narrow(18), wide(1)]), None);
    assert_eq!(why(&[narrow(19)]), None);
    assert_eq!(why(&[wide(1)]), None);
    assert_eq!(why(&[narrow(19), Tensor { bits: 64, ..wide(1) }]), Some(ITSELF));
    assert_eq!(why(&[narrow(u64::MAX), wide(u64::MAX)]), None);
}

#[test]
fn a_double_is_called_one() {
    let narrow = Tensor { name: "a", bits: 16, elements: 19 };
    let double = Tensor { name: "b", bits: 64, elements: 1 };
    let wide = wide_of(Float::Bf16, &[], &[narrow, double]);
    assert_eq!(wide.why(double), Some(ITSELF_DOUBLE));
    assert_eq!(wide.why(narrow), None);
}

#[test]
fn what_is_wide_beside_plain_fp8_is_what_was_not_made_fp8() {
    let fp8 = Tensor { name: "a", bits: 8, elements: 1000 };
    let wide = Tensor { name: "b", bits: 32, elements: 1 };
    let norm = Tensor { name: "c", bits: 16, elements: 1 };
    for tensors in [[fp8, wide, wide], [fp8, wide, norm]] {
        let found = wide_of(Float::Bf16, &[], &tensors);
        assert_eq!(tensors.map(|tensor| found.why(tensor)), [None; 3]);
    }
}

#[test]
fn quantized_weights_tell_what_model_it_is() {
    let bias = [tensor("layers.3.ffn.gate.bias")];
    let names = [bias[0].name, "layers.3.ffn.gate.weight", "layers.3.ffn.experts.0.w1.weight"];
    let wide = Wide::new(Float::Bf16, &[], &[], &names, bias.into_iter());
    assert!(wide.why(bias[0]).is_some());
    assert!(wide_of(Float::Bf16, &[], &bias).why(bias[0]).is_none());
}

#[test]
fn plain_fp8_is_never_kept() {
    let names = ["a.DenseReluDense.wo.weight", "a.SelfAttention.q.weight"];
    let fp8 = names.map(|name| Tensor { name, bits: 8, elements: 1 });
    let wide = wide_of(Float::F16, &["t5".to_owned()], &fp8);
    assert!(wide.why(Tensor { bits: 16, ..fp8[0] }).is_some());
    assert!(fp8.iter().all(|tensor| wide.why(*tensor).is_none()));
}

#[test]
fn only_wide_tensors_are_kept() {
    let tensors = [tensor("A_log")];
    let wide = wide_of(Float::F16, &[], &tensors);
    assert!(wide.why(Tensor { bits: 16, ..tensor("A_log") }).is_none());
    assert!(wide.why(Tensor { bits: 64, ..tensor("A_log") }).is_some());
}

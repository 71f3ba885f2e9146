//! Quantized checkpoints in their barest form, and plain ones that look a little like them.

use super::*;
use crate::checksum::Digest;
use crate::dtype::Dtype;

/// A tensor by its name, its dtype and its shape.
type Row = (&'static str, &'static str, &'static [u64]);

fn shard(rows: &[Row]) -> Shard {
    let tensors = rows.iter().map(|(name, dtype, shape)| Tensor {
        name: (*name).to_owned(),
        dtype: Dtype::from_name(dtype),
        shape: shape.to_vec(),
        start: 0,
        bytes: 0,
        view: None,
    });
    let tensors = tensors.collect();
    Shard { metadata: None, tensors, head: 8, version: Digest::default(), pickled: None }
}

/// What each tensor of one shard is part of.
fn parts(rows: &[Row]) -> Vec<Option<Part>> {
    let shard = shard(rows);
    let found = Quantized::of(&[("", &shard)]);
    (0..rows.len()).map(|tensor| found.part((0, tensor))).collect()
}

#[test]
fn every_scheme_is_recognized_by_its_tensors_alone() {
    let cases: &[(&str, &[Row])] = &[
        ("fp8", &[("a.weight", "F8_E4M3", &[576, 300]), ("a.weight_scale_inv", "F32", &[5, 3])]),
        (
            "fp8",
            &[
                ("a.weight", "F8_E4M3", &[8, 8]),
                ("a.weight_scale", "BF16", &[8, 1]),
                ("a.input_scale", "F32", &[]),
            ],
        ),
        ("fp8", &[("a.weight", "F8_E4M3", &[8, 8]), ("a.scale", "F8_E8M0", &[1, 1])]),
        (
            "fp8",
            &[
                ("e.gate_up_proj", "F8_E4M3", &[2, 8, 8]),
                ("e.gate_up_proj_scale", "F32", &[2, 1, 8]),
            ],
        ),
        (
            "Mistral fp8",
            &[
                ("a.weight", "F8_E4M3", &[8, 8]),
                ("a.qscale_weight", "F32", &[]),
                ("a.qscale_act", "F32", &[]),
            ],
        ),
        (
            "ComfyUI fp8",
            &[
                ("a.weight", "F8_E5M2", &[8, 8]),
                ("a.scale_weight", "F32", &[1]),
                ("scaled_fp8", "F8_E5M2", &[2]),
            ],
        ),
        ("packed fp4", &[("a.weight", "I8", &[8, 32]), ("a.scale", "F8_E8M0", &[8, 2])]),
        (
            "MXFP4",
            &[
                ("e.down_proj_blocks", "U8", &[2, 8, 1, 16]),
                ("e.down_proj_scales", "U8", &[2, 8, 1]),
            ],
        ),
        ("MXFP4", &[("m.blocks", "U8", &[2, 8, 1, 16]), ("m.scales", "U8", &[2, 8, 1])]),
        (
            "NVFP4",
            &[
                ("a.weight_packed", "U8", &[8, 8]),
                ("a.weight_scale", "F8_E4M3", &[8, 1]),
                ("a.weight_global_scale", "F32", &[1]),
            ],
        ),
        (
            "ModelOpt NVFP4",
            &[
                ("a.weight", "U8", &[8, 8]),
                ("a.weight_scale", "F8_E4M3", &[8, 1]),
                ("a.weight_scale_2", "F32", &[]),
            ],
        ),
        (
            "compressed-tensors packed",
            &[
                ("a.weight_packed", "I32", &[8, 8]),
                ("a.weight_scale", "BF16", &[8, 1]),
                ("a.weight_shape", "I64", &[2]),
            ],
        ),
        ("int8", &[("a.weight", "I8", &[8, 8]), ("a.weight_scale", "F32", &[8, 1])]),
        (
            "GPTQ",
            &[
                ("a.qweight", "I32", &[16, 64]),
                ("a.qzeros", "I32", &[1, 8]),
                ("a.scales", "F16", &[1, 64]),
                ("a.g_idx", "I32", &[128]),
            ],
        ),
        (
            "GPTQ",
            &[
                ("a.qweight", "I32", &[16, 64]),
                ("a.qzeros", "I32", &[1, 8]),
                ("a.scales", "F16", &[1, 64]),
            ],
        ),
        (
            "AWQ",
            &[
                ("a.qweight", "I32", &[128, 8]),
                ("a.qzeros", "I32", &[1, 8]),
                ("a.scales", "F16", &[1, 64]),
            ],
        ),
        (
            "MLX",
            &[
                ("a.weight", "U32", &[64, 16]),
                ("a.scales", "F16", &[64, 2]),
                ("a.biases", "F16", &[64, 2]),
            ],
        ),
        (
            "MLX",
            &[
                ("a.weight", "U32", &[64, 16]),
                ("a.scales", "F32", &[64, 2]),
                ("a.qbiases", "F32", &[64, 2]),
            ],
        ),
        (
            "HIGGS",
            &[
                ("a.weight", "I16", &[16, 512]),
                ("a.scales", "F16", &[64, 2]),
                ("a.tables", "F16", &[16]),
                ("a.tables2", "F16", &[16, 16, 2]),
            ],
        ),
        (
            "FP-Quant",
            &[
                ("a.qweight", "U8", &[64, 64]),
                ("a.scales", "U8", &[64, 4]),
                ("a.weight_global_scale", "F32", &[1]),
                ("a.act_global_scale", "F32", &[1]),
                ("a.forward_hadamard_matrix", "BF16", &[32, 32]),
                ("a.backward_hadamard_matrix", "BF16", &[32, 32]),
            ],
        ),
        ("quanto", &[("a.weight._data", "I8", &[64, 64]), ("a.weight._scale", "F32", &[64, 1])]),
        (
            "bitsandbytes 4-bit",
            &[
                ("a.weight", "BF16", &[2048, 1]),
                ("a.weight.absmax", "F32", &[128]),
                ("a.weight.quant_map", "F32", &[16]),
                ("a.weight.quant_state.bitsandbytes__nf4", "U8", &[80]),
            ],
        ),
        (
            "bitsandbytes int8",
            &[("a.weight", "I8", &[8, 8]), ("a.SCB", "F32", &[8]), ("a.weight_format", "U8", &[])],
        ),
        (
            "EXL2",
            &[
                ("a.q_weight", "I32", &[32, 64]),
                ("a.q_scale", "I32", &[2, 8]),
                ("a.q_scale_max", "F16", &[2]),
                ("a.q_groups", "I16", &[4]),
                ("a.q_invperm", "I32", &[128]),
            ],
        ),
        (
            "SVDQuant",
            &[
                ("a.qweight", "I8", &[64, 32]),
                ("a.wscales", "BF16", &[1, 64]),
                ("a.smooth_factor", "BF16", &[64]),
            ],
        ),
        (
            "torchao",
            &[
                ("a._weight_qdata", "U8", &[8, 8]),
                ("a._weight_scale", "F8_E4M3", &[8, 1]),
                ("a._weight_per_tensor_scale", "F32", &[]),
            ],
        ),
        (
            "an unknown scheme",
            &[("a.packed_codes", "I16", &[8, 8]), ("a.group_scales", "F16", &[8, 1])],
        ),
    ];
    for (scheme, rows) in cases {
        for (row, part) in rows.iter().zip(parts(rows)) {
            assert_eq!(part, Some(Part::Of(scheme)), "{row:?}");
        }
    }
}

#[test]
fn a_scale_is_found_in_another_shard_of_its_component_and_in_no_other_component() {
    let codes = shard(&[("a.weight", "F8_E4M3", &[8, 8])]);
    let scale = shard(&[("a.weight_scale_inv", "F32", &[1, 1])]);
    let found = Quantized::of(&[("", &codes), ("", &scale)]);
    assert_eq!(found.part((0, 0)), Some(Part::Of("fp8")));
    assert_eq!(found.part((1, 0)), Some(Part::Of("fp8")));
    let found = Quantized::of(&[("vae", &codes), ("unet", &scale)]);
    assert_eq!(found.part((0, 0)), Some(Part::Unscaled));
    assert_eq!(found.part((1, 0)), Some(Part::Scale));
}

#[test]
fn one_scale_may_be_that_of_several_tensors() {
    let found = parts(&[
        ("embed.weight_scale", "F32", &[]),
        ("embed.0.weight", "F8_E4M3", &[8, 8]),
        ("embed.1.weight", "F8_E4M3", &[8, 8]),
    ]);
    assert_eq!(found, [Some(Part::Of("fp8")); 3]);
}

#[test]
fn copies_of_the_weights_in_other_files_have_nothing_to_do_with_scales() {
    let scaled = shard(&[("a.weight", "F8_E4M3", &[8, 8]), ("a.scale_weight", "F32", &[])]);
    let (plain, unscaled) =
        (shard(&[("a.weight", "BF16", &[8, 8])]), shard(&[("a.weight", "F8_E4M3", &[8, 8])]));
    let found = Quantized::of(&[("", &scaled), ("", &plain), ("", &unscaled)]);
    assert_eq!(found.part((0, 0)), Some(Part::Of("ComfyUI fp8")));
    assert_eq!(found.part((1, 0)), None);
    let scales = found.weights().iter().map(|it| (it.codes.0, it.companion(".scale_weight")));
    let expected = [(0, Some(Found::At((0, 1)))), (2, None)];
    assert_eq!(scales.collect::<Vec<_>>(), expected);
    let found = Quantized::of(&[("", &plain), ("", &unscaled)]);
    assert_eq!((found.part((0, 0)), found.part((1, 0))), (None, Some(Part::Unscaled)));
}

#[test]
fn the_scale_of_a_weight_is_not_that_of_tensors_below_it() {
    let found = parts(&[
        ("a.weight", "F8_E4M3", &[8, 8]),
        ("a.weight_scale", "F32", &[]),
        ("a.b.weight", "F8_E4M3", &[8, 8]),
    ]);
    assert_eq!(found, [Some(Part::Of("fp8")), Some(Part::Of("fp8")), Some(Part::Codes)]);
}

#[test]
fn codes_without_a_scale_and_scales_without_codes_are_orphans() {
    let fp8 = ("b.weight", "F8_E4M3", [8, 8].as_slice());
    assert_eq!(parts(&[fp8]), [Some(Part::Unscaled)]);
    let beside = parts(&[fp8, ("a.weight", "F8_E4M3", &[8, 8]), ("a.weight_scale", "F32", &[1])]);
    assert_eq!(beside[0], Some(Part::Codes));
    assert_eq!(parts(&[("a.weight", "I32", &[8, 8])]), [Some(Part::Codes)]);
    assert_eq!(parts(&[("a.weight_scale_inv", "F32", &[1, 1])]), [Some(Part::Scale)]);
    assert_eq!(
        parts(&[("a.weight", "BF16", &[8, 8]), ("a.weight_scale_inv", "F32", &[1, 1])])[1],
        Some(Part::Scale)
    );
    assert_eq!(parts(&[("a.qzeros", "I32", &[1, 8])]), [Some(Part::Scale)]);
    assert_eq!(parts(&[("a.weight_scale_2", "F32", &[])]), [Some(Part::Scale)]);
}

#[test]
fn fp8_without_a_scale_is_codes_where_anything_is_said_of_quantization() {
    let fp8: Row = ("b.weight", "F8_E4M3", &[8, 8]);
    for other in [
        ("a.weight_scale_inv", "F32", [1, 1].as_slice()),
        ("a.weight", "I32", &[8, 8]),
        ("a.scale", "F8_E8M0", &[1, 1]),
        ("b.input_scale", "F32", &[]),
        ("scaled_fp8", "F8_E4M3", &[2]),
        ("b.comfy_quant", "U8", &[27]),
    ] {
        assert_eq!(parts(&[fp8, other])[0], Some(Part::Codes), "{other:?}");
    }
    for plain in [
        ("b.bias", "BF16", [8].as_slice()),
        ("a.weight", "F8_E5M2", &[8, 8]),
        ("logit_scale", "F32", &[]),
        ("norm.scale", "F32", &[8]),
        ("attn.k_scale", "F32", &[]),
        ("position_ids", "I64", &[1, 512]),
    ] {
        assert_eq!(parts(&[fp8, plain])[0], Some(Part::Unscaled), "{plain:?}");
    }
}

#[test]
fn what_only_looks_quantized_is_plain() {
    let rows: &[Row] = &[
        ("logit_scale", "F32", &[]),
        ("layer.layer_scale", "F32", &[8]),
        ("a.weight", "F32", &[8, 8]),
        ("a.weight_scale", "F32", &[8, 1]),
        ("a.input_scale", "F32", &[]),
        ("b.weight", "F32", &[8]),
        ("b.scale", "F32", &[8]),
        ("b.scales", "F32", &[8]),
        ("swin.attn.relative_position_index", "I64", &[49, 49]),
        ("swin.attn.logit_scale", "F32", &[3, 1, 1]),
        ("h.0.attn.bias", "U8", &[1, 1, 64, 64]),
        ("h.0.attn.masked_bias", "F32", &[]),
        ("norm.num_batches_tracked", "I64", &[]),
        ("embeddings.position_ids", "I32", &[1, 512]),
        ("quantizer.codebook.weight", "F32", &[8, 8]),
        ("vq.centroids.weight", "F32", &[8, 8]),
        ("block.0.layer_scale_1", "F32", &[8]),
        ("block.0.layer_scale_2", "F32", &[8]),
        ("attn.q_scale", "F32", &[8]),
        ("attn.k_scale", "F32", &[8]),
    ];
    assert_eq!(parts(rows), vec![None; rows.len()]);
}

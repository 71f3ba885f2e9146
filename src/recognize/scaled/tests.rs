//! What the tensors of a weight and the word of a config become, and what they leave open.

use super::*;
use crate::cast::scaled::{Code, Grid, Second};
use crate::checksum::Digest;
use crate::dtype::Dtype;
use crate::format::safetensors::Shard;
use crate::recognize::quantized::Quantized;

/// A tensor by its name, its dtype and its shape.
type Row<'a> = (&'a str, &'a str, &'a [u64]);

/// What becomes of the only weight among the tensors of some shards.
fn of(shards: &[&[Row<'_>]], stated: &str) -> Option<Result<Scaled, ScaleFault>> {
    let shards: Vec<Shard> = shards
        .iter()
        .map(|rows| {
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
        })
        .collect();
    let named: Vec<(&str, &Shard)> = shards.iter().map(|shard| ("", shard)).collect();
    let quantized = Quantized::of(&named);
    let [weight] = quantized.weights() else { return None };
    let stated = Quantization::parse(stated);
    super::of(weight, &|(shard, tensor)| &shards[shard].tensors[tensor], &stated)
}

fn formula(shards: &[&[Row<'_>]], stated: &str) -> Formula {
    of(shards, stated).expect("a known scheme").expect("a sound weight").formula
}

fn fault(rows: &[Row<'_>], stated: &str) -> ScaleFault {
    of(&[rows], stated).expect("a known scheme").expect_err("a fault")
}

const BLOCKS: &str = r#"{"quant_method": "fp8", "weight_block_size": [128, 64]}"#;

#[test]
fn blocks_have_the_size_that_a_config_states() {
    let codes: Row<'_> = ("a.weight", "F8_E4M3", &[300, 200]);
    let found = formula(&[&[codes], &[("a.weight_scale_inv", "BF16", &[3, 4])]], BLOCKS);
    assert_eq!(found.grid, Grid { rows: 300, columns: 200, block: (128, 64) });
    assert_eq!((found.code, found.scale, found.transposed), (Code::E4m3, Scale::Bf16, false));
    // Without a config, several sizes fit.
    let scale: Row<'_> = ("a.weight_scale_inv", "F32", &[3, 4]);
    assert!(matches!(fault(&[codes, scale], "{}"), ScaleFault::Unstated { .. }));
    let scale: Row<'_> = ("a.weight_scale_inv", "F32", &[3, 3]);
    assert!(matches!(fault(&[codes, scale], BLOCKS), ScaleFault::Shape { .. }));
    let scale: Row<'_> = ("a.weight_scale_inv", "F32", &[3, 1, 4, 1]);
    assert_eq!(formula(&[&[codes, scale]], BLOCKS).grid, found.grid);
    let vector: &[Row<'_>] =
        &[("a.weight", "F8_E4M3", &[300]), ("a.weight_scale_inv", "F32", &[5])];
    assert!(matches!(fault(vector, BLOCKS), ScaleFault::Shape { .. }));
    let planes: &[Row<'_>] =
        &[("e.down_proj", "F8_E4M3", &[2, 300, 200]), ("e.down_proj_scale_inv", "F32", &[2, 3, 4])];
    assert_eq!(formula(&[planes], BLOCKS).grid, found.grid);
}

#[test]
fn blocks_may_keep_their_extents_as_ones() {
    let codes: Row<'_> = ("a.weight", "F8_E4M3", &[300, 200]);
    let stated = r#"{"quantization": {"quant_algo": "FP8_PB_WO"}}"#;
    let found = formula(&[&[codes, ("a.weight_scale", "F32", &[3, 1, 2, 1])]], stated);
    assert_eq!(found.grid, Grid { rows: 300, columns: 200, block: (128, 128) });
    for other in [[2, 1, 3, 1].as_slice(), &[3, 2, 1, 1], &[1, 3, 1, 2]] {
        let scale: Row<'_> = ("a.weight_scale", "F32", other);
        assert!(matches!(fault(&[codes, scale], stated), ScaleFault::Shape { .. }));
    }
}

#[test]
fn more_columns_than_can_be_counted_are_refused() {
    let packed: &[Row<'_>] =
        &[("a.weight_packed", "U8", &[0, 1 << 63]), ("a.weight_scale", "U8", &[0, 0])];
    let stated = r#"{"format": "mxfp4-pack-quantized"}"#;
    assert!(matches!(fault(packed, stated), ScaleFault::Codes { .. }));
    let blocks: &[Row<'_>] =
        &[("a_blocks", "U8", &[0, 3, 1 << 60, 16]), ("a_scales", "U8", &[0, 3, 1 << 60])];
    assert!(matches!(fault(blocks, "{}"), ScaleFault::Codes { .. }));
}

#[test]
fn a_scale_for_all_or_for_each_row_or_column_needs_no_config() {
    let block = |codes: &[u64], scale: &[u64]| {
        let rows: &[Row<'_>] = &[("a.weight", "F8_E5M2", codes), ("a.weight_scale", "F32", scale)];
        formula(&[rows], "{}").grid.block
    };
    assert_eq!(block(&[300, 200], &[]), (300, 200));
    assert_eq!(block(&[300, 200], &[1, 1]), (300, 200));
    assert_eq!(block(&[3, 10, 20], &[1]), (30, 20));
    assert_eq!(block(&[300, 200], &[300, 1]), (1, 200));
    assert_eq!(block(&[300, 200], &[300]), (1, 200));
    assert_eq!(block(&[200, 200], &[200]), (1, 200));
    assert_eq!(block(&[300, 200], &[1, 200]), (300, 1));
    assert_eq!(block(&[3, 10, 20], &[3, 1, 20]), (10, 1));
    assert_eq!(block(&[3, 10, 20], &[3, 10]), (1, 20));
    assert_eq!(block(&[3, 10, 20], &[3, 10, 1]), (1, 20));
    // All of a plane, as one row.
    assert_eq!(block(&[3, 10, 20], &[3]), (1, 200));
    assert_eq!(block(&[64, 32, 3, 3], &[64, 1, 1, 1]), (1, 288));
    assert_eq!(block(&[20], &[1]), (1, 20));
}

#[test]
fn blocks_of_two_sizes_that_both_fit_are_refused() {
    let rows: &[Row<'_>] =
        &[("a.weight", "F8_E4M3", &[300, 200]), ("a.weight_scale", "F32", &[3, 2])];
    let both = r#"{"config_groups": {"a": {"weights": {"block_structure": [128, 128]}},
                                     "b": {"weights": {"block_structure": [100, 128]}}}}"#;
    assert!(matches!(fault(rows, both), ScaleFault::Blocks { .. }));
    // One of them is the other, as far as the weight goes.
    let same = r#"{"config_groups": {"a": {"weights": {"block_structure": [128, 128]}},
                                     "b": {"weights": {"group_size": 32}}}}"#;
    assert_eq!(formula(&[rows], same).grid.block, (128, 128));
}

#[test]
fn codes_of_4_bits_have_the_layout_of_their_names() {
    let gpt_oss: &[Row<'_>] = &[
        ("m.experts.down_proj_blocks", "U8", &[2, 6, 3, 16]),
        ("m.experts.down_proj_scales", "U8", &[2, 6, 3]),
    ];
    let found = of(&[gpt_oss], "{}").expect("known").expect("sound");
    assert_eq!(
        (found.name.as_str(), found.shape.as_slice()),
        ("m.experts.down_proj", [2, 96, 6].as_slice())
    );
    assert!(found.formula.transposed);
    let own: &[Row<'_>] = &[
        ("b.mlp1_weight.blocks", "U8", &[2, 6, 3, 16]),
        ("b.mlp1_weight.scales", "U8", &[2, 6, 3]),
    ];
    let found = of(&[own], "{}").expect("known").expect("sound");
    assert_eq!(
        (found.name.as_str(), found.shape.as_slice()),
        ("b.mlp1_weight", [2, 6, 96].as_slice())
    );
    assert!(!found.formula.transposed);
    let packed: &[Row<'_>] =
        &[("a.weight_packed", "U8", &[8, 32]), ("a.weight_scale", "U8", &[8, 2])];
    assert!(matches!(fault(packed, "{}"), ScaleFault::Layout { .. }));
    let stated = r#"{"format": "mxfp4-pack-quantized"}"#;
    assert_eq!(of(&[packed], stated).expect("known").expect("sound").name, "a.weight");
    let nvfp4: &[Row<'_>] = &[
        ("a.weight_packed", "U8", &[8, 32]),
        ("a.weight_scale", "F8_E4M3", &[8, 4]),
        ("a.weight_global_scale", "F32", &[1]),
    ];
    assert_eq!(formula(&[nvfp4], "{}").second, Some(Second::Divides));
    let modelopt: &[Row<'_>] = &[
        ("a.weight", "U8", &[8, 32]),
        ("a.weight_scale", "F8_E4M3", &[8, 4]),
        ("a.weight_scale_2", "F32", &[]),
    ];
    assert!(matches!(fault(modelopt, "{}"), ScaleFault::Layout { .. }));
    let stated = r#"{"quant_method": "modelopt"}"#;
    assert_eq!(formula(&[modelopt], stated).second, Some(Second::Multiplies));
    let experts: &[Row<'_>] = &[("a.weight", "I8", &[8, 32]), ("a.scale", "F8_E8M0", &[8, 2])];
    assert!(matches!(fault(experts, "{}"), ScaleFault::Layout { .. }));
    let found = of(&[experts], r#"{"name": "fp4"}"#).expect("known").expect("sound");
    assert_eq!((found.name.as_str(), found.shape.as_slice()), ("a.weight", [8, 64].as_slice()));
}

#[test]
fn what_needs_more_than_codes_and_scales_is_refused() {
    let with = |name: &str, dtype: &str, stated: &str| {
        let rows: &[Row<'_>] = &[
            ("a.weight", "F8_E4M3", &[8, 8]),
            ("a.weight_scale", "F32", &[]),
            (name, dtype, &[8, 8]),
        ];
        fault(rows, stated)
    };
    assert_eq!(with("a.weight_zero_point", "F8_E4M3", "{}"), ScaleFault::ZeroPoints);
    assert_eq!(with("a.weight_g_idx", "I32", "{}"), ScaleFault::Reordered);
    let mistral: &[Row<'_>] = &[
        ("a.weight", "F8_E4M3", &[8, 8]),
        ("a.qscale_weight", "F32", &[]),
        ("a.weight_zero_point", "F32", &[]),
    ];
    assert_eq!(fault(mistral, "{}"), ScaleFault::ZeroPoints);
    assert_eq!(with("a.weight_scale_2", "F32", "{}"), ScaleFault::Second);
    assert_eq!(with("a.pre_quant_scale", "F32", "{}"), ScaleFault::Smoothed);
    let rotated = r#"{"transform_config": {"config_groups": {}}}"#;
    assert_eq!(with("b.bias", "F32", rotated), ScaleFault::Rotated);
    let comfy: &[Row<'_>] = &[
        ("a.weight", "F8_E4M3", &[128, 128]),
        ("a.weight_scale", "U8", &[128, 4]),
        ("a.comfy_quant", "U8", &[20]),
    ];
    assert_eq!(fault(comfy, r#"{"format": "mxfp8"}"#), ScaleFault::Swizzled);
    let experts: &[Row<'_>] =
        &[("e.down_proj", "F8_E4M3", &[2, 8, 8]), ("e.down_proj_scale", "F32", &[2, 8, 1])];
    assert_eq!(fault(experts, r#"{"quant_method": "fbgemm_fp8"}"#), ScaleFault::Experts);
}

#[test]
fn a_scale_in_several_other_shards_is_nobodys() {
    let codes: &[Row<'_>] = &[("a.weight", "F8_E4M3", &[8, 8])];
    let scale: &[Row<'_>] = &[("a.weight_scale", "F32", &[])];
    let both = [codes, scale].concat();
    let found = of(&[codes, scale, scale], "{}").expect("known");
    assert_eq!(found.expect_err("a fault"), ScaleFault::Several { scale: "_scale" });
    assert!(of(&[&both, scale], "{}").expect("known").is_ok());
}

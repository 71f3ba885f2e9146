//! Codes of 8 bits: one scale for a tensor, a row or a block. DeepSeek, Qwen, GLM, MiniMax and Kimi
//! (`weight_scale_inv`, which is a factor despite its name; `.scale`), AutoFP8, fbgemm,
//! compressed-tensors and ModelOpt (`weight_scale`), Mistral (`qscale_weight`), ComfyUI
//! (`scale_weight`), MXFP8. DeepSeek-V3's README_WEIGHTS.md, compressed-tensors 0.20,
//! integrations/finegrained_fp8.py in transformers 5.24, comfy/utils.py.

use super::blocks;
use super::{Scaled, View};
use crate::cast::scaled::{Code, Formula, Scale};
use crate::error::ScaleFault;

/// transformers and others store E8M0 as U8, too.
const SCALES: [(&str, Scale); 5] = [
    ("F32", Scale::F32),
    ("BF16", Scale::Bf16),
    ("F16", Scale::F16),
    ("F8_E8M0", Scale::E8m0),
    ("U8", Scale::E8m0),
];

pub fn of(view: &View<'_>) -> Result<Scaled, ScaleFault> {
    let (weight, codes) = (view.weight, view.codes());
    let code = match codes.dtype.name() {
        "F8_E4M3" => Code::E4m3,
        "F8_E5M2" => Code::E5m2,
        "F8_E4M3FNUZ" => Code::E4m3Fnuz,
        "F8_E5M2FNUZ" => Code::E5m2Fnuz,
        _ => return Err(view.not_the_codes()),
    };
    if weight.companion("_scale_2").is_some() {
        return Err(ScaleFault::Second);
    }
    let scales = view.companion(weight.scheme.scale)?;
    let scale = view.scale(scales, &SCALES)?;
    let tensor = (view.tensor)(scales);
    if view.stated.says("fbgemm") && codes.shape.len() > 2 {
        return Err(ScaleFault::Experts);
    }
    // Those of ComfyUI's MXFP8 are in tiles, and may have the same shape.
    if view.is_comfy() && scale == Scale::E8m0 && tensor.elements() > 1 {
        return Err(ScaleFault::Swizzled);
    }
    let grid = blocks::grid(&codes.shape, tensor, &view.stated.blocks)?;
    let is_mx = scale == Scale::E8m0 && grid.block == (1, 32.min(grid.columns));
    let (tall, wide) = grid.block;
    let scheme = match () {
        () if is_mx => "MXFP8".to_owned(),
        () if tensor.elements() == 1 => "fp8, a scale for each tensor".to_owned(),
        () if (tall, wide) == (1, grid.columns) => "fp8, a scale for each row".to_owned(),
        () if (tall, wide) == (grid.rows, 1) => "fp8, a scale for each column".to_owned(),
        () => format!("fp8, a scale for each block of {tall} x {wide}"),
    };
    let formula = Formula { code, scale, second: None, grid, transposed: false };
    let (name, shape) = (codes.name.clone(), codes.shape.clone());
    Ok(Scaled { codes: weight.codes, scales, second: None, formula, name, shape, scheme })
}

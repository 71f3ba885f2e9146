//! Codes of 4 bits, two in a byte, the first in the lower half: MXFP4 (a power of two for each 32) in
//! the spellings of gpt-oss, compressed-tensors and DeepSeek-V4; NVFP4 (an e4m3 for each 16, and one
//! binary32 for all) in those of compressed-tensors, which divides by the latter, and of ModelOpt,
//! which multiplies. integrations/mxfp4.py in transformers 5.24, compressed-tensors 0.20,
//! qtensor/nvfp4_tensor.py in ModelOpt.

use super::{Scaled, View};
use crate::cast::scaled::{Code, Formula, Grid, Scale, Second};
use crate::error::{ScaleFault, Shape};
use crate::format::safetensors::Tensor;
use crate::recognize::quantized::At;

const POWERS: [(&str, Scale); 2] = [("F8_E8M0", Scale::E8m0), ("U8", Scale::E8m0)];
const E4M3: [(&str, Scale); 1] = [("F8_E4M3", Scale::E4m3)];
const F32: [(&str, Scale); 1] = [("F32", Scale::F32)];

/// gpt-oss: `_blocks` of shape [experts, rows, groups, 16] are experts whose matrices transformers
/// has transposed; OpenAI's own `.blocks` become its own tensors, which are not.
pub fn blocks(view: &View<'_>) -> Result<Scaled, ScaleFault> {
    let (weight, codes) = (view.weight, view.codes());
    let scales = view.companion(weight.scheme.scale)?;
    let scale = view.scale(scales, &POWERS)?;
    let transposed = weight.scheme.scale == "_scales";
    let [before @ .., rows, groups, 16] = codes.shape.as_slice() else {
        return Err(view.not_the_codes());
    };
    if transposed && before.len() != 1 {
        return Err(view.not_the_codes());
    }
    let columns = groups.checked_mul(32).ok_or_else(|| view.not_the_codes())?;
    check_shape(view, scales, &[before, &[*rows, *groups]].concat(), (1, 32))?;
    let plane = if transposed { [columns, *rows] } else { [*rows, columns] };
    let shape = [before, &plane].concat();
    let grid = match shape.contains(&0) {
        true => Grid { rows: 1, columns: 1, block: (1, 1) },
        false => Grid { rows: *rows, columns, block: (1, 32) },
    };
    let formula = Formula { code: Code::E2m1, scale, second: None, grid, transposed };
    let (name, scheme) = (weight.stem.clone(), "MXFP4".to_owned());
    Ok(Scaled { codes: weight.codes, scales, second: None, formula, name, shape, scheme })
}

/// compressed-tensors: `weight_packed`, whose bytes may as well be integers.
pub fn packed(view: &View<'_>) -> Result<Scaled, ScaleFault> {
    let says = "mxfp4";
    if !view.stated.says(says) {
        return Err(ScaleFault::Layout { scheme: "MXFP4", says });
    }
    let name = view.weight.stem.clone();
    rows(view, (name, "MXFP4 (compressed-tensors)"), (&POWERS, 32), None)
}

/// DeepSeek-V4: experts are I8, as integers are, with scales that are powers of two.
pub fn packed_experts(view: &View<'_>) -> Result<Scaled, ScaleFault> {
    let says = "fp4";
    if !view.stated.says(says) {
        return Err(ScaleFault::Layout { scheme: "packed MXFP4", says });
    }
    let name = view.codes().name.clone();
    rows(view, (name, "MXFP4 (packed experts)"), (&POWERS[..1], 32), None)
}

/// compressed-tensors.
pub fn nvfp4(view: &View<'_>) -> Result<Scaled, ScaleFault> {
    let second = (view.companion(view.weight.scheme.scale)?, Second::Divides);
    let name = view.weight.stem.clone();
    rows(view, (name, "NVFP4 (compressed-tensors)"), (&E4M3, 16), Some(second))
}

/// ModelOpt. ComfyUI calls its tensors the same, and stores them in another order.
pub fn modelopt(view: &View<'_>) -> Result<Scaled, ScaleFault> {
    if view.is_comfy() {
        return Err(ScaleFault::Swizzled);
    }
    let says = "modelopt";
    if !view.stated.says(says) {
        return Err(ScaleFault::Layout { scheme: "ModelOpt NVFP4", says });
    }
    let codes = view.codes();
    if codes.dtype.name() != "U8" || codes.name.ends_with("_packed") {
        return Err(view.not_the_codes());
    }
    let second = (view.companion(view.weight.scheme.scale)?, Second::Multiplies);
    rows(view, (codes.name.clone(), "NVFP4 (ModelOpt)"), (&E4M3, 16), Some(second))
}

/// Codes packed along their rows, with a scale for each `group` of them.
fn rows(
    view: &View<'_>,
    (name, scheme): (String, &str),
    (known, group): (&[(&str, Scale)], u64),
    second: Option<(At, Second)>,
) -> Result<Scaled, ScaleFault> {
    let (weight, codes) = (view.weight, view.codes());
    let scales = match second {
        // The scales of groups are called as those of other schemes are.
        Some(_) => view.companion(weight.scheme.also[0])?,
        None => view.companion(weight.scheme.scale)?,
    };
    let scale = view.scale(scales, known)?;
    let [before @ .., rows, bytes] = codes.shape.as_slice() else {
        return Err(view.not_the_codes());
    };
    let (rows, columns) = (*rows, bytes.checked_mul(2).ok_or_else(|| view.not_the_codes())?);
    check_shape(view, scales, &[before, &[rows, columns.div_ceil(group)]].concat(), (1, group))?;
    if let Some((at, _)) = second {
        view.scale(at, &F32)?;
        let planes: u64 = before.iter().product();
        let Tensor { name, shape, .. } = (view.tensor)(at);
        let count = (view.tensor)(at).elements();
        if count != 1 && count != planes {
            let (scale, shape, codes) = (name.clone(), Shape(shape.clone()), codes.shape.clone());
            let blocks = "whole experts".to_owned();
            return Err(ScaleFault::Shape { scale, shape, codes: Shape(codes), blocks });
        }
    }
    let grid = match codes.shape.contains(&0) {
        true => Grid { rows: 1, columns: 1, block: (1, 1) },
        false => Grid { rows, columns, block: (1, group) },
    };
    let (second, kind) = (second.map(|(at, _)| at), second.map(|(_, second)| second));
    let formula = Formula { code: Code::E2m1, scale, second: kind, grid, transposed: false };
    let (shape, scheme) = ([before, &[rows, columns]].concat(), scheme.to_owned());
    Ok(Scaled { codes: weight.codes, scales, second, formula, name, shape, scheme })
}

fn check_shape(
    view: &View<'_>,
    at: At,
    expected: &[u64],
    (tall, wide): (u64, u64),
) -> Result<(), ScaleFault> {
    let Tensor { name, shape, .. } = (view.tensor)(at);
    if shape == expected {
        return Ok(());
    }
    let (scale, shape) = (name.clone(), Shape(shape.clone()));
    let codes = Shape(view.codes().shape.clone());
    Err(ScaleFault::Shape { scale, shape, codes, blocks: format!("{tall} x {wide}") })
}

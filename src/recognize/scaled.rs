//! How the codes and scales of a quantized weight become plain values, by its scheme: a file for
//! each kind of codes. What the names and dtypes of tensors leave open, a config has to say: the
//! size of blocks is never guessed from shapes.

mod blocks;
mod fp4;
mod fp8;

use crate::cast::scaled::{Formula, Scale};
use crate::error::{ScaleFault, Shape};
use crate::format::quantization::Quantization;
use crate::format::safetensors::Tensor;
use crate::recognize::quantized::{At, Found, Weight};

/// A quantized weight that can be made into plain values.
#[derive(Clone, Debug)]
pub struct Scaled {
    pub codes: At,
    pub scales: At,
    pub second: Option<At>,
    pub formula: Formula,
    /// What it is called in the result, and its shape there.
    pub name: String,
    pub shape: Vec<u64>,
    /// What people call such weights.
    pub scheme: String,
}

/// A weight as a scheme looks at it.
struct View<'a> {
    weight: &'a Weight,
    tensor: &'a dyn Fn(At) -> &'a Tensor,
    stated: &'a Quantization,
}

/// How a weight becomes plain values; nothing where recast does not know its scheme. `stated` is
/// what configs say of its component.
///
/// # Errors
/// What is wrong with it, where its scheme is known.
pub fn of<'a>(
    weight: &'a Weight,
    tensor: &'a dyn Fn(At) -> &'a Tensor,
    stated: &'a Quantization,
) -> Option<Result<Scaled, ScaleFault>> {
    let view = View { weight, tensor, stated };
    let known = match weight.scheme.name {
        "fp8" | "Mistral fp8" | "ComfyUI fp8" => fp8::of,
        "MXFP4" => fp4::blocks,
        "packed fp4" => fp4::packed_experts,
        "NVFP4" => fp4::nvfp4,
        "ModelOpt NVFP4" => fp4::modelopt,
        // Codes of 4 bits in integers of 32 are packed in another way.
        "compressed-tensors packed" if view.codes().dtype.name() == "U8" => fp4::packed,
        _ => return None,
    };
    Some(view.check().and_then(|()| known(&view)))
}

impl<'a> View<'a> {
    fn codes(&self) -> &'a Tensor {
        (self.tensor)(self.weight.codes)
    }

    /// What is true of no scheme whose values are the products of codes and scales.
    fn check(&self) -> Result<(), ScaleFault> {
        let has = |part| self.weight.companion(part).is_some();
        let companions = self.weight.companions().filter_map(|found| match found {
            Found::At(at) => Some(at),
            Found::Ambiguous => None,
        });
        let mut parts = std::iter::once(self.weight.codes).chain(companions);
        match () {
            () if has("_zero_point") => Err(ScaleFault::ZeroPoints),
            () if has("_g_idx") => Err(ScaleFault::Reordered),
            () if has(".pre_quant_scale") => Err(ScaleFault::Smoothed),
            () if parts.any(|at| (self.tensor)(at).view.is_some()) => Err(ScaleFault::Scattered),
            () if self.stated.rotates => Err(ScaleFault::Rotated),
            () => Ok(()),
        }
    }

    fn is_comfy(&self) -> bool {
        self.weight.companion(".comfy_quant").is_some()
            || self.stated.says("_quantization_metadata")
    }

    /// A companion that the scheme needs.
    fn companion(&self, part: &'static str) -> Result<At, ScaleFault> {
        match self.weight.companion(part) {
            Some(Found::At(at)) => Ok(at),
            Some(Found::Ambiguous) => Err(ScaleFault::Several { scale: part }),
            None => Err(ScaleFault::Missing { scale: part }),
        }
    }

    /// What the elements of a scale are, if any of these.
    fn scale(&self, at: At, known: &[(&str, Scale)]) -> Result<Scale, ScaleFault> {
        let tensor = (self.tensor)(at);
        let found = known.iter().find(|(dtype, _)| *dtype == tensor.dtype.name());
        found.map(|(_, scale)| *scale).ok_or_else(|| {
            let (scale, dtype) = (tensor.name.clone(), tensor.dtype.name().to_owned());
            ScaleFault::Dtype { scale, dtype }
        })
    }

    fn not_the_codes(&self) -> ScaleFault {
        let Tensor { shape, dtype, .. } = self.codes();
        ScaleFault::Codes { shape: Shape(shape.clone()), dtype: dtype.name().to_owned() }
    }
}

#[cfg(test)]
mod tests;

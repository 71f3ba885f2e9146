//! Optimizer state saved as safetensors: moments, and counts of steps that are stored as floats. It is
//! no part of a model, and a training that goes on with rounded state goes on from somewhere else.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

/// What torch's optimizers call their state of a parameter (`torch/optim/*.py` in torch 2.15), where
/// no module calls a parameter so.
const STATE: [&str; 12] = [
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "exp_inf",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "acc_delta",
    "sum_of_squares",
    "mu_product",
    "prev_grad",
    "exp_avg_slow",
];
/// What stands beside it under a name that says less.
const BESIDE: [&str; 5] = ["step", "sum", "ax", "eta", "mu"];

/// The positions of the tensors of a file that are optimizer state.
pub fn of(file: &Path, names: &[&str]) -> BTreeSet<usize> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let is_whole_file = ["optimizer", "optim"].iter().any(|word| {
        stem.strip_prefix(word).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphabetic()))
    });
    if is_whole_file {
        return (0..names.len()).collect();
    }
    let of_states =
        names.iter().filter_map(|name| split(name).filter(|(_, it)| STATE.contains(it)));
    let parameters: HashSet<&str> = of_states.map(|(parameter, _)| parameter).collect();
    let is_state = |name: &str| {
        split(name).is_some_and(|(parameter, last)| {
            parameters.contains(parameter) && (STATE.contains(&last) || BESIDE.contains(&last))
        })
    };
    (0..names.len()).filter(|number| is_state(names[*number])).collect()
}

/// A name without its last part, and that.
fn split(name: &str) -> Option<(&str, &str)> {
    name.rsplit_once(['.', '/'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(file: &str, names: &[&str]) -> Vec<usize> {
        of(Path::new(file), names).into_iter().collect()
    }

    #[test]
    fn moments_and_the_step_beside_them_are_state() {
        let names = ["layer.weight", "state.0.exp_avg", "state.0.step", "other.step", "state.1.mu"];
        assert_eq!(found("training.safetensors", &names), [1, 2]);
    }

    #[test]
    fn a_file_called_so_holds_nothing_else() {
        assert_eq!(found("m/optimizer.safetensors", &["a", "b"]), [0, 1]);
        assert_eq!(found("optim-00001-of-00002.safetensors", &["a"]), [0]);
        assert_eq!(found("optimus.safetensors", &["a"]), [0; 0]);
    }
}

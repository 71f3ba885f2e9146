//! Optimizer state saved as safetensors: moments, and counts of steps that are stored as floats. It is
//! no part of a model, and a training that goes on with rounded state goes on from somewhere else.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

/// What the optimizers of torch (`torch/optim/*.py` in torch 2.15) and transformers (Adafactor) call
/// their state of a parameter, where no module calls a parameter so.
const STATE: [&str; 15] = [
    "exp_avg",
    "exp_avg_sq",
    "exp_avg_sq_col",
    "exp_avg_sq_row",
    "max_exp_avg_sq",
    "exp_inf",
    "momentum_buffer",
    "square_avg",
    "grad_avg",
    "acc_delta",
    "sum_of_squares",
    "mu_product",
    "row_var",
    "col_var",
    "exp_avg_slow",
];
/// What stands beside it under a name that says less.
const BESIDE: [&str; 6] = ["step", "sum", "ax", "eta", "mu", "RMS"];
/// What says less, but is state where all of it stands together: Adagrad, Adafactor (of a vector),
/// Rprop, ASGD.
const TOGETHER: [&[&str]; 4] = [
    &["step", "sum"],
    &["step", "variance"],
    &["step", "prev", "step_size"],
    &["step", "eta", "mu", "ax"],
];

/// The positions of the tensors of a file that are optimizer state.
pub fn of(file: &Path, names: &[&str]) -> BTreeSet<usize> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let is_whole_file = ["optimizer", "optim"].iter().any(|word| {
        stem.strip_prefix(word).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphabetic()))
    });
    if is_whole_file {
        return (0..names.len()).collect();
    }
    let mut parameters: HashMap<&str, HashSet<&str>> = HashMap::new();
    for (parameter, last) in names.iter().filter_map(|name| split(name)) {
        parameters.entry(parameter).or_default().insert(last);
    }
    let is_state = |name: &str| {
        let Some((parameter, last)) = split(name) else { return false };
        let beside = &parameters[parameter];
        let is_moment = |last: &str| STATE.contains(&last);
        is_moment(last)
            || (BESIDE.contains(&last) && beside.iter().any(|last| is_moment(last)))
            || TOGETHER
                .iter()
                .any(|all| all.contains(&last) && all.iter().all(|other| beside.contains(other)))
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
        let names = ["0.step", "0.sum", "0.mu", "1.sum", "2.step", "2.prev", "3.step_size"];
        assert_eq!(found("training.safetensors", &names), [0, 1]);
    }

    #[test]
    fn a_file_called_so_holds_nothing_else() {
        assert_eq!(found("m/optimizer.safetensors", &["a", "b"]), [0, 1]);
        assert_eq!(found("optim-00001-of-00002.safetensors", &["a"]), [0]);
        assert_eq!(found("optimus.safetensors", &["a"]), [0; 0]);
    }
}

//! What the overflow error says.

use super::TensorAudit;
use crate::error::counted;
use crate::plan::{Action, Plan};

/// How many tensors are named.
const WORST: usize = 5;

/// The tensors that overflow, the worst first.
pub fn summary(plan: &Plan, audits: &[TensorAudit]) -> String {
    let tensors: Vec<_> = plan.tensors().collect();
    let mut worst: Vec<_> = audits
        .iter()
        .filter(|entry| entry.audit.to_inf > 0 && tensors[entry.tensor].1.action == Action::Cast)
        .collect();
    worst.sort_by_key(|entry| std::cmp::Reverse(entry.audit.to_inf));
    let count: u64 = worst.iter().map(|entry| entry.audit.to_inf).sum();
    let mut text = format!(
        "{} in {} {} too large for {} and would become infinite:",
        counted(count, "finite value"),
        counted(worst.len() as u64, "tensor"),
        if count == 1 { "is" } else { "are" },
        plan.to
    );
    for entry in worst.iter().take(WORST) {
        let (file, tensor) = tensors[entry.tensor];
        text.push_str(&format!(
            "\n  {} in {}: {} of {}, max_abs {:e}",
            tensor.source.name,
            file.display(),
            entry.audit.to_inf,
            counted(tensor.source.elements(), "value"),
            entry.audit.max_abs()
        ));
    }
    if worst.len() > WORST {
        text.push_str(&format!("\n  and {} more", worst.len() - WORST));
    }
    text
}

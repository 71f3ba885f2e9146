//! Which codes a scale is for, by the shapes of both and the sizes of blocks that configs state.

use crate::cast::scaled::Grid;
use crate::error::{ScaleFault, Shape};
use crate::format::safetensors::Tensor;

/// The planes of a shape, and their rows and columns.
fn planes(shape: &[u64]) -> (u64, u64, u64) {
    match *shape {
        [] => (1, 1, 1),
        [columns] => (1, 1, columns),
        [ref before @ .., rows, columns] => (before.iter().product(), rows, columns),
    }
}

/// The grid of codes whose values have that shape: one scale for all, one for each of what a
/// dimension of the shape counts, or one for each block of one of the sizes `stated`.
pub fn grid(shape: &[u64], scale: &Tensor, stated: &[(u64, u64)]) -> Result<Grid, ScaleFault> {
    let (count, rows, columns) = planes(shape);
    if scale.elements() == 1 {
        // Through all planes, as if they were one.
        let rows = count * rows;
        return Ok(Grid { rows, columns, block: (rows.max(1), columns.max(1)) });
    }
    if let Some(block) = by_dimensions(shape, &scale.shape) {
        return Ok(Grid { rows, columns, block });
    }
    let name = || scale.name.clone();
    let mut fitting: Vec<Grid> = Vec::new();
    for (tall, wide) in stated {
        // What is larger than a plane is as large.
        let block = ((*tall).min(rows).max(1), (*wide).min(columns).max(1));
        let grid = Grid { rows, columns, block };
        if is_of_blocks(shape, &scale.shape, grid) && !fitting.contains(&grid) {
            fitting.push(grid);
        }
    }
    match fitting.as_slice() {
        [grid] => Ok(*grid),
        [] => {
            let (shape, codes) = (Shape(scale.shape.clone()), Shape(shape.to_vec()));
            Err(match listed(stated) {
                None => ScaleFault::Unstated { scale: name(), shape, codes },
                Some(blocks) => ScaleFault::Shape { scale: name(), shape, codes, blocks },
            })
        }
        _ => {
            let blocks = listed(stated).unwrap_or_default();
            Err(ScaleFault::Blocks { scale: name(), blocks })
        }
    }
}

/// The block where each dimension of the scale is that of the codes, or 1: as arrays are broadcast.
/// A scale for each row may also have lost its last dimension, and one for each plane both.
fn by_dimensions(shape: &[u64], scale: &[u64]) -> Option<(u64, u64)> {
    let full: Vec<u64> = match (shape, scale) {
        ([rows, _], [scales]) if rows == scales => vec![*scales, 1],
        ([planes, _, _], [scales]) if planes == scales => vec![*scales, 1, 1],
        ([planes, rows, _], [first, second]) if (planes, rows) == (first, second) => {
            vec![*first, *second, 1]
        }
        _ => scale.to_vec(),
    };
    let [before @ .., tall, wide] = full.as_slice() else {
        return (full == shape).then_some((1, 1));
    };
    let [planes @ .., rows, columns] = shape else { return None };
    let block = |scales: u64, codes: u64| match scales {
        1 => Some(codes.max(1)),
        _ => (scales == codes).then_some(1),
    };
    (before == planes).then_some(())?;
    Some((block(*tall, *rows)?, block(*wide, *columns)?))
}

fn is_of_blocks(shape: &[u64], scale: &[u64], grid: Grid) -> bool {
    let (down, across) = grid.blocks();
    match (shape, scale) {
        ([before @ .., _, _], [planes @ .., tall, wide]) => {
            before == planes && (*tall, *wide) == (down, across)
        }
        ([_], [wide]) => *wide == across,
        _ => false,
    }
}

/// The sizes as a message has them.
fn listed(stated: &[(u64, u64)]) -> Option<String> {
    let mut sizes: Vec<String> =
        stated.iter().map(|(rows, columns)| format!("{rows} x {columns}")).collect();
    sizes.dedup();
    (!sizes.is_empty()).then(|| sizes.join(" or "))
}

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
    if shape.contains(&0) {
        return Ok(Grid { rows: 1, columns: 1, block: (1, 1) });
    }
    let (count, rows, columns) = planes(shape);
    if scale.elements() == 1 {
        // Through all planes, as if they were one.
        let rows = count * rows;
        return Ok(Grid { rows, columns, block: (rows.max(1), columns.max(1)) });
    }
    if let Some(grid) = by_dimensions(shape, &scale.shape) {
        return Ok(grid);
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

/// The grid where the scale has as many dimensions as the codes, each as large or 1, as arrays are
/// broadcast: all of a dimension, or one for each of it. Dimensions of 1 may be missing at its end.
fn by_dimensions(shape: &[u64], scale: &[u64]) -> Option<Grid> {
    if scale.len() > shape.len() {
        return None;
    }
    let mut full = scale.to_vec();
    full.resize(shape.len(), 1);
    // One for each of the first dimensions, as for the channels of a convolution.
    let ones = full.iter().rev().take_while(|size| **size == 1).count();
    let (own, others) = shape.split_at(shape.len() - ones);
    if own == &full[..own.len()] {
        let (rows, columns) = (own.iter().product(), others.iter().product());
        return Some(Grid { rows, columns, block: (1, u64::max(columns, 1)) });
    }
    let ([planes @ .., rows, columns], [before @ .., tall, wide]) = (shape, full.as_slice()) else {
        return None;
    };
    // One for each column.
    (before == planes && *tall == 1 && wide == columns).then_some(Grid {
        rows: *rows,
        columns: *columns,
        block: (u64::max(*rows, 1), 1),
    })
}

fn is_of_blocks(shape: &[u64], scale: &[u64], grid: Grid) -> bool {
    let blocks = grid.blocks();
    match (shape, scale) {
        ([before @ .., _, _], [planes @ .., tall, wide]) if before.len() == planes.len() => {
            before == planes && (*tall, *wide) == blocks
        }
        // ModelOpt leaves the extents inside the blocks as ones.
        ([before @ .., _, _], [planes @ .., tall, 1, wide, 1]) => {
            before == planes && (*tall, *wide) == blocks
        }
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

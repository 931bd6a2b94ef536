//! Gradient checks of ops/rope.rs.

use super::{dot, tensor, values};
use crate::base::{Dtype, Result};
use crate::device::Device;
use crate::ops::Tensor;
use crate::ops::rope::{self, RopeTable, Scaling, inverse_frequencies};
use crate::verify::gradient::{Case, Variable, normals};

/// One pair, odd halves, several heads, a real head.
pub fn cases() -> Vec<Case<'static>> {
    [(1, 1, 2), (4, 3, 10), (3, 2, 64)].into_iter().map(|(rows, heads, dim)| case(rows, heads, dim)).collect()
}

fn case(rows: usize, heads: usize, dim: usize) -> Case<'static> {
    let name = format!("rope {rows}x{heads}x{dim}");
    let c = normals(&format!("{name} dy"), rows * heads * dim);
    let weights = c.clone();
    Case {
        variables: vec![Variable {
            name: "x".into(),
            values: normals(&format!("{name} x"), rows * heads * dim),
        }],
        loss: Box::new(move |point| {
            Ok(dot(&run(&point[0], [rows, heads, dim], Dtype::F64, rope::forward)?, &weights))
        }),
        gradient: Box::new(move |_, dtype| Ok(vec![run(&c, [rows, heads, dim], dtype, rope::backward)?])),
        name,
    }
}

type Direction = fn(crate::ops::ViewMut, usize, crate::ops::View, &RopeTable) -> Result<()>;

/// `x` turned forward or back.
fn run(x: &[f64], [rows, heads, dim]: [usize; 3], dtype: Dtype, direction: Direction) -> Result<Vec<f64>> {
    let device = Device::cpu();
    let table = RopeTable::new(&device, &inverse_frequencies(dim, 1e4, Scaling::None)?, 40, dtype)?;
    let positions: Vec<u32> = (0..rows as u32).map(|row| (row * 13 + 5) % 40).collect();
    let positions = Tensor::from_host(&device, [rows, 1], &positions)?;
    let mut x = tensor(&device, [rows, heads * dim], x, dtype)?;
    direction(x.view_mut(), heads, positions.view(), &table)?;
    values(x.view())
}

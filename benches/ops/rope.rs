//! Rotary positions, in place. Operation: src/ops/rope.rs.

use crate::measure::{Case, ROWS, WIDTH, check, column, numbers, random};
use latch::base::Dtype;
use latch::device::Device;
use latch::ops::rope::{RopeTable, Scaling, backward, forward, inverse_frequencies};

const HEAD: usize = 64;

/// Forward and backward (the rotation by the opposite angle).
pub fn cases() -> Vec<Case> {
    let frequencies = inverse_frequencies(HEAD, 10_000.0, Scaling::None).expect("an even width");
    let table = || RopeTable::new(&Device::cpu(), &frequencies, ROWS, Dtype::F32).expect("memory");
    let (mut x, positions) = (random("x", ROWS, WIDTH), column(|row| row as u32));
    let before = numbers(&x);
    let angles = table();
    forward(x.view_mut(), WIDTH / HEAD, positions.view(), &angles).expect("shapes fit");
    check("rope", &x, |at| {
        let (row, within) = (at / WIDTH, at % HEAD);
        let pair = within % (HEAD / 2);
        let (sin, cos) = (row as f64 * 10_000.0_f64.powf(-2.0 * pair as f64 / HEAD as f64)).sin_cos();
        let first = at - within + pair;
        let (a, b) = (before[first], before[first + HEAD / 2]);
        if within < HEAD / 2 { a * cos - b * sin } else { b * cos + a * sin }
    });
    backward(x.view_mut(), WIDTH / HEAD, positions.view(), &angles).expect("shapes fit");
    check("rope there and back", &x, |at| before[at]);
    let (mut x2, positions2, angles2) = (random("x", ROWS, WIDTH), column(|row| row as u32), table());
    vec![
        Case::moving("rope forward", 8, move || {
            forward(x.view_mut(), WIDTH / HEAD, positions.view(), &angles).expect("shapes fit");
        }),
        Case::moving("rope backward", 8, move || {
            backward(x2.view_mut(), WIDTH / HEAD, positions2.view(), &angles2).expect("shapes fit");
        }),
    ]
}

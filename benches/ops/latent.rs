//! Rows that move: gather, and the feedback of hidden states. Operations: src/ops/gather.rs, latent.rs.

use crate::measure::{Case, ROWS, WIDTH, check, column, numbers, random, zeros};
use latch::ops::scatter::Order;
use latch::ops::{gather, latent};

/// A permutation of the rows (ROWS is a power of two).
fn source(row: usize) -> usize {
    row * 37 % ROWS
}

/// Gather and latent, forward and backward.
pub fn cases() -> Vec<Case> {
    let index = || column(|row| source(row) as u32);
    let latents = || column(|_| -1_i32);
    let signed = column(|row| source(row) as i32);
    let (x, mut y, mut z) = (random("x", ROWS, WIDTH), zeros(ROWS, WIDTH), zeros(ROWS, WIDTH));
    let (rows, ids) = (index(), latents());
    gather::forward(x.view(), rows.view(), y.view_mut()).expect("shapes fit");
    latent::forward(x.view(), rows.view(), ids.view(), None, z.view_mut()).expect("shapes fit");
    let xs = numbers(&x);
    let moved = |at: usize| xs[source(at / WIDTH) * WIDTH + at % WIDTH];
    check("gather", &y, moved);
    check("latent", &z, moved);
    let (mut dx, mut dhidden) = (zeros(ROWS, WIDTH), zeros(ROWS, WIDTH));
    gather::backward(y.view(), rows.view(), dx.view_mut(), &mut Order::default()).expect("shapes fit");
    latent::backward(z.view(), ids.view(), signed.view(), None, dhidden.view_mut(), &mut Order::default())
        .expect("shapes fit");
    check("gather there and back", &dx, |at| xs[at]);
    check("latent there and back", &dhidden, |at| xs[at]);

    let (x2, rows2, ids2) = (random("x", ROWS, WIDTH), index(), latents());
    let (rows3, dy, dz) = (index(), random("dy", ROWS, WIDTH), random("dz", ROWS, WIDTH));
    vec![
        Case::moving("gather forward", 8, move || {
            gather::forward(x.view(), rows.view(), y.view_mut()).expect("shapes fit");
        }),
        Case::moving("gather backward", 12, move || {
            gather::backward(dy.view(), rows3.view(), dx.view_mut(), &mut Order::default())
                .expect("shapes fit");
        }),
        Case::moving("latent forward", 8, move || {
            latent::forward(x2.view(), rows2.view(), ids2.view(), None, z.view_mut()).expect("shapes fit");
        }),
        Case::moving("latent backward", 12, move || {
            latent::backward(
                dz.view(),
                ids.view(),
                signed.view(),
                None,
                dhidden.view_mut(),
                &mut Order::default(),
            )
            .expect("shapes fit");
        }),
    ]
}

//! Embedding of tokens with learned positions. Operation: src/ops/embedding.rs.

use crate::measure::{Case, ROWS, WIDTH, check, column, numbers, random, zeros};
use latch::ops::embedding::{Inputs, backward, forward};
use latch::ops::scatter::Order;

const VOCABULARY: usize = 4096;

fn id(row: usize) -> usize {
    row * 37 % VOCABULARY
}

/// Forward, and the scatter of gradients into both tables.
pub fn cases() -> Vec<Case> {
    let (table, places) = (random("table", VOCABULARY, WIDTH), random("places", ROWS, WIDTH));
    let index = || (column(|row| id(row) as i32), column(|row| row as u32));
    let (ids, positions) = index();
    let mut x = zeros(ROWS, WIDTH);
    let mut run = move || {
        let inputs = Inputs { ids: ids.view(), positions: positions.view(), soft: None };
        forward(&inputs, &table, Some(&places), x.view_mut()).expect("shapes fit");
    };
    let (table, places) = (random("table", VOCABULARY, WIDTH), random("places", ROWS, WIDTH));
    let (ids, positions) = index();
    let mut once = zeros(ROWS, WIDTH);
    let inputs = Inputs { ids: ids.view(), positions: positions.view(), soft: None };
    forward(&inputs, &table, Some(&places), once.view_mut()).expect("shapes fit");
    let (t, p) = (numbers(&table), numbers(&places));
    check("embedding", &once, |at| t[id(at / WIDTH) * WIDTH + at % WIDTH] + p[at]);
    run();

    let (dx, mut dtable, mut dplaces) =
        (random("dx", ROWS, WIDTH), zeros(VOCABULARY, WIDTH), zeros(ROWS, WIDTH));
    backward(dx.view(), &inputs, &table, &mut dtable, Some(&mut dplaces), None, &mut Order::default())
        .expect("shapes fit");
    let given = numbers(&dx);
    check("position gradient", &dplaces, |at| given[at]);
    // 37 and 4096 have no common factor, so every id stands once.
    let mut row_of = vec![None; VOCABULARY];
    (0..ROWS).for_each(|row| row_of[id(row)] = Some(row));
    check("token gradient", &dtable, |at| {
        row_of[at / WIDTH].map_or(0.0, |row| given[row * WIDTH + at % WIDTH])
    });
    vec![
        Case::moving("embedding forward", 12, run),
        Case::moving("embedding backward", 20, move || {
            let inputs = Inputs { ids: ids.view(), positions: positions.view(), soft: None };
            backward(
                dx.view(),
                &inputs,
                &table,
                &mut dtable,
                Some(&mut dplaces),
                None,
                &mut Order::default(),
            )
            .expect("shapes fit");
        }),
    ]
}

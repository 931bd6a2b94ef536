//! Mask bitmaps: drawing them, and the residual add under them. Operations: src/ops/mask.rs, masked_residual.rs.

use crate::measure::{Amount, Case, ROWS, WIDTH, check, column, numbers, random, zeros};
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::mask::{MaskKey, MaskSet, SiteKind, Sites};
use latch::ops::masked_residual::{backward, forward};

const INSTANCES: usize = 64;
const P: f64 = 0.1;

fn keys() -> Vec<MaskKey> {
    let stream = |rollout| StreamKey::new(9, 0, 0, rollout, Purpose::Mask);
    (0..INSTANCES as u32).map(|rollout| MaskKey { stream: stream(rollout), step: 0, attempt: 0 }).collect()
}

fn set(layers: usize) -> MaskSet {
    let sites = Sites::new(WIDTH, 4 * WIDTH, layers, &[SiteKind::AttnOut, SiteKind::MlpOut]);
    MaskSet::fill(&Device::cpu(), sites, P, &keys()).expect("a probability below 1")
}

/// Fill of 12 layers' bitmaps, and the residual add forward and backward.
pub fn cases() -> Vec<Case> {
    let set_of_rows = set(1);
    let site = set_of_rows.sites().find(SiteKind::MlpOut, 0).expect("asked for");
    let (number, keys) = (site.number(), keys());
    // Algorithms B.2: element i is dropped where its Philox word is below p 2^32.
    let kept = |row: usize, i: usize| {
        let word = keys[row % INSTANCES].stream.word(number, 0, i as u32, 0);
        if word < (P * 4_294_967_296.0) as u32 { 0.0 } else { 1.0 / (1.0 - P) }
    };
    let instance = || column(|row| (row % INSTANCES) as i32);
    let (x, branch, dy, instances) =
        (random("x", ROWS, WIDTH), random("branch", ROWS, WIDTH), random("dy", ROWS, WIDTH), instance());
    let (mut y, mut dbranch) = (zeros(ROWS, WIDTH), zeros(ROWS, WIDTH));
    let mask = || set_of_rows.at(SiteKind::MlpOut, 0, instances.view());
    forward(x.view(), branch.view(), mask(), y.view_mut()).expect("shapes fit");
    backward(dy.view(), mask(), dbranch.view_mut()).expect("shapes fit");
    let (xs, bs, gs) = (numbers(&x), numbers(&branch), numbers(&dy));
    check("masked residual", &y, |at| xs[at] + kept(at / WIDTH, at % WIDTH) * bs[at]);
    check("masked residual dbranch", &dbranch, |at| kept(at / WIDTH, at % WIDTH) * gs[at]);

    let (set2, instances2) = (set(1), instance());
    let draws = INSTANCES * 12 * 2 * WIDTH;
    vec![
        Case {
            name: "mask fill, draws".into(),
            amount: Amount::Elements(draws),
            run: Box::new(|| drop(set(12))),
        },
        Case::moving("masked residual forward", 12, move || {
            let mask = set2.at(SiteKind::MlpOut, 0, instances2.view());
            forward(x.view(), branch.view(), mask, y.view_mut()).expect("shapes fit");
        }),
        Case::moving("masked residual backward", 8, move || {
            let mask = set_of_rows.at(SiteKind::MlpOut, 0, instances.view());
            backward(dy.view(), mask, dbranch.view_mut()).expect("shapes fit");
        }),
    ]
}

//! Soft actions and their exact score on supports of 30 ids. Operation: src/ops/soft_action.rs.

use crate::measure::{Amount, Case, check, numbers, random, zeros};
use latch::base::Dtype;
use latch::base::rng::{Purpose, StreamKey};
use latch::device::Device;
use latch::ops::Tensor;
use latch::ops::sampler::{Noise, Support};
use latch::ops::soft_action::{Outputs, Perturbation, Proxy, Score, Scored, Settings, forward, score};

const ROWS: usize = 512;
const VOCABULARY: usize = 5000;
const KEPT: usize = 30;
const SETTINGS: Settings = Settings {
    inverse_temperature: 1.0,
    tau: 0.5,
    perturbation: Perturbation::Gumbel { clamp: None },
    proxy: Proxy::Argmax,
    hard: false,
};

/// Ids of a row: spread over the vocabulary.
fn id(row: usize, i: usize) -> u32 {
    (i * (VOCABULARY / KEPT) + row % (VOCABULARY / KEPT)) as u32
}

fn support() -> Support {
    let mut support = Support::reserve(&Device::cpu(), ROWS, KEPT).expect("memory");
    let ids: Vec<u32> = (0..ROWS * KEPT).map(|at| id(at / KEPT, at % KEPT)).collect();
    support.upload(0..ROWS, &ids, &[KEPT as u32; ROWS]).expect("shapes fit");
    support
}

/// g and y of every row.
fn act(logits: &Tensor, support: &Support, g: &mut Tensor, y: &mut Tensor) {
    let device = Device::cpu();
    let stream = |row: u32| StreamKey::new(5, 0, 0, row, Purpose::Gumbel).0;
    let keys: Vec<u32> = (0..ROWS as u32).flat_map(stream).collect();
    let keys = Tensor::from_host(&device, [ROWS, 2], &keys).expect("memory");
    let steps = Tensor::zeros(&device, [ROWS, 1], Dtype::U32).expect("memory");
    let mut proxies = Tensor::zeros(&device, [ROWS, 1], Dtype::U32).expect("memory");
    let out = Outputs {
        perturbed: g.view_mut(),
        weights: y.view_mut(),
        soft: None,
        proxies: proxies.view_mut(),
        entropies: None,
    };
    let noise = Noise { keys: keys.view(), steps: steps.view(), site: 0 };
    forward(logits.view(), support, 0..ROWS, &SETTINGS, noise, out).expect("shapes fit");
}

/// The action, and the score of the density.
pub fn cases() -> Vec<Case> {
    let (logits, support) = (random("logits", ROWS, VOCABULARY), support());
    let (mut g, mut y) = (zeros(ROWS, KEPT), zeros(ROWS, KEPT));
    act(&logits, &support, &mut g, &mut y);
    let gs = numbers(&g);
    check("soft action", &y, |at| {
        let row = &gs[at / KEPT * KEPT..(at / KEPT + 1) * KEPT];
        let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = row.iter().map(|g| ((g - largest) / SETTINGS.tau).exp()).sum();
        ((gs[at] - largest) / SETTINGS.tau).exp() / sum
    });
    let (logits2, support2) = (random("logits", ROWS, VOCABULARY), self::support());
    let (mut g2, mut y2, mut out) = (zeros(ROWS, KEPT), zeros(ROWS, KEPT), zeros(ROWS, 1));
    vec![
        Case {
            name: "soft action forward, kept ids".into(),
            amount: Amount::Elements(ROWS * KEPT),
            run: Box::new(move || act(&logits2, &support2, &mut g2, &mut y2)),
        },
        Case {
            name: "soft action concrete score, kept ids".into(),
            amount: Amount::Elements(ROWS * KEPT),
            run: Box::new(move || {
                let scored = Scored {
                    logits: logits.view(),
                    inverse_temperature: 1.0,
                    support: &support,
                    at: 0..ROWS,
                    perturbed: g.view(),
                    weights: y.view(),
                };
                let kind = Score::Concrete { tau: SETTINGS.tau, mean: false };
                score(&scored, &kind, out.view_mut()).expect("shapes fit");
            }),
        },
    ]
}

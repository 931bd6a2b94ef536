//! Drawing tokens, mixtures and soft actions from logits, and their scores and gradients: bound by the logits' rows.

use super::{Make, Setting, Work, moved};
use crate::base::rng::{Purpose, StreamKey};
use crate::base::{Dtype, Result};
use crate::ops::Tensor;
use crate::ops::gaussian_density::{self, Normal};
use crate::ops::sampler::{
    self, Law, Mixed, Mixture, Noise, Sampled, Support, Workspace, mixture, mixture_backward, sample,
    score_on_support, score_on_support_backward,
};
use crate::ops::soft_action::{self, Outputs, Perturbation, Proxy, Score, Scored, Settings};

pub(super) const LIST: &[(&str, Make)] = &[
    ("sampler greedy", |s| draw(s, Law::Greedy)),
    ("sampler categorical", |s| draw(s, law(None, None))),
    ("sampler top-k", |s| draw(s, law(Some(50), None))),
    ("sampler top-p", |s| draw(s, law(None, Some(0.95)))),
    ("sampler score", |s| {
        let (n, logits, support) = (s.sequences, logits(s)?, kept(s)?);
        let (tokens, mut out) = (first_kept(s)?, s.zeros(n, 1, Dtype::F32)?);
        let bytes = moved(&[support.ids(), &tokens, &out]);
        Work::picking(n * KEPT, bytes, move || {
            let law = law(Some(KEPT), None);
            let scored = sampler::Scored { logits: logits.view(), tokens: tokens.view(), law: &law };
            score_on_support(&scored, &support, 0..n, out.view_mut())
        })
    }),
    ("sampler score backward", |s| {
        let (n, logits, support) = (s.sequences, logits(s)?, kept(s)?);
        let (tokens, upstream) = (first_kept(s)?, s.numbers("upstream", n, 1)?);
        let mut d_logits = s.zeros(n, s.size.vocabulary, Dtype::F32)?;
        let bytes = moved(&[support.ids(), &tokens, &upstream, &d_logits]) + n * KEPT * 32;
        Work::moving(bytes, move || {
            let law = law(Some(KEPT), None);
            let scored = sampler::Scored { logits: logits.view(), tokens: tokens.view(), law: &law };
            score_on_support_backward(upstream.view(), &scored, &support, 0..n, d_logits.view_mut())
        })
    }),
    ("sampler mixture", |s| {
        let (n, logits, noise) = (s.sequences, logits(s)?, Coordinates::new(s)?);
        let mut support = Support::reserve(s.device, n, KEPT)?;
        let mut weights = s.zeros(n, KEPT, Dtype::F32)?;
        let workspace = Workspace::reserve(s.device, n, s.size.vocabulary)?;
        let bytes = moved(&[&logits, support.ids(), &weights]);
        Work::moving(bytes, move || {
            let law = law(Some(KEPT), None);
            let weights = weights.view_mut();
            let out = Mixed { support: &mut support, at: 0..n, weights, workspace: &workspace };
            mixture(logits.view(), &Mixture { law: &law, tau: 0.5 }, noise.noise(), out)
        })
    }),
    ("sampler mixture backward", |s| {
        let (n, support, weights) = (s.sequences, kept(s)?, s.numbers("weights", s.sequences, KEPT)?);
        let d_weights = s.numbers("upstream", n, KEPT)?;
        let mut d_logits = s.zeros(n, s.size.vocabulary, Dtype::F32)?;
        let bytes = moved(&[&weights, &d_weights, support.ids(), &d_logits]);
        Work::moving(bytes, move || {
            let law = law(Some(KEPT), None);
            let mixture = Mixture { law: &law, tau: 0.5 };
            let out = d_logits.view_mut();
            mixture_backward(d_weights.view(), weights.view(), &mixture, &support, 0..n, out)
        })
    }),
    ("soft_action gumbel", |s| act(s, Perturbation::Gumbel { clamp: None })),
    ("soft_action gaussian", |s| act(s, Perturbation::Gaussian { strength: 0.5 })),
    ("soft_action dirichlet", |s| act(s, Perturbation::Dirichlet { concentration: 1.0 })),
    ("soft_action backward", |s| {
        let (n, support) = (s.sequences, kept(s)?);
        let (d_weights, soft) = (s.numbers("upstream", n, KEPT)?, s.numbers("soft", n, KEPT)?);
        let mut d_logits = s.zeros(n, s.size.vocabulary, Dtype::F32)?;
        let bytes = moved(&[&d_weights, &soft, support.ids(), &d_logits]);
        Work::moving(bytes, move || {
            let settings = settings(Perturbation::Gumbel { clamp: None });
            let out = d_logits.view_mut();
            soft_action::backward(d_weights.view(), soft.view(), &settings, &support, 0..n, out)
        })
    }),
    ("soft_action concrete", |s| score(s, Score::Concrete { tau: 0.5, mean: false }, false)),
    ("soft_action concrete backward", |s| score(s, Score::Concrete { tau: 0.5, mean: false }, true)),
    ("soft_action cross-entropy", |s| score(s, Score::SoftCe { full: true }, false)),
    ("soft_action cross-entropy backward", |s| score(s, Score::SoftCe { full: true }, true)),
    ("gaussian_density forward", |s| {
        let (n, normal, [x, m]) = (s.positions(), density(), noisy(s)?);
        let mut score = s.zeros(n, 1, Dtype::F32)?;
        Work::moving(moved(&[&x, &m, &score]), move || {
            gaussian_density::forward(x.view(), m.view(), &normal, score.view_mut())
        })
    }),
    ("gaussian_density backward", |s| {
        let (n, normal, [x, m]) = (s.positions(), density(), noisy(s)?);
        let (d_score, mut dm) = (s.numbers("d_score", n, 1)?, s.blank(n, s.size.width)?);
        Work::moving(moved(&[&x, &m, &d_score, &dm]), move || {
            gaussian_density::backward(x.view(), m.view(), &normal, d_score.view(), dm.view_mut())
        })
    }),
];

/// The noise on embeddings.
fn density() -> Normal {
    Normal { deviation: 0.1, mean: false }
}

/// Noisy embeddings of all positions, and their means.
fn noisy(s: &Setting) -> Result<[Tensor; 2]> {
    let of = |name| s.activations(name, s.positions(), s.size.width);
    Ok([of("x")?, of("m")?])
}

/// Ids of a support.
const KEPT: usize = 30;

fn law(top_k: Option<usize>, top_p: Option<f64>) -> Law {
    Law::Categorical { temperature: 1.0, top_k, top_p, min_p: None }
}

/// Real numbers: which way a filter goes depends on them.
fn logits(s: &Setting) -> Result<Tensor> {
    s.numbers("logits", s.sequences, s.size.vocabulary)
}

/// Where the noise of each row is drawn.
struct Coordinates {
    keys: Tensor,
    steps: Tensor,
}

impl Coordinates {
    fn new(s: &Setting) -> Result<Coordinates> {
        let key = |row| StreamKey::new(5, 0, 0, row, Purpose::Gumbel).0;
        let keys: Vec<u32> = (0..s.sequences as u32).flat_map(key).collect();
        let keys = Tensor::from_host(s.device, [s.sequences, 2], &keys)?;
        Ok(Coordinates { keys, steps: s.column(s.sequences, |_| 0_u32)? })
    }

    fn noise(&self) -> Noise<'_> {
        Noise { keys: self.keys.view(), steps: self.steps.view(), site: 0 }
    }
}

fn draw(s: &Setting, law: Law) -> Result<Work> {
    let (n, logits, noise) = (s.sequences, logits(s)?, Coordinates::new(s)?);
    let workspace = Workspace::reserve(s.device, n, s.size.vocabulary)?;
    let (mut tokens, mut log_probability) = (s.zeros(n, 1, Dtype::U32)?, s.zeros(n, 1, Dtype::F32)?);
    Work::moving(moved(&[&logits, &noise.keys, &noise.steps, &tokens, &log_probability]), move || {
        let (tokens, log_probability) = (tokens.view_mut(), log_probability.view_mut());
        let out = Sampled { tokens, log_probability, support: None, workspace: &workspace };
        sample(logits.view(), &law, noise.noise(), out)
    })
}

/// Ids of a row: spread over the vocabulary, ascending.
fn kept_id(s: &Setting, row: usize, i: usize) -> u32 {
    let gap = s.size.vocabulary / KEPT;
    (i * gap + row * 13 % gap) as u32
}

fn kept(s: &Setting) -> Result<Support> {
    let n = s.sequences;
    let mut support = Support::reserve(s.device, n, KEPT)?;
    let ids: Vec<u32> = (0..n * KEPT).map(|at| kept_id(s, at / KEPT, at % KEPT)).collect();
    support.upload(0..n, &ids, &vec![KEPT as u32; n])?;
    Ok(support)
}

fn first_kept(s: &Setting) -> Result<Tensor> {
    s.column(s.sequences, |row| kept_id(s, row, 0))
}

fn settings(perturbation: Perturbation) -> Settings {
    Settings { inverse_temperature: 1.0, tau: 0.5, perturbation, proxy: Proxy::Argmax, hard: false }
}

fn act(s: &Setting, perturbation: Perturbation) -> Result<Work> {
    let (n, logits, support, noise) = (s.sequences, logits(s)?, kept(s)?, Coordinates::new(s)?);
    let (mut g, mut y) = (s.zeros(n, KEPT, Dtype::F32)?, s.zeros(n, KEPT, Dtype::F32)?);
    let mut proxies = s.zeros(n, 1, Dtype::U32)?;
    let bytes = moved(&[support.ids(), &g, &y, &proxies]);
    Work::picking(n * KEPT, bytes, move || {
        let out = Outputs {
            perturbed: g.view_mut(),
            weights: y.view_mut(),
            soft: None,
            proxies: proxies.view_mut(),
            entropies: None,
        };
        soft_action::forward(logits.view(), &support, 0..n, &settings(perturbation), noise.noise(), out)
    })
}

/// The score of stored actions, or its gradient by the logits. The cross-entropy reads whole rows.
fn score(s: &Setting, kind: Score, backward: bool) -> Result<Work> {
    let (n, logits, support) = (s.sequences, logits(s)?, kept(s)?);
    let (g, y) = (s.numbers("g", n, KEPT)?, s.numbers("y", n, KEPT)?);
    let (mut out, upstream) = (s.zeros(n, 1, Dtype::F32)?, s.numbers("upstream", n, 1)?);
    let mut d_logits = s.zeros(n, s.size.vocabulary, Dtype::F32)?;
    // The full vocabulary is read as rows, a gradient is written so.
    let (scattered, read) = match (kind, backward) {
        (Score::SoftCe { full: true }, _) => (0, logits.bytes()),
        (_, true) => (0, n * KEPT * 32),
        (_, false) => (n * KEPT, 0),
    };
    let written = if backward { d_logits.bytes() } else { out.bytes() };
    Work::picking(scattered, moved(&[support.ids(), &g, &y]) + read + written, move || {
        let scored = Scored {
            logits: logits.view(),
            inverse_temperature: 1.0,
            support: &support,
            at: 0..n,
            perturbed: g.view(),
            weights: y.view(),
        };
        match backward {
            true => soft_action::score_backward(upstream.view(), &scored, &kind, d_logits.view_mut()),
            false => soft_action::score(&scored, &kind, out.view_mut()),
        }
    })
}

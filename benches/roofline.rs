//! What the machine could at best do for a group's rollout, from what it gives in the same rounds: every step reads each
//! weight once, the prompt's products run at the FMA peak.

use crate::machine::{Times, peak_once, read_once};
use crate::workloads::{ANSWER, LATENTS, PROMPT};
use latch::cpu::parallel;
use latch::model::Model;

/// Weights above this many bytes live in memory: below it, a roofline by read bandwidth means little.
const FROM: usize = 64 << 20;

/// The weights that a step multiplies with, and what the machine gives.
pub struct Roofline {
    /// Elements of the layers' matrices.
    body: f64,
    /// Elements of the head.
    head: f64,
    element: f64,
    /// How often the prompt is computed.
    prompts: f64,
    group: f64,
    data: Vec<f32>,
    read: Times,
    peak: Times,
    burst: f64,
}

impl Roofline {
    /// The roofline of a group of `model`'s rollouts, which compute the prompt once, or once each; none for a small model.
    pub fn new(model: &Model, shared: bool, group: usize) -> Option<Roofline> {
        let head = model.head();
        // Matrices of the layers: neither the tied head nor the table of positions is multiplied with in a layer.
        let config = model.config();
        let in_layers = |rows: usize| rows > 1 && rows != config.vocab && rows != config.max_positions;
        let shapes = model.parameters().iter().map(|tensor| tensor.shape());
        let elements: usize =
            shapes.filter(|s| in_layers(s.as_matrix().0)).map(|shape| shape.elements()).sum();
        let element = head.dtype().size();
        (elements * element > FROM).then(|| Roofline {
            body: elements as f64,
            head: head.shape().elements() as f64,
            element: element as f64,
            prompts: if shared { 1.0 } else { group as f64 },
            group: group as f64,
            data: vec![1.0; 64 << 20],
            read: Times::default(),
            peak: Times::default(),
            burst: f64::NAN,
        })
    }

    /// Measures the machine once more.
    pub fn round(&mut self) {
        self.read.record(|| read_once(&self.data));
        let burst = &mut self.burst;
        self.peak.record(|| *burst = peak_once(parallel::threads()));
    }

    /// A line that sets our fastest run of `ours` milliseconds beside the roofline.
    pub fn line(&self, ours: f64) -> String {
        let read = (4 * self.data.len()) as f64 / self.read.min();
        let peak = self.burst / self.peak.min();
        // Latent steps, end marker and all tokens but the last go through the layers; every token through the head.
        let (body, head) = ((LATENTS + ANSWER) as f64 * self.body, ANSWER as f64 * self.head);
        let steps = self.element * (body + head) / read;
        let prefill = 2.0 * self.prompts * PROMPT as f64 * self.body / peak;
        let products = 2.0 * self.group * (body + head) / peak;
        let roofline = 1e3 * (steps + prefill);
        format!(
            "  roofline {roofline:.0} ms (weights {:.0} at {:.1} GB/s, prefill {:.0} at {:.0} GFLOP/s; the steps' products alone {:.0}): ours / roofline {:.2}",
            1e3 * steps,
            read / 1e9,
            1e3 * prefill,
            peak / 1e9,
            1e3 * products,
            ours / roofline
        )
    }
}

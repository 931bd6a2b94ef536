//! Noise of the same spread: how far apart the rollouts of a prompt are when they have finished thinking.

use crate::base::Result;
use crate::model::{Model, Record};
use crate::ops::sampler::Law;
use crate::rollout::group::{Drawing, Form, Limits, Member, Rollouts, Thoughts};
use crate::rollout::masks::{Masking, Rollout};
use crate::run::problems::Item;
use std::ops::ControlFlow;

/// Prompts and rollouts that a spread is measured on.
const PROMPTS: usize = 32;
const GROUP: u32 = 8;
/// Halvings of the interval in which the deviation is looked for.
const HALVINGS: usize = 20;

/// Room for the rollouts that a spread is measured on.
///
/// # Errors
/// A device without the memory.
pub(super) fn reserve(
    model: &Model,
    form: &Form,
    items: &[Item],
    (masking, latent_noise): (Masking, f64),
    seed: u64,
) -> Result<Rollouts> {
    let items = &items[..PROMPTS.min(items.len())];
    // The state that begins the answer: with no token sampled, each member's latest state is the one after the end
    // marker. A mask that is not active would let members share it, so nothing is shared.
    let form = Form { max_new_tokens: 0, ..form.clone() };
    let drawing = Drawing {
        gate: None,
        masking,
        latent_noise,
        soft: None,
        thoughts: Thoughts::Own,
        law: Law::PLAIN,
        seed,
        share: false,
    };
    let limits = Limits {
        prompts: items.len(),
        members: items.len() * GROUP as usize,
        prompt_tokens: items.iter().map(|item| item.tokens.question.len()).max().unwrap_or(1),
    };
    Rollouts::reserve(model, form, drawing, limits, Record::Nothing)
}

/// Root mean square, over elements and prompts, of the deviation of the final hidden state after the thoughts from its
/// mean over a prompt's rollouts.
fn spread(model: &Model, form: &Form, items: &[Item], drawn: (Masking, f64), seed: u64) -> Result<f64> {
    let mut rollouts = reserve(model, form, items, drawn, seed)?;
    let items = &items[..PROMPTS.min(items.len())];
    let prompts: Vec<Vec<u32>> = items.iter().map(|item| item.tokens.question.clone()).collect();
    let members: Vec<Member> = (0..items.len())
        .flat_map(|prompt| {
            (0..GROUP).map(move |rollout| Member {
                prompt,
                coordinates: Rollout { update: u32::MAX, prompt: prompt as u32, rollout, attempt: 0 },
            })
        })
        .collect();
    rollouts.sample(model, &prompts, &members, |_, _| ControlFlow::Continue(()))?;
    let states = rollouts.sequences().latest_hidden();
    let width = states.cols();
    let values = states.numbers()?;
    let group = GROUP as usize * width;
    let (mut squares, mut count) = (0.0, 0);
    for of_prompt in values[..members.len() * width].chunks_exact(group) {
        for element in 0..width {
            let of = || of_prompt[element..].iter().step_by(width);
            let mean = of().sum::<f64>() / f64::from(GROUP);
            squares += of().map(|value| (value - mean).powi(2)).sum::<f64>();
            count += GROUP as usize - 1;
        }
    }
    Ok((squares / count.max(1) as f64).sqrt())
}

/// The deviation of Gaussian noise on the latents that spreads thoughts as `masking` does.
pub(super) fn deviation(
    model: &Model,
    form: &Form,
    items: &[Item],
    masking: Masking,
    seed: u64,
) -> Result<f64> {
    let wanted = spread(model, form, items, (masking, 0.0), seed)?;
    let (mut low, mut high) = (0.0, 1.0);
    while high < 1e4 && spread(model, form, items, (Masking::NONE, high), seed)? < wanted {
        (low, high) = (high, 2.0 * high);
    }
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        match spread(model, form, items, (Masking::NONE, middle), seed)? < wanted {
            true => low = middle,
            false => high = middle,
        }
    }
    Ok(f64::midpoint(low, high))
}

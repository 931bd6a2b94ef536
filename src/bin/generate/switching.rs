//! Switching between tokens and mixtures: its flags, and a run of it.

use clap::Args;
use latch::base::{Error, Result};
use latch::model::Model;
use latch::rollout::generate::{Generated, Options, Timing};
use latch::rollout::switching::{self, Cap, Reading, Switched, SwitchedOptions, Switching};
use latch::text::Tokenizer;
use std::ops::ControlFlow;
use std::time::Instant;

/// Switching between tokens and mixtures by entropy.
#[derive(Args, Debug)]
#[command(next_help_heading = "Switching (SwiReasoning)")]
pub struct SwitchingArguments {
    /// Positions read mixtures of all tokens until entropy falls below that of the block's start, then tokens until it
    /// rises above (SwiReasoning)
    #[arg(long, conflicts_with_all = ["latents", "soft", "after_latents"])]
    pub swi: bool,
    /// Steps after a switch before a row may return to mixtures
    #[arg(long, default_value_t = 512, requires = "swi", value_name = "STEPS")]
    swi_window: usize,
    /// Share of the mixture where a row returns to mixtures, beside the opening token; rises to 1 with the steps
    #[arg(long, default_value_t = 1.0, requires = "swi")]
    swi_alpha: f64,
    /// Share of the mixture where a row turns to tokens, beside the closing token; rises to 1 with the steps
    #[arg(long, default_value_t = 0.7, requires = "swi")]
    swi_beta: f64,
    /// Token that opens thinking (default: that of <think>)
    #[arg(long, requires = "swi", value_name = "ID")]
    swi_open: Option<u32>,
    /// Token that closes thinking, after which tokens are read as they are (default: that of </think>)
    #[arg(long, requires = "swi", value_name = "ID")]
    swi_close: Option<u32>,
    /// Token that has a tenth of the first mixture, e.g. that of a line break (default: none)
    #[arg(long, requires = "swi", value_name = "ID")]
    swi_first: Option<u32>,
    /// Most tokens that a mixture holds (default: all; entropy is then that of the whole softmax)
    #[arg(long, requires = "swi", value_name = "K")]
    swi_top_k: Option<usize>,
    /// From so many switches to tokens on thinking is closed, and beyond twice as many the answer is asked for
    /// (default: no bound)
    #[arg(long, requires = "swi", value_name = "SWITCHES")]
    swi_cap: Option<usize>,
    /// What asks for it
    #[arg(
        long,
        default_value = "</think>\n\nThe final answer is",
        requires = "swi_cap",
        value_name = "TEXT"
    )]
    swi_answer: String,
    /// Tokens of such an answer at most, those that ask for it included
    #[arg(long, default_value_t = 32, requires = "swi_cap", value_name = "TOKENS")]
    swi_budget: usize,
}

impl SwitchingArguments {
    /// The rule, if there is switching.
    pub fn rule(&self, tokenizer: Option<&Tokenizer>) -> Result<Option<Switching>> {
        if !self.swi {
            return Ok(None);
        }
        let id = |given: Option<u32>, flag: &str, token: &str| {
            let known = given.or_else(|| tokenizer.and_then(|tokenizer| tokenizer.id(token)));
            known.ok_or_else(|| {
                Error::input(
                    "--swi",
                    format!("the model has no token {token}"),
                    format!("name one with {flag}"),
                )
            })
        };
        let cap = match (self.swi_cap, tokenizer) {
            (None, _) => None,
            (Some(switches), Some(tokenizer)) => Some(Cap {
                switches,
                answer: tokenizer.encode(&self.swi_answer, false)?,
                budget: self.swi_budget,
            }),
            (Some(_), None) => {
                return Err(Error::input(
                    "--swi-cap",
                    "the model has no tokenizer, which writes what asks for the answer",
                    "leave it out, or add tokenizer.json to the model's folder",
                ));
            }
        };
        Ok(Some(Switching {
            window: self.swi_window,
            alpha: self.swi_alpha,
            beta: self.swi_beta,
            open: id(self.swi_open, "--swi-open", "<think>")?,
            close: id(self.swi_close, "--swi-close", "</think>")?,
            first: self.swi_first,
            top_k: self.swi_top_k,
            cap,
        }))
    }
}

/// Options as generation that switches takes them.
pub fn switched(options: &Options) -> SwitchedOptions {
    SwitchedOptions {
        law: options.law,
        max_new_tokens: options.max_new_tokens,
        stop: options.stop.clone(),
        seed: options.seed,
    }
}

/// Generation that switches between tokens and mixtures; `readings` becomes a letter a token.
pub fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    (rule, options): (&Switching, &Options),
    show: &mut impl FnMut(usize, u32) -> ControlFlow<()>,
    readings: &mut Vec<String>,
) -> Result<(Vec<Generated>, Timing)> {
    let began = Instant::now();
    let switched = switching::generate(model, prompts, rule, &switched(options), show)?;
    let letter = |reading: &Reading| match reading {
        Reading::Token => 't',
        Reading::Mixture => 'm',
        Reading::Blend { .. } => 's',
    };
    *readings = switched.iter().map(|row| row.readings.iter().map(letter).collect()).collect();
    let tokens = switched.iter().map(|row| row.ids.len()).sum();
    let timing = Timing { decode: began.elapsed(), tokens, ..Timing::default() };
    let plain = |row: Switched| Generated {
        proxies: Vec::new(),
        ids: row.ids,
        log_probabilities: Vec::new(),
        stopped: row.stopped,
    };
    Ok((switched.into_iter().map(plain).collect(), timing))
}

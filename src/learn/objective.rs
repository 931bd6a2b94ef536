//! What a policy update optimises, as data: baseline, scale, aggregation, loss, and what is done with lengths and
//! dead groups. Presets reproduce the formulas of TRL (trainer/grpo_trainer.py), verl
//! (trainer/ppo/core_algos.py) and the papers; `tools/policy_loss_golden.py` is their independent oracle.
//!
//! Only a token sum with a constant divisor and no scale is the policy gradient. Means over a row's own length
//! favour short right and long wrong answers (Dr. GRPO); deviations re-weight prompts (algorithms B.4).

use super::advantages::{Baseline, Overlong, Scale};
use crate::base::{Error, Result};
use crate::ops::policy_loss::{Estimator, Hyper, Kl, Ratio, Surrogate};
use std::fmt;
use std::str::FromStr;

/// How the terms of all tokens become one loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregation {
    /// Mean over rows of the mean over a row's tokens (TRL `grpo`, verl `seq-mean-token-mean`).
    SequenceMean,
    /// Sum over tokens by the number of tokens (TRL `dapo`, verl `token-mean`).
    TokenMean {
        /// Mean inside every run of so many rows, then over the runs (TRL `bnpo`, whose run is the device's
        /// batch); all rows together when absent.
        local_rows: Option<usize>,
    },
    /// Sum over tokens by the number of rows times the largest length (TRL `dr_grpo`).
    TokenSumOverConstant,
    /// Sum over tokens, mean over a group's rows, mean over groups.
    TokenSumOverGroup,
}

/// Sizes of all rows of an update: dead groups and rows of other micro-batches included, because divisors count
/// them.
#[derive(Clone, Copy, Debug)]
pub struct Extent<'a> {
    /// Scored tokens of each row, group by group.
    pub lengths: &'a [usize],
    /// Rows of each group.
    pub groups: &'a [usize],
    /// Largest number of answer tokens that the rollout allows.
    pub max_length: usize,
    /// Rows left out of the loss (truncated answers); empty = none. Their tokens count nowhere, the rows still do,
    /// as in TRL.
    pub left_out: &'a [bool],
}

/// Everything an update needs to know of its loss. Every field may be changed after [`Preset::objective`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// What is subtracted from rewards.
    pub baseline: Baseline,
    /// What they are divided by.
    pub scale: Scale,
    /// How terms become one loss.
    pub aggregation: Aggregation,
    /// The loss of a token, the penalty towards the reference included.
    pub loss: Hyper,
    /// Dead groups are sampled anew, up to so many batches in all.
    pub dynamic_sampling: Option<usize>,
    /// Long answers lose reward.
    pub overlong: Option<Overlong>,
    /// Answers without a stop token are left out of the loss.
    pub mask_truncated: bool,
}

/// Named objectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Dropout-GRPO: r - mean, token sum over the group, the ratio under one mask.
    DropoutGrpo,
    /// GRPO as DeepSeekMath states it: sequence means, group deviation, k3 with beta 0.04.
    Grpo,
    /// TRL `bnpo`: token means over the device's batch.
    TrlBnpo,
    /// Dr. GRPO: neither deviation nor lengths.
    DrGrpo,
    /// DAPO: clip-higher, global token mean, dynamic sampling, overlong shaping.
    Dapo,
    /// Leave-one-out REINFORCE.
    Rloo,
    /// One ratio a sequence.
    Gspo,
    /// Clipped weights instead of clipped losses.
    Cispo,
}

impl Preset {
    /// All presets.
    pub const ALL: [Preset; 8] = [
        Preset::DropoutGrpo,
        Preset::Grpo,
        Preset::TrlBnpo,
        Preset::DrGrpo,
        Preset::Dapo,
        Preset::Rloo,
        Preset::Gspo,
        Preset::Cispo,
    ];

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Preset::DropoutGrpo => "dropout_grpo",
            Preset::Grpo => "grpo",
            Preset::TrlBnpo => "bnpo",
            Preset::DrGrpo => "dr_grpo",
            Preset::Dapo => "dapo",
            Preset::Rloo => "rloo",
            Preset::Gspo => "gspo",
            Preset::Cispo => "cispo",
        }
    }

    /// The objective of that name. Where the sources leave the choice open: RLOO sums tokens over the group;
    /// Dropout-GRPO does too (the only aggregation that keeps the policy gradient); no preset caps a ratio
    /// besides the clip; log-ratios are bounded by 20 as in verl.
    pub fn objective(self) -> Objective {
        let clipped = |low, high| Surrogate::Clipped { low, high, delta: None, dual: None };
        let loss = |surrogate| Hyper { ratio: Ratio::Token, surrogate, clamp: Some(20.0), kl: None };
        let plain = Objective {
            baseline: Baseline::GroupMean,
            scale: Scale::None,
            aggregation: Aggregation::TokenSumOverGroup,
            loss: loss(clipped(0.2, 0.2)),
            dynamic_sampling: None,
            overlong: None,
            mask_truncated: false,
        };
        match self {
            Preset::DropoutGrpo => plain,
            Preset::Grpo => {
                let kl = Kl { estimator: Estimator::K3, beta: 0.04, clamp: Some(20.0), cap: None };
                Objective {
                    scale: Scale::GROUP,
                    aggregation: Aggregation::SequenceMean,
                    loss: Hyper { kl: Some(kl), ..plain.loss },
                    ..plain
                }
            }
            Preset::TrlBnpo => Objective {
                scale: Scale::GROUP,
                aggregation: Aggregation::TokenMean { local_rows: Some(8) },
                ..plain
            },
            Preset::DrGrpo => Objective { aggregation: Aggregation::TokenSumOverConstant, ..plain },
            Preset::Dapo => Objective {
                scale: Scale::GROUP,
                aggregation: Aggregation::TokenMean { local_rows: None },
                loss: loss(clipped(0.2, 0.28)),
                dynamic_sampling: Some(10),
                overlong: Some(Overlong { buffer: 0.2, factor: 1.0 }),
                ..plain
            },
            Preset::Rloo => Objective { baseline: Baseline::LeaveOneOut, ..plain },
            Preset::Gspo => Objective {
                scale: Scale::GROUP,
                aggregation: Aggregation::SequenceMean,
                loss: Hyper { ratio: Ratio::Sequence, ..loss(clipped(3e-4, 4e-4)) },
                ..plain
            },
            Preset::Cispo => Objective {
                scale: Scale::BATCH,
                aggregation: Aggregation::TokenMean { local_rows: None },
                loss: loss(Surrogate::Weighted { high: 5.0 }),
                ..plain
            },
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = String;
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Preset::ALL.into_iter().find(|preset| preset.name() == text).ok_or_else(|| {
            let known = Preset::ALL.map(Preset::name).join(", ");
            format!("unknown objective `{text}`; known: {known}")
        })
    }
}

/// One weight a token of all rows, so that the loss is `sum_n weight_n term_n`; 0 in rows that are left out.
///
/// # Errors
/// Groups that do not add up to the rows, a wrong number of flags, a row longer than `max_length`, or runs of 0
/// rows.
pub fn weights(aggregation: Aggregation, extent: &Extent) -> Result<Vec<f64>> {
    let (lengths, rows) = (extent.lengths, extent.lengths.len());
    if extent.groups.iter().sum::<usize>() != rows {
        let sum = extent.groups.iter().sum::<usize>();
        return Err(Error::shape("groups", format!("{sum} rows in all"), format!("{rows} rows")));
    }
    if !extent.left_out.is_empty() && extent.left_out.len() != rows {
        return Err(Error::shape("rows left out", extent.left_out.len(), rows));
    }
    if let Some(row) = lengths.iter().position(|&length| length > extent.max_length) {
        return Err(Error::shape(
            format!("length of row {row}"),
            lengths[row],
            format!("at most {}", extent.max_length),
        ));
    }
    let counts = |row: usize| !extent.left_out.get(row).copied().unwrap_or(false);
    let tokens = |row: usize| if counts(row) { lengths[row] } else { 0 };
    let inverse = |count: usize| 1.0 / count.max(1) as f64;
    let per_row: Vec<f64> = match aggregation {
        Aggregation::SequenceMean => (0..rows).map(|row| inverse(rows) * inverse(tokens(row))).collect(),
        Aggregation::TokenMean { local_rows } => {
            let run = local_rows.unwrap_or(rows.max(1));
            if run == 0 {
                let advice = "give at least 1, or none for all rows together";
                return Err(Error::input(
                    "local rows of a token mean",
                    "found 0, expected 1 or more",
                    advice,
                ));
            }
            let of_run = |row: usize| {
                let first = row / run * run;
                inverse((first..rows.min(first + run)).map(tokens).sum())
            };
            (0..rows).map(|row| of_run(row) * inverse(rows.div_ceil(run))).collect()
        }
        Aggregation::TokenSumOverConstant => vec![inverse(rows) * inverse(extent.max_length); rows],
        Aggregation::TokenSumOverGroup => {
            let groups = extent.groups.iter();
            groups.flat_map(|&size| vec![inverse(extent.groups.len()) * inverse(size); size]).collect()
        }
    };
    let weight = |row: usize| if counts(row) { per_row[row] } else { 0.0 };
    Ok((0..rows).flat_map(|row| std::iter::repeat_n(weight(row), lengths[row])).collect())
}

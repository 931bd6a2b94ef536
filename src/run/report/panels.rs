//! What is drawn, in which order, and how to read it. Keys that no panel names are drawn after these, each on its own.

/// A figure, where its keys are in the metrics.
#[derive(Clone, Copy, Debug)]
pub struct Panel {
    /// Its title.
    pub title: &'static str,
    /// Keys of metrics.jsonl, each with its name in the legend (where there are several).
    pub keys: &'static [(&'static str, &'static str)],
    /// How the keys are shown.
    pub form: Form,
    /// A key drawn as dots beside the others, with its name.
    pub dots: Option<(&'static str, &'static str)>,
    /// Whether the upright axis begins at 0.
    pub from_zero: bool,
    /// Colours of the layers of a stack; none = in their order.
    pub colours: &'static [usize],
    /// Whether single peaks, which would flatten everything else, may leave the figure; it says so then.
    pub cut: bool,
    /// Whether it is drawn even where nothing ever changes.
    pub always: bool,
    /// What it says and what it does not, in a sentence or two.
    pub reading: &'static str,
}

/// How keys are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Lines, with a running mean where there are many updates.
    Smoothed,
    /// Lines as they are.
    Plain,
    /// Areas on each other, a figure a part; the dots' key is a line above them.
    Stacked,
}

/// Panels under one heading.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// Its panels.
    pub panels: &'static [Panel],
}

const PANEL: Panel = Panel {
    title: "",
    keys: &[],
    form: Form::Smoothed,
    dots: None,
    from_zero: true,
    colours: &[],
    cut: false,
    always: false,
    reading: "",
};

/// A panel of one key that nothing is known about; its title is the key.
pub const UNKNOWN: Panel = Panel { from_zero: false, ..PANEL };

/// Of reinforcement learning.
pub const REWARDED: &[Section] = &[
    Section {
        title: "Reward and groups",
        panels: &[
            Panel {
                title: "Mean reward of an update",
                keys: &[("reward", "reward")],
                dots: Some(("eval/accuracy", "held-out accuracy (validation problems, greedy)")),
                always: true,
                reading: "Good: it rises, and the dots rise with it. Where reward rises and the dots do not, the training \
                          questions are being learned by heart.",
                ..PANEL
            },
            Panel {
                title: "Groups of an update",
                keys: &[
                    ("groups/all_wrong", "all wrong"),
                    ("groups/live", "live (rewards differ)"),
                    ("groups/all_right", "all right"),
                ],
                form: Form::Stacked,
                colours: &[1, 0, 2],
                always: true,
                reading: "Only live groups teach: where all rewards of a group are equal, no advantage is left. Good: live \
                          above half. All wrong taking over: problems too hard; all right: too easy, or learned.",
                ..PANEL
            },
            Panel {
                title: "Spread of rewards within a group (standard deviation)",
                keys: &[("reward_std", "spread")],
                reading: "The mean over groups, not the spread over the batch. At 0 the reward gives no gradient.",
                ..PANEL
            },
            Panel {
                title: "Share of groups whose rewards are all equal",
                keys: &[("frac_reward_zero_std", "share")],
                reading: "The same as the groups above in one number (TRL's name: frac_reward_zero_std). At 1 an update \
                          learned nothing from rewards.",
                ..PANEL
            },
        ],
    },
    Section {
        title: "Policy",
        panels: &[
            Panel {
                title: "Entropy (nats a token)",
                keys: &[("entropy", "entropy")],
                reading: "An estimate: the mean of -log p of the sampled tokens. A slow fall comes with learning; near 0 \
                          early means that sampling tries nothing new any more.",
                ..PANEL
            },
            Panel {
                title: "Norm of the gradient before clipping (first pass)",
                keys: &[("grad_norm", "norm"), ("grad_norm[0]", "norm")],
                cut: true,
                reading: "It shrinks with the share of live groups. Single peaks are cut by clipping; a steady rise is not \
                          cured by it.",
                ..PANEL
            },
            Panel {
                title: "Loss (first pass)",
                keys: &[("loss", "loss")],
                from_zero: false,
                reading: "Near 0 is normal in GRPO: the advantages of a group add up to 0, and on fresh samples every ratio \
                          is 1. Its size says nothing about progress; look at reward.",
                ..PANEL
            },
            Panel {
                title: "Divergence from the model before (KL, nats a token)",
                keys: &[("kl", "KL")],
                reading: "Measured where the recipe has a KL term, 0 without one. How far the policy has moved from its \
                          start.",
                ..PANEL
            },
            Panel {
                title: "Clipped ratios (share of tokens, last pass)",
                keys: &[("clip_ratio/low_mean", "below"), ("clip_ratio/high_mean", "above")],
                reading: "With one pass over fresh samples every ratio is 1 and nothing is clipped: 0 is normal then.",
                ..PANEL
            },
            Panel {
                title: "Largest distance of a ratio from 1 (last pass)",
                keys: &[("ratio_spread", "distance")],
                reading: "Exactly 0 is normal with one pass an update: what was sampled is what is trained. It grows with \
                          further passes over the same samples.",
                ..PANEL
            },
            Panel {
                title: "Length of answers (tokens, mean)",
                keys: &[("completions/mean_length", "tokens")],
                reading: "A drift without a gain in reward is a habit of form: brevity or rambling that reward happens to \
                          favour.",
                ..PANEL
            },
            Panel {
                title: "Share of answers cut off by the length limit",
                keys: &[("completions/clipped_ratio", "share")],
                reading: "Answers that did not end count as wrong. A rise means that the limit, not the reasoning, decides.",
                ..PANEL
            },
            Panel {
                title: "Replay gap (largest difference of log-probabilities)",
                keys: &[("replay_gap", "gap")],
                form: Form::Plain,
                always: true,
                reading: "Rollouts computed again from tokens and key alone, in another batch and cut. It is 0; anything else \
                          means that what is trained is not what was sampled.",
                ..PANEL
            },
        ],
    },
    Section {
        title: "Latents",
        panels: &[
            Panel {
                title: "Norm of the latents (mean over steps)",
                keys: &[("latent_norm", "norm")],
                from_zero: false,
                reading: "Of one audited rollout an update, so it is noisy. A steady rise is a drift away from the scale of \
                          the token embeddings.",
                ..PANEL
            },
            Panel {
                title: "Similarity of consecutive latents (cosine)",
                keys: &[("latent_similarity", "cosine")],
                from_zero: false,
                reading: "Towards 1 the steps become alike: thinking longer then adds nothing. In arms without masks, noise \
                          or mixtures all rollouts of a prompt share their latents by design.",
                ..PANEL
            },
            Panel {
                title: "Tokens in a mixture (mean)",
                keys: &[("soft/kept", "tokens")],
                reading: "Token ids that a soft step mixes after truncation. Near 1 a soft step is as good as a sampled token.",
                ..PANEL
            },
            Panel {
                title: "Share of soft steps with a single token",
                keys: &[("soft/singleton_rate", "share")],
                reading: "Near 1 there are no mixtures left to learn.",
                ..PANEL
            },
            Panel {
                title: "Entropy of the mixtures' weights (nats)",
                keys: &[("soft/entropy", "entropy")],
                reading: "Of the weights, not of the model's prediction; temperature and noise of the mixtures set its level.",
                ..PANEL
            },
            Panel {
                title: "Share of soft steps whose proxy is not the heaviest token",
                keys: &[("soft/proxy_disagreement", "share")],
                reading: "The proxy is the token that stands for a soft step in texts. Where it often disagrees, do not read \
                          the proxies as what was thought.",
                ..PANEL
            },
            Panel {
                title: "Share of rollouts ended by a proxy",
                keys: &[("soft/stopped_by_proxy", "share")],
                reading: "These stopped thinking before their answer began.",
                ..PANEL
            },
            Panel {
                title: "Loss of the soft steps (first pass)",
                keys: &[("soft/loss", "loss")],
                from_zero: false,
                reading: "As with tokens, its size says nothing about progress.",
                ..PANEL
            },
            Panel {
                title: "Score of the soft steps (first pass)",
                keys: &[("soft/score", "score")],
                from_zero: false,
                reading: "What stands for a log-probability of a soft step. A density may be above 1 and its logarithm \
                          above 0; levels of different estimators cannot be compared.",
                ..PANEL
            },
            Panel {
                title: "Ratio of the soft steps (mean, last pass)",
                keys: &[("soft/ratio", "ratio")],
                from_zero: false,
                reading: "Always 1 is normal with one pass over fresh samples.",
                ..PANEL
            },
            Panel {
                title: "Largest distance of a soft step's ratio from 1 (last pass)",
                keys: &[("soft/ratio_spread", "distance")],
                reading: "0 is normal with one pass an update.",
                ..PANEL
            },
            Panel {
                title: "Kept tokens that changed since the draw (share, last pass)",
                keys: &[("soft/churn_left", "left"), ("soft/churn_entered", "entered")],
                reading: "0 in a first pass. Large values: the mixture that is trained is no longer one that would be drawn.",
                ..PANEL
            },
        ],
    },
    Section {
        title: "Where time goes",
        panels: &[
            Panel {
                title: "Seconds of an update",
                keys: &[
                    ("timing_s/rollout", "rollout"),
                    ("timing_s/reward", "reward"),
                    ("timing_s/backward", "backward"),
                    ("timing_s/update", "optimiser"),
                    ("timing_s/audit", "audit"),
                ],
                form: Form::Stacked,
                dots: Some(("timing_s/step", "whole update")),
                reading: "Room between the areas and the line is work that no clock was set on.",
                ..PANEL
            },
            Panel {
                title: "Sampled tokens a second",
                keys: &[(super::read::TOKENS_A_SECOND, "tokens/s")],
                reading: "Tokens sampled over the seconds of the whole update, learning included.",
                ..PANEL
            },
            Panel { title: "Sampled tokens an update", keys: &[("tokens", "tokens")], ..PANEL },
            Panel {
                title: "Audited rollouts an update",
                keys: &[("audited", "rollouts")],
                reading: "Those whose replay gap was measured.",
                ..PANEL
            },
        ],
    },
];

/// Of supervised training.
pub const SUPERVISED: &[Section] = &[Section {
    title: "Supervised training",
    panels: &[
        Panel {
            title: "Loss (nats a trained token)",
            keys: &[("loss", "loss")],
            always: true,
            reading: "A jump where a phase begins is normal: reasoning was just taken away. Compare phases by held-out \
                      accuracy: their losses are over different tokens.",
            ..PANEL
        },
        Panel {
            title: "Parts of the loss",
            keys: &[
                ("loss/student", "student"),
                ("loss/distill", "distillation"),
                ("loss/teacher", "teacher"),
            ],
            reading: "Student: answers after latents; teacher: answers after reasoning in words; distillation: the distance of \
                      their hidden states.",
            ..PANEL
        },
        Panel {
            title: "Norm of the gradient before clipping",
            keys: &[("grad_norm", "norm"), ("grad_norm[0]", "norm")],
            cut: true,
            reading: "Peaks where a phase begins are normal; a rise within one is not.",
            ..PANEL
        },
        Panel { title: "Learning rate", keys: &[("learning_rate", "rate")], form: Form::Plain, ..PANEL },
        Panel { title: "Positions of a batch", keys: &[("positions", "positions")], ..PANEL },
        Panel { title: "Seconds of an update", keys: &[("timing_s/step", "seconds")], ..PANEL },
    ],
}];

/// Whether a panel of `sections` names `key`.
pub fn names(sections: &[Section], key: &str) -> bool {
    let panels = sections.iter().flat_map(|section| section.panels);
    panels.into_iter().any(|panel| {
        panel.keys.iter().any(|(name, _)| *name == key) || panel.dots.is_some_and(|(name, _)| name == key)
    })
}

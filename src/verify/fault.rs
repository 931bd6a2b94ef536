//! Planted faults: what a check must be able to see. Each is a mistake that backward passes are known for, and
//! is applied to what the gradient under test returned.

use crate::base::Error;
use std::str::FromStr;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Two entries exchanged: a wrong index.
    Swap,
    /// The last entry that is not zero is lost: a tail that a loop forgot.
    Drop,
    /// The largest entry is off by a hundredth of a percent.
    Scale,
    /// The largest entry is off by one percent, in f32 alone: a fast path that differs from the reference.
    Single,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [FaultKind; 4] = [FaultKind::Swap, FaultKind::Drop, FaultKind::Scale, FaultKind::Single];

    /// Name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Swap => "swap",
            FaultKind::Drop => "drop",
            FaultKind::Scale => "scale",
            FaultKind::Single => "f32",
        }
    }
}

/// A mistake in one gradient output: `attention/dk` style names, `CHECK/VARIABLE[:KIND]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// First words of the checks it concerns: an operation's stem, or a check's whole name.
    pub check: String,
    /// Variable whose gradient is wrong; every one of the checks' variables when absent.
    pub variable: Option<String>,
    /// What is wrong.
    pub kind: FaultKind,
}

impl FromStr for Fault {
    type Err = Error;

    fn from_str(text: &str) -> Result<Fault, Error> {
        let (target, kind) = match text.rsplit_once(':') {
            None => (text, FaultKind::Swap),
            Some((target, name)) => {
                let kind = FaultKind::ALL.into_iter().find(|kind| kind.name() == name);
                let kind = kind.ok_or_else(|| {
                    Error::input(
                        "--plant",
                        format!("unknown kind of fault `{name}`"),
                        "known: swap, drop, scale, f32",
                    )
                })?;
                (target, kind)
            }
        };
        let (check, variable) = match target.split_once('/') {
            None => (target, None),
            Some((check, variable)) => (check.trim_end(), Some(variable.trim_start().to_string())),
        };
        Ok(Fault { check: check.into(), variable, kind })
    }
}

impl Fault {
    /// Whether it concerns a variable of a check.
    pub fn concerns(&self, check: &str, variable: &str) -> bool {
        let rest = check.strip_prefix(self.check.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
            && self.variable.as_deref().is_none_or(|wanted| wanted == variable)
    }

    /// Spoils the gradient of one variable, in f64 and f32.
    pub fn apply(&self, g64: &mut [f64], g32: &mut [f64]) {
        match self.kind {
            FaultKind::Single => spoil(FaultKind::Single, g32),
            kind => {
                spoil(kind, g64);
                spoil(kind, g32);
            }
        }
    }
}

fn spoil(kind: FaultKind, gradient: &mut [f64]) {
    let mut order: Vec<usize> = (0..gradient.len()).collect();
    order.sort_by(|&a, &b| gradient[b].abs().total_cmp(&gradient[a].abs()));
    let Some(&largest) = order.first() else { return };
    match kind {
        FaultKind::Swap => {
            let other = order.iter().copied().find(|&entry| {
                let (a, b) = (gradient[entry], gradient[largest]);
                (a - b).abs() > 0.1 * b.abs()
            });
            match other {
                Some(other) => gradient.swap(largest, other),
                // One entry, or all alike: the sign is what is left to get wrong.
                None => gradient[largest] = -gradient[largest],
            }
        }
        FaultKind::Drop => {
            if let Some(last) = gradient.iter_mut().rev().find(|entry| **entry != 0.0) {
                *last = 0.0;
            }
        }
        FaultKind::Scale => gradient[largest] *= 1.0001,
        FaultKind::Single => gradient[largest] *= 1.01,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read() {
        let fault: Fault = "linear/w:drop".parse().unwrap();
        assert_eq!(
            fault,
            Fault { check: "linear".into(), variable: Some("w".into()), kind: FaultKind::Drop }
        );
        assert!(fault.concerns("linear 3x5", "w") && !fault.concerns("linear 3x5", "x"));
        assert!(!fault.concerns("linearised 3x5", "w"));
        let whole: Fault = "rmsnorm".parse().unwrap();
        assert!(
            whole.kind == FaultKind::Swap
                && whole.concerns("rmsnorm 1x1", "x")
                && whole.concerns("rmsnorm 1x1", "w")
        );
        let message = "rmsnorm:loud".parse::<Fault>().unwrap_err().to_string();
        assert!(
            message.contains("unknown kind of fault `loud`") && message.contains("swap, drop"),
            "{message}"
        );
    }

    #[test]
    fn every_kind_changes_what_it_says() {
        let original = [3.0, -4.0, 0.5, 0.0];
        let spoiled = |kind| {
            let (mut g64, mut g32) = (original, original);
            Fault { check: String::new(), variable: None, kind }.apply(&mut g64, &mut g32);
            (g64, g32)
        };
        assert_eq!(spoiled(FaultKind::Swap).0, [-4.0, 3.0, 0.5, 0.0]);
        assert_eq!(spoiled(FaultKind::Drop).0, [3.0, -4.0, 0.0, 0.0]);
        assert_eq!(spoiled(FaultKind::Scale).0, [3.0, -4.0004, 0.5, 0.0]);
        assert_eq!(spoiled(FaultKind::Single), (original, [3.0, -4.04, 0.5, 0.0]));
    }
}

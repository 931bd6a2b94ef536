//! The flags of dropout masks.

use clap::Args;
use latch::base::{Error, Result};
use latch::ops::mask::SiteKind;
use latch::rollout::masks::{Masking, Mode, Scope};

/// Which masks rollouts run under.
#[derive(Args, Debug)]
#[command(next_help_heading = "Masks")]
pub struct MaskArguments {
    /// Probability that a unit is dropped
    #[arg(long, default_value_t = 0.1)]
    p: f64,
    /// Where: emb, attn_out, mlp_out, mlp_hid, latent
    #[arg(long, value_delimiter = ',', default_value = "attn_out,mlp_out")]
    sites: Vec<String>,
    /// latent, prompt+latent or all
    #[arg(long, default_value = "latent")]
    scope: Scope,
    /// shared, per_step, per_position
    #[arg(long, default_value = "shared")]
    mask_mode: Mode,
}

impl MaskArguments {
    /// As what rollouts are drawn by.
    ///
    /// # Errors
    /// A site that is not known, a probability that is none.
    pub fn masking(&self) -> Result<Masking> {
        let site = |name: &String| {
            SiteKind::from_name(name).ok_or_else(|| {
                Error::input(
                    "--sites",
                    format!("`{name}` is not known"),
                    format!("name some of {}", SiteKind::ALL.map(SiteKind::name).join(", ")),
                )
            })
        };
        if !(0.0..1.0).contains(&self.p) {
            let problem = format!("found {}, expected from 0 to below 1", self.p);
            return Err(Error::input("--p", problem, "it is the probability that a unit is dropped"));
        }
        let sites = self.sites.iter().map(site).collect::<Result<_>>()?;
        Ok(Masking { p: self.p, sites, scope: self.scope, mode: self.mask_mode })
    }
}

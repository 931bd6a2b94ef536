//! The theory as tests (algorithms B.4-B.6), by enumeration: no sampling error, so tolerances are those of f64.

mod estimator;
mod soft_latents;
mod toy;
mod unbiased;
mod variance;
mod weight_space;

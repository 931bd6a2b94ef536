//! Advantages, objectives, estimates and intervals: against golden numbers, brute force and published values.

mod advantages;
mod codi;
mod estimators;
mod implicit;
mod intervals;
mod lepo;
mod objective;

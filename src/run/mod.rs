//! Whole jobs: what the binaries do, without their command lines.
//!
//! ```text
//! recipe                 what a run does: TOML, every key documented and checked
//! settings               its keys as settings of the floors below
//! problems, student      what is learned, and by which model
//! schooling              supervised phases;  reinforcement: one arm;  evaluation: how well problems are answered
//! story                  the main job: phases, arms, the closing table
//! experiments            variations of an arm over several seeds
//! folder, metrics        a run's files; checkpoints: saved states that survive kills; environment: what it ran on;
//!                        unbounded: numbers that JSON has not
//! terminal               the text a person sees; the binaries print it
//! replay                 a logged rollout run again
//! report                 runs as one HTML page, drawn from their folders;  watch: a run in a terminal, as it goes on
//! prospect               what becomes of a run's folder and disk
//! dry_run                what a run will do and take;  rehearsal: its reservations;  admission: whether a GPU has room
//! probe                  the public oracle;  doctor: whether latch works on this machine
//! ```

pub mod adapters;
pub mod admission;
pub mod checkpoints;
pub mod devices;
pub mod doctor;
pub mod dry_run;
pub mod environment;
pub mod evaluation;
pub mod experiments;
pub mod folder;
pub mod inspection;
pub mod metrics;
mod model_average;
pub mod probe;
pub mod problems;
pub mod prospect;
pub mod recipe;
pub mod rehearsal;
pub mod reinforcement;
pub mod replay;
pub mod report;
pub mod school_room;
pub mod schooling;
pub mod settings;
pub mod story;
pub mod student;
pub mod terminal;
mod unbounded;
pub mod watch;

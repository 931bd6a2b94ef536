//! What a launcher says.

use super::super::Arena;
use super::super::driver::Failure;
use super::state::State;
use crate::base::Error;

/// A full device: what was asked for, what there is, and what holds it.
pub(super) fn out_of_memory(
    name: &str,
    total: usize,
    state: &mut State,
    asked: Option<(usize, Arena)>,
) -> Error {
    let free = state.driver.memory_free().unwrap_or(0);
    let (_, taken) = state.pool.taken();
    let mut held = Vec::new();
    for count in state.pool.books().counts().iter().filter(|count| count.held > 0) {
        held.push(format!("{} {}", count.arena.name(), bytes_in_words(count.held)));
    }
    let held = if held.is_empty() { "nothing".into() } else { held.join(", ") };
    let asked = asked.map_or(String::new(), |(bytes, arena)| {
        format!("{} for {} asked for, ", bytes_in_words(bytes), arena.name())
    });
    Error::device(
        format!(
            "{name} is out of memory: {asked}{} of {} are free; latch has taken {} ({} of it idle) and holds {held}",
            bytes_in_words(free),
            bytes_in_words(total),
            bytes_in_words(taken),
            bytes_in_words(state.pool.idle_bytes()),
        ),
        "make the batch, the rollouts or the sequences smaller; --dry-run prints the plan of memory",
    )
}

/// A ticket that is not, or no longer, this device's.
pub(super) fn foreign(what: &str) -> Failure {
    Failure::Refused(Error::device(
        format!("{what} of another device, or one that is over"),
        "use events, downloads and graphs on the device that made them, once it has made them",
    ))
}

/// Bytes for people.
pub(in super::super) fn bytes_in_words(bytes: usize) -> String {
    let value = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{:.1} KiB", value / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", value / 1_048_576.0),
        _ => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

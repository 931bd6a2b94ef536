//! Pinned memory of the simulated device, and who may still use it.
//!
//! Copies read and write it when they run, the host when it likes. So the host must know that a copy is over before it
//! changes what the copy reads or looks at what it writes, and copies of different streams need an event. What a copy will
//! use is known when it is asked for: a missing wait is found under every order.

use super::super::driver::{Failure, Outcome, Pinned};
use crate::sim::access::{Clock, Deed, Stamp};
use std::ops::Range;

/// A copy that may still use its part of a place.
#[derive(Debug)]
struct User {
    part: Range<usize>,
    deed: Deed,
    stream: usize,
    number: u64,
}

impl User {
    /// Whether the copy writes to the place.
    fn writes(&self) -> bool {
        self.deed == Deed::Download
    }

    fn in_words(&self) -> String {
        format!(
            "{} (operation {} of the {} stream)",
            self.deed,
            self.number,
            ["compute", "copy"][self.stream]
        )
    }
}

#[derive(Debug, Default)]
struct Place {
    bytes: Vec<u8>,
    users: Vec<User>,
}

impl Place {
    /// Forgets copies that the host knows to be over; finds one that may not be, and that a use of `part` meets.
    fn meets(&mut self, part: &Range<usize>, writes: bool, host: &Clock) -> Option<&User> {
        self.users.retain(|user| user.number > host[user.stream]);
        self.users.iter().find(|user| user.overlaps(part) && (writes || user.writes()))
    }
}

impl User {
    fn overlaps(&self, part: &Range<usize>) -> bool {
        self.part.start < part.end && part.start < self.part.end
    }
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct PinnedMemory(Vec<Place>);

impl PinnedMemory {
    /// A new place.
    pub(super) fn take(&mut self, bytes: usize) -> Pinned {
        self.0.push(Place { bytes: vec![0; bytes], users: Vec::new() });
        self.0.len() - 1
    }

    /// The host writes, having seen `host`.
    pub(super) fn write(&mut self, pinned: Pinned, at: usize, bytes: &[u8], host: &Clock) -> Outcome<()> {
        self.host_uses(pinned, at..at + bytes.len(), true, host)?;
        self.0[pinned].bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    /// The host reads, having seen `host`.
    pub(super) fn read(&mut self, pinned: Pinned, at: usize, bytes: &mut [u8], host: &Clock) -> Outcome<()> {
        self.host_uses(pinned, at..at + bytes.len(), false, host)?;
        bytes.copy_from_slice(&self.0[pinned].bytes[at..at + bytes.len()]);
        Ok(())
    }

    fn host_uses(&mut self, pinned: Pinned, part: Range<usize>, writes: bool, host: &Clock) -> Outcome<()> {
        let Some(user) = self.0[pinned].meets(&part, writes, host) else { return Ok(()) };
        let verb = if writes { "writes" } else { "reads" };
        Err(Failure::Lost {
            problem: format!(
                "the host {verb} bytes {} to {} of a place in pinned memory that {} may still use",
                part.start,
                part.end - 1,
                user.in_words()
            ),
            advice: format!("wait, on the host, for an event behind {} before", user.deed),
        })
    }

    /// A copy is asked for that will use `part` of a place.
    pub(super) fn will_use(
        &mut self,
        pinned: Pinned,
        part: Range<usize>,
        deed: Deed,
        stamp: &Stamp,
        host: &Clock,
    ) -> Outcome<()> {
        let Some(stream) = stamp.stream else { return Ok(()) };
        let user = User { part, deed, stream, number: stamp.number };
        let place = &mut self.0[pinned];
        place.users.retain(|other| other.number > host[other.stream]);
        let clash = place.users.iter().find(|other| {
            other.number > stamp.behind[other.stream]
                && other.overlaps(&user.part)
                && (user.writes() || other.writes())
        });
        if let Some(other) = clash {
            return Err(Failure::Lost {
                problem: format!(
                    "{} and {} use the same bytes of pinned memory, and no event orders the two",
                    other.in_words(),
                    user.in_words()
                ),
                advice: format!("let the second wait for an event behind {}", other.deed),
            });
        }
        place.users.push(user);
        Ok(())
    }

    /// What a copy reads.
    pub(super) fn bytes(&self, pinned: Pinned) -> &[u8] {
        &self.0[pinned].bytes
    }

    /// Where a copy writes.
    pub(super) fn bytes_mut(&mut self, pinned: Pinned) -> &mut [u8] {
        &mut self.0[pinned].bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(stream: usize, number: u64, behind: Clock) -> Stamp {
        Stamp { stream: Some(stream), number, behind, ..Stamp::default() }
    }

    fn problem(outcome: Outcome<()>) -> Option<String> {
        match outcome {
            Ok(()) => None,
            Err(Failure::Lost { problem, .. }) => Some(problem),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_host_waits_before_it_touches_what_copies_use() {
        let mut memory = PinnedMemory::default();
        let place = memory.take(64);
        memory.will_use(place, 0..16, Deed::Upload, &stamp(1, 3, [0, 2]), &[0, 0]).unwrap();
        memory.will_use(place, 32..48, Deed::Download, &stamp(0, 1, [0, 0]), &[0, 0]).unwrap();
        // What an upload reads may be read, and what lies beside may be written.
        memory.read(place, 0, &mut [0; 16], &[0, 0]).unwrap();
        memory.write(place, 16, &[1; 16], &[0, 0]).unwrap();
        let early = problem(memory.write(place, 15, &[1; 2], &[0, 2])).unwrap();
        assert!(early.contains("writes bytes 15 to 16") && early.contains("operation 3 of the copy stream"));
        let early = problem(memory.read(place, 40, &mut [0; 16], &[0, 9])).unwrap();
        assert!(
            early.contains("reads bytes 40 to 55")
                && early.contains("a download (operation 1 of the compute")
        );
        memory.write(place, 15, &[1; 2], &[0, 3]).unwrap();
        memory.read(place, 40, &mut [0; 16], &[1, 3]).unwrap();
    }

    #[test]
    fn copies_of_two_streams_share_a_place_in_order() {
        for (behind, fine) in [([0, 1], true), ([0, 0], false)] {
            let mut memory = PinnedMemory::default();
            let place = memory.take(64);
            memory.will_use(place, 0..16, Deed::Download, &stamp(1, 1, [0, 0]), &[0, 0]).unwrap();
            let next = memory.will_use(place, 8..24, Deed::Upload, &stamp(0, 1, behind), &[0, 0]);
            assert_eq!(problem(next).is_none(), fine, "{behind:?}");
        }
        // Two uploads read the same bytes.
        let mut memory = PinnedMemory::default();
        let place = memory.take(64);
        memory.will_use(place, 0..16, Deed::Upload, &stamp(1, 1, [0, 0]), &[0, 0]).unwrap();
        memory.will_use(place, 0..16, Deed::Upload, &stamp(0, 1, [0, 0]), &[0, 0]).unwrap();
    }
}

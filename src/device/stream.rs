//! Streams, and the tickets a launcher hands out: events, downloads under way, captured graphs.

use std::sync::{Arc, Mutex, PoisonError};

/// The two streams of a GPU. Operations of one stream run in the order they were given; those of different streams run
/// in any order, unless an [`Event`] stands between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Where everything runs that names no stream.
    Compute,
    /// Copies that run beside the computation.
    Copy,
}

impl Stream {
    /// Both, in the order of their indices.
    pub const ALL: [Stream; 2] = [Stream::Compute, Stream::Copy];

    /// 0 or 1.
    pub fn index(self) -> usize {
        self as usize
    }
}

/// Tickets that were dropped, for the launcher to collect.
#[derive(Debug, Default)]
pub(super) struct Returned(Mutex<Vec<u64>>);

impl Returned {
    /// Takes what was returned since the last call.
    pub(super) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A number that goes back to its launcher when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    id: u64,
    returned: Arc<Returned>,
}

impl Ticket {
    pub(super) fn new(id: u64, returned: &Arc<Returned>) -> Ticket {
        Ticket { id, returned: returned.clone() }
    }

    /// The number, when the ticket is one of `returned`'s launcher.
    pub(super) fn id(&self, returned: &Arc<Returned>) -> Option<u64> {
        Arc::ptr_eq(&self.returned, returned).then_some(self.id)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.returned.0.lock().unwrap_or_else(PoisonError::into_inner).push(self.id);
    }
}

/// A point in a stream: reached when everything given to the stream before it has run.
#[derive(Debug)]
pub struct Event(pub(super) Ticket);

/// A copy to the host that may still be under way; [`super::Launcher::receive`] waits for it.
#[derive(Debug)]
pub struct Download {
    pub(super) ticket: Ticket,
    /// Bytes that will arrive.
    pub(super) bytes: usize,
}

impl Download {
    /// Bytes that will arrive.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_tickets_go_back_once() {
        let (ours, other) = (Arc::new(Returned::default()), Arc::new(Returned::default()));
        let ticket = Ticket::new(7, &ours);
        assert_eq!((ticket.id(&ours), ticket.id(&other)), (Some(7), None));
        assert!(ours.take().is_empty());
        drop(ticket);
        assert_eq!((ours.take(), ours.take()), (vec![7], vec![]));
    }
}

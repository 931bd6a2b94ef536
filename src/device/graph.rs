//! Graphs: a run of launches, clears and copies that was captured once and is launched again as a whole.
//!
//! A captured step must be the same step every time: sizes and addresses are fixed, and what changes from step to step
//! (positions, counters) lies in device memory. What cannot lie there is re-bound, argument by argument.

use super::driver::Node;
use super::stream::Ticket;
use super::{Argument, Grid, Kernel};
use std::thread::ThreadId;

/// A captured run of operations.
#[derive(Debug)]
pub struct Graph {
    pub(super) ticket: Ticket,
    pub(super) operations: Vec<GraphOperation>,
}

/// One operation of a graph, as it was captured.
#[derive(Clone, Debug)]
pub enum GraphOperation {
    /// A launch with its arguments.
    Launch(&'static Kernel, Grid, Vec<Argument>),
    /// A run of bytes set to zero.
    Clear,
    /// A copy inside the device.
    Copy,
}

impl Graph {
    /// The operations, in the order in which they run.
    pub fn operations(&self) -> &[GraphOperation] {
        &self.operations
    }
}

/// A capture under way: what the capturing thread asked for since it began.
#[derive(Debug)]
pub(super) struct Capture {
    thread: ThreadId,
    pub(super) nodes: Vec<Node>,
    pub(super) operations: Vec<GraphOperation>,
    /// Memory that was given back meanwhile; it lives as long as the graph that uses it.
    pub(super) freed: Vec<u64>,
}

impl Capture {
    /// A capture by the calling thread.
    pub(super) fn new() -> Capture {
        Capture {
            thread: std::thread::current().id(),
            nodes: Vec::new(),
            operations: Vec::new(),
            freed: Vec::new(),
        }
    }

    /// Whether it is the calling thread that captures.
    pub(super) fn is_mine(&self) -> bool {
        self.thread == std::thread::current().id()
    }
}

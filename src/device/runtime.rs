//! The launcher that both drivers stand behind: memory pool, staging, checks of arguments and grids, streams' tickets,
//! graphs, and what is said when something goes wrong. Its state is in runtime/state.rs.

mod state;
mod words;

use super::accounts::Accounts;
use super::driver::{Driver, Failure, Launch, Node, Outcome};
use super::graph::{Capture, Graph, GraphOperation};
use super::stream::{Download, Event, Returned, Stream, Ticket};
use super::{
    Arena, Argument, Grid, Kernel, Launcher, LibraryProduct, Matmul, Properties, Statistics, Traffic,
};
use crate::base::{Error, Result};
use state::{Landing, Recorded, State};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
pub(super) use words::bytes_in_words;
use words::foreign;

/// A GPU, real or simulated.
#[derive(Debug)]
pub(super) struct Runtime {
    name: String,
    properties: Properties,
    traffic: Traffic,
    state: Mutex<State>,
    matmul: Mutex<Choice>,
    events: Arc<Returned>,
    downloads: Arc<Returned>,
    graphs: Arc<Returned>,
    uses_graphs: AtomicBool,
}

/// Who multiplies matrices, and whether there is a library; `None` until that was asked.
#[derive(Debug, Default)]
struct Choice {
    choice: Matmul,
    installed: Option<bool>,
}

impl Runtime {
    /// A device named `name` in messages.
    pub(super) fn new(name: String, driver: Box<dyn Driver>) -> Arc<Runtime> {
        Arc::new(Runtime {
            name,
            properties: driver.properties().clone(),
            traffic: Traffic::default(),
            state: Mutex::new(State::new(driver)),
            matmul: Mutex::default(),
            events: Arc::default(),
            downloads: Arc::default(),
            graphs: Arc::default(),
            uses_graphs: AtomicBool::new(true),
        })
    }

    /// The state, with dropped tickets collected. What goes wrong meanwhile makes the device lost.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = (self.events.take(), self.downloads.take(), self.graphs.take());
        if state.lost.is_none()
            && let Err(failure) = state.collect(dropped.0, dropped.1, dropped.2)
        {
            self.lose(&mut state, failure);
        }
        state
    }

    /// A failure of something that nobody waits for: the next call says what happened.
    fn lose(&self, state: &mut State, failure: Failure) {
        let error = self.error(state, failure);
        state.lost.get_or_insert_with(|| (error.to_string(), "open the device again".into()));
    }

    /// Runs `work` unless the device is lost, and turns its failure into an error.
    fn run<T>(&self, work: impl FnOnce(&mut State) -> Outcome<T>) -> Result<T> {
        let mut state = self.lock();
        if let Some((problem, advice)) = &state.lost {
            return Err(Error::device(format!("{} was lost before: {problem}", self.name), advice));
        }
        work(&mut state).map_err(|failure| self.error(&mut state, failure))
    }

    /// The same for what cannot be part of a graph.
    fn run_outside<T>(&self, what: &str, work: impl FnOnce(&mut State) -> Outcome<T>) -> Result<T> {
        self.run(|state| match state.capture() {
            Some(_) => Err(Failure::Refused(Error::device(
                format!("{what} while a graph is captured on {}", self.name),
                "reserve memory, and copy from and to the host, before or after the captured step",
            ))),
            None => work(state),
        })
    }

    fn error(&self, state: &mut State, failure: Failure) -> Error {
        match failure {
            Failure::Refused(error) => error,
            Failure::Lost { problem, advice } => {
                state.lost = Some((problem.clone(), advice.clone()));
                state.captures.clear();
                Error::device(problem, advice)
            }
            Failure::OutOfMemory => {
                words::out_of_memory(&self.name, self.properties.memory_bytes, state, None)
            }
        }
    }

    /// Gives the driver an operation on the compute stream, or notes it when the calling thread captures a graph.
    fn compute(
        &self,
        state: &mut State,
        node: Node,
        operation: impl FnOnce() -> GraphOperation,
    ) -> Outcome<()> {
        if let Some(capture) = state.capture() {
            capture.operations.push(operation());
            capture.nodes.push(node);
            return Ok(());
        }
        match &node {
            Node::Launch(launch) => {
                state.launches += 1;
                state.driver.launch(Stream::Compute, launch)
            }
            &Node::Clear { address, bytes } => state.driver.clear(Stream::Compute, address, bytes),
            &Node::Copy { from, to, bytes } => state.driver.copy(Stream::Compute, from, to, bytes),
        }
    }

    /// The mark of an event of this device.
    fn mark(&self, event: &Event) -> Outcome<u64> {
        event.0.id(&self.events).ok_or_else(|| foreign("an event"))
    }
}

impl Launcher for Runtime {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    fn statistics(&self) -> Statistics {
        self.lock().statistics()
    }

    fn memory_free(&self) -> Result<usize> {
        self.run(|state| {
            let free = state.driver.memory_free()?.saturating_sub(state.driver.sizes().own);
            Ok(free.saturating_add(state.pool.idle_bytes()))
        })
    }

    fn accountant(&self, memory: Option<usize>) -> Arc<dyn Launcher> {
        let sizes = self.lock().driver.sizes();
        let accounts = Accounts::new(self.properties.clone(), sizes, memory);
        let accountant = Runtime::new(self.name.clone(), Box::new(accounts));
        accountant.use_graphs(self.uses_graphs());
        accountant
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let arena = Arena::current();
        let address =
            self.run_outside(&format!("{} asked for", bytes_in_words(bytes)), |state| {
                match state.reserve(bytes, arena) {
                    Err(Failure::OutOfMemory) => {
                        let asked = Some((bytes, arena));
                        Err(words::out_of_memory(&self.name, self.properties.memory_bytes, state, asked)
                            .into())
                    }
                    other => other,
                }
            })?;
        self.traffic.allocate(bytes);
        Ok(address)
    }

    fn free(&self, address: u64, bytes: usize) {
        self.traffic.free(bytes);
        let mut state = self.lock();
        if state.lost.is_some() {
            return;
        }
        if let Some(capture) = state.capture() {
            capture.freed.push(address);
            return;
        }
        let State { pool, driver, .. } = &mut *state;
        if let Err(failure) = pool.free(&mut **driver, address) {
            self.lose(&mut state, failure);
        }
    }

    fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.run(|state| self.compute(state, Node::Clear { address, bytes }, || GraphOperation::Clear))
    }

    fn upload(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.upload_on(Stream::Compute, address, bytes)
    }

    fn download(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        self.run_outside("a download", |state| {
            let mut landing: VecDeque<(Landing, &mut [u8])> = VecDeque::new();
            let mut from = address;
            for piece in bytes.chunks_mut(state.staging.piece()) {
                if landing.len() == 2
                    && let Some((first, out)) = landing.pop_front()
                {
                    state.finish(first, out)?;
                }
                let length = piece.len();
                landing.push_back((state.download(Stream::Compute, from, length)?, piece));
                from += length as u64;
            }
            landing.into_iter().try_for_each(|(first, out)| state.finish(first, out))
        })?;
        self.traffic.download(bytes.len());
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.run(|state| self.compute(state, Node::Copy { from, to, bytes }, || GraphOperation::Copy))
    }

    fn launch_on(
        &self,
        stream: Stream,
        kernel: &'static Kernel,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<()> {
        self.properties.check(kernel, grid)?;
        self.run(|state| {
            let launch = state.prepare(kernel, grid, arguments)?;
            if stream == Stream::Compute {
                let operation = || GraphOperation::Launch(kernel, grid, arguments.to_vec());
                return self.compute(state, Node::Launch(launch), operation);
            }
            if state.capture().is_some() {
                return Err(Failure::Refused(Error::device(
                    "a launch on the copy stream while a graph is captured",
                    "graphs are captured from the compute stream",
                )));
            }
            for argument in arguments {
                if let Argument::Address(address) = *argument {
                    state.pool.copy_stream_uses(&mut *state.driver, address)?;
                }
            }
            state.launches += 1;
            state.copying = true;
            state.driver.launch(stream, &launch)
        })
    }

    fn upload_on(&self, stream: Stream, address: u64, bytes: &[u8]) -> Result<()> {
        self.run_outside("an upload", |state| {
            if stream == Stream::Copy {
                state.pool.copy_stream_uses(&mut *state.driver, address)?;
                state.copying = true;
            }
            let mut to = address;
            for piece in bytes.chunks(state.staging.piece()) {
                state.staging.upload(&mut *state.driver, stream, to, piece)?;
                to += piece.len() as u64;
            }
            Ok(())
        })?;
        self.traffic.upload(bytes.len());
        Ok(())
    }

    fn download_on(&self, stream: Stream, address: u64, bytes: usize) -> Result<Download> {
        let id = self.run_outside("a download", |state| {
            if stream == Stream::Copy {
                state.pool.copy_stream_uses(&mut *state.driver, address)?;
            }
            let landing = state.download(stream, address, bytes)?;
            Ok(state.keep(landing))
        })?;
        Ok(Download { ticket: Ticket::new(id, &self.downloads), bytes })
    }

    fn receive(&self, download: Download, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() != download.bytes {
            return Err(Error::shape("receive", format!("room for {} bytes", bytes.len()), download.bytes));
        }
        self.run_outside("waiting for a download", |state| {
            let id = download.ticket.id(&self.downloads).ok_or_else(|| foreign("a download"))?;
            let landing = state.landings.remove(&id).ok_or_else(|| foreign("a download"))?;
            state.finish(landing, bytes)
        })?;
        self.traffic.download(bytes.len());
        Ok(())
    }

    fn record(&self, stream: Stream) -> Result<Event> {
        let mark = self.run_outside("recording an event", |state| {
            let mark = state.driver.record(stream)? as u64;
            let allocations = state.pool.allocations();
            state.events.insert(mark, Recorded { stream, allocations, settled: false });
            Ok(mark)
        })?;
        Ok(Event(Ticket::new(mark, &self.events)))
    }

    fn wait(&self, stream: Stream, event: &Event) -> Result<()> {
        let settled = self.run(|state| {
            let mark = self.mark(event)?;
            Ok(stream == Stream::Compute && state.events.get(&mark).is_some_and(|event| event.settled))
        })?;
        // A capture, too, may use what a wait before it has settled.
        if settled {
            return Ok(());
        }
        self.run_outside("waiting for an event", |state| {
            let mark = self.mark(event)?;
            state.driver.wait(stream, mark as usize)?;
            match (stream, state.events.get_mut(&mark)) {
                (Stream::Copy, Some(&mut Recorded { stream: Stream::Compute, allocations, .. })) => {
                    state.pool.copy_stream_has_seen(allocations);
                }
                (Stream::Compute, Some(event)) => event.settled = true,
                _ => {}
            }
            Ok(())
        })
    }

    fn reached(&self, event: &Event) -> Result<bool> {
        self.run(|state| state.driver.reached(self.mark(event)? as usize))
    }

    fn elapsed(&self, from: &Event, to: &Event) -> Result<Option<f32>> {
        self.run(|state| {
            let (from, to) = (self.mark(from)? as usize, self.mark(to)? as usize);
            state.driver.wait_host(from)?;
            state.driver.wait_host(to)?;
            state.driver.elapsed(from, to)
        })
    }

    fn synchronise(&self) -> Result<()> {
        self.run_outside("waiting for the device", State::synchronise)
    }

    fn matmul_library(&self) -> Result<Option<String>> {
        self.run(|state| state.driver.library())
    }

    fn choose_matmul(&self, choice: Matmul) -> Result<()> {
        if choice == Matmul::Library && self.matmul_library()?.is_none() {
            return Err(Error::device(
                format!("matmul = \"cublaslt\" on {}, where cuBLASLt is not to be had", self.name),
                "install CUDA's cuBLAS 12 beside a CUDA driver, or leave out run.matmul",
            ));
        }
        *self.matmul.lock().unwrap_or_else(PoisonError::into_inner) = Choice { choice, installed: None };
        Ok(())
    }

    fn library_multiplies(&self, gradient: bool) -> Result<bool> {
        let mut matmul = self.matmul.lock().unwrap_or_else(PoisonError::into_inner);
        match matmul.choice {
            Matmul::Own => Ok(false),
            Matmul::Auto if !gradient => Ok(false),
            // Asked once: a library that is not there is looked for by opening files. One that does not start, since it
            // is newer than the driver, say, is none for `auto`; `doctor`, and who asks for it by name, hear why.
            Matmul::Auto | Matmul::Library => match matmul.installed {
                Some(installed) => Ok(installed),
                None => {
                    let found = match self.matmul_library() {
                        Err(_) if matmul.choice == Matmul::Auto => None,
                        found => found?,
                    };
                    Ok(*matmul.installed.insert(found.is_some()))
                }
            },
        }
    }

    fn multiply(&self, product: &LibraryProduct) -> Result<()> {
        product.check()?;
        self.run_outside("a product of the library", |state| state.driver.multiply(product))
    }

    fn uses_graphs(&self) -> bool {
        self.uses_graphs.load(Relaxed)
    }

    fn use_graphs(&self, on: bool) {
        self.uses_graphs.store(on, Relaxed);
    }

    fn captures(&self) -> bool {
        self.lock().capture().is_some()
    }

    fn capture(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<Graph> {
        self.run_outside("a second capture begins", |state| {
            state.settle_copies()?;
            state.captures.push(Capture::new());
            Ok(())
        })?;
        let outcome = body();
        self.run(|state| {
            let Some(capture) = state.end_capture() else {
                return Err(Failure::Refused(Error::device(
                    "the capture ended before its step",
                    "capture again",
                )));
            };
            let made = match outcome {
                Ok(()) => state.driver.instantiate(&capture.nodes),
                Err(error) => Err(Failure::Refused(error)),
            };
            let freed = capture.freed;
            match made {
                Ok(graph) => {
                    state.graphs.insert(graph as u64, freed);
                    let ticket = Ticket::new(graph as u64, &self.graphs);
                    Ok(Graph { ticket, operations: capture.operations })
                }
                Err(failure) => {
                    state.free_all(freed)?;
                    Err(failure)
                }
            }
        })
    }

    fn launch_graph(&self, graph: &Graph) -> Result<()> {
        self.run_outside("a graph is launched", |state| {
            let id = graph.ticket.id(&self.graphs).ok_or_else(|| foreign("a graph"))?;
            state.settle_copies()?;
            state.graph_launches += 1;
            state.driver.launch_graph(Stream::Compute, id as usize)
        })
    }

    fn rebind(&self, graph: &mut Graph, index: usize, arguments: &[Argument]) -> Result<()> {
        self.run_outside("a graph is changed", |state| {
            let id = graph.ticket.id(&self.graphs).ok_or_else(|| foreign("a graph"))?;
            let count = graph.operations.len();
            let Some(GraphOperation::Launch(kernel, grid, bound)) = graph.operations.get_mut(index) else {
                return Err(Failure::Refused(Error::shape(
                    "operation of a graph",
                    index,
                    format!("a launch among its {count} operations"),
                )));
            };
            let launch: Launch = state.prepare(kernel, *grid, arguments)?;
            state.driver.update(id as usize, index, &Node::Launch(launch))?;
            *bound = arguments.to_vec();
            Ok(())
        })
    }
}

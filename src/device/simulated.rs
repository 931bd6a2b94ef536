//! The simulator as a driver: the shipped PTX runs in [`crate::sim`], operation by operation, in an order that the
//! rules of streams and events allow.
//!
//! Nothing runs when it is asked for. Operations wait in their streams until somebody waits for them; then a scheduler
//! with a seed picks among those that may run (simulated/schedule.rs). So a program without a needed event gives wrong
//! data under some seeds, as it would on a GPU, and the same data under all of them when its events are right. The checker
//! is told each operation's place among the streams, and reports a missing event under all seeds.

mod options;
mod pinned;
mod schedule;

use super::driver::{Driver, Executable, Failure, Function, Launch, Mark, Node, Outcome, Pinned, Sizes};
use super::properties::KernelCount;
use super::runtime::Runtime;
use super::texts::Texts;
use super::{Kernel, Launcher, Properties, Stream};
use crate::base::Error;
use crate::sim::access::{Deed, Operation};
use crate::sim::{self, Counters, Machine, Program, sample};
pub use options::{SimulatorOptions, Waits};
use pinned::PinnedMemory;
use schedule::{Flag, Schedule};
use std::collections::HashMap;
use std::sync::Arc;

/// Opens a simulated GPU.
pub(super) fn open(options: SimulatorOptions) -> Arc<dyn Launcher> {
    Runtime::new("sim".into(), Box::new(Simulated::new(options)))
}

/// The files that were understood; machines share them.
static PROGRAMS: Texts<Program> = Texts::new();

/// More operations than this do not wait in the streams.
const MOST_WAITING: usize = 1024;

/// One operation.
#[derive(Debug)]
enum Work {
    Carve(u64, u64),
    Release(u64),
    Launch(Launch),
    Upload(Pinned, usize, u64, usize),
    Download(u64, Pinned, usize, usize),
    Clear(u64, u64),
    Copy(u64, u64, u64),
}

/// An entry that was asked for.
#[derive(Debug)]
struct Loaded {
    kernel: &'static Kernel,
    program: Arc<Program>,
    static_shared: u32,
    launches: usize,
    counters: Counters,
}

#[derive(Debug)]
struct Simulated {
    properties: Properties,
    block_order: u64,
    sample: bool,
    replaced: Vec<(&'static str, String)>,
    machine: Machine,
    functions: Vec<Loaded>,
    pinned: PinnedMemory,
    waits: Waits,
    schedule: Schedule<Work>,
    marks: HashMap<Mark, Flag>,
    next_mark: Mark,
    /// Blocks whose release is still to come.
    releasing: HashMap<u64, Flag>,
    graphs: HashMap<Executable, Vec<Node>>,
    next_graph: Executable,
}

impl Simulated {
    fn new(options: SimulatorOptions) -> Simulated {
        let (major, minor) = options.compute_capability;
        let hopper = options.compute_capability == (9, 0);
        let properties = Properties {
            name: format!("simulated sm_{major}{minor}"),
            compute_capability: options.compute_capability,
            driver: None,
            multiprocessors: if hopper { 132 } else { 108 },
            memory_bytes: options.memory_bytes as usize,
            l2_bytes: if hopper { 50 << 20 } else { 40 << 20 },
            most_blocks: [i32::MAX as u32, 65_535, 65_535],
            most_threads: [1024, 1024, 64],
            most_threads_of_a_block: 1024,
            // What every target from sm_80 on has, not the 163 KiB of sm_80 itself.
            most_shared_bytes: if hopper { 227 * 1024 } else { 99 * 1024 },
        };
        let machine = Machine::new(sim::Options {
            memory_bytes: options.memory_bytes,
            threads: options.threads,
            observer: options.observer,
            ..sim::Options::default()
        });
        Simulated {
            properties,
            block_order: options.block_order,
            sample: options.sample,
            replaced: options.replaced,
            machine,
            functions: Vec::new(),
            pinned: PinnedMemory::default(),
            waits: options.waits,
            schedule: Schedule::new(options.schedule),
            marks: HashMap::new(),
            next_mark: 0,
            releasing: HashMap::new(),
            graphs: HashMap::new(),
            next_graph: 0,
        }
    }

    fn push(&mut self, stream: Stream, work: Work) -> Outcome<()> {
        let deed = self.deed(&work);
        let place = match work {
            Work::Upload(pinned, at, _, bytes) | Work::Download(_, pinned, at, bytes) => {
                Some((pinned, at..at + bytes))
            }
            _ => None,
        };
        let stamp = self.schedule.push(stream, work);
        if let Some((pinned, part)) = place {
            self.pinned.will_use(pinned, part, deed, &stamp, self.schedule.host())?;
        }
        if self.schedule.waiting() > MOST_WAITING { self.step().map(|_| ()) } else { Ok(()) }
    }

    /// Runs one operation that may run; `false` when none is left.
    fn step(&mut self) -> Outcome<bool> {
        let Some((stamp, work)) = self.schedule.next() else { return Ok(false) };
        self.machine.begin(Some(Operation { deed: self.deed(&work), stamp }));
        let outcome = self.execute(work);
        self.machine.begin(None);
        outcome.map_err(|fault| {
            self.schedule.clear();
            Failure::Lost { problem: fault.sentence(), advice: fault.advice }
        })?;
        Ok(true)
    }

    /// Refuses what a GPU of this kind would, where the driver is asked to allow a kernel its shared memory.
    fn check_shared(&self, launch: &Launch) -> Outcome<()> {
        let loaded = &self.functions[launch.function];
        Ok(self.properties.check_shared(loaded.kernel, loaded.static_shared, launch.grid.shared_bytes)?)
    }

    fn deed(&self, work: &Work) -> Deed {
        match work {
            Work::Carve(..) => Deed::Take,
            Work::Release(..) => Deed::GiveBack,
            Work::Launch(launch) => Deed::Kernel(self.functions[launch.function].kernel.entry),
            Work::Upload(..) => Deed::Upload,
            Work::Download(..) => Deed::Download,
            Work::Clear(..) => Deed::Clear,
            Work::Copy(..) => Deed::Copy,
        }
    }

    fn execute(&mut self, work: Work) -> sim::Result<()> {
        match work {
            Work::Carve(address, bytes) => self.machine.carve(address, bytes),
            Work::Release(address) => self.machine.release(address),
            Work::Upload(pinned, at, to, bytes) => {
                self.machine.write(to, &self.pinned.bytes(pinned)[at..at + bytes])
            }
            Work::Download(from, pinned, at, bytes) => {
                self.machine.read(from, &mut self.pinned.bytes_mut(pinned)[at..at + bytes])
            }
            Work::Clear(address, bytes) => self.machine.fill(address, 0, bytes),
            Work::Copy(from, to, bytes) => self.machine.copy(from, to, bytes),
            Work::Launch(launch) => {
                let loaded = &mut self.functions[launch.function];
                let entry = loaded.kernel.entry;
                let sample = if self.sample { sample::sample(entry, launch.grid.blocks) } else { None };
                let counters = self.machine.launch(
                    &loaded.program,
                    &sim::Launch {
                        entry,
                        grid: launch.grid.blocks,
                        block: launch.grid.threads,
                        dynamic_shared: launch.grid.shared_bytes,
                        parameters: &launch.parameters,
                        sample: sample.as_deref(),
                        seed: self.block_order,
                    },
                )?;
                loaded.launches += 1;
                loaded.counters.add(&counters.scaled());
                Ok(())
            }
        }
    }
}

impl Driver for Simulated {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory_free(&mut self) -> Outcome<usize> {
        Ok(self.properties.memory_bytes.saturating_sub(self.machine.used() as usize))
    }

    fn sizes(&self) -> Sizes {
        // The simulator itself takes memory for the variables of the files, 14 KB for all that are shipped.
        // The gap is longer than a row of the small real models, so that a step to the next row is noticed too.
        Sizes { slab: 16 << 20, gap: 4096, chunk: 1 << 20, grain: 1, own: 16 << 10 }
    }

    fn allocate(&mut self, bytes: usize) -> Outcome<u64> {
        if bytes > self.memory_free()? {
            return Err(Failure::OutOfMemory);
        }
        Ok(self.machine.allocate(bytes as u64).map_err(Error::from)?)
    }

    fn free(&mut self, address: u64) -> Outcome<()> {
        Ok(self.machine.free(address).map_err(Error::from)?)
    }

    fn carve(&mut self, address: u64, bytes: usize) -> Outcome<()> {
        if let Some(released) = self.releasing.remove(&address) {
            // That the block is free again is the simulator's to know; that its last use is over, the pool's to wait for.
            self.schedule.hold(Stream::Compute, released);
        }
        self.push(Stream::Compute, Work::Carve(address, bytes as u64))
    }

    fn release(&mut self, address: u64, until: Option<Mark>) -> Outcome<()> {
        let Some(copied) = until.and_then(|mark| self.marks.get(&mark).cloned()) else {
            return self.push(Stream::Compute, Work::Release(address));
        };
        // The compute stream must not wait for the copy stream here: only the block's next owner does.
        let conditions = vec![self.schedule.record(Stream::Compute), copied];
        let released = self.schedule.push_loose(conditions, Work::Release(address));
        self.releasing.insert(address, released);
        Ok(())
    }

    fn pin(&mut self, bytes: usize) -> Outcome<Pinned> {
        Ok(self.pinned.take(bytes))
    }

    fn write_pinned(&mut self, pinned: Pinned, at: usize, bytes: &[u8]) -> Outcome<()> {
        self.pinned.write(pinned, at, bytes, self.schedule.host())
    }

    fn read_pinned(&mut self, pinned: Pinned, at: usize, bytes: &mut [u8]) -> Outcome<()> {
        self.pinned.read(pinned, at, bytes, self.schedule.host())
    }

    fn load(&mut self, kernel: &'static Kernel) -> Outcome<Function> {
        let read =
            |text: &str| Program::parse(&format!("ptx/{}.ptx", kernel.stem), text).map_err(Error::from);
        let program = match self.replaced.iter().find(|(entry, _)| *entry == kernel.entry) {
            Some((_, text)) => Arc::new(read(text)?),
            None => PROGRAMS.of(kernel.ptx, || read(kernel.ptx))?,
        };
        let static_shared = program.entry(kernel.entry).map_err(Error::from)?.static_shared;
        let counters = Counters::default();
        self.functions.push(Loaded { kernel, program, static_shared, launches: 0, counters });
        Ok(self.functions.len() - 1)
    }

    fn launch(&mut self, stream: Stream, launch: &Launch) -> Outcome<()> {
        self.check_shared(launch)?;
        self.push(stream, Work::Launch(launch.clone()))
    }

    fn upload(&mut self, stream: Stream, from: (Pinned, usize), to: u64, bytes: usize) -> Outcome<()> {
        self.push(stream, Work::Upload(from.0, from.1, to, bytes))
    }

    fn download(&mut self, stream: Stream, from: u64, to: (Pinned, usize), bytes: usize) -> Outcome<()> {
        self.push(stream, Work::Download(from, to.0, to.1, bytes))
    }

    fn clear(&mut self, stream: Stream, address: u64, bytes: usize) -> Outcome<()> {
        self.push(stream, Work::Clear(address, bytes as u64))
    }

    fn copy(&mut self, stream: Stream, from: u64, to: u64, bytes: usize) -> Outcome<()> {
        self.push(stream, Work::Copy(from, to, bytes as u64))
    }

    fn record(&mut self, stream: Stream) -> Outcome<Mark> {
        self.next_mark += 1;
        let flag = self.schedule.record(stream);
        self.marks.insert(self.next_mark, flag);
        Ok(self.next_mark)
    }

    fn wait(&mut self, stream: Stream, mark: Mark) -> Outcome<()> {
        if let Some(flag) = self.marks.get(&mark).filter(|_| !self.waits.leaves_out_next()) {
            self.schedule.wait(stream, flag.clone());
        }
        Ok(())
    }

    /// Asking takes time in which something may run, so that who asks again and again gets an answer.
    fn reached(&mut self, mark: Mark) -> Outcome<bool> {
        self.step()?;
        let Some(flag) = self.marks.get(&mark) else { return Ok(true) };
        if flag.is_reached() {
            self.schedule.seen(flag);
        }
        Ok(flag.is_reached())
    }

    fn wait_host(&mut self, mark: Mark) -> Outcome<()> {
        let Some(flag) = self.marks.get(&mark).cloned() else { return Ok(()) };
        if self.waits.leaves_out_next() {
            return Ok(());
        }
        while !flag.is_reached() && self.step()? {}
        if flag.is_reached() {
            self.schedule.seen(&flag);
        }
        Ok(())
    }

    fn elapsed(&mut self, _: Mark, _: Mark) -> Outcome<Option<f32>> {
        Ok(None)
    }

    fn forget(&mut self, mark: Mark) {
        self.marks.remove(&mark);
    }

    fn synchronise(&mut self) -> Outcome<()> {
        while self.step()? {}
        self.schedule.seen_all();
        Ok(())
    }

    fn instantiate(&mut self, nodes: &[Node]) -> Outcome<Executable> {
        for node in nodes {
            if let Node::Launch(launch) = node {
                self.check_shared(launch)?;
            }
        }
        self.next_graph += 1;
        self.graphs.insert(self.next_graph, nodes.to_vec());
        Ok(self.next_graph)
    }

    fn update(&mut self, graph: Executable, index: usize, node: &Node) -> Outcome<()> {
        if let Some(old) = self.graphs.get_mut(&graph).and_then(|nodes| nodes.get_mut(index)) {
            *old = node.clone();
        }
        Ok(())
    }

    fn launch_graph(&mut self, stream: Stream, graph: Executable) -> Outcome<()> {
        for node in self.graphs.get(&graph).cloned().unwrap_or_default() {
            match node {
                Node::Launch(launch) => self.push(stream, Work::Launch(launch))?,
                Node::Clear { address, bytes } => self.clear(stream, address, bytes)?,
                Node::Copy { from, to, bytes } => self.copy(stream, from, to, bytes)?,
            }
        }
        Ok(())
    }

    fn discard(&mut self, graph: Executable) {
        self.graphs.remove(&graph);
    }

    fn kernel_counts(&self) -> Vec<KernelCount> {
        let count = |loaded: &Loaded| KernelCount {
            kernel: loaded.kernel,
            launches: loaded.launches,
            counters: loaded.counters.clone(),
        };
        self.functions.iter().map(count).collect()
    }
}

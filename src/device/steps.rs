//! Steps that repeat. On a GPU a step runs launch by launch when it is first seen, is captured when it comes again, and
//! from then on is one launch of a graph.
//!
//! A step is known by its key: whoever keeps [`Steps`] puts into the key all that the step's launches depend on beside
//! the contents of device memory (which model, which masks, how many rows, which branches), and gives every object that
//! may be another one next time an [`Identity`]. Numbers that change from step to step lie in device memory.

use super::{Device, Graph, Traffic};
use crate::base::Result;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Most steps that are remembered; the one not used for longest is forgotten.
const MOST: usize = 64;

/// A number that no other object of this process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity(u64);

impl Identity {
    /// One that was never given before. 0 is never given.
    pub fn fresh() -> Identity {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Identity(NEXT.fetch_add(1, Relaxed))
    }

    /// As a part of a key.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// How a step ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepRun {
    /// Launch by launch.
    Eager,
    /// Captured, and launched as a graph for the first time.
    Captured,
    /// Launched as a graph that was captured before.
    Replayed,
}

/// The steps of one owner, who keeps the memory that they use.
#[derive(Debug, Default)]
pub struct Steps {
    known: Vec<Known>,
    clock: u64,
}

#[derive(Debug)]
struct Known {
    key: Vec<u64>,
    graph: Option<Graph>,
    /// Matrix products of the step, which nobody counts when the graph is launched again.
    products: usize,
    used: u64,
}

impl Steps {
    /// Runs the step `body`, or the graph that was captured of the step with this key. The CPU knows no graphs.
    ///
    /// From its second run on `body` must neither allocate nor copy from or to the host.
    ///
    /// # Errors
    /// Those of `body`; a call that cannot be part of a graph.
    pub fn run(&mut self, device: &Device, key: &[u64], body: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        let Device::Gpu(gpu) = device else { return body() };
        // A library's products take memory of the pool, which no graph may.
        if !gpu.uses_graphs() || gpu.library_multiplies(false)? {
            gpu.traffic().step(StepRun::Eager);
            return body();
        }
        self.clock += 1;
        let clock = self.clock;
        let Some(known) = self.known.iter_mut().find(|known| known.key == key) else {
            gpu.traffic().step(StepRun::Eager);
            body()?;
            self.remember(key);
            return Ok(());
        };
        known.used = clock;
        if let Some(graph) = &known.graph {
            gpu.traffic().step(StepRun::Replayed);
            gpu.traffic().multiply(known.products);
            return gpu.launch_graph(graph);
        }
        let before = Traffic::products_here();
        let graph = gpu.capture(body)?;
        known.products = Traffic::products_here() - before;
        gpu.traffic().step(StepRun::Captured);
        gpu.launch_graph(known.graph.insert(graph))
    }

    fn remember(&mut self, key: &[u64]) {
        if self.known.len() == MOST
            && let Some(oldest) = (0..MOST).min_by_key(|&at| self.known[at].used)
        {
            self.known.swap_remove(oldest);
        }
        self.known.push(Known { key: key.to_vec(), graph: None, products: 0, used: self.clock });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(device: &Device) -> [usize; 3] {
        let count = device.traffic().count();
        [count.steps_eager, count.steps_captured, count.steps_replayed]
    }

    #[test]
    fn a_step_is_captured_when_it_comes_again() {
        let device = Device::simulated();
        let Device::Gpu(gpu) = &device else { unreachable!() };
        let (from, to) = (gpu.allocate(256).unwrap(), gpu.allocate(256).unwrap());
        gpu.upload(from, &[5; 256]).unwrap();
        let mut steps_of = Steps::default();
        let mut bodies = 0;
        for round in 0..4 {
            gpu.clear(to, 256).unwrap();
            let mut body = || {
                bodies += 1;
                gpu.copy(from, to, 256)
            };
            steps_of.run(&device, &[1, 7], &mut body).unwrap();
            let mut back = [0; 256];
            gpu.download(to, &mut back).unwrap();
            assert_eq!(back, [5; 256], "round {round}");
        }
        assert_eq!((bodies, steps(&device)), (2, [1, 1, 2]));
        // Another key is another step; without graphs all are eager.
        steps_of.run(&device, &[1, 8], &mut || Ok(())).unwrap();
        gpu.use_graphs(false);
        steps_of.run(&device, &[1, 7], &mut || Ok(())).unwrap();
        assert_eq!(steps(&device), [3, 1, 2]);
    }

    #[test]
    fn what_cannot_be_captured_is_an_error_and_is_asked_again() {
        let device = Device::simulated();
        let Device::Gpu(gpu) = &device else { unreachable!() };
        let address = gpu.allocate(4).unwrap();
        let mut steps_of = Steps::default();
        let mut run = || steps_of.run(&device, &[1], &mut || gpu.upload(address, &[1; 4]));
        run().unwrap();
        for _ in 0..2 {
            let message = run().unwrap_err().to_string();
            assert!(message.contains("an upload while a graph is captured"), "{message}");
        }
    }

    #[test]
    fn the_step_not_used_for_longest_is_forgotten() {
        let device = Device::simulated();
        let mut steps_of = Steps::default();
        let mut run = |key: usize| steps_of.run(&device, &[key as u64], &mut || Ok(())).unwrap();
        (0..MOST).for_each(&mut run);
        run(0);
        run(MOST);
        // 1 made room and is new again; 0 was used since.
        let before = steps(&device);
        run(1);
        run(0);
        let after = steps(&device);
        assert_eq!((after[0] - before[0], after[2] - before[2]), (1, 1));
    }

    #[test]
    fn the_cpu_runs_every_step() {
        let device = Device::cpu();
        let mut bodies = 0;
        for _ in 0..3 {
            let mut body = || {
                bodies += 1;
                Ok(())
            };
            Steps::default().run(&device, &[1], &mut body).unwrap();
        }
        assert_eq!((bodies, steps(&device)), (3, [0, 0, 0]));
    }
}

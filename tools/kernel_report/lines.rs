//! Which lines of a PTX file ask device memory for more sectors than their bytes fill, or shared memory for more accesses
//! than their requests need: where to look when a kernel misses a bar.

use super::{Arguments, Kind};
use latch::base::Result;
use latch::device::{Device, SimulatorOptions};
use latch::sim::Counters;
use latch::sim::access::{
    BarrierArrival, BlockObserver, LaunchInfo, LaunchObserver, Observer, Place, Scope, WarpAccess, WarpSync,
};
use latch::sim::fault::Result as Checked;
use latch::sim::traffic::Traffic;
use latch::verify::workloads::{Setting, Size, all};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// What each line of each entry has asked for, in the blocks that ran.
type ByLine = BTreeMap<(String, u32), Traffic>;

/// Counts the accesses of a device's kernels by their lines, and checks nothing.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<ByLine>>);

struct OfLaunch {
    kernel: String,
    all: Lines,
}

struct OfBlock {
    kernel: String,
    all: Lines,
    found: BTreeMap<u32, Traffic>,
}

impl Lines {
    fn take(&self) -> ByLine {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Observer for Lines {
    fn launch(&self, info: &LaunchInfo<'_>) -> Option<Box<dyn LaunchObserver>> {
        Some(Box::new(OfLaunch { kernel: info.kernel.to_string(), all: self.clone() }))
    }
}

impl LaunchObserver for OfLaunch {
    fn block(&self, _: [u32; 3]) -> Box<dyn BlockObserver> {
        Box::new(OfBlock { kernel: self.kernel.clone(), all: self.all.clone(), found: BTreeMap::new() })
    }

    fn finish(self: Box<Self>, _: &mut Counters) -> Checked<()> {
        Ok(())
    }
}

impl BlockObserver for OfBlock {
    fn access(&mut self, access: &WarpAccess<'_>) -> Checked<()> {
        self.found.entry(access.at.line).or_default().count(access);
        Ok(())
    }

    fn end(self: Box<Self>) -> Checked<()> {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (line, traffic) in &self.found {
            all.entry((self.kernel.clone(), *line)).or_default().add(traffic);
        }
        Ok(())
    }

    fn warp_sync(&mut self, _: &WarpSync) -> Checked<()> {
        Ok(())
    }

    fn barrier_arrival(&mut self, _: &BarrierArrival) -> Checked<()> {
        Ok(())
    }

    fn barrier_complete(&mut self, _: u32, _: &[u32]) -> Checked<()> {
        Ok(())
    }

    fn copy_commit(&mut self, _: u32, _: Place) -> Checked<()> {
        Ok(())
    }

    fn copy_wait(&mut self, _: u32, _: Option<u32>, _: Place) -> Checked<()> {
        Ok(())
    }

    fn fence(&mut self, _: u32, _: Scope, _: Place) -> Checked<()> {
        Ok(())
    }

    fn proxy_fence(&mut self, _: u32, _: Place) -> Checked<()> {
        Ok(())
    }

    fn product_read(&mut self, _: &[u32], _: Place) -> Checked<()> {
        Ok(())
    }

    fn product_commit(&mut self, _: Place) -> Checked<()> {
        Ok(())
    }

    fn product_wait(&mut self, _: u32, _: Place) -> Checked<()> {
        Ok(())
    }

    fn exit(&mut self, _: u32, _: Place) -> Checked<()> {
        Ok(())
    }
}

/// Prints, for each operation that is wanted, the `most` lines with the most sectors, and accesses of shared memory, over
/// the fewest; false where nobody reads any more.
pub fn table(arguments: &Arguments, size: Size, kind: Kind, most: usize) -> Result<bool> {
    let (dtype, rounded) = kind.dtypes();
    let wanted = |name: &str| arguments.wants(name) && kind.differs(name);
    for workload in all().into_iter().filter(|workload| wanted(workload.name)) {
        let lines = Lines::default();
        let device = Device::simulated_with(SimulatorOptions {
            observer: Some(Arc::new(lines.clone())),
            sample: true,
            compute_capability: kind.compute_capability(),
            ..SimulatorOptions::default()
        });
        let (sequences, length) = (arguments.sequences, arguments.length);
        let setting = Setting { device: &device, size, dtype, rounded, sequences, length };
        let mut work = (workload.make)(&setting)?;
        let Device::Gpu(gpu) = &device else { continue };
        gpu.synchronise()?;
        lines.take();
        (work.run)()?;
        gpu.synchronise()?;
        let mut text = format!("\n{} at {} in {}\n", workload.name, size.name, kind.name());
        text += &format!("{:>10} {:>10} {:>10} {:>10}  line\n", "sectors", "fewest", "accesses", "fewest");
        let mut found: Vec<_> = lines.take().into_iter().collect();
        let excess = |traffic: &Traffic| {
            let (global, shared) = (traffic.global(), traffic.shared());
            global.sectors.saturating_sub(global.ideal) + shared.accesses.saturating_sub(shared.phases)
        };
        found.sort_by_key(|(_, traffic)| std::cmp::Reverse(excess(traffic)));
        let kernels = gpu.statistics().kernels;
        for ((entry, line), traffic) in found.iter().take(most).filter(|(_, traffic)| excess(traffic) > 0) {
            let kernel = kernels.iter().map(|count| count.kernel).find(|kernel| kernel.entry == entry);
            let source =
                kernel.and_then(|kernel| kernel.ptx.lines().nth(*line as usize - 1)).unwrap_or_default();
            let (global, shared) = (traffic.global(), traffic.shared());
            text += &format!(
                "{:>10} {:>10} {:>10} {:>10}  {entry}:{line} {}\n",
                global.sectors,
                global.ideal,
                shared.accesses,
                shared.phases,
                source.trim()
            );
        }
        if !arguments.write(&text)? {
            return Ok(false);
        }
    }
    Ok(true)
}

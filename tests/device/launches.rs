//! Launches: arguments and grids are checked before anything runs; streams, events and graphs order what runs.

use super::launcher;
use latch::device::{Argument, GraphOperation, Grid, Kernel, Launcher, SimulatorOptions, Stream};
use latch::sim::access::Observer;
use latch::sim::check::Checker;
use std::sync::Arc;

/// `axpy`: y[i] = a * x[i] + y[i] for i < n, one thread an element.
pub const PTX: &str = "
.version 8.1
.target sm_80
.address_size 64
.visible .entry axpy(
	.param .u64 axpy_param_0,
	.param .u64 axpy_param_1,
	.param .f32 axpy_param_2,
	.param .u32 axpy_param_3
)
.maxntid 128, 1, 1
{
	.reg .pred %p<2>;
	.reg .f32 %f<5>;
	.reg .b32 %r<6>;
	.reg .b64 %rd<8>;
	ld.param.u64 %rd1, [axpy_param_0];
	ld.param.u64 %rd2, [axpy_param_1];
	ld.param.f32 %f1, [axpy_param_2];
	ld.param.u32 %r2, [axpy_param_3];
	mov.u32 %r3, %ctaid.x;
	mov.u32 %r4, %ntid.x;
	mov.u32 %r5, %tid.x;
	mad.lo.s32 %r1, %r3, %r4, %r5;
	setp.ge.s32 %p1, %r1, %r2;
	@%p1 bra DONE;
	cvta.to.global.u64 %rd3, %rd1;
	cvta.to.global.u64 %rd4, %rd2;
	mul.wide.s32 %rd5, %r1, 4;
	add.s64 %rd6, %rd3, %rd5;
	add.s64 %rd7, %rd4, %rd5;
	ld.global.f32 %f2, [%rd6];
	ld.global.f32 %f3, [%rd7];
	fma.rn.f32 %f4, %f1, %f2, %f3;
	st.global.f32 [%rd7], %f4;
DONE:
	ret;
}
.visible .entry nothing()
{
	ret;
}
";
pub static AXPY: Kernel = Kernel::new("axpy", PTX, "axpy");
static NOTHING: Kernel = Kernel::new("axpy", PTX, "nothing");
static MISSING: Kernel = Kernel::new("axpy", PTX, "axpy_bwd");

/// Two vectors on a device.
pub struct Vectors {
    pub gpu: Arc<dyn Launcher>,
    pub x: u64,
    pub y: u64,
    n: usize,
}

impl Vectors {
    pub fn new(gpu: Arc<dyn Launcher>, n: usize) -> Vectors {
        let (x, y) = (gpu.allocate(4 * n).unwrap(), gpu.allocate(4 * n).unwrap());
        let values: Vec<f32> = (0..n).map(|i| i as f32).collect();
        gpu.upload(x, bytemuck::cast_slice(&values)).unwrap();
        Vectors { gpu, x, y, n }
    }

    pub fn arguments(&self, a: f32) -> [Argument; 4] {
        [Argument::Address(self.x), Argument::Address(self.y), Argument::F32(a), Argument::U32(self.n as u32)]
    }

    pub fn grid(&self) -> Grid {
        Grid::linear(self.n.div_ceil(128) as u32, 128)
    }

    pub fn axpy(&self, a: f32) {
        self.gpu.launch(&AXPY, self.grid(), &self.arguments(a)).unwrap();
    }

    pub fn y(&self) -> Vec<f32> {
        let mut back = vec![0.0f32; self.n];
        self.gpu.download(self.y, bytemuck::cast_slice_mut(&mut back)).unwrap();
        back
    }

    /// Fails unless y is `factor` * x.
    pub fn expect(&self, factor: f32) {
        for (i, value) in self.y().into_iter().enumerate() {
            assert_eq!(value, factor * i as f32, "element {i}");
        }
    }
}

fn vectors(n: usize) -> Vectors {
    Vectors::new(launcher(SimulatorOptions::default()), n)
}

#[test]
fn launches_run_in_order() {
    for n in [1, 127, 128, 1000] {
        let vectors = vectors(n);
        vectors.axpy(2.0);
        vectors.expect(2.0);
        vectors.axpy(1.0);
        vectors.axpy(0.5);
        vectors.expect(3.5);
        vectors.gpu.clear(vectors.y, 4 * n).unwrap();
        vectors.expect(0.0);
        assert_eq!(vectors.gpu.statistics().launches, 3);
        let kernels = vectors.gpu.statistics().kernels;
        assert_eq!((kernels.len(), kernels[0].launches, kernels[0].kernel.entry), (1, 3, "axpy"));
    }
}

#[test]
fn wrong_arguments_are_refused_before_anything_runs() {
    let vectors = vectors(10);
    let good = vectors.arguments(1.0);
    let refused = |kernel: &'static Kernel, grid, arguments: &[Argument]| {
        vectors.gpu.launch(kernel, grid, arguments).unwrap_err().to_string()
    };
    let message = refused(&AXPY, vectors.grid(), &good[..3]);
    assert!(message.contains("kernel `axpy`: 3 arguments, its PTX takes 4"), "{message}");
    let mut wrong = good;
    wrong[2] = Argument::U32(1);
    let message = refused(&AXPY, vectors.grid(), &wrong);
    assert!(message.contains("argument 2 (axpy_param_2)") && message.contains("takes .f32"), "{message}");
    let mut wrong = good;
    wrong[3] = Argument::U64(10);
    let message = refused(&AXPY, vectors.grid(), &wrong);
    assert!(message.contains("argument 3 (axpy_param_3)") && message.contains("takes .u32"), "{message}");
    let message = refused(&MISSING, vectors.grid(), &good);
    assert!(message.contains("ptx/axpy.ptx has no entry `axpy_bwd`; it holds axpy, nothing"), "{message}");
    // Nothing ran, nothing was lost.
    vectors.expect(0.0);
    vectors.axpy(1.0);
    vectors.expect(1.0);
}

#[test]
fn empty_grids_and_grids_beyond_the_limits_are_refused() {
    let vectors = vectors(10);
    let refused = |grid| vectors.gpu.launch(&AXPY, grid, &vectors.arguments(1.0)).unwrap_err().to_string();
    assert!(refused(Grid::linear(0, 128)).contains("kernel `axpy`: an empty grid"));
    assert!(refused(Grid::linear(1, 0)).contains("kernel `axpy`: an empty grid"));
    assert!(refused(Grid::linear(1, 129)).contains("compiled for at most 128"));
    let high = Grid { blocks: [1, 65_536, 1], threads: [32, 1, 1], shared_bytes: 0 };
    assert!(refused(high).contains("65536 blocks along y"));
    let greedy = Grid { shared_bytes: 1 << 20, ..vectors.grid() };
    assert!(refused(greedy).contains("1048576 bytes of shared memory"));
    let message = vectors.gpu.launch(&NOTHING, Grid::linear(1, 1025), &[]).unwrap_err().to_string();
    assert!(message.contains("1025 threads along x"), "{message}");
    vectors.gpu.launch(&NOTHING, Grid::linear(3, 64), &[]).unwrap();
    vectors.expect(0.0);
}

#[test]
fn damaged_files_are_refused_and_nothing_leaks() {
    static EMPTY: Kernel = Kernel::new("empty", "", "axpy");
    static GARBLED: Kernel = Kernel::new(
        "garbled",
        ".version 8.1\n.target sm_80\n.visible .entry axpy()\n{\n\tfrob.f32 %f1;\n}\n",
        "axpy",
    );
    static CUT: Kernel =
        Kernel::new("cut", ".version 8.1\n.target sm_80\n.visible .entry axpy()\n{\n\tret;\n", "axpy");
    let vectors = vectors(10);
    for (kernel, says) in [(&EMPTY, "ptx/empty.ptx"), (&GARBLED, "ptx/garbled.ptx"), (&CUT, "ptx/cut.ptx")] {
        // Twice: a file that was refused is not taken for loaded.
        for _ in 0..2 {
            let message = vectors.gpu.launch(kernel, Grid::linear(1, 32), &[]).unwrap_err().to_string();
            assert!(message.contains(says), "{says}: {message}");
        }
    }
    vectors.axpy(1.0);
    vectors.expect(1.0);
    assert_eq!(vectors.gpu.statistics().held.len(), 2);
}

#[test]
fn a_kernel_that_leaves_its_operands_is_named() {
    let vectors = vectors(100);
    let mut arguments = vectors.arguments(1.0);
    arguments[3] = Argument::U32(101);
    vectors.gpu.launch(&AXPY, vectors.grid(), &arguments).unwrap();
    let message = vectors.gpu.synchronise().unwrap_err().to_string();
    for says in ["ptx/axpy.ptx:", "kernel axpy", "thread (100, 0, 0)", "allocation of 400 bytes"] {
        assert!(message.contains(says), "{says}: {message}");
    }
    let message = vectors.gpu.launch(&NOTHING, Grid::linear(1, 1), &[]).unwrap_err().to_string();
    assert!(message.contains("sim was lost before") && message.contains("kernel axpy"), "{message}");
}

/// What a step of a pipeline does: the copy stream brings x, the compute stream adds it to y, the copy stream takes y
/// away. `events` says which of the two waits are there.
fn pipeline(seed: u64, events: [bool; 2]) -> Vec<f32> {
    // The checker would stop the device before anybody sees wrong numbers.
    let observer: Option<Arc<dyn Observer>> = Some(Arc::new(Checker::only_counters()));
    let options = SimulatorOptions { schedule: seed, observer, ..Default::default() };
    let vectors = Vectors::new(launcher(options), 100);
    let gpu = &vectors.gpu;
    gpu.synchronise().unwrap();
    let fresh = vec![7.0f32; 100];
    gpu.upload_on(Stream::Copy, vectors.x, bytemuck::cast_slice(&fresh)).unwrap();
    let brought = gpu.record(Stream::Copy).unwrap();
    if events[0] {
        gpu.wait(Stream::Compute, &brought).unwrap();
    }
    vectors.axpy(1.0);
    let added = gpu.record(Stream::Compute).unwrap();
    if events[1] {
        gpu.wait(Stream::Copy, &added).unwrap();
    }
    let download = gpu.download_on(Stream::Copy, vectors.y, 400).unwrap();
    let mut back = vec![0.0f32; 100];
    gpu.receive(download, bytemuck::cast_slice_mut(&mut back)).unwrap();
    back
}

#[test]
fn a_pipeline_with_its_events_is_right_under_every_order_and_without_one_is_not() {
    let right = vec![7.0f32; 100];
    for seed in 0..8 {
        assert_eq!(pipeline(seed, [true, true]), right, "seed {seed}");
    }
    for events in [[false, true], [true, false]] {
        assert!((0..8).any(|seed| pipeline(seed, events) != right), "{events:?} goes unnoticed");
    }
}

#[test]
fn kernels_on_the_copy_stream() {
    for seed in 0..4 {
        let vectors = Vectors::new(launcher(SimulatorOptions { schedule: seed, ..Default::default() }), 300);
        let gpu = &vectors.gpu;
        // The first touch of a block by the copy stream waits for what the compute stream did to it.
        gpu.launch_on(Stream::Copy, &AXPY, vectors.grid(), &vectors.arguments(2.0)).unwrap();
        let done = gpu.record(Stream::Copy).unwrap();
        gpu.wait(Stream::Compute, &done).unwrap();
        vectors.expect(2.0);
        assert!(gpu.reached(&done).unwrap());
    }
}

#[test]
fn asking_again_and_again_gets_an_answer() {
    let vectors = vectors(100);
    vectors.axpy(1.0);
    let event = vectors.gpu.record(Stream::Compute).unwrap();
    assert!((0..100).any(|_| vectors.gpu.reached(&event).unwrap()));
    let later = vectors.gpu.record(Stream::Compute).unwrap();
    assert_eq!(vectors.gpu.elapsed(&event, &later).unwrap(), None, "simulated time means nothing");
}

#[test]
fn graphs_run_again_and_can_be_re_bound() {
    let vectors = vectors(1000);
    let gpu = &vectors.gpu;
    let mut graph = gpu
        .capture(&mut || {
            gpu.clear(vectors.y, 4000)?;
            gpu.launch(&AXPY, vectors.grid(), &vectors.arguments(2.0))?;
            gpu.launch(&AXPY, vectors.grid(), &vectors.arguments(3.0))
        })
        .unwrap();
    vectors.expect(0.0);
    assert_eq!(graph.operations().len(), 3);
    assert!(matches!(graph.operations()[0], GraphOperation::Clear));
    for _ in 0..3 {
        gpu.launch_graph(&graph).unwrap();
        vectors.expect(5.0);
    }
    gpu.rebind(&mut graph, 2, &vectors.arguments(10.0)).unwrap();
    gpu.launch_graph(&graph).unwrap();
    vectors.expect(12.0);
    let message = gpu.rebind(&mut graph, 2, &vectors.arguments(1.0)[..2]).unwrap_err().to_string();
    assert!(message.contains("2 arguments, its PTX takes 4"), "{message}");
    let message = gpu.rebind(&mut graph, 0, &vectors.arguments(1.0)).unwrap_err().to_string();
    assert!(message.contains("a launch among its 3 operations"), "{message}");
    gpu.launch_graph(&graph).unwrap();
    vectors.expect(12.0);
    let statistics = gpu.statistics();
    assert_eq!((statistics.launches, statistics.graph_launches), (0, 5));
}

#[test]
fn what_cannot_be_captured_is_refused() {
    let vectors = vectors(10);
    let gpu = &vectors.gpu;
    let says = |body: &mut dyn FnMut() -> latch::base::Result<()>| gpu.capture(body).unwrap_err().to_string();
    assert!(says(&mut || gpu.allocate(8).map(|_| ())).contains("8 B asked for while a graph is captured"));
    assert!(says(&mut || gpu.upload(vectors.x, &[0; 4])).contains("an upload while a graph is captured"));
    assert!(
        says(&mut || gpu.download(vectors.x, &mut [0; 4])).contains("a download while a graph is captured")
    );
    assert!(says(&mut || gpu.synchronise()).contains("waiting for the device while a graph is captured"));
    assert!(says(&mut || gpu.capture(&mut || Ok(())).map(|_| ())).contains("a second capture begins"));
    // After each of these the device is as it was.
    vectors.axpy(1.0);
    vectors.expect(1.0);
}

#[test]
fn what_other_threads_ask_for_runs_while_one_captures() {
    let mine = vectors(10);
    let gpu = &mine.gpu;
    let mut graphs = Vec::new();
    let graph = gpu
        .capture(&mut || {
            gpu.launch(&AXPY, mine.grid(), &mine.arguments(2.0))?;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let theirs = Vectors::new(gpu.clone(), 20);
                    theirs.axpy(3.0);
                    theirs.expect(3.0);
                    let graph = gpu
                        .capture(&mut || gpu.launch(&AXPY, theirs.grid(), &theirs.arguments(4.0)))
                        .unwrap();
                    gpu.free(gpu.allocate(40).unwrap(), 40);
                    graphs.push((graph, theirs));
                });
            });
            gpu.launch(&AXPY, mine.grid(), &mine.arguments(5.0))
        })
        .unwrap();
    let (other, theirs) = graphs.pop().unwrap();
    assert_eq!((graph.operations().len(), other.operations().len()), (2, 1));
    mine.expect(0.0);
    gpu.launch_graph(&graph).unwrap();
    mine.expect(7.0);
    theirs.expect(3.0);
    gpu.launch_graph(&other).unwrap();
    theirs.expect(7.0);
    mine.expect(7.0);
}

#[test]
fn memory_given_back_inside_a_capture_lives_as_long_as_the_graph() {
    let vectors = vectors(10);
    let gpu = &vectors.gpu;
    let scratch = gpu.allocate(40).unwrap();
    let graph = gpu
        .capture(&mut || {
            gpu.copy(vectors.x, scratch, 40)?;
            gpu.copy(scratch, vectors.y, 40)?;
            gpu.free(scratch, 40);
            Ok(())
        })
        .unwrap();
    gpu.launch_graph(&graph).unwrap();
    vectors.expect(1.0);
    assert_eq!(gpu.statistics().held.len(), 3);
    drop(graph);
    assert_ne!(gpu.allocate(40).unwrap(), vectors.x);
    gpu.synchronise().unwrap();
    assert_eq!(gpu.statistics().held.len(), 3, "x, y and the newest");
}

#[test]
fn a_graph_that_outlives_its_memory_is_a_fault() {
    let vectors = vectors(10);
    let gpu = &vectors.gpu;
    let graph = gpu.capture(&mut || gpu.launch(&AXPY, vectors.grid(), &vectors.arguments(1.0))).unwrap();
    gpu.free(vectors.y, 40);
    gpu.launch_graph(&graph).unwrap();
    let message = gpu.synchronise().unwrap_err().to_string();
    assert!(message.contains("memory that was given back") && message.contains("kernel axpy"), "{message}");
}

#[test]
fn the_order_of_blocks_does_not_change_independent_blocks() {
    let mut results = Vec::new();
    for block_order in [0, 1, 2] {
        let vectors = Vectors::new(launcher(SimulatorOptions { block_order, ..Default::default() }), 5000);
        vectors.axpy(1.5);
        results.push(vectors.y());
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
}

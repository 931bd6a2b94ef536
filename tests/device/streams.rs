//! Order between streams: a missing event is reported by the checker under every order of the streams, and nothing else is.

use super::launcher;
use super::launches::{AXPY, Vectors};
use latch::base::{Dtype, Result};
use latch::device::{Device, Launcher, SimulatorOptions, Steps, Stream, Waits};
use latch::model::{Model, Precision};
use std::path::Path;
use std::sync::Arc;

/// Orders that are tried.
const ORDERS: u64 = 8;

/// Two operations of which one writes what the other touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pair {
    KernelThenDownload,
    DownloadThenKernel,
    KernelThenUpload,
    UploadThenKernel,
    ClearThenDownload,
    DownloadThenClear,
    CopyThenUpload,
    UploadThenUpload,
    KernelThenKernel,
    GraphThenDownload,
    AllocationThenUpload,
}

impl Pair {
    const ALL: [Pair; 11] = [
        Pair::KernelThenDownload,
        Pair::DownloadThenKernel,
        Pair::KernelThenUpload,
        Pair::UploadThenKernel,
        Pair::ClearThenDownload,
        Pair::DownloadThenClear,
        Pair::CopyThenUpload,
        Pair::UploadThenUpload,
        Pair::KernelThenKernel,
        Pair::GraphThenDownload,
        Pair::AllocationThenUpload,
    ];

    /// What the report names beside the streams, and whether the first operation is the compute stream's.
    fn names(self) -> ([&'static str; 2], bool) {
        match self {
            Pair::KernelThenDownload | Pair::GraphThenDownload => (["kernel `axpy`", "a download"], true),
            Pair::DownloadThenKernel => (["a download", "kernel `axpy`"], false),
            Pair::KernelThenUpload => (["kernel `axpy`", "an upload"], true),
            Pair::UploadThenKernel => (["an upload", "kernel `axpy`"], false),
            Pair::ClearThenDownload => (["a clear", "a download"], true),
            Pair::DownloadThenClear => (["a download", "a clear"], false),
            Pair::CopyThenUpload => (["a copy within the device", "an upload"], true),
            Pair::UploadThenUpload => (["an upload", "an upload"], true),
            Pair::KernelThenKernel => (["kernel `axpy`", "kernel `axpy`"], true),
            // The pool makes the copy stream wait by itself; this is the block's second use there.
            Pair::AllocationThenUpload => (["a clear", "an upload"], true),
        }
    }

    fn run(self, vectors: &Vectors, order: impl Fn(Stream, Stream)) {
        let gpu = &vectors.gpu;
        let kernel = || gpu.launch(&AXPY, vectors.grid(), &vectors.arguments(2.0)).unwrap();
        let beside = || gpu.launch_on(Stream::Copy, &AXPY, vectors.grid(), &vectors.arguments(2.0)).unwrap();
        let download = || drop(gpu.download_on(Stream::Copy, vectors.y + 40, 20).unwrap());
        let upload = || gpu.upload_on(Stream::Copy, vectors.x + 396, &[0; 4]).unwrap();
        let clear = || gpu.clear(vectors.y, 400).unwrap();
        let to_copy = || order(Stream::Compute, Stream::Copy);
        let to_compute = || order(Stream::Copy, Stream::Compute);
        match self {
            Pair::KernelThenDownload => [kernel(), to_copy(), download()],
            Pair::DownloadThenKernel => [download(), to_compute(), kernel()],
            Pair::KernelThenUpload => [kernel(), to_copy(), upload()],
            Pair::UploadThenKernel => [upload(), to_compute(), kernel()],
            Pair::ClearThenDownload => [clear(), to_copy(), download()],
            Pair::DownloadThenClear => [download(), to_compute(), clear()],
            Pair::CopyThenUpload => [gpu.copy(vectors.x, vectors.y, 400).unwrap(), to_copy(), upload()],
            Pair::UploadThenUpload => [gpu.upload(vectors.x, &[0; 400]).unwrap(), to_copy(), upload()],
            Pair::KernelThenKernel => [kernel(), to_copy(), beside()],
            Pair::GraphThenDownload => {
                let body = &mut || {
                    gpu.launch(&AXPY, vectors.grid(), &vectors.arguments(2.0))?;
                    gpu.launch(&AXPY, vectors.grid(), &vectors.arguments(3.0))
                };
                let graph = gpu.capture(body).unwrap();
                [gpu.launch_graph(&graph).unwrap(), to_copy(), download()]
            }
            Pair::AllocationThenUpload => {
                gpu.free(vectors.y, 400);
                let again = gpu.allocate(400).unwrap();
                assert_eq!(again, vectors.y, "the block is used again");
                [to_copy(), gpu.upload_on(Stream::Copy, again, &[1; 400]).unwrap(), ()]
            }
        };
    }
}

#[test]
fn a_missing_event_is_reported_whatever_comes_first() {
    for pair in Pair::ALL {
        for (schedule, with_event) in (0..ORDERS).flat_map(|seed| [(seed, true), (seed, false)]) {
            // The pool's own wait in front of a new block is left out with the test's.
            let hidden = pair == Pair::AllocationThenUpload && !with_event;
            let waits = if hidden { Waits::without(0) } else { Waits::default() };
            let gpu = launcher(SimulatorOptions { schedule, waits: waits.clone(), ..Default::default() });
            let vectors = Vectors::new(gpu.clone(), 100);
            gpu.synchronise().unwrap();
            assert_eq!(waits.count(), 0, "nothing was waited for so far");
            pair.run(&vectors, |from, to| {
                if with_event {
                    let event = gpu.record(from).unwrap();
                    gpu.wait(to, &event).unwrap();
                }
            });
            let found = gpu.synchronise();
            if with_event {
                assert!(found.is_ok(), "{pair:?}, order {schedule}: {found:?}");
                continue;
            }
            let message = found.expect_err("a missing event").to_string();
            if pair == Pair::AllocationThenUpload {
                // The upload meets the new block, the old one, or none, as it comes.
                let parts =
                    ["no event orders", "memory that was given back", "outside every live allocation"];
                assert!(parts.iter().any(|part| message.contains(part)), "order {schedule}: {message}");
                continue;
            }
            let ([first, second], compute) = pair.names();
            let [one, other] = if compute { ["compute", "copy"] } else { ["copy", "compute"] };
            let told = format!(
                "record an event on the {one} stream behind {first}, and let the {other} stream wait for it before {second}"
            );
            for part in ["bytes ", "of the allocation of 400 bytes at 0x", "no event orders the two", &told] {
                assert!(message.contains(part), "{pair:?}, order {schedule}: {message}");
            }
        }
    }
}

/// Neither other bytes, nor reads alone, nor what the host knows to be over, need an event.
#[test]
fn what_needs_no_event_is_not_reported() {
    for schedule in 0..ORDERS {
        let gpu = launcher(SimulatorOptions { schedule, ..Default::default() });
        let vectors = Vectors::new(gpu.clone(), 100);
        let other = gpu.allocate(400).unwrap();
        gpu.synchronise().unwrap();
        vectors.axpy(2.0);
        drop(gpu.download_on(Stream::Copy, vectors.x, 400).unwrap());
        gpu.upload_on(Stream::Copy, other, &[1; 400]).unwrap();
        gpu.synchronise().unwrap();
        gpu.upload_on(Stream::Copy, vectors.y, &[0; 400]).unwrap();
        gpu.synchronise().unwrap();
        vectors.axpy(2.0);
        // The host waits for the kernel by its result, and asks until it is told that the copy is over.
        vectors.expect(2.0);
        gpu.upload_on(Stream::Copy, vectors.y, &[0; 400]).unwrap();
        let copied = gpu.record(Stream::Copy).unwrap();
        assert!((0..100).any(|_| gpu.reached(&copied).unwrap()));
        vectors.axpy(3.0);
        vectors.expect(3.0);
    }
}

/// That the host was told no says nothing of what comes later.
#[test]
fn a_question_orders_nothing_unless_the_answer_is_yes() {
    let mut unanswered = 0;
    for schedule in 0..4 * ORDERS {
        let gpu = launcher(SimulatorOptions { schedule, ..Default::default() });
        let vectors = Vectors::new(gpu.clone(), 100);
        gpu.synchronise().unwrap();
        gpu.upload_on(Stream::Copy, vectors.y, &[0; 400]).unwrap();
        let copied = gpu.record(Stream::Copy).unwrap();
        let yes = (0..1 + schedule % 3).any(|_| gpu.reached(&copied).unwrap());
        vectors.axpy(3.0);
        assert_eq!(gpu.synchronise().is_ok(), yes, "order {schedule}");
        unanswered += usize::from(!yes);
    }
    assert!(unanswered > 0 && unanswered < 4 * ORDERS as usize, "{unanswered}");
}

type Scenario = fn(&Device) -> Result<Vec<u8>>;

fn gpu(device: &Device) -> &Arc<dyn Launcher> {
    match device {
        Device::Gpu(gpu) => gpu,
        Device::Cpu(_) => unreachable!("a simulated device is a GPU"),
    }
}

/// Weights arrive beside the computation, a graph uses them, its result is fetched, and blocks change owners meanwhile.
fn pool_and_graph(device: &Device) -> Result<Vec<u8>> {
    let gpu = gpu(device);
    let (from, to) = (gpu.allocate(256)?, gpu.allocate(256)?);
    let mut steps = Steps::default();
    let mut all = Vec::new();
    for round in 1..5 {
        drop(gpu.prefetch(from, &[round; 256])?);
        if round == 1 {
            gpu.synchronise()?;
        }
        steps.run(device, &[1], &mut || gpu.copy(from, to, 256))?;
        let download = gpu.fetch(to, 256)?;
        // A block that the copy stream has used is given back and had again at once.
        let block = gpu.allocate(256)?;
        drop(gpu.prefetch(block, &[round; 256])?);
        gpu.free(block, 256);
        let next = gpu.allocate(256)?;
        gpu.copy(from, next, 256)?;
        let mut back = [[0; 256]; 2];
        gpu.receive(download, &mut back[0])?;
        gpu.download(next, &mut back[1])?;
        gpu.free(next, 256);
        all.extend(back.concat());
    }
    Ok(all)
}

/// A model's weights are loaded on the copy stream, its tokens come back on it, and its steps are captured.
fn generation(device: &Device) -> Result<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3");
    let model = Model::load(&folder, device, Precision::of(Dtype::F32))?;
    let answers = super::beside::answers(&model)?;
    Ok(format!("{answers:?}").into_bytes())
}

/// Leaves out each wait of a scenario in turn. Under every order the checker reports it, or under none; and where it says
/// nothing, the wait said nothing that others do not, and the results are right. Returns how many are reported.
fn reported(scenario: Scenario, orders: u64) -> (usize, usize) {
    let device = |schedule, waits: &Waits| {
        Device::simulated_with(SimulatorOptions { schedule, waits: waits.clone(), ..Default::default() })
    };
    let all = Waits::default();
    let expected = scenario(&device(0, &all)).unwrap();
    let (mut found, mut left_out) = (0, 0);
    for number in 0..all.count() {
        let outcomes: Vec<Result<Vec<u8>>> = (0..orders)
            .map(|schedule| {
                let device = device(schedule, &Waits::without(number));
                let results = scenario(&device)?;
                gpu(&device).synchronise()?;
                Ok(results)
            })
            .collect();
        for (schedule, outcome) in outcomes.iter().enumerate() {
            match outcome {
                Ok(results) => {
                    assert!(*results == expected, "wait {number}, order {schedule}: wrong, and no word")
                }
                Err(error) => {
                    let error = error.to_string();
                    // The last two: a block that the copy stream meets before it is allocated, or when it is given back.
                    let known = [
                        "no event orders",
                        "nothing orders",
                        "may still use",
                        "outside every live allocation",
                        "memory that was given back",
                    ];
                    assert!(known.iter().any(|words| error.contains(words)), "wait {number}: {error}");
                }
            }
        }
        let reports = outcomes.iter().filter(|outcome| outcome.is_err()).count();
        assert!(
            reports == 0 || reports == outcomes.len(),
            "wait {number} is reported under {reports} of {orders} orders: {:?}",
            outcomes.iter().find_map(|outcome| outcome.as_ref().err())
        );
        found += usize::from(reports > 0);
        left_out += 1;
    }
    (found, left_out)
}

#[test]
fn every_wait_of_pool_and_graphs_is_reported_when_it_is_left_out() {
    let (found, of) = reported(pool_and_graph, ORDERS);
    // At the least those of the host for two downloads a round.
    assert!(found >= 8, "{found} of {of}");
}

#[test]
fn every_wait_of_a_generation_is_reported_when_it_is_left_out() {
    let (found, of) = reported(generation, 2);
    // At the least those of the host for each token.
    assert!(found >= 4, "{found} of {of}");
}

/// Pinned memory is written to again only behind the copies that read it: without one of the host's waits that is
/// reported before anything wrong is uploaded.
#[test]
fn staging_that_does_not_wait_is_reported() {
    for schedule in 0..4 {
        let upload = |waits: &Waits| {
            let gpu = launcher(SimulatorOptions { schedule, waits: waits.clone(), ..Default::default() });
            let (count, rounds) = (700_000, 16);
            let (address, other) = (gpu.allocate(count * rounds)?, gpu.allocate(4)?);
            // So much stands before the uploads that none is over when the next is asked for.
            (0..100).try_for_each(|_| gpu.clear(other, 4))?;
            (0..rounds).try_for_each(|round| {
                gpu.upload(address + (count * round) as u64, &vec![round as u8 + 1; count])
            })?;
            gpu.synchronise()?;
            let mut back = vec![0; count];
            gpu.download(address, &mut back)?;
            Ok::<_, latch::base::Error>(back.iter().all(|&byte| byte == 1))
        };
        let all = Waits::default();
        assert!(upload(&all).unwrap());
        // Those of staging, and one for the download.
        assert!(all.count() > 1, "order {schedule}: nobody waited for staging");
        for number in 0..all.count() {
            let error = upload(&Waits::without(number)).expect_err("a wait is missing").to_string();
            assert!(error.contains("of a place in pinned memory that"), "order {schedule}: {error}");
        }
    }
}

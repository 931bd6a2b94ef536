//! The CUDA side against a driver that we made (stand_in/libcuda.rs), on machines with and without a GPU.
//!
//! Each test starts this very test binary again, as a process that finds the stand-in where libcuda would be, and runs
//! [`in_another_process`] there. What a real driver does is another matter: that needs a GPU (`real_gpu` below).

use super::launches::{AXPY, PTX, Vectors};
use super::opening::real_gpu;
use latch::device::{Arena, Argument, Device, Grid, Kernel, Launcher, Stream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

/// Names the scenario that the other process runs.
const SCENARIO: &str = "LATCH_TEST_STAND_IN";

/// The folder with the compiled stand-in.
fn stand_in() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("stand_in");
        std::fs::create_dir_all(&folder).unwrap();
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/device/stand_in");
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
        for name in ["libcuda", "libcublasLt"] {
            let compiled = Command::new(&rustc)
                .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
                .arg(folder.join(name).with_extension("so"))
                .arg(sources.join(name).with_extension("rs"))
                .output()
                .expect("rustc compiles the stand-in");
            assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        }
        folder
    })
}

/// Runs `scenario` in another process, with a driver that has `fault`. Returns the driver's log.
fn run(scenario: &str, fault: &str) -> String {
    let log = stand_in().join(format!("{scenario}.log"));
    let _ = std::fs::remove_file(&log);
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "device::driver::in_another_process", "--nocapture"])
        .env(SCENARIO, scenario)
        .env("STAND_IN", fault)
        .env("STAND_IN_LOG", &log)
        .env("LD_LIBRARY_PATH", stand_in())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{scenario}: {text}");
    let log = std::fs::read_to_string(&log).unwrap_or_default();
    assert!(!log.contains("BROKEN"), "{scenario} broke the driver's contract:\n{log}");
    log
}

const NOTHING_LEFT: &str =
    "released: 0 memory, 0 pinned, 0 streams, 0 events, 0 modules, 0 graphs, 0 executables";

#[test]
fn everything_a_launcher_does() {
    let log = run("everything", "");
    assert!(log.contains("launch axpy [2, 1, 1] [128, 1, 1] 0 24"), "{log}");
    assert!(log.contains("launch greedy [1, 1, 1] [32, 1, 1] 65536 0"), "{log}");
    // `auto` opened the device once, `cuda:0` once more.
    assert_eq!(log.matches(NOTHING_LEFT).count(), 2, "{log}");
}

#[test]
fn drivers_and_devices_that_will_not_do() {
    for scenario in ["old", "no_device", "turing"] {
        run(scenario, scenario);
    }
    for fault in ["asleep", "fabric", "compat", "taken"] {
        run("refused", fault);
    }
}

#[test]
fn files_that_the_driver_does_not_take() {
    run("cannot_read_ptx", "cannot_read_ptx");
    run("compiler_off", "compiler_off");
    let log = run("broken_ptx", "");
    assert!(log.contains(NOTHING_LEFT), "{log}");
}

#[test]
fn products_of_the_library() {
    let log = run("library", "");
    assert!(log.contains("planned with alignments 256 256 256"), "{log}");
    assert!(
        log.contains("planned with alignments 256 4 256"),
        "a window of A that starts one element later: {log}"
    );
    assert_eq!(log.matches("planned with").count(), 9 + 6 + 2, "each kind of product is planned once: {log}");
    assert!(log.contains("library closed: 0 handles, 0 layouts, 0 products, 0 preferences"), "{log}");
    assert!(log.contains(NOTHING_LEFT), "{log}");
}

#[test]
fn a_library_that_does_not_start_is_none_for_auto() {
    let log = run("no_library", "no_library");
    assert!(log.contains(NOTHING_LEFT), "{log}");
}

#[test]
fn a_product_that_fails_after_a_kernel_that_failed() {
    let log = run("failed_product", "product_fails");
    assert!(log.contains(NOTHING_LEFT), "{log}");
}

#[test]
fn linear_maps_by_the_library() {
    let log = run("linear", "");
    assert!(log.contains("library closed: 0 handles, 0 layouts, 0 products, 0 preferences"), "{log}");
    assert!(log.contains(NOTHING_LEFT), "{log}");
    // Forward products before the library was chosen, and gradients after our own kernels were.
    for kernel in ["linear_nt_f32_narrow", "linear_nn_f32_skinny", "linear_tn_f32_square"] {
        assert!(log.contains(&format!("launch {kernel} ")), "{kernel}: {log}");
    }
}

#[test]
fn a_full_gpu() {
    let log = run("small", "small");
    assert!(log.contains(NOTHING_LEFT), "{log}");
}

#[test]
fn a_lost_context() {
    let log = run("lost", "");
    assert!(log.contains(NOTHING_LEFT), "{log}");
    // An error that CUDA 12.1, whose bindings we use, does not have.
    let log = run("contained", "contains");
    assert!(log.contains(NOTHING_LEFT), "{log}");
}

/// Does nothing in the first process; in the other it is the scenario.
#[test]
fn in_another_process() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    let refusal = || Device::open("cuda").unwrap_err().to_string();
    // `auto` takes the CPU, and tells everybody why.
    let falls_back = || {
        let (device, choice) = Device::choose("auto").unwrap();
        let choice = choice.unwrap();
        assert_eq!((device.name().as_str(), choice.aloud), ("cpu", true));
        assert!(choice.sentence.contains(&refusal()), "{}", choice.sentence);
    };
    match scenario.as_str() {
        "everything" => everything(),
        "old" => {
            let message = refusal();
            for says in ["CUDA 11.8", "PTX up to 7.8", "PTX 8.1", "driver 530 or newer"] {
                assert!(message.contains(says), "{says}: {message}");
            }
            falls_back();
        }
        "no_device" => {
            assert!(refusal().contains("finds no GPU"), "{}", refusal());
            falls_back();
        }
        "turing" => {
            assert!(refusal().contains("Stand-in GPU has compute capability 7.5"), "{}", refusal());
            falls_back();
        }
        "refused" => {
            let says: &[&str] = match std::env::var("STAND_IN").unwrap().as_str() {
                "asleep" => &["does not start: CUDA_ERROR_UNKNOWN (999)", "/dev/nvidia-uvm"],
                "fabric" => &["(802)", "fabric manager"],
                "compat" => &["(804)", "`compat`"],
                _ => &["opening a context failed", "(46)", "compute mode"],
            };
            let message = refusal();
            assert!(says.iter().all(|says| message.contains(says)), "{says:?}: {message}");
            assert!(!message.contains("a kernel") && message.contains("--device cpu"), "{message}");
            falls_back();
        }
        "compiler_off" => {
            let message = launcher().launch(&AXPY, Grid::linear(1, 32), &[]).unwrap_err().to_string();
            assert!(
                message.contains("ptx/axpy.ptx") && message.contains("CUDA_DISABLE_PTX_JIT"),
                "{message}"
            );
        }
        "cannot_read_ptx" => {
            let message = launcher().launch(&AXPY, Grid::linear(1, 32), &[]).unwrap_err().to_string();
            assert!(
                message.contains("ptx/axpy.ptx is PTX 8.1, which this driver does not read"),
                "{message}"
            );
            assert!(message.contains("CUDA 12.1 (driver 530 or newer)"), "{message}");
        }
        "broken_ptx" => broken_ptx(),
        "library" => super::library::library(),
        "linear" => super::products::linear_maps(),
        "small" => small(),
        "lost" => lost(["illegal address", "CUDA_ERROR_ILLEGAL_ADDRESS (700)"]),
        "contained" => lost(["memory or link error of its hardware", "CUDA_ERROR_CONTAINED (226)"]),
        "no_library" => super::library::no_library(),
        "failed_product" => super::library::failed_product(),
        other => panic!("no scenario {other}"),
    }
}

pub fn launcher() -> Arc<dyn Launcher> {
    match Device::open("cuda:0").unwrap() {
        Device::Gpu(launcher) => launcher,
        Device::Cpu(_) => panic!("cuda:0 is a GPU"),
    }
}

fn everything() {
    assert_eq!(Device::open("auto").unwrap().name(), "cuda:0 (Stand-in GPU)");
    let message = Device::open("cuda:1").unwrap_err().to_string();
    assert!(message.contains("no CUDA device 1: there is one, cuda:0"), "{message}");
    let gpu = launcher();
    assert_eq!(gpu.properties().compute_capability, (8, 6));
    assert_eq!((gpu.properties().multiprocessors, gpu.properties().memory_bytes), (46, 1 << 30));
    let vectors = Vectors::new(gpu.clone(), 200);
    vectors.axpy(2.0);
    // From another thread too: the context is made current there.
    std::thread::scope(|scope| scope.spawn(|| vectors.axpy(1.0)).join().unwrap());
    vectors.expect(3.0);
    // Streams and events.
    let before = gpu.record(Stream::Compute).unwrap();
    let sevens = vec![7.0f32; 200];
    gpu.upload_on(Stream::Copy, vectors.x, bytemuck::cast_slice(&sevens)).unwrap();
    let brought = gpu.record(Stream::Copy).unwrap();
    gpu.wait(Stream::Compute, &brought).unwrap();
    vectors.gpu.clear(vectors.y, 800).unwrap();
    vectors.axpy(1.0);
    let added = gpu.record(Stream::Compute).unwrap();
    gpu.wait(Stream::Copy, &added).unwrap();
    let download = gpu.download_on(Stream::Copy, vectors.y, 800).unwrap();
    let mut back = vec![0.0f32; 200];
    gpu.receive(download, bytemuck::cast_slice_mut(&mut back)).unwrap();
    assert_eq!(back, sevens);
    assert!(gpu.reached(&added).unwrap());
    assert_eq!(gpu.elapsed(&before, &added).unwrap(), Some(0.25));
    // A graph, launched again and re-bound; odd sizes are cleared byte by byte.
    let scratch = gpu.allocate(801).unwrap();
    let mut graph = gpu
        .capture(&mut || {
            gpu.clear(scratch, 801)?;
            gpu.copy(vectors.x, scratch, 800)?;
            gpu.clear(vectors.y, 800)?;
            gpu.launch(&AXPY, vectors.grid(), &vectors.arguments(2.0))
        })
        .unwrap();
    for _ in 0..2 {
        gpu.launch_graph(&graph).unwrap();
        assert!(vectors.y().iter().all(|&y| y == 14.0));
    }
    let mut from_scratch = vectors.arguments(3.0);
    from_scratch[0] = Argument::Address(scratch);
    gpu.rebind(&mut graph, 3, &from_scratch).unwrap();
    gpu.launch_graph(&graph).unwrap();
    assert!(vectors.y().iter().all(|&y| y == 21.0));
    drop(graph);
    // More than 48 KiB of shared memory has to be asked for.
    static GREEDY: Kernel = Kernel::new(
        "greedy",
        ".version 8.1\n.target sm_80\n.visible .entry greedy()\n{\n\tret;\n}\n",
        "greedy",
    );
    let greedy = |shared_bytes| Grid { shared_bytes, ..Grid::linear(1, 32) };
    gpu.launch(&GREEDY, greedy(64 * 1024), &[]).unwrap();
    let message = gpu.launch(&GREEDY, greedy(99 * 1024), &[]).unwrap_err().to_string();
    assert!(
        message.contains("`greedy` needs 101392 bytes of shared memory a block (16 of them its own)"),
        "{message}"
    );
    // Memory comes back zeroed, in one turn or many, and the driver is asked once.
    let turn = || {
        for bytes in [1, 300, 70_000, 5 << 20] {
            let address = gpu.allocate(bytes).unwrap();
            let mut back = vec![1; bytes];
            gpu.download(address, &mut back).unwrap();
            assert!(back.iter().all(|&b| b == 0));
            gpu.upload(address, &vec![9; bytes]).unwrap();
            gpu.free(address, bytes);
        }
    };
    turn();
    let warm = gpu.statistics();
    (0..3).for_each(|_| turn());
    let after = gpu.statistics();
    assert_eq!(
        (after.driver_allocations, after.pinned_allocations),
        (warm.driver_allocations, warm.pinned_allocations)
    );
    assert!(gpu.memory_free().unwrap() > 0);
    gpu.free(scratch, 801);
    drop(vectors);
    assert_eq!(Device::Gpu(gpu).close().unwrap().len(), 2, "x and y of the vectors are never given back");
}

fn broken_ptx() {
    static BROKEN: Kernel = Kernel::new(
        "broken",
        ".version 8.1\n.target sm_80\n.visible .entry broken()\n{\n\tfrob.f32 %f1;\n}\n",
        "broken",
    );
    static MISSING: Kernel = Kernel::new("axpy", PTX, "missing");
    static HOPPER: Kernel = Kernel::new(
        "hopper",
        ".version 8.1\n.target sm_90a\n.visible .entry hopper()\n{\n\tret;\n}\n",
        "hopper",
    );
    let gpu = launcher();
    for _ in 0..2 {
        let message = gpu.launch(&BROKEN, Grid::linear(1, 32), &[]).unwrap_err().to_string();
        for says in [
            "ptx/broken.ptx was refused",
            "CUDA_ERROR_INVALID_PTX (218)",
            "line 5; error: Unknown instruction",
        ] {
            assert!(message.contains(says), "{says}: {message}");
        }
    }
    let message = gpu.launch(&MISSING, Grid::linear(1, 32), &[]).unwrap_err().to_string();
    assert!(message.contains("has no entry `missing`"), "{message}");
    // Before the driver is asked, which would say no more than that the image is invalid.
    let message = gpu.launch(&HOPPER, Grid::linear(1, 32), &[]).unwrap_err().to_string();
    for says in ["ptx/hopper.ptx is compiled for sm_90a and runs on no other GPU", "capability 8.6"] {
        assert!(message.contains(says), "{says}: {message}");
    }
    // Nothing is lost by it.
    let vectors = Vectors::new(gpu, 10);
    vectors.axpy(1.0);
    vectors.expect(1.0);
}

fn small() {
    let gpu = launcher();
    let weights = {
        let _weights = Arena::Weights.enter();
        gpu.allocate(5 << 20).unwrap()
    };
    let message = gpu.allocate(4 << 20).unwrap_err().to_string();
    for says in [
        "cuda:0 (Stand-in GPU) is out of memory",
        "of 8.0 MiB are free",
        "weights 5.0 MiB",
        "4.0 MiB for other asked for",
    ] {
        assert!(message.contains(says), "{says}: {message}");
    }
    gpu.free(weights, 5 << 20);
    // The idle block goes back to the driver, and the other size fits.
    let other = gpu.allocate(7 << 20).unwrap();
    gpu.free(other, 7 << 20);
}

/// A kernel leaves its operands.
pub fn wander(vectors: &Vectors) {
    let mut arguments = vectors.arguments(1.0);
    arguments[1] = Argument::Address(64);
    vectors.gpu.launch(&AXPY, vectors.grid(), &arguments).unwrap();
}

fn lost(what: [&str; 2]) {
    let vectors = Vectors::new(launcher(), 10);
    wander(&vectors);
    let message = vectors.gpu.synchronise().unwrap_err().to_string();
    for says in what.into_iter().chain(["since the last wait: axpy", "run the command again"]) {
        assert!(message.contains(says), "{says}: {message}");
    }
    let later = vectors.gpu.download(vectors.y, &mut [0; 4]).unwrap_err().to_string();
    assert!(later.contains("was lost before") && later.contains(what[0]), "{later}");
}

#[test]
fn a_real_gpu_does_the_same() {
    let Some(Device::Gpu(gpu)) = real_gpu() else { return };
    assert!(gpu.properties().compute_capability >= (8, 0));
    let vectors = Vectors::new(gpu.clone(), 1000);
    let start = gpu.record(Stream::Compute).unwrap();
    vectors.axpy(2.0);
    let end = gpu.record(Stream::Compute).unwrap();
    vectors.expect(2.0);
    assert!(gpu.elapsed(&start, &end).unwrap().is_some_and(|milliseconds| milliseconds > 0.0));
    let graph = gpu
        .capture(&mut || {
            gpu.clear(vectors.y, 4000)?;
            gpu.launch(&AXPY, vectors.grid(), &vectors.arguments(3.0))
        })
        .unwrap();
    for _ in 0..3 {
        gpu.launch_graph(&graph).unwrap();
        vectors.expect(3.0);
    }
    let download = gpu.download_on(Stream::Copy, vectors.y, 4000).unwrap();
    let mut back = vec![0.0f32; 1000];
    gpu.receive(download, bytemuck::cast_slice_mut(&mut back)).unwrap();
    assert_eq!(back[999], 3.0 * 999.0);
}

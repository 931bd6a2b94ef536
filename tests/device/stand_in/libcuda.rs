//! A stand-in for libcuda on machines without a GPU: the driver calls that latch makes, over host memory. tests/device/
//! driver.rs compiles it and lets a process of its own find it where the driver would be.
//!
//! Every operation runs when it is asked for, which is one of the orders a GPU may choose. What matters here is the
//! contract of each call: handles are alive and of the right kind, the context is current on the calling thread, memory
//! is used inside its bounds and given back once. Whoever breaks it is written to the log.
//!
//! `STAND_IN_LOG` names the log; `STAND_IN` says what is wrong with this driver (`old`, `no_device`, `asleep`, `fabric`,
//! `compat`, `taken`, `turing`, `cannot_read_ptx`, `compiler_off`, `small`, `contains`), if anything.
#![allow(non_snake_case, clippy::missing_safety_doc, clippy::not_unsafe_ptr_arg_deref)]

mod graphs;
mod memory;
mod modules;
mod streams;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::io::Write;
use std::sync::Mutex;

const OK: u32 = 0;
const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const DEVICE_UNAVAILABLE: u32 = 46;
const NO_DEVICE: u32 = 100;
const INVALID_CONTEXT: u32 = 201;
const INVALID_PTX: u32 = 218;
const UNSUPPORTED_PTX_VERSION: u32 = 222;
const JIT_COMPILATION_DISABLED: u32 = 223;
const CONTAINED: u32 = 226;
const INVALID_HANDLE: u32 = 400;
const NOT_FOUND: u32 = 500;
const ILLEGAL_ADDRESS: u32 = 700;
const SYSTEM_NOT_READY: u32 = 802;
const COMPAT_NOT_SUPPORTED_ON_DEVICE: u32 = 804;
const UNKNOWN: u32 = 999;

const CONTEXT: usize = 0xc0;

#[derive(Clone)]
enum Operation {
    Launch { function: usize, grid: [u32; 3], block: [u32; 3], shared: u32, parameters: Vec<u8> },
    Set { address: u64, bytes: usize },
    Copy { from: u64, to: u64, bytes: usize },
}

#[derive(Default)]
struct Driver {
    retained: u32,
    next: usize,
    memory: BTreeMap<u64, usize>,
    pinned: BTreeMap<u64, usize>,
    streams: BTreeSet<usize>,
    /// Whether an event was recorded.
    events: BTreeMap<usize, bool>,
    modules: HashMap<usize, String>,
    /// Entry, and dynamic shared memory allowed.
    functions: HashMap<usize, (String, u32)>,
    graphs: HashMap<usize, Vec<usize>>,
    executables: HashMap<usize, Vec<usize>>,
    nodes: HashMap<usize, Operation>,
    /// After an illegal address every call fails.
    lost: bool,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);
thread_local!(static CURRENT: Cell<usize> = const { Cell::new(0) });

fn fault(is: &str) -> bool {
    std::env::var("STAND_IN").is_ok_and(|value| value == is)
}

fn log(line: &str) {
    let Ok(path) = std::env::var("STAND_IN_LOG") else { return };
    if let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}

/// A broken contract.
fn broken(what: &str, code: u32) -> u32 {
    log(&format!("BROKEN: {what}"));
    code
}

/// Runs `work` on the driver when the context is current and nothing was lost.
fn enter(call: &str, work: impl FnOnce(&mut Driver) -> u32) -> u32 {
    if CURRENT.get() != CONTEXT {
        return broken(&format!("{call}: the context is not current on this thread"), INVALID_CONTEXT);
    }
    let mut driver = DRIVER.lock().unwrap();
    let driver = driver.get_or_insert_default();
    if driver.lost && !call.contains("Destroy") && !call.contains("Free") {
        return if fault("contains") { CONTAINED } else { ILLEGAL_ADDRESS };
    }
    work(driver)
}

impl Driver {
    fn handle(&mut self) -> usize {
        self.next += 16;
        0x1000 + self.next
    }

    fn inside(memory: &BTreeMap<u64, usize>, address: u64, bytes: usize) -> bool {
        memory.range(..=address).next_back().is_some_and(|(&base, &held)| {
            address - base <= held as u64 && bytes as u64 <= held as u64 - (address - base)
        })
    }

    fn stream(&self, stream: usize) -> Result<(), u32> {
        match self.streams.contains(&stream) {
            true => Ok(()),
            false => Err(broken("a stream that is none", INVALID_HANDLE)),
        }
    }

    fn run(&mut self, operation: &Operation) -> u32 {
        match operation {
            &Operation::Set { address, bytes } => {
                if !Driver::inside(&self.memory, address, bytes) {
                    return broken("memory set outside an allocation", INVALID_VALUE);
                }
                unsafe { std::ptr::write_bytes(address as *mut u8, 0, bytes) };
            }
            &Operation::Copy { from, to, bytes } => {
                if !Driver::inside(&self.memory, from, bytes) || !Driver::inside(&self.memory, to, bytes) {
                    return broken("a copy outside an allocation", INVALID_VALUE);
                }
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
            }
            Operation::Launch { function, grid, block, shared, parameters } => {
                let Some((entry, allowed)) = self.functions.get(function) else {
                    return broken("a function that is none", INVALID_HANDLE);
                };
                if shared + 16 > 48 * 1024 && shared > allowed {
                    return broken("shared memory that was not allowed", INVALID_VALUE);
                }
                log(&format!("launch {entry} {grid:?} {block:?} {shared} {}", parameters.len()));
                match entry.as_str() {
                    "axpy" => return self.axpy(grid[0] * block[0], parameters),
                    "cast_f32_bf16" => return self.round(parameters),
                    _ => {}
                }
            }
        }
        OK
    }

    /// y[i] = x[i] in bf16, for numbers that bf16 holds.
    fn round(&mut self, parameters: &[u8]) -> u32 {
        if parameters.len() != 24 {
            return broken("cast_f32_bf16 without its 24 bytes of parameters", INVALID_VALUE);
        }
        let long = |at: usize| u64::from_le_bytes(parameters[at..at + 8].try_into().unwrap());
        let (x, count, y) = (long(0), long(8) as u32 as usize, long(16));
        if !Driver::inside(&self.memory, x, 4 * count) || !Driver::inside(&self.memory, y, 2 * count) {
            self.lost = true;
            return OK;
        }
        for i in 0..count {
            unsafe { *(y as *mut u16).add(i) = (*(x as *const u32).add(i) >> 16) as u16 };
        }
        OK
    }

    /// y[i] += a * x[i]. Kernels that are not here do nothing.
    fn axpy(&mut self, threads: u32, parameters: &[u8]) -> u32 {
        if parameters.len() != 24 {
            return broken("axpy without its 24 bytes of parameters", INVALID_VALUE);
        }
        let long = |at: usize| u64::from_le_bytes(parameters[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(parameters[at..at + 4].try_into().unwrap());
        let (x, y, a, n) = (long(0), long(8), f32::from_bits(word(16)), word(20).min(threads) as usize);
        if !Driver::inside(&self.memory, x, 4 * n) || !Driver::inside(&self.memory, y, 4 * n) {
            self.lost = true;
            // As on a GPU, the launch itself succeeds and a later call fails.
            return OK;
        }
        for i in 0..n {
            unsafe {
                let (x, y) = ((x as *const f32).add(i), (y as *mut f32).add(i));
                *y = a.mul_add(*x, *y);
            }
        }
        OK
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    unsafe { *version = if fault("old") { 11_080 } else { 12_020 } };
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> u32 {
    let wrong = [
        ("no_device", NO_DEVICE),
        ("asleep", UNKNOWN),
        ("fabric", SYSTEM_NOT_READY),
        ("compat", COMPAT_NOT_SUPPORTED_ON_DEVICE),
    ];
    match wrong.into_iter().find(|(is, _)| fault(is)) {
        Some((_, code)) => code,
        None if flags == 0 => OK,
        None => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    unsafe { *count = 1 };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> u32 {
    unsafe { *device = ordinal + 7 };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: c_int) -> u32 {
    if device != 7 {
        return broken("a device that is none", INVALID_VALUE);
    }
    let found = match attribute {
        1 => 1024,
        2 | 3 => 1024,
        4 => 64,
        5 => i32::MAX,
        6 | 7 => 65_535,
        16 => 46,
        38 => 4 << 20,
        75 => {
            if fault("turing") {
                7
            } else {
                8
            }
        }
        76 => {
            if fault("turing") {
                5
            } else {
                6
            }
        }
        97 => 99 * 1024,
        other => return broken(&format!("attribute {other}"), INVALID_VALUE),
    };
    unsafe { *value = found };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int) -> u32 {
    let text = b"Stand-in GPU\0";
    if device != 7 || (length as usize) < text.len() {
        return INVALID_VALUE;
    }
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len()) };
    OK
}

fn capacity() -> usize {
    if fault("small") { 8 << 20 } else { 1 << 30 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> u32 {
    unsafe { *bytes = capacity() };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, _device: c_int) -> u32 {
    if fault("taken") {
        return DEVICE_UNAVAILABLE;
    }
    DRIVER.lock().unwrap().get_or_insert_default().retained += 1;
    unsafe { *context = CONTEXT };
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> u32 {
    let mut driver = DRIVER.lock().unwrap();
    let driver = driver.get_or_insert_default();
    driver.retained -= 1;
    log(&format!(
        "released: {} memory, {} pinned, {} streams, {} events, {} modules, {} graphs, {} executables",
        driver.memory.len(),
        driver.pinned.len(),
        driver.streams.len(),
        driver.events.len(),
        driver.modules.len(),
        driver.graphs.len(),
        driver.executables.len()
    ));
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: usize) -> u32 {
    CURRENT.set(context);
    OK
}

/// The parameters that an `extra` list describes.
unsafe fn parameters(extra: *const usize) -> Result<Vec<u8>, u32> {
    if extra.is_null() {
        return Ok(Vec::new());
    }
    unsafe {
        if *extra != 1 || *extra.add(2) != 2 || *extra.add(4) != 0 {
            return Err(broken("a list of parameters that is none", INVALID_VALUE));
        }
        let size = *(*extra.add(3) as *const usize);
        Ok(std::slice::from_raw_parts(*extra.add(1) as *const u8, size).to_vec())
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    gx: c_uint,
    gy: c_uint,
    gz: c_uint,
    bx: c_uint,
    by: c_uint,
    bz: c_uint,
    shared: c_uint,
    stream: usize,
    kernel_parameters: *const c_void,
    extra: *const usize,
) -> u32 {
    enter("cuLaunchKernel", |driver| {
        if !kernel_parameters.is_null() {
            return broken("parameters given twice", INVALID_VALUE);
        }
        if let Err(code) = driver.stream(stream) {
            return code;
        }
        match unsafe { parameters(extra) } {
            Ok(parameters) => {
                let (grid, block) = ([gx, gy, gz], [bx, by, bz]);
                driver.run(&Operation::Launch { function, grid, block, shared, parameters })
            }
            Err(code) => code,
        }
    })
}

/// Names of errors, one of which bindings of CUDA 12.1 do not know.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(code: u32, text: *mut *const c_char) -> u32 {
    let name = match code {
        INVALID_PTX => c"CUDA_ERROR_INVALID_PTX",
        CONTAINED => c"CUDA_ERROR_CONTAINED",
        ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        UNKNOWN => c"CUDA_ERROR_UNKNOWN",
        _ => {
            unsafe { *text = std::ptr::null() };
            return INVALID_VALUE;
        }
    };
    unsafe { *text = name.as_ptr() };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(_code: u32, text: *mut *const c_char) -> u32 {
    unsafe { *text = c"an error of the stand-in".as_ptr() };
    OK
}

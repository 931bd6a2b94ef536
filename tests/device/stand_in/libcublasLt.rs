//! A stand-in for cuBLASLt beside the stand-in driver: products of column-major matrices in host memory, by the
//! definition. It writes what it is asked for to the log, and so whoever breaks its contract. `STAND_IN` may be `no_library`
//! (it does not start) or `product_fails`.
#![allow(non_snake_case, clippy::missing_safety_doc, clippy::not_unsafe_ptr_arg_deref)]

use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::io::Write;
use std::sync::Mutex;

const OK: u32 = 0;
const NOT_INITIALIZED: u32 = 1;
const INVALID_VALUE: u32 = 7;
const EXECUTION_FAILED: u32 = 13;
const NOT_SUPPORTED: u32 = 15;

const F32: u32 = 0;
const BF16: u32 = 14;

#[derive(Clone, Copy)]
struct Layout {
    kind: u32,
    rows: u64,
    cols: u64,
    stride: i64,
}

/// How a product is to be computed.
#[derive(Clone, Copy, Default)]
struct Description {
    /// Whether each factor is transposed.
    transposed: [bool; 2],
    /// Whether a number is added to each row of the result, and where these numbers lie.
    adds_bias: bool,
    bias: usize,
}

#[derive(Default)]
struct Library {
    next: usize,
    handles: usize,
    layouts: HashMap<usize, Layout>,
    products: HashMap<usize, Description>,
    preferences: HashMap<usize, HashMap<u32, u64>>,
}

static LIBRARY: Mutex<Option<Library>> = Mutex::new(None);

fn fault(is: &str) -> bool {
    std::env::var("STAND_IN").is_ok_and(|value| value == is)
}

fn log(line: &str) {
    let Ok(path) = std::env::var("STAND_IN_LOG") else { return };
    if let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
        let _ = writeln!(file, "{line}");
    }
}

fn broken(what: &str) -> u32 {
    log(&format!("BROKEN: cuBLASLt: {what}"));
    INVALID_VALUE
}

fn with<T>(work: impl FnOnce(&mut Library) -> T) -> T {
    work(LIBRARY.lock().unwrap().get_or_insert_default())
}

impl Library {
    fn handle(&mut self) -> usize {
        self.next += 8;
        0x8000 + self.next
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    120_103
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(handle: *mut usize) -> u32 {
    if fault("no_library") {
        return NOT_INITIALIZED;
    }
    with(|library| library.handles += 1);
    unsafe { *handle = 0xb1a5 };
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtDestroy(handle: usize) -> u32 {
    with(|library| {
        library.handles -= 1;
        log(&format!(
            "library closed: {} handles, {} layouts, {} products, {} preferences",
            library.handles,
            library.layouts.len(),
            library.products.len(),
            library.preferences.len()
        ));
    });
    if handle == 0xb1a5 { OK } else { broken("a handle that is none") }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(
    product: *mut usize,
    compute: c_uint,
    scale: c_uint,
) -> u32 {
    // 68 is CUBLAS_COMPUTE_32F.
    if (compute, scale) != (68, F32) {
        return broken("sums that are not f32");
    }
    with(|library| {
        let handle = library.handle();
        library.products.insert(handle, Description::default());
        unsafe { *product = handle };
    });
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    product: usize,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> u32 {
    with(|library| match (library.products.get_mut(&product), attribute, bytes) {
        // 3 and 4 are TRANSA and TRANSB; 1 is CUBLAS_OP_T.
        (Some(product), 3 | 4, 4) => {
            product.transposed[attribute as usize - 3] = unsafe { *value.cast::<i32>() } == 1;
            OK
        }
        // 7 is EPILOGUE, and its 4 CUBLASLT_EPILOGUE_BIAS; 8 is BIAS_POINTER.
        (Some(product), 7, 4) if unsafe { *value.cast::<u32>() } == 4 => {
            product.adds_bias = true;
            OK
        }
        (Some(product), 8, 8) => {
            product.bias = unsafe { *value.cast::<usize>() };
            OK
        }
        _ => broken("an attribute of a product"),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulDescDestroy(product: usize) -> u32 {
    match with(|library| library.products.remove(&product)) {
        Some(_) => OK,
        None => broken("a product destroyed twice"),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    layout: *mut usize,
    kind: c_uint,
    rows: u64,
    cols: u64,
    stride: i64,
) -> u32 {
    if ![F32, BF16].contains(&kind) || stride < rows as i64 {
        return broken("a layout whose columns overlap");
    }
    with(|library| {
        let handle = library.handle();
        library.layouts.insert(handle, Layout { kind, rows, cols, stride });
        unsafe { *layout = handle };
    });
    OK
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatrixLayoutDestroy(layout: usize) -> u32 {
    match with(|library| library.layouts.remove(&layout)) {
        Some(_) => OK,
        None => broken("a layout destroyed twice"),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(preference: *mut usize) -> u32 {
    with(|library| {
        let handle = library.handle();
        library.preferences.insert(handle, HashMap::new());
        unsafe { *preference = handle };
    });
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    preference: usize,
    attribute: c_uint,
    value: *const c_void,
    bytes: usize,
) -> u32 {
    let value = match (attribute, bytes) {
        (1, 8) => unsafe { *value.cast::<u64>() },
        // 3 is REDUCTION_SCHEME_MASK.
        (3 | 5..=8, 4) => u64::from(unsafe { *value.cast::<u32>() }),
        _ => return broken("an attribute of a preference"),
    };
    match with(|library| library.preferences.get_mut(&preference).map(|known| known.insert(attribute, value)))
    {
        Some(_) => OK,
        None => broken("a preference that is none"),
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulPreferenceDestroy(preference: usize) -> u32 {
    match with(|library| library.preferences.remove(&preference)) {
        Some(_) => OK,
        None => broken("a preference destroyed twice"),
    }
}

/// `cublasLtMatmulHeuristicResult_t` of cublasLt.h.
#[repr(C)]
pub struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: u32,
    waves: f32,
    reserved: [c_int; 4],
}

/// What the stand-in's algorithms begin with.
const ALGORITHM: u64 = 0xa160;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    _handle: usize,
    product: usize,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    preference: usize,
    requested: c_int,
    results: *mut Heuristic,
    found: *mut c_int,
) -> u32 {
    with(|library| {
        let Some(known) = library.preferences.get(&preference) else { return broken("no preference") };
        if !library.products.contains_key(&product)
            || [a, b, c, d].iter().any(|l| !library.layouts.contains_key(l))
        {
            return broken("a description that is none");
        }
        if requested != 1
            || !(5..=8).all(|attribute| known.contains_key(&attribute))
            || !known.contains_key(&1)
        {
            return broken("a preference without workspace and alignments");
        }
        // Parts of a sum are f32, whatever the result is: 2 is CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE.
        if library.layouts[&c].kind == BF16 && known.get(&3) != Some(&2) {
            return broken("parts of a sum that may be added in bf16");
        }
        log(&format!("planned with alignments {} {} {}", known[&5], known[&6], known[&7]));
        // As the library does where it has no kernel.
        if library.layouts[&a].cols == 13 {
            unsafe { *found = 0 };
            return NOT_SUPPORTED;
        }
        let mut algorithm = [0; 8];
        algorithm[0] = ALGORITHM;
        unsafe {
            *results = Heuristic { algorithm, workspace: 0, state: OK, waves: 1.0, reserved: [0; 4] };
            *found = 1;
        }
        OK
    })
}

unsafe fn load(matrix: usize, layout: &Layout, row: u64, col: u64) -> f32 {
    let at = col as usize * layout.stride as usize + row as usize;
    match layout.kind {
        F32 => unsafe { *(matrix as *const f32).add(at) },
        _ => f32::from_bits(u32::from(unsafe { *(matrix as *const u16).add(at) }) << 16),
    }
}

unsafe fn store(matrix: usize, layout: &Layout, row: u64, col: u64, value: f32) {
    let at = col as usize * layout.stride as usize + row as usize;
    match layout.kind {
        F32 => unsafe { *(matrix as *mut f32).add(at) = value },
        // Tests multiply small integers, which bf16 holds.
        _ => unsafe { *(matrix as *mut u16).add(at) = (value.to_bits() >> 16) as u16 },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    handle: usize,
    product: usize,
    alpha: *const f32,
    a: usize,
    a_layout: usize,
    b: usize,
    b_layout: usize,
    beta: *const f32,
    c: usize,
    c_layout: usize,
    d: usize,
    d_layout: usize,
    algorithm: *const u64,
    workspace: usize,
    workspace_bytes: usize,
    stream: usize,
) -> u32 {
    if handle != 0xb1a5
        || unsafe { *algorithm } != ALGORITHM
        || workspace == 0
        || workspace_bytes == 0
        || stream == 0
    {
        return broken("a product without handle, algorithm, workspace or stream");
    }
    if fault("product_fails") {
        return EXECUTION_FAILED;
    }
    with(|library| {
        let (Some(&Description { transposed: [a_turned, b_turned], adds_bias, bias }), Some(a_is), Some(b_is), Some(c_is)) = (
            library.products.get(&product),
            library.layouts.get(&a_layout),
            library.layouts.get(&b_layout),
            library.layouts.get(&c_layout),
        ) else {
            return broken("a description that is none");
        };
        let turn = |layout: &Layout, turned: bool| {
            if turned { (layout.cols, layout.rows) } else { (layout.rows, layout.cols) }
        };
        let ((m, k), (inner, n)) = (turn(a_is, a_turned), turn(b_is, b_turned));
        if inner != k
            || (c_is.rows, c_is.cols) != (m, n)
            || c != d
            || c_layout != d_layout
            || a_is.kind != b_is.kind
        {
            return broken(&format!("{m} x {k} times {inner} x {n} into {} x {}", c_is.rows, c_is.cols));
        }
        if adds_bias != (bias != 0) || (adds_bias && c_is.kind != F32) {
            return broken("a bias without its epilogue, without an address, or beside a bf16 result");
        }
        for row in 0..m {
            for col in 0..n {
                let mut sum = 0.0f32;
                for i in 0..k {
                    let (ar, ac) = if a_turned { (i, row) } else { (row, i) };
                    let (br, bc) = if b_turned { (col, i) } else { (i, col) };
                    sum += unsafe { load(a, a_is, ar, ac) * load(b, b_is, br, bc) };
                }
                unsafe {
                    let before = if *beta == 0.0 { 0.0 } else { *beta * load(c, c_is, row, col) };
                    let added = if adds_bias { *(bias as *const f32).add(row as usize) } else { 0.0 };
                    store(d, c_is, row, col, *alpha * sum + before + added);
                }
            }
        }
        OK
    })
}

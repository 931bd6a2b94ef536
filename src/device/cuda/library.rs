//! cuBLASLt: matrix products by NVIDIA's library, opened at run time when first asked for.
//!
//! The library thinks in columns. A row-major matrix is, column-major, its transpose; so C = A B is asked for as
//! C' = B' A', with the factors exchanged and everything else as it lies.

use super::super::driver::{Failure, Outcome};
use super::super::{LibraryMatrix, LibraryProduct, Stream};
use super::Cuda;
use crate::base::{Dtype, Error};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys as driver;
use std::collections::HashMap;
use std::ffi::c_void;
use sys::cublasLtMatmulDescAttributes_t as Description;

/// Scratch memory that the library may use for one product.
const WORKSPACE: usize = 32 << 20;

/// The library, with what it decided about the products it was asked for.
#[derive(Debug)]
pub(super) struct Library {
    handle: sys::cublasLtHandle_t,
    version: usize,
    workspace: u64,
    plans: HashMap<Shape, Plan>,
}

/// What a plan depends on: all but the addresses, of which it knows the alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    sizes: [usize; 3],
    strides: [usize; 3],
    transposed: [bool; 2],
    dtypes: [Dtype; 2],
    alignments: [u32; 3],
    bias: bool,
}

/// A product as the library describes it. Handles that are not made yet are null.
#[derive(Debug)]
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: Option<sys::cublasLtMatmulAlgo_t>,
}

impl Plan {
    /// Gives back what was made.
    fn destroy(self) {
        // SAFETY: promise 2 of cuda.rs: each handle that is not null was made once and is destroyed once, here. Errors
        // have nobody to go to.
        unsafe {
            if !self.product.is_null() {
                let _ = result::destroy_matmul_desc(self.product);
            }
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

impl Library {
    /// Gives back the library's handles. Its workspace is the driver's to give back.
    pub(super) fn close(self) {
        self.plans.into_values().for_each(Plan::destroy);
        // SAFETY: as in `Plan::destroy`.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The library's answer to `doing`.
fn answer<T>(doing: &str, found: std::result::Result<T, result::CublasError>) -> Outcome<T> {
    found.map_err(|error| {
        Failure::Refused(Error::device(
            format!("cuBLASLt: {doing}: {:?} ({})", error.0, error.0 as u32),
            "use latch's own products (matmul = \"latch\"), and report the GPU's name",
        ))
    })
}

fn data_type(dtype: Dtype) -> sys::cudaDataType {
    match dtype {
        Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        _ => sys::cudaDataType::CUDA_R_32F,
    }
}

/// Sets an attribute of a product; `T` is as wide as the library's header says of it.
fn set<T: Copy>(product: sys::cublasLtMatmulDesc_t, attribute: Description, value: &T) -> Outcome<()> {
    let (at, size) = bytes_of(value);
    // SAFETY: promise 2; the value is as long as said and is copied by the call.
    let done = unsafe { result::set_matmul_desc_attribute(product, attribute, at, size) };
    answer(&format!("describing a product, {attribute:?}"), done)
}

fn bytes_of<T>(value: &T) -> (*const c_void, usize) {
    (std::ptr::from_ref(value).cast(), size_of::<T>())
}

impl Cuda {
    /// Opens the library unless that was tried before; its name and version where there is one.
    pub(super) fn open_library(&mut self) -> Outcome<Option<String>> {
        self.enter()?;
        // SAFETY: the call only tries to open the library.
        if self.library.is_none() && unsafe { sys::is_culib_present() } {
            let handle = result::create_handle().map_err(|error| {
                Failure::Refused(Error::device(
                    format!("cuBLASLt does not start: {:?} ({})", error.0, error.0 as u32),
                    "install a cuBLAS that is no newer than the driver's CUDA, or use latch's own products (matmul = \"latch\")",
                ))
            })?;
            // SAFETY: the library is there; the function takes and touches nothing.
            let version = unsafe { sys::cublasLtGetVersion() };
            self.library = Some(Library { handle, version, workspace: 0, plans: HashMap::new() });
        }
        Ok(self.library.as_ref().map(|library| {
            let version = library.version;
            format!("cuBLASLt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
        }))
    }

    /// Runs a product on the compute stream.
    pub(super) fn multiply_by_library(&mut self, product: &LibraryProduct) -> Outcome<()> {
        if self.open_library()?.is_none() {
            return Err(Failure::Refused(Error::device(
                "cuBLASLt is not installed (libcublasLt.so.12 cannot be opened)",
                "install CUDA's cuBLAS 12, or use latch's own products",
            )));
        }
        let workspace = match &self.library {
            Some(Library { workspace: 0, .. }) => super::super::driver::Driver::allocate(self, WORKSPACE)?,
            Some(library) => library.workspace,
            None => 0,
        };
        let stream = self.stream(Stream::Compute);
        self.note("a product of cuBLASLt");
        let Some(library) = &mut self.library else { return Ok(()) };
        library.workspace = workspace;
        let shape = Shape::of(product);
        if !library.plans.contains_key(&shape) {
            let plan = library.plan(&shape)?;
            library.plans.insert(shape, plan);
        }
        let plan = &library.plans[&shape];
        if let Some(bias) = product.bias {
            set(plan.product, Description::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let algorithm = plan.algorithm.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let (alpha, beta) = (1.0f32, if product.add { 1.0f32 } else { 0.0 });
        let pointer = |matrix: &LibraryMatrix| matrix.address as usize as *mut c_void;
        // SAFETY: promises 1, 2 and 4 of cuda.rs; alpha and beta are read before the call returns; the workspace is
        // used by this stream alone, one product after another.
        let done = unsafe {
            result::matmul(
                library.handle,
                plan.product,
                bytes_of(&alpha).0,
                bytes_of(&beta).0,
                pointer(&product.b),
                plan.layouts[0],
                pointer(&product.a),
                plan.layouts[1],
                pointer(&product.c),
                plan.layouts[2],
                pointer(&product.c),
                plan.layouts[2],
                algorithm,
                workspace as usize as *mut c_void,
                WORKSPACE,
                stream.cast::<driver::CUstream_st>().cast(),
            )
        };
        if done.is_err() {
            // The library says no more than that it failed. What failed may be a kernel before, which the driver knows.
            // SAFETY: promises 1 and 2 of cuda.rs.
            match unsafe { driver::cuStreamQuery(stream) } {
                driver::CUresult::CUDA_SUCCESS | driver::CUresult::CUDA_ERROR_NOT_READY => {}
                code => return self.answer("a product of cuBLASLt", code),
            }
        }
        answer(&format!("a product of {:?}", product.sizes), done)
    }
}

impl Shape {
    fn of(product: &LibraryProduct) -> Shape {
        let LibraryProduct { sizes, a, b, c, .. } = *product;
        Shape {
            sizes,
            strides: [a.stride, b.stride, c.stride],
            transposed: [a.transposed, b.transposed],
            dtypes: [a.dtype, c.dtype],
            // The library assumes 256 bytes unless told otherwise.
            alignments: [a, b, c].map(|matrix| 1 << matrix.address.trailing_zeros().min(8)),
            bias: product.bias.is_some(),
        }
    }
}

impl Library {
    /// Describes a product and lets the library choose how to do it.
    fn plan(&self, shape: &Shape) -> Outcome<Plan> {
        let mut plan =
            Plan { product: std::ptr::null_mut(), layouts: [std::ptr::null_mut(); 3], algorithm: None };
        match self.describe(shape, &mut plan) {
            Ok(()) => Ok(plan),
            Err(failure) => {
                plan.destroy();
                Err(failure)
            }
        }
    }

    fn describe(&self, shape: &Shape, plan: &mut Plan) -> Outcome<()> {
        let doing = format!("planning a product of {:?}", shape.sizes);
        let [m, n, k] = shape.sizes.map(|size| size as u64);
        let [a_stride, b_stride, c_stride] = shape.strides.map(|stride| stride as i64);
        let [a_transposed, b_transposed] = shape.transposed;
        let [factor, c] = shape.dtypes.map(data_type);
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        plan.product = answer(&doing, result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F))?;
        // Their first factor is our B: as it lies, column-major, it is [n, k], or [k, n] where ours is transposed.
        let lies =
            |transposed: bool, rows: u64, cols: u64| if transposed { (cols, rows) } else { (rows, cols) };
        let (b_rows, b_cols) = lies(b_transposed, n, k);
        let (a_rows, a_cols) = lies(a_transposed, k, m);
        plan.layouts[0] = answer(&doing, result::create_matrix_layout(factor, b_rows, b_cols, b_stride))?;
        plan.layouts[1] = answer(&doing, result::create_matrix_layout(factor, a_rows, a_cols, a_stride))?;
        plan.layouts[2] = answer(&doing, result::create_matrix_layout(c, n, m, c_stride))?;
        // CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        set(plan.product, Description::CUBLASLT_MATMUL_DESC_TRANSA, &i32::from(b_transposed))?;
        set(plan.product, Description::CUBLASLT_MATMUL_DESC_TRANSB, &i32::from(a_transposed))?;
        if shape.bias {
            // One number a row of their result, which is our column; of the result's type unless told otherwise.
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            set(plan.product, Description::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        }
        let preference = answer(&doing, result::create_matmul_pref())?;
        let chosen = self.choose(&doing, shape, plan, preference);
        // SAFETY: promise 2: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        plan.algorithm = Some(chosen?);
        Ok(())
    }

    fn choose(
        &self,
        doing: &str,
        shape: &Shape,
        plan: &Plan,
        preference: sys::cublasLtMatmulPreference_t,
    ) -> Outcome<sys::cublasLtMatmulAlgo_t> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let [a, b, c] = shape.alignments;
        let (at, size) = bytes_of(&WORKSPACE);
        let workspace = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        // SAFETY: promise 2; the value is as long as said and is copied by the call.
        answer(doing, unsafe { result::set_matmul_pref_attribute(preference, workspace, at, size) })?;
        for (attribute, alignment) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
        ] {
            let (at, size) = bytes_of(&alignment);
            // SAFETY: as above.
            answer(doing, unsafe { result::set_matmul_pref_attribute(preference, attribute, at, size) })?;
        }
        if shape.dtypes[1] == Dtype::Bf16 {
            // Where k is split, the library may keep and add the parts in the result's dtype (cuBLAS documentation,
            // cublasLtReductionScheme_t), and on an L40 it chose to (NVIDIA/TransformerEngine pull request 3440). Our sums
            // are f32: of the schemes the one that adds in the type of the computation is left.
            let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
            let (at, size) = bytes_of(&schemes);
            let attribute = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
            // SAFETY: as above.
            answer(doing, unsafe { result::set_matmul_pref_attribute(preference, attribute, at, size) })?;
        }
        let [theirs_a, theirs_b, theirs_c] = plan.layouts;
        // SAFETY: promise 2; the call reads the descriptions and writes to memory of its own.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                self.handle,
                plan.product,
                theirs_a,
                theirs_b,
                theirs_c,
                theirs_c,
                preference,
            )
        };
        answer(doing, found).map(|found| found.algo)
    }
}

//! Kernels of the CUDA driver: files compiled for the device, entries found in them, launches.

use super::super::driver::{Failure, Function, Launch, Outcome};
use super::super::signature::Signatures;
use super::super::texts::same;
use super::super::{Kernel, Stream};
use super::{Cuda, call, errors, named};
use crate::base::Error;
use cudarc::driver::sys;
use std::ffi::{CString, c_void};

#[derive(Debug)]
pub(super) struct Entry {
    kernel: &'static Kernel,
    pub(super) handle: sys::CUfunction,
    static_shared: u32,
    /// Dynamic shared memory that the driver was told to allow.
    allowed: u32,
}

/// Parameters in the form that the driver's `extra` wants: what follows is an address, the address; what follows is a
/// size, where the size lies; the end. One run of words holds this list, the size, and the parameters.
#[derive(Debug)]
pub(super) struct Packed {
    words: Vec<u64>,
}

impl Packed {
    pub(super) fn new(bytes: &[u8]) -> Packed {
        /// Words before the parameters.
        const HEAD: usize = 6;
        let mut words = vec![0u64; HEAD + bytes.len().div_ceil(8)];
        for (word, piece) in words[HEAD..].iter_mut().zip(bytes.chunks(8)) {
            let mut eight = [0; 8];
            eight[..piece.len()].copy_from_slice(piece);
            *word = u64::from_ne_bytes(eight);
        }
        // The words do not move when this struct does.
        let first = words.as_mut_ptr().expose_provenance() as u64;
        words[..HEAD].copy_from_slice(&[
            u64::from(sys::CU_LAUNCH_PARAM_BUFFER_POINTER_AS_INT),
            first + 8 * HEAD as u64,
            u64::from(sys::CU_LAUNCH_PARAM_BUFFER_SIZE_AS_INT),
            first + 8 * (HEAD as u64 - 1),
            u64::from(sys::CU_LAUNCH_PARAM_END_AS_INT),
            bytes.len() as u64,
        ]);
        Packed { words }
    }

    /// What the driver is given; null when there are no parameters.
    pub(super) fn extra(&mut self) -> *mut *mut c_void {
        if self.words[5] == 0 { std::ptr::null_mut() } else { self.words.as_mut_ptr().cast() }
    }
}

/// How many kernels an error names.
const RECENT: usize = 8;

impl Cuda {
    /// Notes what runs, for errors that show later.
    pub(super) fn note(&mut self, kernel: &'static str) {
        if self.recent.last() != Some(&kernel) {
            if self.recent.len() == RECENT {
                self.recent.remove(0);
            }
            self.recent.push(kernel);
        }
    }

    /// Compiles a file for this device.
    fn module(&mut self, kernel: &'static Kernel) -> Outcome<sys::CUmodule> {
        if let Some(&(_, module)) = self.modules.iter().find(|(text, _)| same(text, kernel.ptx)) {
            return Ok(module);
        }
        let version = Signatures::read(kernel.stem, kernel.ptx)?.version;
        let text = CString::new(kernel.ptx).map_err(|_| {
            Error::device(
                format!("ptx/{}.ptx holds a zero byte", kernel.stem),
                "make it again with tools/ptx.py",
            )
        })?;
        let mut log = vec![0u8; 8192];
        let mut options = [
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER,
            sys::CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        let mut values: [*mut c_void; 2] = [log.as_mut_ptr().cast(), (log.len() - 1) as *mut c_void];
        let mut module = std::ptr::null_mut();
        // SAFETY: promise 1; the text ends in a zero byte; the log is as long as said; all outlive the call.
        let code = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                text.as_ptr().cast(),
                options.len() as u32,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match code {
            sys::CUresult::CUDA_SUCCESS => {
                self.modules.push((kernel.ptx, module));
                Ok(module)
            }
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(Failure::OutOfMemory),
            _ => {
                let log =
                    String::from_utf8_lossy(log.split(|&b| b == 0).next().unwrap_or_default()).into_owned();
                Err(errors::file_refused(kernel.stem, version, named(code), &log))
            }
        }
    }

    /// Allows a kernel the dynamic shared memory it asks for.
    pub(super) fn allow_shared(&mut self, function: Function, bytes: u32) -> Outcome<()> {
        /// What every kernel may have without asking.
        const WITHOUT_ASKING: u32 = 48 * 1024;
        let entry = &mut self.functions[function];
        if bytes.saturating_add(entry.static_shared) <= WITHOUT_ASKING || bytes <= entry.allowed {
            return Ok(());
        }
        self.properties.check_shared(entry.kernel, entry.static_shared, bytes)?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: promises 1 and 2.
        call("allowing shared memory", unsafe {
            sys::cuFuncSetAttribute(entry.handle, attribute, bytes as i32)
        })?;
        entry.allowed = bytes;
        Ok(())
    }

    pub(super) fn find(&mut self, kernel: &'static Kernel) -> Outcome<Function> {
        self.enter()?;
        let module = self.module(kernel)?;
        let name = CString::new(kernel.entry).map_err(|_| {
            Error::device("a kernel's name holds a zero byte", "name it as its .cu file does")
        })?;
        let (mut handle, mut static_shared) = (std::ptr::null_mut(), 0);
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let doing = format!("finding kernel `{}`", kernel.entry);
        // SAFETY: promises 1 and 2; the name ends in a zero byte; the calls write to the two places only.
        unsafe {
            self.answer(&doing, sys::cuModuleGetFunction(&mut handle, module, name.as_ptr()))?;
            self.answer(&doing, sys::cuFuncGetAttribute(&mut static_shared, attribute, handle))?;
        }
        self.functions.push(Entry { kernel, handle, static_shared: static_shared.max(0) as u32, allowed: 0 });
        Ok(self.functions.len() - 1)
    }

    pub(super) fn start(&mut self, stream: Stream, launch: &Launch) -> Outcome<()> {
        self.enter()?;
        self.allow_shared(launch.function, launch.grid.shared_bytes)?;
        let entry = &self.functions[launch.function];
        let (name, handle) = (entry.kernel.entry, entry.handle);
        self.note(name);
        let mut packed = Packed::new(&launch.parameters);
        let extra = packed.extra();
        let ([gx, gy, gz], [bx, by, bz]) = (launch.grid.blocks, launch.grid.threads);
        // SAFETY: promises 1 to 4; the driver copies the parameters before it returns.
        let code = unsafe {
            sys::cuLaunchKernel(
                handle,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                launch.grid.shared_bytes,
                self.stream(stream),
                std::ptr::null_mut(),
                extra,
            )
        };
        match code {
            sys::CUresult::CUDA_SUCCESS => Ok(()),
            _ => self.answer(&format!("a launch of kernel `{name}`"), code),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_parameters_point_to_themselves() {
        let mut packed = Packed::new(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        let extra = packed.extra();
        let packed = std::hint::black_box(packed);
        // SAFETY: the list of five lies at the head of `packed`, which is alive; it was built of its own addresses.
        let (kinds, bytes) = unsafe {
            let at = |index: usize| *extra.add(index);
            let size = *at(3).cast::<usize>();
            (
                [at(0).addr(), at(2).addr(), at(4).addr()],
                std::slice::from_raw_parts(at(1).cast::<u8>(), size).to_vec(),
            )
        };
        assert_eq!(kinds, [1, 2, 0]);
        assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert!(Packed::new(&[]).extra().is_null());
        drop(packed);
    }
}

//! The CUDA driver through cudarc, opened at run time. This file and its folder alone import cudarc.
//!
//! cudarc panics when libcuda, or a function of it, is absent. So the library's presence is asked for first, and its
//! version before anything that older drivers lack.
//!
//! ```text
//! cuda/discovery  is there a driver, and a device that will do?    cuda/kernels  files, entries, launches
//! cuda/errors     what the driver's codes mean, in sentences       cuda/graphs   graphs
//! cuda/library    matrix products of cuBLASLt
//! ```
//!
//! # Safety
//!
//! Every unsafe block here calls the driver. What the driver asks of its callers, and who keeps it:
//!
//! 1. *The context is current on the calling thread.* Every method begins with [`Cuda::enter`].
//! 2. *Handles are alive.* Context, streams, events, modules, graphs and pinned memory are owned by [`Cuda`], made by
//!    it, and destroyed by its `drop`, or where nobody can name them any more (`discard`).
//! 3. *Arguments match the kernel.* The runtime packs them by the entry's signature, read from the same text.
//! 4. *Device addresses are the pool's.* They come from `cuMemAlloc`; the pool gives memory back to the driver only
//!    after it has waited for all streams. A kernel that leaves its operands is a fault of the kernel, which the GPU's
//!    own memory protection and our simulator look for; no host memory is ever mapped to the device for writing except
//!    pinned memory as the target of a copy.
//! 5. *Host memory of an asynchronous copy stays.* It is pinned memory that lives until `drop`; staging neither
//!    writes to it nor reads it before the mark behind the copy is reached.
#![allow(unsafe_code)]

mod discovery;
mod errors;
mod graphs;
mod kernels;
mod library;

pub(super) use discovery::{devices, is_present, probe};

use super::driver::{Driver, Executable, Failure, Function, Launch, Mark, Node, Outcome, Pinned, Sizes};
use super::runtime::Runtime;
use super::{Kernel, Launcher, LibraryProduct, Properties, Stream};
use crate::base::{Error, Result};
use cudarc::driver::sys;
use errors::Code;
use graphs::CudaGraph;
use kernels::Entry;
use library::Library;
use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::sync::Arc;

/// A device that was asked about and will do.
#[derive(Debug)]
pub(super) struct Found {
    ordinal: usize,
    device: sys::CUdevice,
    properties: Properties,
}

/// Opens a device.
pub(super) fn open(found: Found) -> Result<Arc<dyn Launcher>> {
    let name = format!("cuda:{} ({})", found.ordinal, found.properties.name);
    Ok(Runtime::new(name, Box::new(refusal(Cuda::new(found))?)))
}

/// The driver's answer to `doing`.
fn call(doing: &str, code: sys::CUresult) -> Outcome<()> {
    match code {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(errors::failure(doing, named(code), &[])),
    }
}

/// An error by its number and by the driver's name for it. cudarc's own names are those of CUDA 12.1: a newer driver has
/// errors that are not on that list (226, 721), and of such a value nothing may be asked but its number.
fn named(code: sys::CUresult) -> Code {
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the library is there, since it has answered; the call takes any number, and writes to `text` only.
    let known = unsafe { sys::cuGetErrorName(code, &mut text) } == sys::CUresult::CUDA_SUCCESS;
    let name = match known && !text.is_null() {
        // SAFETY: what the call gave is a string that ends in a zero byte, and is the library's for ever.
        true => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        false => "an error without a name".into(),
    };
    Code { number: code as u32, name }
}

/// A failure before there is a runtime that could explain it.
fn refusal<T>(outcome: Outcome<T>) -> Result<T> {
    outcome.map_err(|failure| match failure {
        Failure::Refused(error) => error,
        Failure::Lost { problem, advice } => Error::device(problem, advice),
        Failure::OutOfMemory => Error::device(
            "the GPU has no memory left even for a context of its own",
            "end other programs that use it (`nvidia-smi` lists them), or use --device cpu",
        ),
    })
}

/// One device of the CUDA driver.
#[derive(Debug)]
pub(super) struct Cuda {
    device: sys::CUdevice,
    context: sys::CUcontext,
    properties: Properties,
    streams: Vec<sys::CUstream>,
    events: Vec<sys::CUevent>,
    idle_events: Vec<Mark>,
    modules: Vec<(&'static str, sys::CUmodule)>,
    functions: Vec<Entry>,
    pinned: Vec<(*mut u8, usize)>,
    graphs: HashMap<Executable, CudaGraph>,
    next_graph: Executable,
    memory: Vec<u64>,
    library: Option<Library>,
    /// Kernels launched since somebody last waited for everything, newest last.
    recent: Vec<&'static str>,
}

// SAFETY: the raw pointers are the driver's handles, which any thread may use once the context is current on it, and
// pinned memory, which is this struct's own. Nothing here is shared: the runtime keeps the driver under a lock.
unsafe impl Send for Cuda {}

impl Cuda {
    fn new(found: Found) -> Outcome<Cuda> {
        let Found { device, properties, .. } = found;
        let mut context = std::ptr::null_mut();
        // SAFETY: the device is one of the driver's; the call writes to `context` only.
        match unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) } {
            sys::CUresult::CUDA_SUCCESS => {}
            code => return Err(errors::no_answer("opening a context", named(code))),
        }
        // From here on `drop` gives back what there is.
        let mut cuda = Cuda {
            device,
            context,
            properties,
            streams: Vec::new(),
            events: Vec::new(),
            idle_events: Vec::new(),
            modules: Vec::new(),
            functions: Vec::new(),
            pinned: Vec::new(),
            graphs: HashMap::new(),
            next_graph: 0,
            memory: Vec::new(),
            library: None,
            recent: Vec::new(),
        };
        cuda.enter()?;
        for _ in Stream::ALL {
            let mut stream = std::ptr::null_mut();
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            // SAFETY: promise 1; the call writes to `stream` only.
            call("opening a stream", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
            cuda.streams.push(stream);
        }
        Ok(cuda)
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Outcome<()> {
        // SAFETY: the context is retained until `drop`.
        call("entering the context", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    fn stream(&self, stream: Stream) -> sys::CUstream {
        self.streams[stream.index()]
    }

    /// The driver's answer to `doing`, with the kernels that may be to blame.
    fn answer(&self, doing: &str, code: sys::CUresult) -> Outcome<()> {
        match code {
            sys::CUresult::CUDA_SUCCESS => Ok(()),
            _ => Err(errors::failure(doing, named(code), &self.recent)),
        }
    }
}

impl Driver for Cuda {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn memory_free(&mut self) -> Outcome<usize> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: promise 1; the call writes to the two integers only.
        self.answer("asking for free memory", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(free)
    }

    fn sizes(&self) -> Sizes {
        // The driver maps memory in pages of 2 MiB. What it keeps for itself is an estimate: no file of PTX is over a few
        // hundred KiB of machine code, and a graph of a step is some hundred nodes.
        Sizes { slab: 64 << 20, gap: 0, chunk: 4 << 20, grain: 2 << 20, own: 128 << 20 }
    }

    fn allocate(&mut self, bytes: usize) -> Outcome<u64> {
        self.enter()?;
        let mut address = 0;
        // SAFETY: promise 1; the call writes to `address` only.
        self.answer("taking device memory", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) })?;
        self.memory.push(address);
        Ok(address)
    }

    fn free(&mut self, address: u64) -> Outcome<()> {
        self.enter()?;
        let Some(at) = self.memory.iter().position(|&held| held == address) else { return Ok(()) };
        self.memory.swap_remove(at);
        // SAFETY: promises 1 and 4: it came from cuMemAlloc, once, and nothing that runs uses it.
        self.answer("giving device memory back", unsafe { sys::cuMemFree_v2(address) })
    }

    fn carve(&mut self, _: u64, _: usize) -> Outcome<()> {
        Ok(())
    }

    fn release(&mut self, _: u64, _: Option<Mark>) -> Outcome<()> {
        Ok(())
    }

    fn pin(&mut self, bytes: usize) -> Outcome<Pinned> {
        self.enter()?;
        let mut memory = std::ptr::null_mut();
        // SAFETY: promise 1; the call writes to `memory` only.
        match unsafe { sys::cuMemHostAlloc(&mut memory, bytes, 0) } {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(errors::no_pinned_memory(bytes)),
            code => self.answer("taking pinned memory", code)?,
        }
        // SAFETY: the driver has just given these bytes to us; all-zero bytes are valid bytes.
        unsafe { std::ptr::write_bytes(memory.cast::<u8>(), 0, bytes) };
        self.pinned.push((memory.cast(), bytes));
        Ok(self.pinned.len() - 1)
    }

    fn write_pinned(&mut self, pinned: Pinned, at: usize, bytes: &[u8]) -> Outcome<()> {
        let (memory, length) = self.pinned[pinned];
        assert!(at <= length && bytes.len() <= length - at, "a piece of pinned memory lies inside it");
        // SAFETY: inside our own memory, as just checked; promise 5: no copy reads these bytes now.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.add(at), bytes.len()) };
        Ok(())
    }

    fn read_pinned(&mut self, pinned: Pinned, at: usize, bytes: &mut [u8]) -> Outcome<()> {
        let (memory, length) = self.pinned[pinned];
        assert!(at <= length && bytes.len() <= length - at, "a piece of pinned memory lies inside it");
        // SAFETY: inside our own memory, as just checked, written when it was made; promise 5: no copy writes it now.
        unsafe { std::ptr::copy_nonoverlapping(memory.add(at), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn load(&mut self, kernel: &'static Kernel) -> Outcome<Function> {
        self.find(kernel)
    }

    fn launch(&mut self, stream: Stream, launch: &Launch) -> Outcome<()> {
        self.start(stream, launch)
    }

    fn upload(&mut self, stream: Stream, from: (Pinned, usize), to: u64, bytes: usize) -> Outcome<()> {
        self.enter()?;
        let (memory, length) = self.pinned[from.0];
        assert!(from.1 <= length && bytes <= length - from.1, "a piece of pinned memory lies inside it");
        // SAFETY: promises 1, 2, 4 and 5; the piece lies inside the pinned memory.
        let code =
            unsafe { sys::cuMemcpyHtoDAsync_v2(to, memory.add(from.1).cast(), bytes, self.stream(stream)) };
        self.answer("an upload", code)
    }

    fn download(&mut self, stream: Stream, from: u64, to: (Pinned, usize), bytes: usize) -> Outcome<()> {
        self.enter()?;
        let (memory, length) = self.pinned[to.0];
        assert!(to.1 <= length && bytes <= length - to.1, "a piece of pinned memory lies inside it");
        // SAFETY: promises 1, 2, 4 and 5; the piece lies inside the pinned memory.
        let code =
            unsafe { sys::cuMemcpyDtoHAsync_v2(memory.add(to.1).cast(), from, bytes, self.stream(stream)) };
        self.answer("a download", code)
    }

    fn clear(&mut self, stream: Stream, address: u64, bytes: usize) -> Outcome<()> {
        self.enter()?;
        // SAFETY: promises 1, 2 and 4.
        self.answer("a clear", unsafe { sys::cuMemsetD8Async(address, 0, bytes, self.stream(stream)) })
    }

    fn copy(&mut self, stream: Stream, from: u64, to: u64, bytes: usize) -> Outcome<()> {
        self.enter()?;
        // SAFETY: promises 1, 2 and 4.
        self.answer("a copy", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream(stream)) })
    }

    fn record(&mut self, stream: Stream) -> Outcome<Mark> {
        self.enter()?;
        let mark = match self.idle_events.pop() {
            Some(mark) => mark,
            None => {
                let mut event = std::ptr::null_mut();
                // SAFETY: promise 1; the call writes to `event` only.
                let code =
                    unsafe { sys::cuEventCreate(&mut event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32) };
                self.answer("making an event", code)?;
                self.events.push(event);
                self.events.len() - 1
            }
        };
        // SAFETY: promises 1 and 2.
        let code = unsafe { sys::cuEventRecord(self.events[mark], self.stream(stream)) };
        if code != sys::CUresult::CUDA_SUCCESS {
            self.idle_events.push(mark);
        }
        self.answer("recording an event", code)?;
        Ok(mark)
    }

    fn wait(&mut self, stream: Stream, mark: Mark) -> Outcome<()> {
        self.enter()?;
        // SAFETY: promises 1 and 2.
        self.answer("waiting for an event", unsafe {
            sys::cuStreamWaitEvent(self.stream(stream), self.events[mark], 0)
        })
    }

    fn reached(&mut self, mark: Mark) -> Outcome<bool> {
        self.enter()?;
        // SAFETY: promises 1 and 2.
        match unsafe { sys::cuEventQuery(self.events[mark]) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => self.answer("asking about an event", code).map(|()| true),
        }
    }

    fn wait_host(&mut self, mark: Mark) -> Outcome<()> {
        self.enter()?;
        // SAFETY: promises 1 and 2.
        self.answer("waiting for an event", unsafe { sys::cuEventSynchronize(self.events[mark]) })
    }

    fn elapsed(&mut self, from: Mark, to: Mark) -> Outcome<Option<f32>> {
        self.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: promises 1 and 2; the call writes to `milliseconds` only.
        let code = unsafe { sys::cuEventElapsedTime(&mut milliseconds, self.events[from], self.events[to]) };
        self.answer("measuring time", code)?;
        Ok(Some(milliseconds))
    }

    fn forget(&mut self, mark: Mark) {
        // A stream that waits for the event's last record is not troubled by the next one.
        self.idle_events.push(mark);
    }

    fn synchronise(&mut self) -> Outcome<()> {
        self.enter()?;
        for stream in Stream::ALL {
            // SAFETY: promises 1 and 2.
            self.answer("waiting for the device", unsafe { sys::cuStreamSynchronize(self.stream(stream)) })?;
        }
        self.recent.clear();
        Ok(())
    }

    fn library(&mut self) -> Outcome<Option<String>> {
        self.open_library()
    }

    fn multiply(&mut self, product: &LibraryProduct) -> Outcome<()> {
        self.multiply_by_library(product)
    }

    fn instantiate(&mut self, nodes: &[Node]) -> Outcome<Executable> {
        self.build(nodes)
    }

    fn update(&mut self, graph: Executable, index: usize, node: &Node) -> Outcome<()> {
        self.change(graph, index, node)
    }

    fn launch_graph(&mut self, stream: Stream, graph: Executable) -> Outcome<()> {
        self.start_graph(stream, graph)
    }

    fn discard(&mut self, graph: Executable) {
        self.destroy(graph);
    }
}

impl Drop for Cuda {
    /// Waits and gives everything back. Errors have nobody to go to: the device is not used any more.
    fn drop(&mut self) {
        if self.enter().is_ok() {
            let _ = self.synchronise();
            if let Some(library) = self.library.take() {
                library.close();
            }
            for graph in self.graphs.keys().copied().collect::<Vec<_>>() {
                self.destroy(graph);
            }
            // SAFETY: promises 1 and 2: each handle is destroyed once, here, and everything has run.
            unsafe {
                self.events.drain(..).for_each(|event| _ = sys::cuEventDestroy_v2(event));
                self.streams.drain(..).for_each(|stream| _ = sys::cuStreamDestroy_v2(stream));
                self.modules.drain(..).for_each(|(_, module)| _ = sys::cuModuleUnload(module));
                self.memory.drain(..).for_each(|address| _ = sys::cuMemFree_v2(address));
                self.pinned.drain(..).for_each(|(memory, _)| _ = sys::cuMemFreeHost(memory.cast()));
            }
        }
        // SAFETY: retained once in `new`.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

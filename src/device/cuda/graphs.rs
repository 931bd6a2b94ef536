//! Graphs of the CUDA driver, made node by node from what the runtime recorded.

use super::super::Stream;
use super::super::driver::{Executable, Failure, Node, Outcome};
use super::Cuda;
use super::kernels::Packed;
use crate::base::Error;
use cudarc::driver::sys;

/// A graph with the parameters its nodes point to.
#[derive(Debug)]
pub(super) struct CudaGraph {
    graph: sys::CUgraph,
    executable: sys::CUgraphExec,
    nodes: Vec<(sys::CUgraphNode, Option<Packed>)>,
}

/// A node as the driver describes it.
enum NodeParameters {
    Kernel(sys::CUDA_KERNEL_NODE_PARAMS, Packed),
    Clear(sys::CUDA_MEMSET_NODE_PARAMS),
    Copy(sys::CUDA_MEMCPY3D),
}

impl Cuda {
    fn node(&mut self, node: &Node) -> Outcome<NodeParameters> {
        Ok(match node {
            Node::Launch(launch) => {
                self.allow_shared(launch.function, launch.grid.shared_bytes)?;
                let mut packed = Packed::new(&launch.parameters);
                let ([gx, gy, gz], [bx, by, bz]) = (launch.grid.blocks, launch.grid.threads);
                let parameters = sys::CUDA_KERNEL_NODE_PARAMS {
                    func: self.functions[launch.function].handle,
                    gridDimX: gx,
                    gridDimY: gy,
                    gridDimZ: gz,
                    blockDimX: bx,
                    blockDimY: by,
                    blockDimZ: bz,
                    sharedMemBytes: launch.grid.shared_bytes,
                    kernelParams: std::ptr::null_mut(),
                    extra: packed.extra(),
                    kern: std::ptr::null_mut(),
                    ctx: self.context,
                };
                NodeParameters::Kernel(parameters, packed)
            }
            &Node::Clear { address, bytes } => {
                // Words where there are only whole words: the driver's faster way.
                let size = if address.is_multiple_of(4) && bytes.is_multiple_of(4) { 4 } else { 1 };
                NodeParameters::Clear(sys::CUDA_MEMSET_NODE_PARAMS {
                    dst: address,
                    pitch: 0,
                    value: 0,
                    elementSize: size as u32,
                    width: bytes / size,
                    height: 1,
                })
            }
            &Node::Copy { from, to, bytes } => NodeParameters::Copy(sys::CUDA_MEMCPY3D {
                srcXInBytes: 0,
                srcY: 0,
                srcZ: 0,
                srcLOD: 0,
                srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                srcHost: std::ptr::null(),
                srcDevice: from,
                srcArray: std::ptr::null_mut(),
                reserved0: std::ptr::null_mut(),
                srcPitch: bytes,
                srcHeight: 1,
                dstXInBytes: 0,
                dstY: 0,
                dstZ: 0,
                dstLOD: 0,
                dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
                dstHost: std::ptr::null_mut(),
                dstDevice: to,
                dstArray: std::ptr::null_mut(),
                reserved1: std::ptr::null_mut(),
                dstPitch: bytes,
                dstHeight: 1,
                WidthInBytes: bytes,
                Height: 1,
                Depth: 1,
            }),
        })
    }

    pub(super) fn build(&mut self, nodes: &[Node]) -> Outcome<Executable> {
        self.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: promise 1; the call writes to `graph` only.
        self.answer("making a graph", unsafe { sys::cuGraphCreate(&mut graph, 0) })?;
        // Owned from here on, so that `drop` finds it when a later call fails.
        self.next_graph += 1;
        let id = self.next_graph;
        self.graphs.insert(id, CudaGraph { graph, executable: std::ptr::null_mut(), nodes: Vec::new() });
        let made = self.fill(id, graph, nodes);
        if made.is_err() {
            self.destroy(id);
        }
        made.map(|()| id)
    }

    /// Adds `nodes` to an empty graph, each behind the one before, and makes it executable.
    fn fill(&mut self, id: Executable, graph: sys::CUgraph, nodes: &[Node]) -> Outcome<()> {
        let mut before: Vec<sys::CUgraphNode> = Vec::new();
        for node in nodes {
            let parameters = self.node(node)?;
            let mut handle = std::ptr::null_mut();
            let (depends, count) = (before.as_ptr(), before.len());
            // SAFETY: promises 1 to 4; the parameters live until the graph is destroyed.
            let (code, packed) = unsafe {
                match parameters {
                    NodeParameters::Kernel(p, packed) => {
                        (sys::cuGraphAddKernelNode_v2(&mut handle, graph, depends, count, &p), Some(packed))
                    }
                    NodeParameters::Clear(p) => (
                        sys::cuGraphAddMemsetNode(&mut handle, graph, depends, count, &p, self.context),
                        None,
                    ),
                    NodeParameters::Copy(p) => (
                        sys::cuGraphAddMemcpyNode(&mut handle, graph, depends, count, &p, self.context),
                        None,
                    ),
                }
            };
            self.answer("adding to a graph", code)?;
            before = vec![handle];
            if let Some(held) = self.graphs.get_mut(&id) {
                held.nodes.push((handle, packed));
            }
        }
        let mut executable = std::ptr::null_mut();
        // SAFETY: promises 1 and 2; the call writes to `executable` only.
        let code = unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) };
        self.answer("making a graph executable", code)?;
        if let Some(held) = self.graphs.get_mut(&id) {
            held.executable = executable;
        }
        Ok(())
    }

    pub(super) fn change(&mut self, graph: Executable, index: usize, node: &Node) -> Outcome<()> {
        self.enter()?;
        let parameters = self.node(node)?;
        let Some(held) = self.graphs.get_mut(&graph) else { return Ok(()) };
        let (executable, place) = (held.executable, &mut held.nodes[index]);
        if let NodeParameters::Kernel(parameters, packed) = parameters {
            // SAFETY: promises 1 to 3; the node is one of this graph's, of the same kind.
            let code = unsafe { sys::cuGraphExecKernelNodeSetParams_v2(executable, place.0, &parameters) };
            place.1 = Some(packed);
            return self.answer("changing a graph", code);
        }
        Err(Failure::Refused(Error::device(
            "only a launch of a graph can be changed",
            "capture the step again",
        )))
    }

    pub(super) fn start_graph(&mut self, stream: Stream, graph: Executable) -> Outcome<()> {
        self.enter()?;
        self.note("a graph");
        let Some(held) = self.graphs.get(&graph) else { return Ok(()) };
        // SAFETY: promises 1, 2 and 4; who launches a graph keeps its memory alive.
        self.answer("a launch of a graph", unsafe {
            sys::cuGraphLaunch(held.executable, self.stream(stream))
        })
    }

    pub(super) fn destroy(&mut self, graph: Executable) {
        let Some(held) = self.graphs.remove(&graph) else { return };
        if self.enter().is_err() {
            return;
        }
        // SAFETY: promises 1 and 2; a running graph is destroyed by the driver once it has ended.
        unsafe {
            if !held.executable.is_null() {
                let _ = sys::cuGraphExecDestroy(held.executable);
            }
            let _ = sys::cuGraphDestroy(held.graph);
        }
    }
}

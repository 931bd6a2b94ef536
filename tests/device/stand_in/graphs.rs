//! Graphs of the stand-in driver: runs of operations, each behind the one before.

use super::{CONTEXT, Driver, INVALID_HANDLE, INVALID_VALUE, OK, Operation, broken, enter, parameters};
use std::ffi::{c_uint, c_ulonglong};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphCreate(graph: *mut usize, _flags: c_uint) -> u32 {
    enter("cuGraphCreate", |driver| {
        let handle = driver.handle();
        driver.graphs.insert(handle, Vec::new());
        unsafe { *graph = handle };
        OK
    })
}

/// `CUDA_KERNEL_NODE_PARAMS_v2` of cuda.h.
#[repr(C)]
pub struct KernelNode {
    function: usize,
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    kernel_parameters: usize,
    extra: *const usize,
    kernel: usize,
    context: usize,
}

impl KernelNode {
    unsafe fn operation(&self) -> Result<Operation, u32> {
        if self.kernel_parameters != 0 || self.kernel != 0 {
            return Err(broken("parameters given twice", INVALID_VALUE));
        }
        let parameters = unsafe { parameters(self.extra) }?;
        let (function, grid, block, shared) = (self.function, self.grid, self.block, self.shared);
        Ok(Operation::Launch { function, grid, block, shared, parameters })
    }
}

/// `CUDA_MEMSET_NODE_PARAMS` of cuda.h.
#[repr(C)]
pub struct SetNode {
    address: u64,
    pitch: usize,
    value: c_uint,
    element: c_uint,
    width: usize,
    height: usize,
}

/// `CUDA_MEMCPY3D` of cuda.h.
#[repr(C)]
pub struct CopyNode {
    from_x: [usize; 4],
    from_kind: c_uint,
    from_host: usize,
    from: u64,
    from_array: usize,
    from_reserved: usize,
    from_pitch: [usize; 2],
    to_x: [usize; 4],
    to_kind: c_uint,
    to_host: usize,
    to: u64,
    to_array: usize,
    to_reserved: usize,
    to_pitch: [usize; 2],
    width: usize,
    height: usize,
    depth: usize,
}

unsafe fn add(
    driver: &mut Driver,
    node: *mut usize,
    graph: usize,
    before: *const usize,
    count: usize,
    operation: Result<Operation, u32>,
) -> u32 {
    let operation = match operation {
        Ok(operation) => operation,
        Err(code) => return code,
    };
    let handle = driver.handle();
    let Some(nodes) = driver.graphs.get_mut(&graph) else {
        return broken("a graph that is none", INVALID_HANDLE);
    };
    // Each node stands behind the newest one: that is all this stand-in can run.
    let behind = if count == 0 { None } else { Some(unsafe { *before }) };
    if behind != nodes.last().copied() || count > 1 {
        return broken("a node that does not stand behind the one before", INVALID_VALUE);
    }
    nodes.push(handle);
    driver.nodes.insert(handle, operation);
    unsafe { *node = handle };
    OK
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddKernelNode_v2(
    node: *mut usize,
    graph: usize,
    before: *const usize,
    count: usize,
    is: *const KernelNode,
) -> u32 {
    enter("cuGraphAddKernelNode", |driver| unsafe {
        add(driver, node, graph, before, count, (*is).operation())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddMemsetNode(
    node: *mut usize,
    graph: usize,
    before: *const usize,
    count: usize,
    is: *const SetNode,
    context: usize,
) -> u32 {
    enter("cuGraphAddMemsetNode", |driver| unsafe {
        let is = &*is;
        if context != CONTEXT
            || is.value != 0
            || is.height != 1
            || ![1, 4].contains(&is.element)
            || is.pitch != 0
        {
            return broken("a clear in a graph", INVALID_VALUE);
        }
        let operation = Operation::Set { address: is.address, bytes: is.width * is.element as usize };
        add(driver, node, graph, before, count, Ok(operation))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphAddMemcpyNode(
    node: *mut usize,
    graph: usize,
    before: *const usize,
    count: usize,
    is: *const CopyNode,
    context: usize,
) -> u32 {
    enter("cuGraphAddMemcpyNode", |driver| unsafe {
        let is = &*is;
        // 2 is device memory.
        if context != CONTEXT || (is.from_kind, is.to_kind, is.height, is.depth) != (2, 2, 1, 1) {
            return broken("a copy in a graph", INVALID_VALUE);
        }
        let operation = Operation::Copy { from: is.from, to: is.to, bytes: is.width };
        add(driver, node, graph, before, count, Ok(operation))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    executable: *mut usize,
    graph: usize,
    _flags: c_ulonglong,
) -> u32 {
    enter("cuGraphInstantiateWithFlags", |driver| {
        let Some(nodes) = driver.graphs.get(&graph).cloned() else {
            return broken("a graph that is none", INVALID_HANDLE);
        };
        let handle = driver.handle();
        driver.executables.insert(handle, nodes);
        unsafe { *executable = handle };
        OK
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecKernelNodeSetParams_v2(
    executable: usize,
    node: usize,
    is: *const KernelNode,
) -> u32 {
    enter("cuGraphExecKernelNodeSetParams", |driver| {
        if !driver.executables.get(&executable).is_some_and(|nodes| nodes.contains(&node)) {
            return broken("a node of another graph", INVALID_HANDLE);
        }
        match unsafe { (*is).operation() } {
            Ok(operation) => {
                driver.nodes.insert(node, operation);
                OK
            }
            Err(code) => code,
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphLaunch(executable: usize, stream: usize) -> u32 {
    enter("cuGraphLaunch", |driver| {
        if let Err(code) = driver.stream(stream) {
            return code;
        }
        let Some(nodes) = driver.executables.get(&executable).cloned() else {
            return broken("a graph that is none", INVALID_HANDLE);
        };
        for node in nodes {
            let operation = driver.nodes[&node].clone();
            let code = driver.run(&operation);
            if code != OK {
                return code;
            }
        }
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphExecDestroy(executable: usize) -> u32 {
    enter("cuGraphExecDestroy", |driver| match driver.executables.remove(&executable) {
        Some(_) => OK,
        None => broken("a graph destroyed twice", INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGraphDestroy(graph: usize) -> u32 {
    enter("cuGraphDestroy", |driver| match driver.graphs.remove(&graph) {
        Some(_) => OK,
        None => broken("a graph destroyed twice", INVALID_HANDLE),
    })
}

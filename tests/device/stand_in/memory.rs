//! Memory of the stand-in driver, device and pinned: both are the host's.

use super::{Driver, INVALID_VALUE, OK, OUT_OF_MEMORY, Operation, broken, capacity, enter};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_uint;

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 512).unwrap()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    enter("cuMemGetInfo", |driver| {
        unsafe {
            *free = capacity() - driver.memory.values().sum::<usize>();
            *total = capacity();
        }
        OK
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32 {
    enter("cuMemAlloc", |driver| {
        if bytes == 0 {
            return broken("an allocation of nothing", INVALID_VALUE);
        }
        if bytes > capacity() - driver.memory.values().sum::<usize>() {
            return OUT_OF_MEMORY;
        }
        let memory = unsafe { alloc_zeroed(layout(bytes)) };
        // Fresh device memory holds whatever was there.
        unsafe { std::ptr::write_bytes(memory, 0xa5, bytes) };
        driver.memory.insert(memory as u64, bytes);
        unsafe { *address = memory as u64 };
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    enter("cuMemFree", |driver| match driver.memory.remove(&address) {
        Some(bytes) => {
            unsafe { dealloc(address as *mut u8, layout(bytes)) };
            OK
        }
        None => broken("memory given back twice", INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(memory: *mut u64, bytes: usize, _flags: c_uint) -> u32 {
    enter("cuMemHostAlloc", |driver| {
        let address = unsafe { alloc_zeroed(layout(bytes)) } as u64;
        driver.pinned.insert(address, bytes);
        unsafe { *memory = address };
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: u64) -> u32 {
    enter("cuMemFreeHost", |driver| match driver.pinned.remove(&address) {
        Some(bytes) => {
            unsafe { dealloc(address as *mut u8, layout(bytes)) };
            OK
        }
        None => broken("pinned memory given back twice", INVALID_VALUE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> u32 {
    enter("cuMemcpyHtoDAsync", |driver| {
        if !Driver::inside(&driver.memory, to, bytes) || !Driver::inside(&driver.pinned, from, bytes) {
            return broken("an upload outside device memory or pinned memory", INVALID_VALUE);
        }
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        driver.stream(stream).err().unwrap_or(OK)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> u32 {
    enter("cuMemcpyDtoHAsync", |driver| {
        if !Driver::inside(&driver.pinned, to, bytes) || !Driver::inside(&driver.memory, from, bytes) {
            return broken("a download outside device memory or pinned memory", INVALID_VALUE);
        }
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        driver.stream(stream).err().unwrap_or(OK)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) -> u32 {
    enter("cuMemcpyDtoDAsync", |driver| match driver.stream(stream) {
        Ok(()) => driver.run(&Operation::Copy { from, to, bytes }),
        Err(code) => code,
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: usize) -> u32 {
    enter("cuMemsetD8Async", |driver| match driver.stream(stream) {
        Ok(()) if value == 0 => driver.run(&Operation::Set { address, bytes }),
        Ok(()) => broken("a clear to another value than 0", INVALID_VALUE),
        Err(code) => code,
    })
}

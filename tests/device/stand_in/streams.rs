//! Streams and events of the stand-in driver: everything has run by the time anybody asks.

use super::{INVALID_HANDLE, INVALID_VALUE, OK, broken, enter};
use std::ffi::c_uint;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut usize, flags: c_uint) -> u32 {
    enter("cuStreamCreate", |driver| {
        if flags != 1 {
            return broken("a stream that waits for the default stream", INVALID_VALUE);
        }
        let handle = driver.handle();
        driver.streams.insert(handle);
        unsafe { *stream = handle };
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: usize) -> u32 {
    enter("cuStreamDestroy", |driver| match driver.streams.remove(&stream) {
        true => OK,
        false => broken("a stream destroyed twice", INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: usize) -> u32 {
    enter("cuStreamSynchronize", |driver| driver.stream(stream).err().unwrap_or(OK))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: usize) -> u32 {
    enter("cuStreamQuery", |driver| driver.stream(stream).err().unwrap_or(OK))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> u32 {
    enter("cuStreamWaitEvent", |driver| match driver.events.get(&event) {
        Some(true) => driver.stream(stream).err().unwrap_or(OK),
        Some(false) => broken("waiting for an event that was never recorded", OK),
        None => broken("an event that is none", INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut usize, _flags: c_uint) -> u32 {
    enter("cuEventCreate", |driver| {
        let handle = driver.handle();
        driver.events.insert(handle, false);
        unsafe { *event = handle };
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(event: usize) -> u32 {
    enter("cuEventDestroy", |driver| match driver.events.remove(&event) {
        Some(_) => OK,
        None => broken("an event destroyed twice", INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: usize, stream: usize) -> u32 {
    enter("cuEventRecord", |driver| match driver.events.get_mut(&event) {
        Some(recorded) => {
            *recorded = true;
            driver.stream(stream).err().unwrap_or(OK)
        }
        None => broken("an event that is none", INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(event: usize) -> u32 {
    enter("cuEventQuery", |driver| match driver.events.get(&event) {
        Some(true) => OK,
        _ => broken("asking about an event that was never recorded", INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: usize) -> u32 {
    enter("cuEventSynchronize", |driver| match driver.events.get(&event) {
        Some(true) => OK,
        _ => broken("waiting for an event that was never recorded", INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, from: usize, to: usize) -> u32 {
    enter("cuEventElapsedTime", |driver| {
        if driver.events.get(&from) != Some(&true) || driver.events.get(&to) != Some(&true) {
            return broken("time between events that were never recorded", INVALID_HANDLE);
        }
        unsafe { *milliseconds = 0.25 };
        OK
    })
}

//! Files of the stand-in driver, and the entries found in them.

use super::{
    INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, JIT_COMPILATION_DISABLED, NOT_FOUND, OK, UNSUPPORTED_PTX_VERSION,
    broken, enter, fault,
};
use std::ffi::{CStr, c_char, c_int, c_uint};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut usize,
    image: *const c_char,
    count: c_uint,
    options: *const c_uint,
    values: *const usize,
) -> u32 {
    enter("cuModuleLoadDataEx", |driver| {
        let text = unsafe { CStr::from_ptr(image) }.to_string_lossy().into_owned();
        let (options, values) = unsafe {
            (
                std::slice::from_raw_parts(options, count as usize),
                std::slice::from_raw_parts(values, count as usize),
            )
        };
        // 5 is the buffer of the error log, 6 its size.
        if options != [5, 6] || values[1] < 64 {
            return broken("no room for the compiler's log", INVALID_VALUE);
        }
        if fault("cannot_read_ptx") {
            return UNSUPPORTED_PTX_VERSION;
        }
        if fault("compiler_off") {
            return JIT_COMPILATION_DISABLED;
        }
        if let Some(line) = text.lines().position(|line| line.contains("frob")) {
            let message =
                format!("ptxas application ptx input, line {}; error: Unknown instruction\0", line + 1);
            unsafe { std::ptr::copy_nonoverlapping(message.as_ptr(), values[0] as *mut u8, message.len()) };
            return INVALID_PTX;
        }
        let handle = driver.handle();
        driver.modules.insert(handle, text);
        unsafe { *module = handle };
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: usize) -> u32 {
    enter("cuModuleUnloadDestroy", |driver| match driver.modules.remove(&module) {
        Some(_) => OK,
        None => broken("a module unloaded twice", INVALID_HANDLE),
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut usize,
    module: usize,
    name: *const c_char,
) -> u32 {
    enter("cuModuleGetFunction", |driver| {
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
        match driver.modules.get(&module) {
            Some(text) if text.contains(&format!(".entry {name}(")) => {}
            Some(_) => return NOT_FOUND,
            None => return broken("a module that is none", INVALID_HANDLE),
        }
        let handle = driver.handle();
        driver.functions.insert(handle, (name, 0));
        unsafe { *function = handle };
        OK
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: usize) -> u32 {
    enter("cuFuncGetAttribute", |driver| {
        if attribute != 1 || !driver.functions.contains_key(&function) {
            return broken("an attribute of a function", INVALID_HANDLE);
        }
        unsafe { *value = 16 };
        OK
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_uint, value: c_int) -> u32 {
    enter("cuFuncSetAttribute", |driver| match driver.functions.get_mut(&function) {
        Some((_, allowed)) if attribute == 8 && value + 16 <= 99 * 1024 => {
            *allowed = value as u32;
            OK
        }
        _ => broken("an attribute of a function", INVALID_VALUE),
    })
}

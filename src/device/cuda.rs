//! The CUDA driver through cudarc, opened at run time. The only file that imports cudarc.
//!
//! cudarc panics when libcuda is absent, so the library's presence is asked for first.
#![allow(unsafe_code)]

use crate::base::{Error, Result};
use cudarc::driver::{CudaContext, sys};

/// Asks the driver for device `ordinal` and names it.
///
/// # Errors
/// No driver library, no such device, or the driver's own refusal.
pub fn probe(ordinal: usize) -> Result<String> {
    // SAFETY: the call only tries to open libcuda; cudarc asks its callers for nothing else.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::device(
            "no CUDA driver: libcuda.so.1 cannot be opened",
            "install NVIDIA's driver (530 or newer), or use --device cpu",
        ));
    }
    let driver = |error| {
        Error::device(
            format!("the CUDA driver refused: {error:?}"),
            "check `nvidia-smi`, or use --device cpu",
        )
    };
    let count = CudaContext::device_count().map_err(driver)?;
    if ordinal >= count.max(0) as usize {
        return Err(Error::device(
            format!("no CUDA device {ordinal}: the driver reports {count} device(s)"),
            "name one of them, or use --device cpu",
        ));
    }
    let name = CudaContext::new(ordinal).and_then(|context| context.name()).map_err(driver)?;
    Ok(format!("cuda:{ordinal} ({name})"))
}

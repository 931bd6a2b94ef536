//! Whether there is a CUDA driver and a device that will do, and what that device is.

use super::super::Properties;
use super::super::driver::Outcome;
use super::{Found, call, errors, named, refusal};
use crate::base::Result;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};

/// Whether this machine has a CUDA driver, of whatever version.
pub(in super::super) fn is_present() -> bool {
    // SAFETY: the call only tries to open libcuda; cudarc asks its callers for nothing else.
    unsafe { sys::is_culib_present() }
}

/// How many devices the driver has, and which CUDA version it is for.
///
/// # Errors
/// No driver library, or one that is too old for the shipped PTX.
pub(in super::super) fn devices() -> Result<(usize, (u32, u32))> {
    if !is_present() {
        return Err(errors::no_driver());
    }
    let (mut version, mut count) = (0, 0);
    // SAFETY: the library is there; the functions exist since CUDA 2 and write to these two integers only.
    unsafe {
        asking(sys::cuDriverGetVersion(&mut version))?;
        if let Some(error) = errors::driver_too_old(version as u32) {
            return Err(error);
        }
        asking(sys::cuInit(0))?;
        asking(sys::cuDeviceGetCount(&mut count))?;
    }
    Ok((count.max(0) as usize, errors::cuda_version(version as u32)))
}

fn asking(code: sys::CUresult) -> Result<()> {
    refusal(match code {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        _ => Err(errors::no_answer("asking the CUDA driver", named(code))),
    })
}

/// Asks the driver for device `ordinal`.
///
/// # Errors
/// Those of [`devices`], no such device, or one that is too old.
pub(in super::super) fn probe(ordinal: usize) -> Result<Found> {
    let (count, driver) = devices()?;
    if ordinal >= count {
        return Err(errors::no_such_device(ordinal, count));
    }
    let mut device = 0;
    // SAFETY: the library is there and initialised; the call writes to `device` only.
    asking(unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) })?;
    let properties = Properties { driver: Some(driver), ..refusal(properties(device))? };
    match errors::capability_too_low(&properties.name, properties.compute_capability) {
        Some(error) => Err(error),
        None => Ok(Found { ordinal, device, properties }),
    }
}

fn properties(device: sys::CUdevice) -> Outcome<Properties> {
    // SAFETY: `device` came from cuDeviceGet; the calls write to memory of their own.
    let attribute = |attribute| match unsafe { result::device::get_attribute(device, attribute) } {
        Ok(value) => Ok(value.max(0) as u32),
        Err(error) => call("asking for a device's properties", error.0).map(|()| 0),
    };
    let name = result::device::get_name(device)
        .or_else(|e| call("asking for a device's name", e.0).map(|()| String::new()))?;
    // SAFETY: as above.
    let memory_bytes = unsafe { result::device::total_mem(device) }
        .or_else(|e| call("asking for a device's memory", e.0).map(|()| 0))?;
    Ok(Properties {
        name,
        memory_bytes,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        driver: None,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        most_blocks: [
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
        ],
        most_threads: [
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?,
        ],
        most_threads_of_a_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        most_shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

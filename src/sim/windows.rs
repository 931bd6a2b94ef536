//! Generic addresses. Device memory has its own addresses; the memory of a block, of a thread, and the parameters
//! appear in windows far below it.

use super::instruction::AddressSpace;
use super::registers::lanes;

/// Bytes of a window.
const SIZE: u64 = 1 << 40;
/// Where local memory appears.
const LOCAL: u64 = 1 << 40;
/// Where shared memory appears.
const SHARED: u64 = 2 << 40;
/// Where parameters appear.
const PARAMETER: u64 = 3 << 40;

lanes! {
    from_shared(a: u64) -> u64 { a.wrapping_add(SHARED) }
    to_shared(a: u64) -> u64 { a.wrapping_sub(SHARED) }
    from_local(a: u64) -> u64 { a.wrapping_add(LOCAL) }
    to_local(a: u64) -> u64 { a.wrapping_sub(LOCAL) }
    from_parameter(a: u64) -> u64 { a.wrapping_add(PARAMETER) }
    to_parameter(a: u64) -> u64 { a.wrapping_sub(PARAMETER) }
    is_global(a: u64) -> bool { space_of(a).0 == AddressSpace::Global }
    is_constant(_a: u64) -> bool { false }
    is_shared(a: u64) -> bool { space_of(a).0 == AddressSpace::Shared }
    is_local(a: u64) -> bool { space_of(a).0 == AddressSpace::Local }
    is_parameter(a: u64) -> bool { space_of(a).0 == AddressSpace::Parameter }
}

/// The space of a generic address and the address within it.
#[inline(always)]
pub(super) fn space_of(address: u64) -> (AddressSpace, u64) {
    match address / SIZE {
        1 => (AddressSpace::Local, address - LOCAL),
        2 => (AddressSpace::Shared, address - SHARED),
        3 => (AddressSpace::Parameter, address - PARAMETER),
        _ => (AddressSpace::Global, address),
    }
}

//! Kernels of `sm_90a` and what a Hopper (compute capability 9.0) has more than other GPUs.

use super::launcher;
use latch::device::{Argument, Grid, Kernel, SimulatorOptions};

const BYTES: u32 = 160 << 10;

/// A word goes through the last four bytes of 160 KiB of shared memory.
const PTX: &str = "
.version 8.1
.target sm_90a
.address_size 64
.extern .shared .align 1024 .b8 room[];
.visible .entry passes(
	.param .u64 passes_param_0,
	.param .u32 passes_param_1
)
.maxntid 128, 1, 1
{
	.reg .b32 %r<3>;
	.reg .b64 %rd<2>;
	.reg .pred %p;
	ld.param.u64 %rd1, [passes_param_0];
	ld.param.u32 %r1, [passes_param_1];
	wgmma.fence.sync.aligned;
	mov.u32 %r2, %tid.x;
	setp.ne.u32 %p, %r2, 0;
	@%p bra DONE;
	st.shared.u32 [room+163836], %r1;
	ld.shared.u32 %r2, [room+163836];
	st.global.u32 [%rd1], %r2;
DONE:
	ret;
}
";
static PASSES: Kernel = Kernel::new("passes_sm90a", PTX, "passes");

#[test]
fn kernels_of_hopper_run_there_and_nowhere_else() {
    let grid = |shared_bytes| Grid { blocks: [1; 3], threads: [128, 1, 1], shared_bytes };
    let hopper = SimulatorOptions { compute_capability: (9, 0), ..Default::default() };
    let gpu = launcher(hopper);
    assert_eq!(gpu.properties().compute_capability, (9, 0));
    let at = gpu.allocate(4).unwrap();
    let arguments = [Argument::Address(at), Argument::U32(42)];
    gpu.launch(&PASSES, grid(BYTES), &arguments).unwrap();
    let mut bytes = [0; 4];
    gpu.download(at, &mut bytes).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 42);
    let too_much = gpu.launch(&PASSES, grid((227 << 10) + 1), &arguments).unwrap_err().to_string();
    assert!(too_much.contains("232449 bytes of shared memory"), "{too_much}");

    let ampere = launcher(SimulatorOptions::default());
    let at = ampere.allocate(4).unwrap();
    let message = ampere.launch(&PASSES, grid(1 << 10), &[Argument::Address(at), Argument::U32(42)]);
    let message = message.unwrap_err().to_string();
    for part in ["ptx/passes_sm90a.ptx", "sm_90a", "no other GPU", "8.0"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

//! Launches: what a device would refuse, memory that pools carve up, samples and orders of blocks, counts.

use super::instructions::{as_words, entry, file, words};
use latch::sim::counters::Class;
use latch::sim::{Counters, Fault, Kind, Launch, Machine, Options, Program};

/// Stores each block's index at its place.
const BLOCKS: &str = ".reg .b32 %r; .reg .b64 %a, %w;\nmov.u32 %r, %ctaid.x;\nmul.wide.u32 %w, %r, 4;\nadd.s64 %a, %p0, %w;\nst.global.u32 [%a], %r;";

fn launch<'a>(grid: [u32; 3], block: [u32; 3], parameters: &'a [u8]) -> Launch<'a> {
    Launch { entry: "f", grid, block, dynamic_shared: 0, parameters, sample: None, seed: 0 }
}

fn refused(program: &Program, launch: &Launch<'_>) -> Fault {
    let fault = Machine::new(Options::default()).launch(program, launch).unwrap_err();
    assert_eq!(fault.kind, Kind::Launch);
    assert!(fault.to_string().contains("test.ptx"), "{fault}");
    fault
}

#[test]
fn what_a_device_refuses() {
    let program = Program::parse("test.ptx", &entry(1, BLOCKS)).unwrap();
    let parameters = [0; 8];
    let says = |launch: &Launch<'_>, words: &str| {
        let sentence = refused(&program, launch).to_string();
        assert!(sentence.contains(words), "{sentence}");
    };
    says(&Launch { entry: "g", ..launch([1; 3], [1; 3], &parameters) }, "no entry `g`; it has: f");
    says(&launch([0, 1, 1], [32, 1, 1], &parameters), "is empty along x");
    says(&launch([1, 0, 1], [32, 1, 1], &parameters), "is empty along y");
    says(&launch([1, 1, 1], [32, 1, 0], &parameters), "is empty along z");
    says(&launch([1 << 31, 1, 1], [1; 3], &parameters), "at most 2147483647");
    says(&launch([1, 65_536, 1], [1; 3], &parameters), "65536 blocks along y; a device takes at most 65535");
    says(&launch([1, 1, 65_536], [1; 3], &parameters), "65536 blocks along z");
    says(&launch([1; 3], [1025, 1, 1], &parameters), "1025 threads along x in a block");
    says(
        &launch([1; 3], [1, 1, 65], &parameters),
        "65 threads along z in a block; a device takes at most 64",
    );
    says(&launch([1; 3], [64, 32, 1], &parameters), "2048 threads in a block; a device takes at most 1024");
    says(
        &Launch { dynamic_shared: (227 << 10) + 1, ..launch([1; 3], [1; 3], &parameters) },
        "at most 232448",
    );
    says(&Launch { dynamic_shared: u32::MAX, ..launch([1; 3], [1; 3], &parameters) }, "at most 232448");
    says(&launch([1; 3], [1; 3], &[0; 7]), "7 bytes of parameters; the kernel takes 8 (1 parameters)");
    says(&launch([1; 3], [1; 3], &[0; 12]), "12 bytes of parameters");
    says(
        &Launch { sample: Some(&[0, 4]), ..launch([4, 1, 1], [1; 3], &parameters) },
        "block 4 of the sample; the grid has 4",
    );
}

#[test]
fn limits_that_a_kernel_states() {
    let text = file(
        ".visible .entry f()\n.maxntid 64, 2, 1\n{\nret;\n}\n.visible .entry g()\n.reqntid 32\n.minnctapersm 2\n{\nret;\n}\n.entry h() { .shared .align 4 .b8 room[4096]; ret; }\n",
    );
    let program = Program::parse("test.ptx", &text).unwrap();
    assert_eq!(program.entry("f").unwrap().maxntid, Some([64, 2, 1]));
    assert_eq!(program.entry("g").unwrap().reqntid, Some([32, 1, 1]));
    assert_eq!(program.entry("h").unwrap().static_shared, 4096);
    assert_eq!(program.entries().len(), 3);
    assert_eq!((program.version(), program.target()), ((8, 1), "sm_80"));
    let machine = Machine::new(Options::default());
    assert!(machine.launch(&program, &launch([1; 3], [128, 1, 1], &[])).is_ok());
    assert!(
        refused(&program, &launch([1; 3], [129, 1, 1], &[])).to_string().contains("compiled for at most 128")
    );
    let other = Launch { entry: "g", ..launch([1; 3], [64, 1, 1], &[]) };
    assert!(refused(&program, &other).to_string().contains("compiled for [32, 1, 1]"));
    let largest = Launch { entry: "h", dynamic_shared: (227 << 10) - 4096, ..launch([1; 3], [1; 3], &[]) };
    assert!(machine.launch(&program, &largest).is_ok());
    let beyond = Launch { dynamic_shared: (227 << 10) - 4095, ..largest };
    assert!(refused(&program, &beyond).to_string().contains("4096 bytes of static"));
}

#[test]
fn memory_is_told_apart() {
    let machine = Machine::new(Options { memory_bytes: 10_000, ..Options::default() });
    let (a, b) = (machine.allocate(100).unwrap(), machine.allocate(1).unwrap());
    assert_eq!((a % 256, b % 256, machine.used()), (0, 0, 101));
    assert!(b >= a + 100 + 4096);
    let fault = machine.allocate(9900).unwrap_err();
    assert_eq!(fault.kind, Kind::Memory);
    assert!(
        fault.to_string().contains("9900 bytes asked for, 9899 of the simulated device's 10000"),
        "{fault}"
    );
    assert_eq!(machine.allocate(0).unwrap_err().kind, Kind::Memory);
    machine.fill(a, 0xab, 100).unwrap();
    machine.write(a + 3, &[1, 2, 3, 4, 5, 6]).unwrap();
    let mut bytes = [0; 12];
    machine.read(a, &mut bytes).unwrap();
    assert_eq!(bytes, [0xab, 0xab, 0xab, 1, 2, 3, 4, 5, 6, 0xab, 0xab, 0xab]);
    let c = machine.allocate(100).unwrap();
    machine.copy(a + 1, c + 2, 97).unwrap();
    machine.read(c, &mut bytes).unwrap();
    assert_eq!(bytes, [0, 0, 0xab, 0xab, 1, 2, 3, 4, 5, 6, 0xab, 0xab]);
    assert!(machine.copy(a, a + 50, 50).is_ok());
    assert!(machine.copy(a, a + 49, 50).unwrap_err().to_string().contains("overlaps itself"));
    assert!(machine.copy(a, c + 60, 41).unwrap_err().to_string().contains("1 bytes past the end"));
    assert!(
        machine
            .write(a + 99, &[0; 2])
            .unwrap_err()
            .to_string()
            .contains("1 bytes past the end of the allocation of 100 bytes")
    );
    assert!(machine.fill(a, 0, 101).is_err() && machine.read(a + 100, &mut [0]).is_err());
    assert!(machine.read(a, &mut []).is_ok() && machine.write(0, &[]).is_ok());
    machine.free(a).unwrap();
    assert!(machine.free(a).unwrap_err().to_string().contains("it was before"));
    assert!(machine.free(b + 1).is_err());
    let fault = machine.read(a, &mut bytes).unwrap_err();
    assert_eq!(fault.kind, Kind::UseAfterFree);
    assert!(fault.to_string().contains("in the dead allocation of 100 bytes"), "{fault}");
    assert_ne!(machine.allocate(100).unwrap(), a);
    assert_eq!(machine.used(), 201);
}

#[test]
fn pools_carve_pieces() {
    let machine = Machine::new(Options::default());
    let pool = machine.allocate(4096).unwrap();
    machine.fill(pool, 7, 4096).unwrap();
    machine.carve(pool + 256, 100).unwrap();
    machine.carve(pool + 512, 256).unwrap();
    // Between pieces nothing is alive any more, and pieces keep the bytes.
    let mut byte = [0];
    machine.read(pool + 256 + 99, &mut byte).unwrap();
    assert_eq!(byte, [7]);
    assert_eq!(machine.read(pool, &mut byte).unwrap_err().kind, Kind::OutOfBounds);
    assert!(machine.read(pool + 256 + 100, &mut byte).is_err());
    assert!(machine.write(pool + 300, &[0; 60]).unwrap_err().to_string().contains("allocation of 100 bytes"));
    assert!(machine.carve(pool + 355, 10).unwrap_err().to_string().contains("overlaps"));
    assert!(machine.carve(pool + 200, 57).unwrap_err().to_string().contains("overlaps"));
    assert!(machine.carve(pool + 4090, 7).unwrap_err().to_string().contains("lies in no allocation"));
    assert!(machine.carve(pool + 4090, u64::MAX).is_err() && machine.carve(16, 4).is_err());
    machine.release(pool + 256).unwrap();
    assert_eq!(machine.read(pool + 256, &mut byte).unwrap_err().kind, Kind::UseAfterFree);
    assert!(machine.release(pool + 256).is_err());
    machine.carve(pool + 200, 300).unwrap();
    machine.free(pool).unwrap();
    assert_eq!(machine.read(pool + 512, &mut byte).unwrap_err().kind, Kind::UseAfterFree);
    assert_eq!(machine.used(), 0);
    // A kernel meets the ends of pieces.
    let pool = machine.allocate(4096).unwrap();
    machine.carve(pool, 12).unwrap();
    let program = Program::parse("test.ptx", &entry(1, BLOCKS)).unwrap();
    assert!(machine.launch(&program, &launch([3, 1, 1], [1; 3], &pool.to_le_bytes())).is_ok());
    let fault = machine.launch(&program, &launch([4, 1, 1], [1; 3], &pool.to_le_bytes())).unwrap_err();
    assert_eq!((fault.kind, fault.site.block), (Kind::OutOfBounds, Some([3, 0, 0])));
}

#[test]
fn samples_and_orders() {
    let program = Program::parse("test.ptx", &entry(1, BLOCKS)).unwrap();
    let machine = Machine::new(Options::default());
    let out = machine.allocate(400).unwrap();
    let run = |launch: Launch<'_>| -> (Vec<u32>, Counters) {
        machine.fill(out, 0xff, 400).unwrap();
        let counters = machine.launch(&program, &launch).unwrap();
        let mut bytes = vec![0; 400];
        machine.read(out, &mut bytes).unwrap();
        (as_words(&bytes), counters)
    };
    let parameters = out.to_le_bytes();
    let all = launch([100, 1, 1], [32, 1, 1], &parameters);
    let (found, counters) = run(all.clone());
    assert_eq!(found, (0..100).collect::<Vec<u32>>());
    assert_eq!((counters.blocks, counters.blocks_run, counters.warps), (100, 100, 100));
    for seed in [1, 2, 77] {
        assert_eq!(run(Launch { seed, ..all.clone() }).0, found);
    }
    let (found, counters) = run(Launch { sample: Some(&[0, 99, 7]), ..all.clone() });
    let wanted: Vec<u32> = (0..100).map(|i| if [0, 7, 99].contains(&i) { i } else { u32::MAX }).collect();
    assert_eq!((found, counters.blocks, counters.blocks_run), (wanted, 100, 3));
}

#[test]
fn one_host_thread_and_many_write_and_count_the_same() {
    let program = Program::parse("test.ptx", &entry(1, BLOCKS)).unwrap();
    // Enough work that the caller's thread gets help.
    const COUNT: u32 = 10_000;
    let run = |threads: usize| {
        let machine = Machine::new(Options { threads, ..Options::default() });
        let out = machine.allocate(4 * u64::from(COUNT)).unwrap();
        let parameters = out.to_le_bytes();
        let counters = machine.launch(&program, &launch([COUNT, 1, 1], [32, 1, 1], &parameters)).unwrap();
        let mut bytes = vec![0; 4 * COUNT as usize];
        machine.read(out, &mut bytes).unwrap();
        (as_words(&bytes), counters)
    };
    let single = run(1);
    assert_eq!(single.0, (0..COUNT).collect::<Vec<u32>>());
    assert_eq!(run(0), single);
    assert_eq!(run(4), single);
}

#[test]
fn seeds_change_the_order_of_warps_and_blocks() {
    // Each warp takes a ticket; the order of tickets is the order of warps.
    let text = ".reg .pred %q; .reg .b32 %r, %t, %l; .reg .b64 %a, %w;\nmov.u32 %l, %laneid;\nsetp.ne.u32 %q, %l, 0;\n@%q ret;\n\
                atom.global.add.u32 %t, [%p0], 1;\nmov.u32 %r, %warpid;\nmul.wide.u32 %w, %t, 4;\nadd.s64 %a, %p0, %w;\nst.global.u32 [%a+4], %r;";
    let program = Program::parse("test.ptx", &entry(1, text)).unwrap();
    let order = |seed: u64| {
        let machine = Machine::new(Options { threads: 1, ..Options::default() });
        let out = machine.allocate(36).unwrap();
        machine.fill(out, 0, 36).unwrap();
        let parameters = out.to_le_bytes();
        machine.launch(&program, &Launch { seed, ..launch([1; 3], [256, 1, 1], &parameters) }).unwrap();
        let mut bytes = vec![0; 36];
        machine.read(out, &mut bytes).unwrap();
        as_words(&bytes)[1..].to_vec()
    };
    assert_eq!(order(0), (0..8).collect::<Vec<u32>>());
    let other = order(5);
    assert_ne!(other, order(0));
    assert_eq!(other, order(5));
    assert!((1..20).map(order).any(|found| found != other));
}

#[test]
fn the_first_fault_in_order_is_reported() {
    // Blocks from 60 on write out of bounds; the report names block 60 on any number of host threads.
    let program = Program::parse("test.ptx", &entry(1, BLOCKS)).unwrap();
    for threads in [1, 2, 8] {
        let machine = Machine::new(Options { threads, ..Options::default() });
        let out = machine.allocate(240).unwrap();
        let fault =
            machine.launch(&program, &launch([4000, 1, 1], [32, 1, 1], &out.to_le_bytes())).unwrap_err();
        assert_eq!(fault.site.block, Some([60, 0, 0]));
    }
}

#[test]
fn what_a_launch_counts() {
    let text = ".reg .pred %q; .reg .b32 %r, %t; .reg .b64 %a, %w; .reg .f32 %f;\n.shared .align 4 .b8 room[128];\n\
                mov.u32 %t, %tid.x;\nmul.wide.u32 %w, %t, 4;\nadd.s64 %a, %p0, %w;\nld.global.f32 %f, [%a];\nadd.f32 %f, %f, %f;\nex2.approx.f32 %f, %f;\n\
                st.shared.f32 [room], %f;\nbar.sync 0;\nsetp.lt.u32 %q, %t, 8;\n@%q bra SKIP;\nst.global.f32 [%a], %f;\nSKIP:";
    let program = Program::parse("test.ptx", &entry(1, text)).unwrap();
    let machine = Machine::new(Options::default());
    let out = machine.allocate(128).unwrap();
    machine.write(out, &words([0; 32])).unwrap();
    let counters = machine.launch(&program, &launch([2, 1, 1], [32, 1, 1], &out.to_le_bytes())).unwrap();
    let classes = [
        Class::Integer,
        Class::Float,
        Class::Special,
        Class::Global,
        Class::Shared,
        Class::Barrier,
        Class::Control,
        Class::Move,
    ];
    // Per warp: mul, add and setp; add.f32; ex2; ld and st; st.shared; bar; bra and ret; ld.param and mov.
    assert_eq!(classes.map(|class| counters.of(class)), [6, 2, 2, 4, 2, 2, 4, 4]);
    assert_eq!(counters.warp_instructions(), 26);
    assert_eq!(counters.thread_instructions[Class::Global as usize], 2 * (32 + 24));
    assert_eq!((counters.divergent_branches, counters.warps), (2, 2));
    assert_eq!((counters.global_read_bytes, counters.global_write_bytes), (2 * 128, 2 * 96));
    assert_eq!((counters.shared_read_bytes, counters.shared_write_bytes), (0, 2 * 128));
    assert_eq!(counters.matrix_multiply_adds, 0);
}

//! Loads, stores, atomics, asynchronous copies; every space, every width.
//! One file, though long: each instruction has its known answers in every space, and nothing else is here.

use super::{as_words, entry, file, launch, run, words};
use latch::sim::{Kind, Launch, Machine, Options, Program};

const HEAD: &str = ".reg .pred %q<9>; .reg .b16 %h<9>; .reg .b32 %t, %r<9>, %s; .reg .b64 %a, %b, %w, %d<9>;\nmov.u32 %t, %tid.x;\nmul.wide.u32 %w, %t, 4;\nadd.s64 %a, %p0, %w;\n";

fn one(text: &str, threads: u32, arrays: &mut [Vec<u8>]) {
    let parameters = arrays.len();
    if let Err(fault) = run(&entry(parameters, &format!("{HEAD}{text}")), threads, arrays) {
        panic!("{text}: {fault}");
    }
}

#[test]
fn widths_and_signs() {
    // (type, register, what a byte pattern of ff 80 01 .. becomes in 64 bits)
    let pattern = vec![0x80, 0xff, 0x7f, 0x81, 1, 2, 3, 0x84];
    let table = [
        ("u8", "%r1", 0x80),
        ("s8", "%r1", 0xffff_ff80),
        ("b8", "%r1", 0x80),
        ("u16", "%r1", 0xff80),
        ("s16", "%r1", 0xffff_ff80),
        ("u32", "%r1", 0x817f_ff80),
        ("s32", "%r1", 0x817f_ff80),
        ("f32", "%r1", 0x817f_ff80),
        ("u8", "%d1", 0x80),
        ("s8", "%d1", 0xffff_ffff_ffff_ff80),
        ("s16", "%d1", 0xffff_ffff_ffff_ff80),
        ("u32", "%d1", 0x817f_ff80),
        ("s32", "%d1", 0xffff_ffff_817f_ff80),
        ("u64", "%d1", 0x8403_0201_817f_ff80),
        ("f64", "%d1", 0x8403_0201_817f_ff80u64),
        ("s8", "%h1", 0xff80),
        ("u8", "%h1", 0x80),
        ("b16", "%h1", 0xff80),
    ];
    for (ty, register, wanted) in table {
        let widen = match &register[1..2] {
            "r" => "cvt.u64.u32 %d2, %r1;",
            "h" => "cvt.u64.u16 %d2, %h1;",
            _ => "mov.u64 %d2, %d1;",
        };
        let mut arrays = [pattern.clone(), vec![0; 8]];
        one(
            &format!("ld.global.{ty} {register}, [%p0];\n{widen}\nst.global.u64 [%p1], %d2;"),
            1,
            &mut arrays,
        );
        assert_eq!(u64::from_le_bytes(arrays[1][..].try_into().unwrap()), wanted, "ld.{ty} {register}");
    }
    for (ty, register, bytes) in [
        ("u8", "%r1", 1),
        ("b8", "%d1", 1),
        ("u16", "%h1", 2),
        ("s16", "%r1", 2),
        ("b32", "%r1", 4),
        ("u32", "%d1", 4),
        ("f64", "%d1", 8),
        ("b64", "%d1", 8),
    ] {
        let mut arrays = [vec![0xee; 16]];
        let text = format!(
            "mov.u32 %r1, 0x44332211; mov.u16 %h1, 0x2211; mov.u64 %d1, 0x8877665544332211;\nst.global.{ty} [%p0+8], {register};"
        );
        one(&text, 1, &mut arrays);
        let mut wanted = vec![0xee; 16];
        wanted[8..8 + bytes].copy_from_slice(&[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88][..bytes]);
        assert_eq!(arrays[0], wanted, "st.{ty} {register}");
    }
}

#[test]
fn neighbouring_halves_and_bytes() {
    for (ty, bytes) in [("u8", 1), ("u16", 2)] {
        // Thread t stores to place t + 1, so words are shared between threads.
        let text = format!(
            "mul.wide.u32 %w, %t, {bytes};\nadd.s64 %a, %p0, %w;\nadd.u32 %r1, %t, 100;\nst.global.{ty} [%a+{bytes}], %r1;"
        );
        let mut arrays = [vec![0; 34 * bytes]];
        one(&text, 32, &mut arrays);
        let wanted: Vec<u8> = (0..34u32)
            .flat_map(|i| {
                if (1..33).contains(&i) { (99 + i).to_le_bytes()[..bytes].to_vec() } else { vec![0; bytes] }
            })
            .collect();
        assert_eq!(arrays[0], wanted);
        // Every other thread.
        let text = format!(
            "and.b32 %s, %t, 1;\nsetp.eq.u32 %q1, %s, 1;\n{}",
            text.replace("st.global", "@%q1 st.global")
        );
        let mut arrays = [vec![0; 34 * bytes]];
        one(&text, 32, &mut arrays);
        let wanted: Vec<u8> = (0..34u32)
            .flat_map(|i| {
                if (1..33).contains(&i) && i % 2 == 0 {
                    (99 + i).to_le_bytes()[..bytes].to_vec()
                } else {
                    vec![0; bytes]
                }
            })
            .collect();
        assert_eq!(arrays[0], wanted);
    }
}

#[test]
fn vectors() {
    let source: Vec<u8> = (0..32).collect();
    for (ty, count, register) in [
        ("u8", 4, "r"),
        ("u16", 2, "h"),
        ("u16", 4, "h"),
        ("f32", 2, "r"),
        ("u32", 4, "r"),
        ("b32", 4, "r"),
        ("f64", 2, "d"),
        ("u64", 2, "d"),
        ("u8", 2, "h"),
    ] {
        let list: Vec<String> = (1..=count).map(|i| format!("%{register}{i}")).collect();
        let list = list.join(", ");
        for hint in ["", ".nc", ".ca", ".cg", ".cs", ".lu", ".nc.L1::no_allocate.L2::128B", ".L2::256B"] {
            let mut arrays = [source.clone(), vec![0; 32]];
            one(
                &format!(
                    "ld.global{hint}.v{count}.{ty} {{{list}}}, [%p0+16];\nst.global.v{count}.{ty} [%p1+16], {{{list}}};"
                ),
                1,
                &mut arrays,
            );
            let bytes = count * ty[1..].parse::<usize>().unwrap() / 8;
            assert_eq!(arrays[1][16..16 + bytes], source[16..16 + bytes], "{hint}.v{count}.{ty}");
            assert!(arrays[1][16 + bytes..].iter().all(|&b| b == 0));
        }
    }
    // A part that nobody wants.
    let mut arrays = [source.clone(), vec![0; 4]];
    one("ld.global.v4.u32 {_, _, %r1, _}, [%p0];\nst.global.u32 [%p1], %r1;", 1, &mut arrays);
    assert_eq!(arrays[1], source[8..12]);
    // Immediates are stored too.
    let mut arrays = [vec![0; 8]];
    one("st.global.v2.u32 [%p0], {7, -1};", 1, &mut arrays);
    assert_eq!(as_words(&arrays[0]), [7, u32::MAX]);
}

#[test]
fn orderings_are_read() {
    for (load, store) in [
        ("volatile.global", "volatile.global"),
        ("relaxed.gpu.global", "relaxed.gpu.global"),
        ("acquire.gpu.global", "release.gpu.global"),
        ("acquire.sys.global", "release.cta.global"),
        ("weak.global", "weak.global"),
        ("global.cv", "global.wt"),
        ("relaxed.sys", "release.gpu"),
    ] {
        let mut arrays = [words([41]), words([0])];
        one(
            &format!("ld.{load}.u32 %r1, [%p0];\nadd.u32 %r1, %r1, 1;\nst.{store}.u32 [%p1], %r1;"),
            1,
            &mut arrays,
        );
        assert_eq!(as_words(&arrays[1]), [42], "{load}");
    }
}

#[test]
fn shared_static_dynamic_and_generic() {
    // Static arrays, one of them outside the entry, then the dynamic part; a generic pointer to each.
    let text = format!(
        ".shared .align 8 .b8 outside[128];\n.extern .shared .align 16 .b8 dynamic[];\n.visible .entry f(.param .u64 f_0)\n{{\n.reg .b64 %p0;\nld.param.u64 %p0, [f_0];\n{HEAD}\
         .shared .align 4 .b8 inside[132];\n\
         mov.u64 %d1, outside;\nadd.s64 %d1, %d1, %w;\nst.shared.u32 [%d1], %t;\n\
         mov.u64 %d2, inside;\nadd.s64 %d2, %d2, %w;\nadd.u32 %r1, %t, 100;\nst.shared.u32 [%d2+4], %r1;\n\
         mov.u32 %r2, dynamic;\nshl.b32 %r3, %t, 2;\nadd.u32 %r2, %r2, %r3;\nadd.u32 %r4, %t, 1000;\nst.shared.u32 [%r2], %r4;\n\
         bar.sync 0;\n\
         cvta.shared.u64 %d3, %d1;\nld.u32 %r5, [%d3];\nld.shared.u32 %r6, [%d2+4];\n\
         cvt.u64.u32 %d4, %r2;\ncvta.shared.u64 %d4, %d4;\nisspacep.shared %q1, %d4;\nisspacep.global %q2, %d4;\nisspacep.global %q3, %a;\n\
         @%q1 ld.u32 %r7, [%d4];\n@%q2 add.u32 %r7, %r7, 50000;\n@!%q3 add.u32 %r7, %r7, 50000;\n\
         cvta.to.shared.u64 %d5, %d4;\ncvt.u32.u64 %r8, %d5;\nsetp.ne.u32 %q4, %r8, %r2;\n@%q4 add.u32 %r7, %r7, 70000;\n\
         add.u32 %r5, %r5, %r6;\nadd.u32 %r5, %r5, %r7;\nst.global.u32 [%a], %r5;\nret;\n}}\n"
    );
    let mut arrays = [words([0; 32])];
    launch(&file(&text), [1; 3], [32, 1, 1], 128, &mut arrays).unwrap();
    assert_eq!(as_words(&arrays[0]), (0..32).map(|t| 3 * t + 1100).collect::<Vec<u32>>());
    // Without dynamic shared memory the same access is out of bounds.
    let fault = launch(&file(&text), [1; 3], [32, 1, 1], 0, &mut arrays).unwrap_err();
    assert_eq!(fault.kind, Kind::OutOfBounds);
    assert!(fault.to_string().contains("shared memory"), "{fault}");
}

#[test]
fn generic_addresses_of_several_spaces_at_once() {
    let text = ".shared .align 4 .b8 room[128];\nmov.u64 %d1, room;\nadd.s64 %d1, %d1, %w;\ncvta.shared.u64 %d1, %d1;\n\
                setp.lt.u32 %q1, %t, 9;\nselp.b64 %d2, %d1, %a, %q1;\nadd.u32 %r1, %t, 5;\nst.u32 [%d2], %r1;\nld.u32 %r2, [%d2];\nst.global.u32 [%a], %r2;";
    let mut arrays = [words([0; 32])];
    one(text, 32, &mut arrays);
    assert_eq!(as_words(&arrays[0]), (5..37).collect::<Vec<u32>>());
}

#[test]
fn local_memory_belongs_to_its_thread() {
    let text = ".local .align 8 .b8 __local_depot0[16];\n.reg .b64 %SP, %SPL;\nmov.u64 %SPL, __local_depot0;\ncvta.local.u64 %SP, %SPL;\n\
                add.u64 %d1, %SP, 8;\nadd.u64 %d2, %SPL, 4;\nst.u32 [%d1], %t;\nmul.lo.u32 %r1, %t, 2;\nst.local.u32 [%d2], %r1;\n\
                ld.local.v2.u32 {%r2, %r3}, [%SPL+8];\nld.u32 %r4, [%SP+4];\nadd.u32 %r4, %r4, %r2;\nst.global.u32 [%a], %r4;";
    let mut arrays = [words([0; 96])];
    one(text, 96, &mut arrays);
    assert_eq!(as_words(&arrays[0]), (0..96).map(|t| 3 * t).collect::<Vec<u32>>());
    let fault = run(
        &entry(1, &format!("{HEAD}{}", text.replace("[%SPL+8]", "[%SPL+16]"))),
        32,
        &mut [words([0; 32])],
    )
    .unwrap_err();
    assert_eq!(fault.kind, Kind::OutOfBounds);
    assert!(fault.to_string().contains("16 bytes of local memory"), "{fault}");
}

#[test]
fn variables_and_parameters() {
    let text = file(
        ".global .align 4 .u32 counter = 40;\n.global .align 8 .b8 table[8] = {1, 0, 0, 0, 2, 0, 0, 0};\n.const .align 4 .f32 scale = 0f40000000;\n\
         .global .align 4 .f32 list[2] = {1.5, -2.5};\n.global .align 16 .v4 .u32 wide = {1, 2, 3, 4};\n.global .align 4 .b8 empty[4];\n.global .s32 minus = -1;\n\
         .global .align 8 .u64 pointers[2] = {generic(table), list+4};\n\
         .visible .entry f(.param .u64 f_0, .param .align 4 .b8 f_1[12], .param .f32 f_2, .param .u16 f_3)\n{\n\
         .reg .pred %q1; .reg .b64 %p, %d<9>; .reg .b32 %r<20>; .reg .b16 %h; .reg .f32 %f<9>;\nld.param.u64 %p, [f_0];\n\
         ld.global.u32 %r1, [counter];\nadd.u32 %r1, %r1, 1;\nst.global.u32 [counter], %r1;\n\
         mov.u64 %d1, table;\nld.global.u32 %r2, [%d1+4];\nld.const.f32 %f1, [scale];\nld.global.f32 %f2, [list+4];\nmul.f32 %f1, %f1, %f2;\n\
         ld.global.v4.u32 {%r3, %r4, %r5, %r6}, [wide];\nadd.u32 %r3, %r3, %r6;\nld.global.u32 %r7, [empty];\nadd.u32 %r3, %r3, %r7;\n\
         ld.global.u64 %d4, [pointers];\nld.u32 %r13, [%d4];\nld.global.u64 %d4, [pointers+8];\nld.u32 %r14, [%d4];\nmov.b32 %f4, %r14;\nsetp.eq.f32 %q1, %f4, %f2;\n@%q1 add.u32 %r3, %r3, %r13;\n\
         ld.global.s32 %r8, [minus];\nld.param.u32 %r9, [f_1+4];\nmov.b64 %d2, f_1;\nld.param.u32 %r10, [%d2+8];\nadd.u32 %r9, %r9, %r10;\nld.param.f32 %f3, [f_2];\nld.param.u16 %h, [f_3];\ncvt.u32.u16 %r11, %h;\n\
         cvta.param.u64 %d3, %d2;\nld.u32 %r12, [%d3];\nadd.u32 %r11, %r11, %r12;\n\
         st.global.v4.u32 [%p], {%r1, %r2, %r3, %r8};\nst.global.v2.f32 [%p+16], {%f1, %f3};\nst.global.v2.u32 [%p+24], {%r9, %r11};\nret;\n}\n",
    );
    let program = Program::parse("test.ptx", &text).unwrap();
    let entry = program.entry("f").unwrap();
    let layout: Vec<(u32, u32)> = entry.parameters.iter().map(|p| (p.offset, p.bytes)).collect();
    assert_eq!((layout, entry.parameter_bytes), (vec![(0, 8), (8, 12), (20, 4), (24, 2)], 26));
    let machine = Machine::new(Options::default());
    let out = machine.allocate(32).unwrap();
    let mut parameters = out.to_le_bytes().to_vec();
    parameters.extend(words([100, 10, 20, 1.25f32.to_bits()]));
    parameters.extend(7u16.to_le_bytes());
    let launch = Launch {
        entry: "f",
        grid: [1; 3],
        block: [1; 3],
        dynamic_shared: 0,
        parameters: &parameters,
        sample: None,
        seed: 0,
    };
    for round in 1..3 {
        machine.launch(&program, &launch).unwrap();
        let mut bytes = vec![0; 32];
        machine.read(out, &mut bytes).unwrap();
        // The counter keeps what a launch wrote.
        assert_eq!(
            as_words(&bytes),
            [40 + round, 2, 6, u32::MAX, (-5f32).to_bits(), 1.25f32.to_bits(), 30, 107]
        );
    }
    let counter = machine.variable(&program, "counter").unwrap();
    machine.write(counter, &words([90])).unwrap();
    machine.launch(&program, &launch).unwrap();
    let mut bytes = vec![0; 4];
    machine.read(counter, &mut bytes).unwrap();
    assert_eq!(as_words(&bytes), [91]);
    assert!(machine.variable(&program, "nothing").unwrap_err().to_string().contains("no variable `nothing`"));
}

#[test]
fn atomics_on_device_and_shared_memory() {
    // (instruction, first value, operand of lane t, last value after 32 lanes in order)
    let cases: [(&str, u32, &str, u32); 13] = [
        ("add.u32", 5, "%t", 5 + 496),
        ("add.s32", 5, "%t", 5 + 496),
        ("and.b32", 0xffff_ffff, "0xf0", 0xf0),
        ("or.b32", 0, "%t", 31),
        ("xor.b32", 1, "%t", 1),
        ("exch.b32", 0, "%t", 31),
        ("min.u32", 9, "%t", 0),
        ("max.u32", 9, "%t", 31),
        ("min.s32", 9, "-3", (-3i32) as u32),
        ("max.s32", 0xffff_ffff, "%t", 31),
        ("inc.u32", 0, "9", 2),
        ("dec.u32", 0, "9", 8),
        ("add.f32", 1f32.to_bits(), "0f3F000000", 17f32.to_bits()),
    ];
    for (name, first, operand, last) in cases {
        for returns in [true, false] {
            if !returns && name.starts_with("exch") {
                continue;
            }
            let (head, d) = if returns { ("atom", "%r1, ") } else { ("red", "") };
            for scope in ["", ".relaxed.gpu", ".acq_rel.cta"] {
                let mut arrays = [words([first])];
                one(&format!("{head}{scope}.global.{name} {d}[%p0], {operand};"), 32, &mut arrays);
                assert_eq!(as_words(&arrays[0]), [last], "{head}.global.{name}");
            }
            let mut arrays = [words([first])];
            one(
                &format!(
                    ".shared .align 4 .b8 room[4];\nld.global.u32 %r1, [%p0];\nst.shared.u32 [room], %r1;\nbar.warp.sync -1;\n{head}.shared.{name} {d}[room], {operand};\nbar.warp.sync -1;\nld.shared.u32 %r1, [room];\nst.global.u32 [%p0], %r1;"
                ),
                32,
                &mut arrays,
            );
            assert_eq!(as_words(&arrays[0]), [last], "{head}.shared.{name}");
        }
    }
    // The old values come back, lane by lane.
    let mut arrays = [words([0; 32]), words([7])];
    one("atom.global.add.u32 %r1, [%p1], 2;\nst.global.u32 [%a], %r1;", 32, &mut arrays);
    assert_eq!(as_words(&arrays[0]), (0..32).map(|t| 7 + 2 * t).collect::<Vec<u32>>());
    let mut arrays = [words([0; 32]), words([3])];
    one("atom.global.cas.b32 %r1, [%p1], 3, 4;\nst.global.u32 [%a], %r1;", 32, &mut arrays);
    assert_eq!(as_words(&arrays[0]), [vec![3], vec![4; 31]].concat());
    // A generic address finds its space.
    let mut arrays = [words([5])];
    one("atom.add.u32 %r1, [%p0], 1;", 32, &mut arrays);
    assert_eq!(as_words(&arrays[0]), [37]);
}

#[test]
fn atomics_of_other_widths() {
    let wide = |name: &str, first: u64, operand: &str| {
        let mut arrays = [first.to_le_bytes().to_vec()];
        one(
            &format!(
                "mov.u64 %d1, {operand};\nred.global.{name} [%p0], %d1;\n.shared .align 8 .b8 room[8];\natom.shared.{name} %d2, [room], %d1;"
            ),
            32,
            &mut arrays,
        );
        u64::from_le_bytes(arrays[0][..].try_into().unwrap())
    };
    assert_eq!(wide("add.u64", 1 << 40, "0x100000000"), (1 << 40) + (32 << 32));
    assert_eq!(wide("max.u64", 5, "0x8000000000000000"), 1 << 63);
    assert_eq!(wide("min.s64", 5, "-9"), (-9i64) as u64);
    assert_eq!(wide("max.s64", 5, "-9"), 5);
    assert_eq!(wide("min.u64", 5, "-9"), 5);
    assert_eq!(wide("and.b64", u64::MAX, "0xf00000000f"), 0xf0_0000_000f);
    assert_eq!(wide("or.b64", 1, "0xf000000000"), 0xf0_0000_0001);
    assert_eq!(wide("xor.b64", 1, "0xf000000000"), 1);
    assert_eq!(wide("add.f64", 1f64.to_bits(), "0d3FE0000000000000"), 17f64.to_bits());
    let mut arrays = [7u64.to_le_bytes().to_vec()];
    one(
        "mov.u64 %d1, 7;\nmov.u64 %d2, 0xffffffffff;\natom.global.cas.b64 %d3, [%p0], %d1, %d2;\natom.global.exch.b64 %d4, [%p0], %d2;",
        1,
        &mut arrays,
    );
    assert_eq!(arrays[0][..], 0xff_ffff_ffffu64.to_le_bytes());
    // Halves: the neighbour in the same word stays.
    let mut arrays = [vec![0x00, 0x3c, 0x34, 0x12]];
    one("mov.b16 %h1, 0x3c00;\natom.global.add.noftz.f16 %h2, [%p0], %h1;", 3, &mut arrays);
    assert_eq!(arrays[0], [0x00, 0x44, 0x34, 0x12]);
    let mut arrays = [vec![0, 0, 0x80, 0x3f]];
    one("mov.b16 %h1, 0x3f80;\nred.global.add.noftz.bf16 [%p0+2], %h1;", 3, &mut arrays);
    assert_eq!(arrays[0], [0, 0, 0x80, 0x40]);
    let mut arrays = [words([0x3c00_3c00])];
    one("mov.b32 %r1, 0x40003c00;\nred.global.add.noftz.f16x2 [%p0], %r1;", 2, &mut arrays);
    assert_eq!(as_words(&arrays[0]), [0x4500_4200]);
    let mut arrays = [words([0x3f80_3f80])];
    one("mov.b32 %r1, 0x40003f80;\nred.global.add.noftz.bf16x2 [%p0], %r1;", 2, &mut arrays);
    assert_eq!(as_words(&arrays[0]), [0x40a0_4040]);
    let mut arrays = [vec![1, 0, 2, 0]];
    one("mov.b16 %h1, 2;\nmov.b16 %h2, 9;\natom.global.cas.b16 %h3, [%p0+2], %h1, %h2;", 1, &mut arrays);
    assert_eq!(arrays[0], [1, 0, 9, 0]);
    // f32 sums flush subnormals in device memory and keep them in shared memory.
    let mut arrays = [words([1])];
    one("red.global.add.f32 [%p0], 0f00000001;", 1, &mut arrays);
    assert_eq!(as_words(&arrays[0]), [0]);
    let mut arrays = [words([1])];
    one(
        ".shared .align 4 .b8 room[4];\nmov.u32 %r1, 1;\nst.shared.u32 [room], %r1;\nred.shared.add.f32 [room], 0f00000001;\nld.shared.u32 %r1, [room];\nst.global.u32 [%p0], %r1;",
        1,
        &mut arrays,
    );
    assert_eq!(as_words(&arrays[0]), [2]);
}

#[test]
fn atomics_of_many_blocks_on_many_host_threads() {
    let text = entry(
        2,
        &format!(
            "{HEAD}red.global.add.u32 [%p0], 1;\nred.global.add.u64 [%p1], 4294967297;\natom.global.add.u32 %r1, [%p0+4], 3;"
        ),
    );
    let mut arrays = [words([0, 0]), vec![0; 8]];
    launch(&text, [500, 1, 1], [64, 1, 1], 0, &mut arrays).unwrap();
    assert_eq!(as_words(&arrays[0]), [32_000, 96_000]);
    assert_eq!(as_words(&arrays[1]), [32_000, 32_000]);
}

/// A kernel that copies words 4t..4t+4 of array 0 to shared memory and then stores what shared memory holds to array 1.
fn copying(copy: &str, wait: &str) -> String {
    let text = format!(
        "{HEAD}.shared .align 16 .b8 room[512];\nmul.wide.u32 %w, %t, 16;\nadd.s64 %a, %p0, %w;\nadd.s64 %b, %p1, %w;\nmov.u64 %d1, room;\nadd.s64 %d1, %d1, %w;\ncvt.u32.u64 %r8, %d1;\n\
         mov.u32 %r1, 77;\nst.shared.v4.u32 [%d1], {{%r1, %r1, %r1, %r1}};\n{copy}\n{wait}\nld.shared.v4.u32 {{%r1, %r2, %r3, %r4}}, [%d1];\nst.global.v4.u32 [%b], {{%r1, %r2, %r3, %r4}};"
    );
    entry(2, &text)
}

fn copied(copy: &str, wait: &str) -> Vec<u32> {
    let mut arrays = [words(0..128), words([0; 128])];
    if let Err(fault) = run(&copying(copy, wait), 32, &mut arrays) {
        panic!("{fault}");
    }
    as_words(&arrays[1])
}

#[test]
fn copies_arrive_when_they_are_waited_for() {
    let whole: Vec<u32> = (0..128).collect();
    let copy = "cp.async.cg.shared.global [%r8], [%a], 16;\ncp.async.commit_group;";
    assert_eq!(copied(copy, "cp.async.wait_group 0;"), whole);
    assert_eq!(copied(copy, "cp.async.wait_all;"), whole);
    assert_eq!(copied("cp.async.ca.shared.global.L2::128B [%d1], [%a], 16;", "cp.async.wait_all;"), whole);
    // Nothing has arrived before the wait, nor for a group that may stay under way, nor for one that is not closed.
    assert_eq!(copied(copy, ""), vec![77; 128]);
    assert_eq!(copied(copy, "cp.async.wait_group 1;"), vec![77; 128]);
    assert_eq!(copied("cp.async.cg.shared.global [%r8], [%a], 16;", "cp.async.wait_group 0;"), vec![77; 128]);
    assert_eq!(copied(copy, "cp.async.commit_group;\ncp.async.wait_group 1;"), whole);
    // Four and eight bytes.
    let four: Vec<u32> = (0..128).map(|i| if i % 4 == 0 { i } else { 77 }).collect();
    assert_eq!(copied("cp.async.ca.shared.global [%r8], [%a], 4;", "cp.async.wait_all;"), four);
    let eight: Vec<u32> = (0..128).map(|i| if i % 4 < 2 { i } else { 77 }).collect();
    assert_eq!(copied("cp.async.ca.shared::cta.global [%r8], [%a], 8;", "cp.async.wait_all;"), eight);
    // The source may change after the copy was issued.
    let late = "cp.async.cg.shared.global [%r8], [%a], 16;\nst.global.u32 [%a], %r1;";
    assert_eq!(copied(late, "cp.async.wait_all;"), whole);
}

#[test]
fn copies_of_a_part_fill_with_zeros() {
    let part = |bytes: u32| (0..128).map(|i| if i % 4 * 4 < bytes { i } else { 0 }).collect::<Vec<u32>>();
    assert_eq!(copied("cp.async.cg.shared.global [%r8], [%a], 16, 8;", "cp.async.wait_all;"), part(8));
    assert_eq!(
        copied("mov.u32 %r7, 0;\ncp.async.cg.shared.global [%r8], [%a], 16, %r7;", "cp.async.wait_all;"),
        part(0)
    );
    // Nothing is read where nothing is wanted: the address may lie anywhere.
    assert_eq!(
        copied(
            "mov.u32 %r7, 0;\nmov.u64 %d5, 16;\ncp.async.cg.shared.global [%r8], [%d5], 16, %r7;",
            "cp.async.wait_all;"
        ),
        part(0)
    );
    let half = "setp.lt.u32 %q1, %t, 16;\ncp.async.cg.shared.global [%r8], [%a], 16, %q1;";
    let wanted: Vec<u32> = (0..128).map(|i| if i < 64 { 0 } else { i }).collect();
    assert_eq!(copied(half, "cp.async.wait_all;"), wanted);
    // Lanes that a guard keeps away copy nothing.
    let guarded = "setp.lt.u32 %q1, %t, 16;\n@%q1 cp.async.cg.shared.global [%r8], [%a], 16;";
    let wanted: Vec<u32> = (0..128).map(|i| if i < 64 { i } else { 77 }).collect();
    assert_eq!(copied(guarded, "cp.async.wait_all;"), wanted);
}

#[test]
fn accesses_outside_name_what_is_near() {
    let text = |offset: i64| entry(1, &format!("{HEAD}ld.global.u32 %r1, [%a+{offset}];"));
    let launch = |offset: i64| run(&text(offset), 40, &mut [words([0; 40])]).unwrap_err();
    let fault = launch(4);
    assert_eq!(fault.kind, Kind::OutOfBounds);
    assert_eq!((fault.site.thread, fault.site.block), (Some([39, 0, 0]), Some([0, 0, 0])));
    let sentence = fault.to_string();
    assert!(
        sentence.contains("test.ptx:")
            && sentence.contains("4 bytes past the end of the allocation of 160 bytes"),
        "{sentence}"
    );
    assert_eq!(
        launch(4).site.line,
        text(4).lines().position(|l| l.contains("ld.global.u32 %r1")).unwrap() as u32 + 1
    );
    assert_eq!(launch(-4).site.thread, Some([0, 0, 0]));
    assert!(launch(-4).to_string().contains("4 bytes before the allocation"), "{}", launch(-4));
    // One byte is enough.
    let fault =
        run(&entry(1, &format!("{HEAD}ld.global.u8 %r1, [%p0+9];")), 1, &mut [vec![0; 9]]).unwrap_err();
    assert!(fault.to_string().contains("1 bytes past the end of the allocation of 9 bytes"), "{fault}");
    let fault = run(
        &entry(1, &format!("{HEAD}ld.global.v4.f32 {{%r1, %r2, %r3, %r4}}, [%p0+4];")),
        1,
        &mut [vec![0; 64]],
    )
    .unwrap_err();
    assert_eq!(fault.kind, Kind::Misaligned);
    let fault = run(&entry(1, &format!("{HEAD}red.global.add.u64 [%p0+4], %d1;")), 1, &mut [vec![0; 64]])
        .unwrap_err();
    assert_eq!(fault.kind, Kind::Misaligned);
    let fault = run(
        &entry(1, &format!("{HEAD}.shared .align 4 .b8 room[64];\nst.shared.u32 [room+64], %t;")),
        1,
        &mut [vec![0; 64]],
    )
    .unwrap_err();
    assert!(
        fault.kind == Kind::OutOfBounds && fault.to_string().contains("shared memory has 64 bytes"),
        "{fault}"
    );
    let fault =
        run(&entry(1, &format!("{HEAD}mov.u64 %d1, 0;\nld.global.u32 %r1, [%d1];")), 1, &mut [vec![0; 64]])
            .unwrap_err();
    assert_eq!(fault.kind, Kind::OutOfBounds);
    let fault =
        run(&entry(1, &format!("{HEAD}ld.param.u64 %d1, [f_0+8];")), 1, &mut [vec![0; 64]]).unwrap_err();
    assert!(fault.to_string().contains("8 bytes of parameters"), "{fault}");
}

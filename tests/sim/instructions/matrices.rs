//! `ldmatrix` and `mma.sync`, against plain products over all lanes.

use super::{Words, as_words, entry, run, words};
use half::{bf16, f16};
use latch::sim::Kind;

/// The address of this lane's four words of an array, and registers.
const HEAD: &str = ".reg .b32 %t, %r<9>, %s; .reg .b64 %w, %a, %b; .reg .b32 %x<20>;\nmov.u32 %t, %tid.x;\nmul.wide.u32 %w, %t, 16;\n";

/// Runs an `mma` whose fragments lie in arrays, 16 bytes a lane each.
fn multiply(name: &str, counts: [usize; 4], a: &[u32], b: &[u32], c: &[u32]) -> Vec<u32> {
    let mut text = HEAD.to_string();
    let mut lists = Vec::new();
    let mut next = 0;
    for (i, &count) in counts[1..].iter().enumerate() {
        let registers: Vec<String> = (next..next + 4).map(|n| format!("%x{n}")).collect();
        text += &format!("add.s64 %a, %p{i}, %w;\nld.global.v4.u32 {{{}}}, [%a];\n", registers.join(", "));
        lists.push(format!("{{{}}}", registers[..count].join(", ")));
        next += 4;
    }
    let registers: Vec<String> = (12..16).map(|n| format!("%x{n}")).collect();
    let d = registers[..counts[0]].join(", ");
    text += &format!(
        "{name} {{{d}}}, {};\nadd.s64 %a, %p3, %w;\nst.global.v4.u32 [%a], {{{}}};",
        lists.join(", "),
        registers.join(", ")
    );
    let mut arrays = [a, b, c, &[0; 128]].map(|array| words(array.iter().copied()));
    if let Err(fault) = run(&entry(4, &text), 32, &mut arrays) {
        panic!("{name}: {fault}");
    }
    as_words(&arrays[3])
}

/// How the elements of a factor are stored.
struct Format {
    name: &'static str,
    /// Elements of a register.
    pack: usize,
    bits: fn(f32) -> u32,
    value: fn(u32) -> f32,
}

const FORMATS: [Format; 3] = [
    Format {
        name: "bf16",
        pack: 2,
        bits: |x| u32::from(bf16::from_f32(x).to_bits()),
        value: |b| bf16::from_bits(b as u16).to_f32(),
    },
    Format {
        name: "f16",
        pack: 2,
        bits: |x| u32::from(f16::from_f32(x).to_bits()),
        value: |b| f16::from_bits(b as u16).to_f32(),
    },
    Format { name: "tf32", pack: 1, bits: |x| x.to_bits() & !0x1fff, value: f32::from_bits },
];

/// Row and column of element `i` of a lane's part of A (16 rows), as the PTX manual tabulates it.
fn place_of_a(lane: usize, i: usize, pack: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane & 3);
    let (register, inner) = (i / pack, i % pack);
    let row = if register % 2 == 0 { group } else { group + 8 };
    let column = if pack == 2 {
        thread * 2 + inner + if register >= 2 { 8 } else { 0 }
    } else {
        thread + if register >= 2 { 4 } else { 0 }
    };
    (row, column)
}

/// Row and column of element `i` of a lane's part of B (8 columns).
fn place_of_b(lane: usize, i: usize, pack: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane & 3);
    let (register, inner) = (i / pack, i % pack);
    let row = if pack == 2 { thread * 2 + inner + 8 * register } else { thread + 4 * register };
    (row, group)
}

/// Row and column of element `i` of a lane's part of C and D.
fn place_of_c(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, (lane & 3) * 2 + (i & 1))
}

#[test]
fn products_of_every_shape() {
    for (shape, depth, format) in [
        ("m16n8k16", 16, 0),
        ("m16n8k8", 8, 0),
        ("m16n8k16", 16, 1),
        ("m16n8k8", 8, 1),
        ("m16n8k8", 8, 2),
        ("m16n8k4", 4, 2),
    ] {
        let Format { name, pack, bits, value } = FORMATS[format];
        let (a_registers, b_registers) = (16 * depth / 32 / pack, 8 * depth / 32 / pack);
        let mut draws = Words::new(81 + depth as u64);
        // Small integers and halves: every sum is exact, so the order of summation does not matter.
        let mut draw = || (draws.next() % 17) as f32 / 2.0 - 4.0;
        let a: Vec<Vec<f32>> = (0..16).map(|_| (0..depth).map(|_| draw()).collect()).collect();
        let b: Vec<Vec<f32>> = (0..depth).map(|_| (0..8).map(|_| draw()).collect()).collect();
        let c: Vec<Vec<f32>> = (0..16).map(|_| (0..8).map(|_| draw()).collect()).collect();
        let (mut a_words, mut b_words, mut c_words) = ([0; 128], [0; 128], [0; 128]);
        for lane in 0..32 {
            for i in 0..a_registers * pack {
                let (row, column) = place_of_a(lane, i, pack);
                a_words[4 * lane + i / pack] |= bits(a[row][column]) << (16 * (i % pack));
            }
            for i in 0..b_registers * pack {
                let (row, column) = place_of_b(lane, i, pack);
                b_words[4 * lane + i / pack] |= bits(b[row][column]) << (16 * (i % pack));
            }
            for i in 0..4 {
                let (row, column) = place_of_c(lane, i);
                c_words[4 * lane + i] = c[row][column].to_bits();
            }
        }
        assert_eq!(value(bits(1.5)), 1.5);
        let wanted = |row: usize, column: usize| {
            (0..depth).map(|k| a[row][k] * b[k][column]).sum::<f32>() + c[row][column]
        };
        let instruction = format!("mma.sync.aligned.{shape}.row.col.f32.{name}.{name}.f32");
        let found = multiply(&instruction, [4, a_registers, b_registers, 4], &a_words, &b_words, &c_words);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = place_of_c(lane, i);
                assert_eq!(
                    f32::from_bits(found[4 * lane + i]),
                    wanted(row, column),
                    "{instruction} ({row}, {column})"
                );
            }
        }
        if name == "f16" {
            let mut c_half = [0; 128];
            for lane in 0..32 {
                for i in 0..4 {
                    let (row, column) = place_of_c(lane, i);
                    c_half[4 * lane + i / 2] |= bits(c[row][column]) << (16 * (i % 2));
                }
            }
            let instruction = format!("mma.sync.aligned.{shape}.row.col.f16.f16.f16.f16");
            let found = multiply(&instruction, [2, a_registers, b_registers, 2], &a_words, &b_words, &c_half);
            for lane in 0..32 {
                for i in 0..4 {
                    let (row, column) = place_of_c(lane, i);
                    let got = value(found[4 * lane + i / 2] >> (16 * (i % 2)) & 0xffff);
                    assert_eq!(
                        got,
                        f16::from_f32(wanted(row, column)).to_f32(),
                        "{instruction} ({row}, {column})"
                    );
                }
            }
        }
    }
}

#[test]
fn products_may_overwrite_their_accumulator() {
    let one = u32::from(bf16::from_f32(1.0).to_bits()) * 0x1_0001;
    let text = format!(
        "{HEAD}mov.b32 %x0, {one};\nmov.b32 %x8, 0f00000000;\n\
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%x4, %x5, %x6, %x7}}, {{%x0, %x0, %x0, %x0}}, {{%x0, %x0}}, {{%x8, %x8, %x8, %x8}};\n\
        mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%x4, %x5, %x6, %x7}}, {{%x0, %x0, %x0, %x0}}, {{%x0, %x0}}, {{%x4, %x5, %x6, %x7}};\n\
        add.s64 %a, %p0, %w;\nst.global.v4.u32 [%a], {{%x4, %x5, %x6, %x7}};"
    );
    let mut arrays = [words([0; 128])];
    run(&entry(1, &text), 32, &mut arrays).unwrap();
    assert_eq!(as_words(&arrays[0]), vec![32f32.to_bits(); 128]);
}

#[test]
fn matrices_from_shared_memory() {
    // Shared memory holds halves 0, 1, 2, ...; matrix m's row r starts at half 64 m + 8 r.
    for (count, transposed) in [(1, false), (2, false), (4, false), (1, true), (2, true), (4, true)] {
        for generic in [false, true] {
            let registers: Vec<String> = (0..count).map(|i| format!("%x{i}")).collect();
            let trans = if transposed { ".trans" } else { "" };
            let space = if generic { "" } else { ".shared" };
            let convert = if generic { "cvta.shared.u64 %b, %b;" } else { "" };
            let text = format!(
                "{HEAD}.shared .align 16 .b8 room[512];\nmov.u64 %b, room;\nadd.s64 %b, %b, %w;\nadd.s64 %a, %p0, %w;\n\
                 ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%a];\nst.shared.v4.u32 [%b], {{%r1, %r2, %r3, %r4}};\nbar.warp.sync -1;\n{convert}\n\
                 ldmatrix.sync.aligned.m8n8.x{count}{trans}{space}.b16 {{{}}}, [%b];\nadd.s64 %a, %p1, %w;\nst.global.v4.u32 [%a], {{%x0, %x1, %x2, %x3}};",
                registers.join(", ")
            );
            let halves: Vec<u8> = (0..256u16).flat_map(u16::to_le_bytes).collect();
            let mut arrays = [halves, words([0; 128])];
            run(&entry(2, &text), 32, &mut arrays).unwrap();
            let found = as_words(&arrays[1]);
            for lane in 0..32 {
                for matrix in 0..count {
                    let element = |row: usize, column: usize| (64 * matrix + 8 * row + column) as u32;
                    let wanted = if transposed {
                        element(2 * (lane % 4), lane / 4) | element(2 * (lane % 4) + 1, lane / 4) << 16
                    } else {
                        element(lane / 4, 2 * (lane % 4)) | element(lane / 4, 2 * (lane % 4) + 1) << 16
                    };
                    assert_eq!(
                        found[4 * lane + matrix],
                        wanted,
                        "x{count}{trans} lane {lane} matrix {matrix}"
                    );
                }
            }
        }
    }
}

#[test]
fn matrices_need_the_whole_warp() {
    let product = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%x4, %x5, %x6, %x7}, {%x0, %x0, %x0, %x0}, {%x0, %x0}, {%x4, %x5, %x6, %x7};";
    let fault = run(&entry(0, &format!("{HEAD}{product}")), 20, &mut []).unwrap_err();
    assert_eq!(fault.kind, Kind::SyncMask);
    assert!(fault.to_string().contains("0x000fffff"), "{fault}");
    let load = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%x0}, [room+8];";
    let fault =
        run(&entry(0, &format!("{HEAD}.shared .align 16 .b8 room[512];\n{load}")), 32, &mut []).unwrap_err();
    assert_eq!(fault.kind, Kind::Misaligned);
    let load = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%x0}, [room+512];";
    let fault =
        run(&entry(0, &format!("{HEAD}.shared .align 16 .b8 room[512];\n{load}")), 32, &mut []).unwrap_err();
    assert_eq!(fault.kind, Kind::OutOfBounds);
}

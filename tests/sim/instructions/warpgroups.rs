//! `wgmma`, against plain sums over operands that the host lays out in shared memory.

use super::{Words, launch, words};
use half::bf16;
use latch::sim::{Fault, Kind};

const ROWS: usize = 64;
const DEPTH: usize = 16;
/// Where B begins in shared memory, 1024 bytes after the end of A.
const B_AT: usize = 9216;

/// Byte of a row of 128 bytes in atoms of eight rows, the place of its 16-byte chunk XORed with the row.
fn swizzled(row: usize, byte: usize) -> usize {
    row / 8 * 1024 + row % 8 * 128 + ((byte / 16) ^ (row % 8)) * 16 + byte % 16
}

/// An operand in shared memory: where it starts, how its index beside k lies, and its distances.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Byte at which the atoms begin, and bytes from there to the operand.
    at: usize,
    offset: usize,
    transposed: bool,
    lead: usize,
    stride: usize,
}

impl Layout {
    fn descriptor(&self) -> u64 {
        let units = |bytes: usize| bytes as u64 / 16;
        units(self.at + self.offset) | units(self.lead) << 16 | units(self.stride) << 32 | 1 << 62
    }

    /// Where the element (outer index, k) lies.
    fn byte(&self, outer: usize, k: usize) -> usize {
        let at = self.at + self.offset / 1024 * 1024;
        let offset = self.offset % 1024;
        if self.transposed {
            at + outer / 64 * self.lead + k / 8 * self.stride + swizzled(k % 8, offset + outer % 64 * 2)
        } else {
            at + outer / 8 * self.stride + swizzled(outer % 8, offset + k * 2)
        }
    }
}

/// A product of one warpgroup: the instruction's text and its descriptors.
struct Product {
    columns: usize,
    a: Layout,
    b: Layout,
    accumulates: bool,
    scales: [i32; 2],
}

impl Product {
    fn text(&self, before: &str, after: &str) -> String {
        let list: Vec<String> = (0..self.columns / 2).map(|i| format!("%f{i}")).collect();
        let p = if self.accumulates { "%yes" } else { "%no" };
        let flag = |layout: &Layout| u8::from(layout.transposed);
        format!(
            "mov.b64 %da, {};\nmov.b64 %db, {};\n{before}\n\
             wgmma.mma_async.sync.aligned.m64n{}k16.f32.bf16.bf16 {{{}}}, %da, %db, {p}, {}, {}, {}, {};\n{after}\n",
            self.a.descriptor(),
            self.b.descriptor(),
            self.columns,
            list.join(", "),
            self.scales[0],
            self.scales[1],
            flag(&self.a),
            flag(&self.b)
        )
    }
}

/// An entry that copies `bytes` bytes to shared memory, loads accumulators, runs `body`, and stores them.
fn entry(bytes: usize, columns: usize, body: &str) -> String {
    let mut text = String::from(
        ".version 8.1\n.target sm_90a\n.address_size 64\n.extern .shared .align 1024 .b8 room[];\n\
         .visible .entry f(.param .u64 f_0, .param .u64 f_1, .param .u64 f_2)\n{\n\
         .reg .b64 %p<3>, %w, %da, %db; .reg .b32 %t, %s, %r<4>; .reg .f32 %f<128>; .reg .pred %yes, %no, %q;\n\
         ld.param.u64 %p0, [f_0];\nld.param.u64 %p1, [f_1];\nld.param.u64 %p2, [f_2];\nmov.u32 %t, %tid.x;\n\
         setp.eq.u32 %yes, 0, 0;\nsetp.ne.u32 %no, 0, 0;\n\
         mov.u32 %s, room;\nmad.lo.u32 %s, %t, 16, %s;\nmul.wide.u32 %w, %t, 16;\nadd.u64 %p0, %p0, %w;\n\
         mul.wide.u32 %w, %t, 4;\nadd.u64 %p1, %p1, %w;\nadd.u64 %p2, %p2, %w;\n",
    );
    for at in (0..bytes).step_by(2048) {
        text += &format!(
            "ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%p0+{at}];\nst.shared.v4.u32 [%s+{at}], {{%r0, %r1, %r2, %r3}};\n"
        );
    }
    text += "fence.proxy.async.shared::cta;\nbar.sync 0;\n";
    for i in 0..columns / 2 {
        text += &format!("ld.global.f32 %f{i}, [%p1+{}];\n", 512 * i);
    }
    text += body;
    for i in 0..columns / 2 {
        text += &format!("st.global.f32 [%p2+{}], %f{i};\n", 512 * i);
    }
    text + "ret;\n}\n"
}

const BEFORE: &str = "wgmma.fence.sync.aligned;";
const AFTER: &str = "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;";

/// Row and column of register `i` of a thread.
fn place(thread: usize, i: usize) -> (usize, usize) {
    let (warp, lane) = (thread / 32, thread % 32);
    (16 * warp + lane / 4 + i % 4 / 2 * 8, i / 4 * 8 + lane % 4 * 2 + i % 2)
}

const SHARED: usize = 60 * 1024;

/// Runs a product and compares its bits with sums in ascending order of k.
fn check(product: &Product, seed: u64) {
    let Product { columns, a, b, accumulates, scales } = product;
    let mut draws = Words::new(seed);
    // Numbers of many sizes: another order of summation has other bits.
    let mut draw = || {
        let word = draws.next();
        let number = (word as i32 as f32) * [1e-9, 1e-7, 1e-12][(word >> 40) as usize % 3];
        bf16::from_f32(number)
    };
    // What nobody should read is not a number.
    let mut image = vec![0xff; SHARED];
    let mut factors = [vec![[0f32; DEPTH]; ROWS], vec![[0f32; DEPTH]; *columns]];
    for (factor, layout) in factors.iter_mut().zip([a, b]) {
        for (outer, row) in factor.iter_mut().enumerate() {
            for (k, value) in row.iter_mut().enumerate() {
                let drawn = draw();
                *value = drawn.to_f32();
                let at = layout.byte(outer, k);
                assert_eq!(image[at..at + 2], [0xff, 0xff], "two elements at one place");
                image[at..at + 2].copy_from_slice(&drawn.to_le_bytes());
            }
        }
    }
    let c: Vec<f32> = (0..64 * columns).map(|_| draw().to_f32()).collect();
    let mut arrays = [image, words(c.iter().map(|x| x.to_bits())), words(vec![0; 64 * columns])];
    let text = entry(SHARED, *columns, &product.text(BEFORE, AFTER));
    launch(&text, [1, 1, 1], [128, 1, 1], SHARED as u32, &mut arrays)
        .unwrap_or_else(|fault| panic!("{fault}"));
    let found = super::as_words(&arrays[2]);
    let sign = (scales[0] * scales[1]) as f32;
    for thread in 0..128 {
        for i in 0..columns / 2 {
            let (row, column) = place(thread, i);
            let start = if *accumulates { c[128 * i + thread] } else { 0.0 };
            let wanted =
                (0..DEPTH).fold(start, |sum, k| sum + sign * factors[0][row][k] * factors[1][column][k]);
            let found = f32::from_bits(found[128 * i + thread]);
            assert_eq!(
                found.to_bits(),
                wanted.to_bits(),
                "({row}, {column}): {found} for {wanted}; {a:?} {b:?}"
            );
        }
    }
}

const A: Layout = Layout { at: 0, offset: 0, transposed: false, lead: 16, stride: 1024 };
const B: Layout = Layout { at: B_AT, offset: 0, transposed: false, lead: 16, stride: 1024 };
const PLAIN: Product = Product { columns: 64, a: A, b: B, accumulates: true, scales: [1, 1] };

#[test]
fn products_of_all_widths() {
    for columns in [8, 16, 48, 64, 96, 136, 192, 256] {
        check(&Product { columns, ..PLAIN }, columns as u64);
    }
}

#[test]
fn steps_along_k_and_both_layouts_of_either_factor() {
    for step in 1..4 {
        let (a, b) = (Layout { offset: 32 * step, ..A }, Layout { offset: 32 * step, ..B });
        check(&Product { a, b, ..PLAIN }, step as u64);
    }
    // Rows of k: 64 rows or columns and then the next ones `lead` bytes further on, 8 k and then `stride`.
    for columns in [8, 64, 72, 128, 192] {
        let b = Layout { transposed: true, lead: 8192, stride: 1024, offset: 2048, ..B };
        check(&Product { columns, b, ..PLAIN }, 100 + columns as u64);
        let a = Layout { transposed: true, lead: 0, stride: 2048, ..A };
        check(&Product { columns, a, ..PLAIN }, 200 + columns as u64);
    }
    // The two distances exchanged are another layout.
    let b = Layout { transposed: true, lead: 2048, stride: 8192, ..B };
    check(&Product { columns: 128, b, ..PLAIN }, 300);
}

#[test]
fn products_replace_or_subtract() {
    check(&Product { accumulates: false, ..PLAIN }, 1);
    for scales in [[-1, 1], [1, -1], [-1, -1]] {
        check(&Product { scales, ..PLAIN }, 2);
    }
}

#[test]
fn a_chain_of_products_needs_one_fence() {
    let one = |step: usize| {
        let (a, b) = (Layout { offset: 32 * step, ..A }, Layout { offset: 32 * step, ..B });
        Product { columns: 8, a, b, accumulates: step > 0, scales: [1, 1] }
    };
    let body: String = (0..4)
        .map(|step| match step {
            0 => one(step).text(BEFORE, ""),
            // A group of its own, and a wait that lets it go on.
            1 => one(step).text("", "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;"),
            _ => one(step).text("", ""),
        })
        .collect();
    let ones = bf16::from_f32(1.0).to_le_bytes();
    let image = ones.repeat(SHARED / 2);
    let mut arrays = [image, words(vec![0; 512]), words(vec![0; 512])];
    let text = entry(SHARED, 8, &(body + AFTER + "\n"));
    launch(&text, [2, 1, 1], [128, 1, 1], SHARED as u32, &mut arrays)
        .unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(super::as_words(&arrays[2]), vec![64f32.to_bits(); 512]);
}

/// The fault of a kernel whose product is written so.
fn refused(threads: u32, body: &str) -> Fault {
    let mut arrays = [vec![0; SHARED], words(vec![0; 8 * 256]), words(vec![0; 8 * 256])];
    let text = entry(0, 8, body);
    launch(&text, [1, 1, 1], [threads, 1, 1], SHARED as u32, &mut arrays).unwrap_err()
}

#[test]
fn a_warpgroup_is_four_whole_warps_that_do_the_same() {
    let small = Product { columns: 8, ..PLAIN };
    let whole = small.text(BEFORE, AFTER);
    let part = refused(96, &whole);
    assert_eq!(part.kind, Kind::Warpgroup);
    assert!(part.to_string().contains("of 3 warps"), "{part}");
    assert_eq!(refused(120, &whole).kind, Kind::SyncMask);
    let lanes = refused(128, &small.text(&format!("add.u64 %da, %da, %w;\n{BEFORE}"), AFTER));
    assert_eq!(lanes.kind, Kind::Warpgroup);
    assert!(lanes.to_string().contains("different descriptors of A"), "{lanes}");
    let warps = format!("shr.u32 %t, %t, 5;\nmul.wide.u32 %w, %t, 2;\nadd.u64 %db, %db, %w;\n{BEFORE}");
    let warps = refused(128, &small.text(&warps, AFTER));
    assert_eq!((warps.kind, warps.site.thread), (Kind::Warpgroup, Some([32, 0, 0])));
    let predicate = small.text(&format!("setp.lt.u32 %yes, %t, 7;\n{BEFORE}"), AFTER);
    assert!(refused(128, &predicate).to_string().contains("different predicates"));
    let one_less = small.text(&format!("setp.lt.u32 %q, %t, 64;\n{BEFORE}\n@%q bra LATER;"), AFTER);
    let one_less = refused(128, &one_less.replace(AFTER, &format!("{AFTER}\nLATER:")));
    assert_eq!((one_less.kind, one_less.site.thread), (Kind::Warpgroup, Some([0, 0, 0])));
    assert!(one_less.to_string().contains("others of its warpgroup executed"), "{one_less}");
}

#[test]
fn what_is_not_known_is_said() {
    let forms = [
        (".f32.bf16.bf16", ".f32.f16.f16", "the types"),
        ("m64n8k16", "m64n12k16", "the shape"),
        ("m64n8k16", "m64n264k16", "the shape"),
        ("1, 1, 0, 0;", "1, 2, 0, 0;", "the scale"),
        ("1, 1, 0, 0;", "1, 1, 0, 2;", "the layout"),
        ("1, 1, 0, 0;", "1, 1, 0;", "the number of operands"),
        ("%da, %db,", "{%r0, %r1, %r2, %r3}, %db,", "operand 2 as .b64"),
    ];
    let text = Product { columns: 8, ..PLAIN }.text(BEFORE, AFTER);
    for (from, to, says) in forms {
        assert!(text.contains(from), "{from}");
        let fault = refused(128, &text.replace(from, to));
        assert_eq!(fault.kind, Kind::UnknownInstruction, "{to}");
        assert!(fault.to_string().contains(says) && fault.site.line > 0, "{to}: {fault}");
    }
    let text = entry(0, 8, &text).replace("sm_90a", "sm_90");
    let fault = launch(&text, [1, 1, 1], [128, 1, 1], 0, &mut []).unwrap_err();
    assert!(fault.to_string().contains("sm_90a") && fault.site.line > 0, "{fault}");
    let plain = Product { columns: 8, ..PLAIN };
    let mode = (plain.b.descriptor() & !(3 << 62)).to_string();
    let none = plain.text(BEFORE, AFTER).replace(&plain.b.descriptor().to_string(), &mode);
    let fault = refused(128, &none);
    assert!(fault.to_string().contains("swizzling mode 0 (no swizzling)"), "{fault}");
    let far = Product { b: Layout { at: SHARED, ..B }, ..plain };
    let fault = refused(128, &far.text(BEFORE, AFTER));
    assert_eq!((fault.kind, fault.site.address), (Kind::OutOfBounds, Some(SHARED as u64)));
}

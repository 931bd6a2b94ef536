//! Counting, finding, moving and mixing bits; packing registers.

use super::{Words, check, compare};

#[test]
fn counting() {
    check("popc.b32 $0, $1;", "u32", &["u32"], &[&[0, 0], &[0xffff_ffff, 32], &[0x8000_0001, 2]]);
    check("popc.b64 $0, $1;", "u32", &["u64"], &[&[u64::MAX, 64], &[1 << 63 | 1, 2]]);
    check("clz.b32 $0, $1;", "u32", &["u32"], &[&[0, 32], &[1, 31], &[0x8000_0000, 0]]);
    check("clz.b64 $0, $1;", "u32", &["u64"], &[&[0, 64], &[1, 63]]);
    check("brev.b32 $0, $1;", "u32", &["u32"], &[&[1, 0x8000_0000], &[0xf, 0xf000_0000]]);
    check("brev.b64 $0, $1;", "u64", &["u64"], &[&[1, 1 << 63]]);
}

#[test]
fn finding_the_leading_bit() {
    check("bfind.u32 $0, $1;", "u32", &["u32"], &[&[0, 0xffff_ffff], &[1, 0], &[0x8000_0000, 31]]);
    check(
        "bfind.s32 $0, $1;",
        "u32",
        &["u32"],
        &[&[0xffff_ffff, 0xffff_ffff], &[0xffff_fffe, 0], &[0x7fff_ffff, 30]],
    );
    check("bfind.u64 $0, $1;", "u32", &["u64"], &[&[0, 0xffff_ffff], &[1 << 40, 40]]);
    check("bfind.s64 $0, $1;", "u32", &["u64"], &[&[u64::MAX, 0xffff_ffff], &[!(1 << 40), 40]]);
    check("bfind.shiftamt.u32 $0, $1;", "u32", &["u32"], &[&[0, 0xffff_ffff], &[1, 31], &[0x8000_0000, 0]]);
    check("bfind.shiftamt.s32 $0, $1;", "u32", &["u32"], &[&[0xffff_fffe, 31], &[0xffff_ffff, 0xffff_ffff]]);
    check("bfind.shiftamt.u64 $0, $1;", "u32", &["u64"], &[&[1, 63]]);
    check("bfind.shiftamt.s64 $0, $1;", "u32", &["u64"], &[&[1 << 62, 1]]);
}

/// `bfe` bit by bit, as the manual's pseudo-code has it.
fn extract(a: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
    let top = width - 1;
    let (position, length) = (position & 0xff, length & 0xff);
    let sign = if !signed || length == 0 { 0 } else { a >> (position + length - 1).min(top) & 1 };
    (0..width).fold(0, |d, i| {
        let bit = if i < length && position + i <= top { a >> (position + i) & 1 } else { sign };
        d | bit << i
    })
}

#[test]
fn fields() {
    let mut draws = Words::new(11);
    for (ty, width, signed) in [("u32", 32, false), ("s32", 32, true), ("u64", 64, false), ("s64", 64, true)]
    {
        compare(
            &format!("bfe.{ty} $0, $1, $2, $3;"),
            ty,
            &[ty, "u32", "u32"],
            |i| if i == 0 { draws.next() } else { draws.next() % 70 },
            |r| extract(r[0], r[1] as u32, r[2] as u32, width, signed),
        );
    }
    let mut draws = Words::new(12);
    for (ty, width) in [("b32", 32u32), ("b64", 64)] {
        compare(
            &format!("bfi.{ty} $0, $1, $2, $3, $4;"),
            ty,
            &[ty, ty, "u32", "u32"],
            |i| if i < 2 { draws.next() } else { draws.next() % 70 },
            |r| {
                let (position, length) = (r[2] as u32, r[3] as u32);
                (0..width).fold(0, |d, i| {
                    let inside = i >= position && i < position + length;
                    let bit = if inside { r[0] >> (i - position) & 1 } else { r[1] >> i & 1 };
                    d | bit << i
                })
            },
        );
    }
    check(
        "bmsk.clamp.b32 $0, $1, $2;",
        "u32",
        &["u32"; 2],
        &[&[4, 8, 0xff0], &[30, 40, 0xc000_0000], &[32, 1, 0]],
    );
    check("bmsk.wrap.b32 $0, $1, $2;", "u32", &["u32"; 2], &[&[36, 8, 0xff0], &[4, 32, 0]]);
}

#[test]
fn logic_of_three() {
    // The table of a function is its value on these three words.
    let tables: [(u32, fn(u64, u64, u64) -> u64); 4] = [
        (0xf0 & 0xcc & 0xaa, |a, b, c| a & b & c),
        (0xf0 ^ 0xcc ^ 0xaa, |a, b, c| a ^ b ^ c),
        ((0xf0 & 0xcc) | (0xaa & !0xcc & 0xff), |a, b, c| (a & b) | (c & !b)),
        (0xfe, |a, b, c| a | b | c),
    ];
    for (table, function) in tables {
        let mut draws = Words::new(13);
        let text = format!("lop3.b32 $0, $1, $2, $3, {table};");
        compare(&text, "u32", &["u32"; 3], |_| draws.next(), |r| function(r[0], r[1], r[2]) & 0xffff_ffff);
    }
}

#[test]
fn bytes() {
    let (a, b) = (0x3322_1100, 0x7766_5544);
    let rows: [&[u64]; 5] = [
        &[a, b, 0x3210, 0x3322_1100],
        &[a, b, 0x7654, 0x7766_5544],
        &[a, b, 0x5410, 0x5544_1100],
        &[a, 0x8066_5544, 0xf0e7, 0xff00_0080],
        &[0x80, 0, 0x8888, 0xffff_ffff],
    ];
    check("prmt.b32 $0, $1, $2, $3;", "u32", &["u32"; 3], &rows);
    check(
        "prmt.b32.f4e $0, $1, $2, $3;",
        "u32",
        &["u32"; 3],
        &[&[a, b, 1, 0x4433_2211], &[a, b, 3, 0x6655_4433]],
    );
    check("prmt.b32.b4e $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[a, b, 0, 0x5566_7700]]);
    check("prmt.b32.rc8 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[a, b, 2, 0x2222_2222]]);
    check("prmt.b32.ecl $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[a, b, 1, 0x3322_1111]]);
    check("prmt.b32.ecr $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[a, b, 1, 0x1111_1100]]);
    check("prmt.b32.rc16 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[a, b, 1, 0x3322_3322]]);
}

#[test]
fn funnels() {
    let (low, high) = (0x8000_0001, 0x7000_0003);
    let rows: [&[u64]; 3] = [&[low, high, 4, 0x38], &[low, high, 0, high], &[low, high, 36, low]];
    check("shf.l.clamp.b32 $0, $1, $2, $3;", "u32", &["u32"; 3], &rows);
    check(
        "shf.l.wrap.b32 $0, $1, $2, $3;",
        "u32",
        &["u32"; 3],
        &[&[low, high, 4, 0x38], &[low, high, 36, 0x38]],
    );
    check(
        "shf.r.clamp.b32 $0, $1, $2, $3;",
        "u32",
        &["u32"; 3],
        &[&[low, high, 4, 0x3800_0000], &[low, high, 36, high]],
    );
    check(
        "shf.r.wrap.b32 $0, $1, $2, $3;",
        "u32",
        &["u32"; 3],
        &[&[low, high, 4, 0x3800_0000], &[low, high, 36, 0x3800_0000]],
    );
}

#[test]
fn dot_products() {
    let rows: [&[u64]; 2] =
        [&[0x0102_0304, 0x0506_0708, 10, 5 + 12 + 21 + 32 + 10], &[0xff00_0000, 0x0200_0000, 0, 510]];
    check("dp4a.u32.u32 $0, $1, $2, $3;", "u32", &["u32"; 3], &rows);
    check("dp4a.s32.u32 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[0xff00_0000, 0x0200_0000, 0, 0xffff_fffe]]);
    check("dp2a.lo.u32.u32 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[0x0003_0002, 0x0908_0504, 1, 24]]);
    check("dp2a.hi.u32.u32 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[0x0003_0002, 0x0908_0504, 1, 44]]);
}

#[test]
fn packing() {
    check("mov.b32 $0, {$1, $2};", "u32", &["u16"; 2], &[&[0x1234, 0xabcd, 0xabcd_1234]]);
    check("mov.b32 $0, {0, $1};", "u32", &["u16"], &[&[0xabcd, 0xabcd_0000]]);
    check("mov.b64 $0, {$1, $2};", "u64", &["u32"; 2], &[&[1, 2, 0x2_0000_0001]]);
    check("mov.b64 $0, {$1, $2, $3, $4};", "u64", &["u16"; 4], &[&[1, 2, 3, 4, 0x0004_0003_0002_0001]]);
    check(".reg .b32 %h;\nmov.b64 {$0, %h}, $1;", "u32", &["u64"], &[&[0x2_0000_0001, 1]]);
    check("mov.b64 {_, $0}, $1;", "u32", &["u64"], &[&[0x2_0000_0001, 2]]);
    check(".reg .b16 %h;\nmov.b32 {%h, $0}, $1;", "u16", &["u32"], &[&[0xabcd_1234, 0xabcd]]);
    check("mov.b64 {_, _, $0, _}, $1;", "u16", &["u64"], &[&[0x4_0003_0002_0001, 3]]);
    check(
        "mov.b32 $0, {$1, $2};\nmov.b32 {$1, $2}, $0;\nmov.b32 $0, {$2, $1};",
        "u32",
        &["u16"; 2],
        &[&[1, 2, 0x1_0002]],
    );
    // Nested scopes may hide names.
    check(
        "{ .reg .b32 %h; mov.b32 %h, 3; { .reg .b32 %h; mov.b32 %h, 4; add.u32 $0, $1, %h; } add.u32 $0, $0, %h; }",
        "u32",
        &["u32"],
        &[&[10, 17]],
    );
    // A destination that is its own source.
    check(
        "mov.b32 $0, $1;\n{ .reg .b16 l, h; mov.b32 {l, h}, $0; mov.b32 $0, {h, l}; }",
        "u32",
        &["u32"],
        &[&[0x0001_0002, 0x0002_0001]],
    );
}

//! Integer arithmetic, comparisons, selections.

use super::{Words, check, compare};

/// Compares a binary instruction of every width with a function on i128 or u128.
fn binary(name: &str, types: &[&str], wanted: impl Fn(i128, i128) -> i128) {
    for ty in types {
        let width: u32 = ty[1..].parse().unwrap();
        let value = |bits: u64| {
            let bits = i128::from(bits);
            if ty.starts_with('s') && bits >> (width - 1) & 1 == 1 { bits - (1 << width) } else { bits }
        };
        let mask = if width == 64 { u64::MAX } else { (1 << width) - 1 };
        let mut words = Words::new(7);
        compare(
            &format!("{name}.{ty} $0, $1, $2;"),
            ty,
            &[ty, ty],
            |_| words.word(),
            |row| wanted(value(row[0]), value(row[1])) as u64 & mask,
        );
    }
}

const ALL: [&str; 6] = ["u16", "s16", "u32", "s32", "u64", "s64"];

#[test]
fn sums_products_quotients() {
    binary("add", &ALL, |a, b| a + b);
    binary("sub", &ALL, |a, b| a - b);
    binary("mul.lo", &ALL, |a, b| a.wrapping_mul(b));
    binary("min", &ALL, |a, b| a.min(b));
    binary("max", &ALL, |a, b| a.max(b));
    for (ty, width) in [("u16", 16), ("s16", 16), ("u32", 32), ("s32", 32), ("u64", 64), ("s64", 64)] {
        binary("mul.hi", &[ty], |a, b| match ty {
            "u64" => ((a as u128 * b as u128) >> 64) as i128,
            _ => (a * b) >> width,
        });
    }
    binary("div", &ALL, |a, b| if b == 0 { -1 } else { a / b });
    binary("rem", &ALL, |a, b| if b == 0 { a } else { a % b });
}

#[test]
fn products_of_twice_the_width() {
    let mut words = Words::new(1);
    compare("mul.wide.u32 $0, $1, $2;", "u64", &["u32", "u32"], |_| words.word(), |r| r[0] * r[1]);
    let mut words = Words::new(2);
    compare(
        "mul.wide.s32 $0, $1, $2;",
        "u64",
        &["u32", "u32"],
        |_| words.word(),
        |r| (i64::from(r[0] as i32) * i64::from(r[1] as i32)) as u64,
    );
    check("mul.wide.u16 $0, $1, $2;", "u32", &["u16", "u16"], &[&[0xffff, 0xffff, 0xfffe_0001]]);
    check(
        "mul.wide.s16 $0, $1, $2;",
        "u32",
        &["u16", "u16"],
        &[&[0xffff, 0xffff, 1], &[0x8000, 2, 0xffff_0000]],
    );
    check(
        "mad.wide.u16 $0, $1, $2, $3;",
        "u32",
        &["u16", "u16", "u32"],
        &[&[0xffff, 0xffff, 5, 0xfffe_0006]],
    );
    check("mad.wide.s16 $0, $1, $2, $3;", "u32", &["u16", "u16", "u32"], &[&[0xffff, 2, 7, 5]]);
    check(
        "mad.wide.u32 $0, $1, $2, $3;",
        "u64",
        &["u32", "u32", "u64"],
        &[&[0xffff_ffff, 2, 3, 0x2_0000_0001], &[5, 6, u64::MAX, 29]],
    );
    check("mad.wide.s32 $0, $1, $2, $3;", "u64", &["u32", "u32", "u64"], &[&[0xffff_ffff, 2, 3, 1]]);
}

#[test]
fn products_with_a_sum() {
    let mut words = Words::new(3);
    compare(
        "mad.lo.s32 $0, $1, $2, $3;",
        "u32",
        &["u32"; 3],
        |_| words.word(),
        |r| u64::from((r[0] as u32).wrapping_mul(r[1] as u32).wrapping_add(r[2] as u32)),
    );
    let mut words = Words::new(4);
    compare(
        "mad.lo.u64 $0, $1, $2, $3;",
        "u64",
        &["u64"; 3],
        |_| words.word(),
        |r| r[0].wrapping_mul(r[1]).wrapping_add(r[2]),
    );
    let mut words = Words::new(5);
    compare(
        "mad.hi.u32 $0, $1, $2, $3;",
        "u32",
        &["u32"; 3],
        |_| words.word(),
        |r| u64::from(((r[0] * r[1]) >> 32) as u32).wrapping_add(r[2]) & 0xffff_ffff,
    );
    check("mad.hi.s32 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[0x8000_0000, 4, 1, 0xffff_ffff]]);
    check(
        "mad.hi.sat.s32 $0, $1, $2, $3;",
        "u32",
        &["u32"; 3],
        &[&[0x7fff_ffff, 0x7fff_ffff, 0x7fff_ffff, 0x7fff_ffff]],
    );
    check("mad.lo.u16 $0, $1, $2, $3;", "u16", &["u16"; 3], &[&[300, 300, 1, 24_465]]);
    check(
        "mul24.lo.u32 $0, $1, $2;",
        "u32",
        &["u32"; 2],
        &[&[0xff00_0003, 5, 15], &[0xff_ffff, 0xff_ffff, 0xfe00_0001]],
    );
    check("mul24.lo.s32 $0, $1, $2;", "u32", &["u32"; 2], &[&[0xff_ffff, 5, 0xffff_fffb]]);
    check("mul24.hi.u32 $0, $1, $2;", "u32", &["u32"; 2], &[&[0xff_ffff, 0xff_ffff, 0xffff_fe00]]);
    check("mad24.lo.u32 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[0x0100_0003, 5, 2, 17]]);
}

#[test]
fn saturated_sums() {
    let rows: [&[u64]; 4] = [
        &[0x7fff_ffff, 1, 0x7fff_ffff],
        &[0x8000_0000, 0xffff_ffff, 0x8000_0000],
        &[5, 6, 11],
        &[0xffff_ffff, 1, 0],
    ];
    check("add.sat.s32 $0, $1, $2;", "u32", &["u32"; 2], &rows);
    check(
        "sub.sat.s32 $0, $1, $2;",
        "u32",
        &["u32"; 2],
        &[&[0x8000_0000, 1, 0x8000_0000], &[0, 0x8000_0000, 0x7fff_ffff]],
    );
}

#[test]
fn carries() {
    // A sum of 128 bits from its halves.
    let text = "add.cc.u64 $0, $1, $3;\naddc.u64 $0, $2, $4;";
    let mut words = Words::new(6);
    compare(
        text,
        "u64",
        &["u64"; 4],
        |_| words.word(),
        |r| {
            let (a, b) =
                (u128::from(r[0]) | u128::from(r[1]) << 64, u128::from(r[2]) | u128::from(r[3]) << 64);
            (a.wrapping_add(b) >> 64) as u64
        },
    );
    let text = "sub.cc.u32 $0, $1, $4;\nsubc.cc.u32 $0, $2, $5;\nsubc.u32 $0, $3, $6;";
    let mut words = Words::new(7);
    compare(
        text,
        "u32",
        &["u32"; 6],
        |_| words.word(),
        |r| {
            let join = |a: u64, b: u64, c: u64| u128::from(a) | u128::from(b) << 32 | u128::from(c) << 64;
            (join(r[0], r[1], r[2]).wrapping_sub(join(r[3], r[4], r[5])) >> 64) as u64 & 0xffff_ffff
        },
    );
    let text = "add.cc.u32 $0, $1, $4;\naddc.cc.u32 $0, $2, $5;\naddc.u32 $0, $3, $6;";
    let mut words = Words::new(8);
    compare(
        text,
        "u32",
        &["u32"; 6],
        |_| words.word(),
        |r| {
            let join = |a: u64, b: u64, c: u64| u128::from(a) | u128::from(b) << 32 | u128::from(c) << 64;
            (join(r[0], r[1], r[2]).wrapping_add(join(r[3], r[4], r[5])) >> 64) as u64 & 0xffff_ffff
        },
    );
    // The upper half of a product of 64 by 32 bits plus one: the carry of the low half counts.
    let text = "mad.lo.cc.u32 $0, $1, $2, $3;\nmadc.hi.u32 $0, $1, $2, $4;";
    let mut words = Words::new(9);
    compare(
        text,
        "u32",
        &["u32"; 4],
        |_| words.word(),
        |r| (r[0] * r[1]).wrapping_add(r[2] | r[3] << 32) >> 32,
    );
}

#[test]
fn signs_and_logic() {
    check("abs.s32 $0, $1;", "u32", &["u32"], &[&[0xffff_fff9, 7], &[0x8000_0000, 0x8000_0000]]);
    check("abs.s64 $0, $1;", "u64", &["u64"], &[&[u64::MAX, 1]]);
    check("neg.s32 $0, $1;", "u32", &["u32"], &[&[7, 0xffff_fff9]]);
    check("neg.s16 $0, $1;", "u16", &["u16"], &[&[7, 0xfff9]]);
    check("not.b32 $0, $1;", "u32", &["u32"], &[&[0xf0f0_f0f0, 0x0f0f_0f0f]]);
    check("not.b16 $0, $1;", "u16", &["u16"], &[&[0xf0f0, 0x0f0f]]);
    check("not.b64 $0, $1;", "u64", &["u64"], &[&[0, u64::MAX]]);
    check("cnot.b32 $0, $1;", "u32", &["u32"], &[&[0, 1], &[9, 0]]);
    check("and.b32 $0, $1, $2;", "u32", &["u32"; 2], &[&[12, 10, 8]]);
    check("or.b64 $0, $1, $2;", "u64", &["u64"; 2], &[&[12 << 40, 10, 12 << 40 | 10]]);
    check("xor.b16 $0, $1, $2;", "u16", &["u16"; 2], &[&[12, 10, 6]]);
    check("sad.u32 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[1, 0xffff_ffff, 2, 0]]);
    check("sad.s32 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[1, 0xffff_ffff, 2, 4]]);
}

#[test]
fn shifts() {
    let rows: [&[u64]; 4] = [&[1, 31, 1 << 31], &[3, 1, 6], &[1, 32, 0], &[1, 0xffff_ffff, 0]];
    check("shl.b32 $0, $1, $2;", "u32", &["u32"; 2], &rows);
    check("shl.b64 $0, $1, $2;", "u64", &["u64", "u32"], &[&[1, 63, 1 << 63], &[1, 64, 0]]);
    check("shl.b16 $0, $1, $2;", "u16", &["u16", "u32"], &[&[0x8001, 1, 2], &[1, 16, 0]]);
    check("shr.u32 $0, $1, $2;", "u32", &["u32"; 2], &[&[0x8000_0000, 31, 1], &[5, 40, 0]]);
    check(
        "shr.s32 $0, $1, $2;",
        "u32",
        &["u32"; 2],
        &[&[0x8000_0000, 31, 0xffff_ffff], &[0x8000_0000, 99, 0xffff_ffff]],
    );
    check("shr.s64 $0, $1, $2;", "u64", &["u64", "u32"], &[&[1 << 63, 63, u64::MAX], &[1 << 62, 62, 1]]);
    check("shr.u16 $0, $1, $2;", "u16", &["u16", "u32"], &[&[0x8000, 15, 1]]);
    check("shr.s16 $0, $1, $2;", "u16", &["u16", "u32"], &[&[0x8000, 15, 0xffff]]);
}

#[test]
fn comparisons() {
    for (name, unsigned, signed) in [
        ("eq", [1, 0, 0], [1, 0, 0]),
        ("ne", [0, 1, 1], [0, 1, 1]),
        ("lt", [0, 1, 0], [0, 0, 1]),
        ("le", [1, 1, 0], [1, 0, 1]),
        ("gt", [0, 0, 1], [0, 1, 0]),
        ("ge", [1, 0, 1], [1, 1, 0]),
    ] {
        for (ty, answers, width) in [
            ("u16", unsigned, 16),
            ("s16", signed, 16),
            ("u32", unsigned, 32),
            ("s32", signed, 32),
            ("u64", unsigned, 64),
            ("s64", signed, 64),
        ] {
            let minus = u64::MAX >> (64 - width);
            let rows: [&[u64]; 3] = [&[5, 5, answers[0]], &[5, minus, answers[1]], &[minus, 5, answers[2]]];
            check(&format!("setp.{name}.{ty} $0, $1, $2;"), "pred", &[ty, ty], &rows);
        }
    }
    for (name, answers) in [("lo", [0, 1, 0]), ("ls", [1, 1, 0]), ("hi", [0, 0, 1]), ("hs", [1, 0, 1])] {
        let rows: [&[u64]; 3] = [&[5, 5, answers[0]], &[5, 9, answers[1]], &[9, 5, answers[2]]];
        check(&format!("setp.{name}.u32 $0, $1, $2;"), "pred", &["u32"; 2], &rows);
    }
}

#[test]
fn comparisons_combine() {
    for (name, table) in [("and", [0, 0, 0, 1]), ("or", [0, 1, 1, 1]), ("xor", [0, 1, 1, 0])] {
        // The comparison holds where the operands are equal.
        let rows: Vec<Vec<u64>> = (0..4).map(|i| vec![i / 2, 1, i % 2, table[i as usize]]).collect();
        let rows: Vec<&[u64]> = rows.iter().map(Vec::as_slice).collect();
        check(&format!("setp.eq.{name}.s32 $0, $1, $2, $3;"), "pred", &["s32", "s32", "pred"], &rows);
        let rows: Vec<Vec<u64>> = (0..4).map(|i| vec![i / 2, 1, 1 - i % 2, table[i as usize]]).collect();
        let rows: Vec<&[u64]> = rows.iter().map(Vec::as_slice).collect();
        check(&format!("setp.eq.{name}.s32 $0, $1, $2, !$3;"), "pred", &["s32", "s32", "pred"], &rows);
    }
    // Both results: the second is for the opposite comparison, combined alike.
    let text = ".reg .pred %q;\nsetp.lt.and.s32 %q|$0, $1, $2, $3;";
    check(text, "pred", &["s32", "s32", "pred"], &[&[1, 2, 1, 0], &[2, 1, 1, 1], &[2, 1, 0, 0]]);
    let text = ".reg .pred %q;\nsetp.lt.s32 $0|%q, $1, $2;";
    check(text, "pred", &["s32", "s32"], &[&[1, 2, 1], &[2, 1, 0]]);
    // A result may be the predicate that is combined with, and the guard.
    let text = "mov.pred $0, $3;\nsetp.lt.and.s32 $0, $1, $2, $0;";
    check(text, "pred", &["s32", "s32", "pred"], &[&[1, 2, 1, 1], &[1, 2, 0, 0]]);
    let text = ".reg .pred %q;\nmov.pred $0, $3;\n@$0 setp.lt.s32 $0|%q, $1, $2;\n@%q mov.pred $0, $1;"
        .replace("@%q mov.pred $0, $1;", "@!$3 mov.pred $0, 1;");
    check(&text, "pred", &["s32", "s32", "pred"], &[&[1, 2, 1, 1], &[2, 1, 1, 0], &[1, 2, 0, 1]]);
}

#[test]
fn sets_and_selections() {
    check("set.lt.u32.s32 $0, $1, $2;", "u32", &["u32"; 2], &[&[1, 2, 0xffff_ffff], &[2, 1, 0]]);
    check("set.eq.f32.u32 $0, $1, $2;", "u32", &["u32"; 2], &[&[3, 3, 0x3f80_0000], &[2, 1, 0]]);
    check("set.gt.u32.f32 $0, $1, $2;", "u32", &["u32"; 2], &[&[0x4000_0000, 0x3f80_0000, 0xffff_ffff]]);
    check(
        "set.lt.or.u32.s32 $0, $1, $2, $3;",
        "u32",
        &["u32", "u32", "pred"],
        &[&[2, 1, 1, 0xffff_ffff], &[2, 1, 0, 0]],
    );
    for (ty, a, b) in [
        ("b16", 1, 2),
        ("b32", 1, 2),
        ("b64", 1 << 40, 2),
        ("u32", 3, 4),
        ("s64", 5, 6),
        ("f32", 7, 8),
        ("f64", 9, 10),
    ] {
        check(&format!("selp.{ty} $0, $1, $2, $3;"), ty, &[ty, ty, "pred"], &[&[a, b, 1, a], &[a, b, 0, b]]);
    }
    check("selp.b32 $0, 5, -6, $1;", "u32", &["pred"], &[&[1, 5], &[0, 0xffff_fffa]]);
    check("slct.u32.s32 $0, $1, $2, $3;", "u32", &["u32"; 3], &[&[1, 2, 0, 1], &[1, 2, 0xffff_ffff, 2]]);
    check(
        "slct.f32.f32 $0, $1, $2, $3;",
        "f32",
        &["f32"; 3],
        &[&[1, 2, 0x8000_0000, 1], &[1, 2, 0xbf80_0000, 2]],
    );
    check(
        "slct.b64.s32 $0, $1, $2, $3;",
        "b64",
        &["b64", "b64", "s32"],
        &[&[1, 2, 0, 1], &[1, 2, 0xffff_ffff, 2]],
    );
}

#[test]
fn predicates() {
    let rows = |table: [u64; 4]| -> Vec<Vec<u64>> {
        (0..4).map(|i| vec![i / 2, i % 2, table[i as usize]]).collect()
    };
    for (name, table) in [("and", [0, 0, 0, 1]), ("or", [0, 1, 1, 1]), ("xor", [0, 1, 1, 0])] {
        let rows = rows(table);
        let rows: Vec<&[u64]> = rows.iter().map(Vec::as_slice).collect();
        check(&format!("{name}.pred $0, $1, $2;"), "pred", &["pred"; 2], &rows);
    }
    check("not.pred $0, $1;", "pred", &["pred"], &[&[0, 1], &[1, 0]]);
    check("mov.pred $0, $1;", "pred", &["pred"], &[&[0, 0], &[1, 1]]);
    check("mov.pred $0, 0;\n@$1 mov.pred $0, -1;", "pred", &["pred"], &[&[0, 0], &[1, 1]]);
    check("selp.pred $0, $1, $2, $3;", "pred", &["pred"; 3], &[&[1, 0, 1, 1], &[1, 0, 0, 0]]);
}

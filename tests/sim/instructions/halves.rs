//! Arithmetic of f16 and bf16, single and in pairs, against the `half` crate's conversions of exact f64 results.

use super::{Words, check, compare};
use half::{bf16, f16};

fn f16_of(x: f64) -> u64 {
    let x = f16::from_f64(x);
    u64::from(if x.is_nan() { 0x7fff } else { x.to_bits() })
}

fn bf16_of(x: f64) -> u64 {
    let x = bf16::from_f64(x);
    u64::from(if x.is_nan() { 0x7fff } else { x.to_bits() })
}

fn f16_value(bits: u64) -> f64 {
    f16::from_bits(bits as u16).to_f64()
}

fn bf16_value(bits: u64) -> f64 {
    bf16::from_bits(bits as u16).to_f64()
}

#[test]
fn single_and_in_pairs() {
    type Operation = (&'static str, usize, fn(f64, f64, f64) -> f64);
    // Products of two numbers are exact in f64; sums are where the exponents are near, as they are here.
    let operations: [Operation; 4] = [
        ("add", 2, |a, b, _| a + b),
        ("sub", 2, |a, b, _| a - b),
        ("mul", 2, |a, b, _| a * b),
        ("fma.rn", 3, |a, b, c| a * b + c),
    ];
    type Format = (&'static str, fn(u64) -> f64, fn(f64) -> u64, u64);
    let formats: [Format; 2] = [("f16", f16_value, f16_of, 0x8fff), ("bf16", bf16_value, bf16_of, 0x83ff)];
    for (ty, value, narrow, mask) in formats {
        for (name, count, wanted) in operations {
            let sources = ["$1", "$2", "$3"][..count].join(", ");
            let mut draws = Words::new(51);
            // Exponents from a narrow range around one.
            let middle = if ty == "f16" { 0x3000 } else { 0x3c00 };
            let draw = |draws: &mut Words| draws.next() & mask ^ middle;
            compare(
                &format!("{name}.{ty} $0, {sources};"),
                ty,
                &[ty, ty, ty][..count],
                |_| draw(&mut draws),
                |r| narrow(wanted(value(r[0]), value(r[1]), value(*r.get(2).unwrap_or(&0)))),
            );
            let mut draws = Words::new(52);
            let pair = format!("{ty}x2");
            let pair = pair.as_str();
            compare(
                &format!("{name}.{pair} $0, {sources};"),
                pair,
                &[pair, pair, pair][..count],
                |_| draw(&mut draws) | draw(&mut draws) << 16,
                |r| {
                    let of = |shift: u32| {
                        let part = |i: usize| value(r.get(i).copied().unwrap_or(0) >> shift & 0xffff);
                        narrow(wanted(part(0), part(1), part(2)))
                    };
                    of(0) | of(16) << 16
                },
            );
        }
    }
}

#[test]
fn modifiers() {
    check("add.sat.f16 $0, $1, $2;", "f16", &["f16"; 2], &[&[0x3c00, 0x3c00, 0x3c00], &[0xbc00, 0, 0]]);
    check(
        "fma.rn.relu.f16 $0, $1, $2, $3;",
        "f16",
        &["f16"; 3],
        &[&[0xbc00, 0x3c00, 0, 0], &[0x3c00, 0x3c00, 0, 0x3c00]],
    );
    check(
        "fma.rn.relu.bf16x2 $0, $1, $2, $3;",
        "bf16x2",
        &["bf16x2"; 3],
        &[&[0xbf80_3f80, 0x3f80_3f80, 0, 0x3f80]],
    );
    check("add.ftz.f16 $0, $1, $2;", "f16", &["f16"; 2], &[&[1, 1, 0], &[0x8001, 0, 0]]);
    check("mul.rn.f16x2 $0, $1, $2;", "f16x2", &["f16x2"; 2], &[&[0x4000_3c00, 0x4000_4200, 0x4400_4200]]);
    check("min.f16 $0, $1, $2;", "f16", &["f16"; 2], &[&[0x3c00, 0x4000, 0x3c00], &[0x7e00, 0x4000, 0x4000]]);
    check("max.NaN.bf16 $0, $1, $2;", "bf16", &["bf16"; 2], &[&[0x7fc0, 0x4000, 0x7fff]]);
    check("max.bf16x2 $0, $1, $2;", "bf16x2", &["bf16x2"; 2], &[&[0x3f80_4000, 0x4000_3f80, 0x4000_4000]]);
    check("min.bf16x2 $0, $1, $2;", "bf16x2", &["bf16x2"; 2], &[&[0x3f80_4000, 0x4000_3f80, 0x3f80_3f80]]);
    check("neg.f16x2 $0, $1;", "f16x2", &["f16x2"], &[&[0x3c00_bc00, 0xbc00_3c00]]);
    check("neg.bf16 $0, $1;", "bf16", &["bf16"], &[&[0x3f80, 0xbf80]]);
    check("abs.bf16x2 $0, $1;", "bf16x2", &["bf16x2"], &[&[0xbf80_bf80, 0x3f80_3f80]]);
    check("abs.f16 $0, $1;", "f16", &["f16"], &[&[0xbc00, 0x3c00]]);
    check("ex2.approx.f16 $0, $1;", "f16", &["f16"], &[&[0x4000, 0x4400], &[0, 0x3c00]]);
    check("ex2.approx.ftz.bf16 $0, $1;", "bf16", &["bf16"], &[&[0x4000, 0x4080]]);
    check("ex2.approx.f16x2 $0, $1;", "f16x2", &["f16x2"], &[&[0x4000_0000, 0x4400_3c00]]);
    check("tanh.approx.f16 $0, $1;", "f16", &["f16"], &[&[0, 0], &[0x7c00, 0x3c00]]);
    check("tanh.approx.bf16x2 $0, $1;", "bf16x2", &["bf16x2"], &[&[0xc2c8_42c8, 0xbf80_3f80]]);
    let text = ".reg .pred %q;\nsetp.lt.f16x2 $0|%q, $1, $2;";
    check(text, "pred", &["f16x2"; 2], &[&[0x4000_3c00, 0x3c00_4000, 1], &[0x3c00_4000, 0x4000_3c00, 0]]);
    let text = ".reg .pred %q;\nsetp.lt.bf16x2 %q|$0, $1, $2;";
    check(text, "pred", &["bf16x2"; 2], &[&[0x4000_3f80, 0x3f80_4000, 0], &[0x3f80_4000, 0x4000_3f80, 1]]);
}

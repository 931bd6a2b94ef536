//! f32 and f64 arithmetic and the special functions. Directed roundings are checked against exact sums of integers.
//! One file, though long: each instruction has its table of known answers, and nothing else is here.

use super::{Words, check, compare, evaluate};

fn bits(x: f32) -> u64 {
    u64::from(x.to_bits())
}

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// Bits of a result; every NaN counts as one.
fn same(x: f32) -> u64 {
    if x.is_nan() { 0x7fff_ffff } else { bits(x) }
}

/// An f32 as an integer in units of 2^-149, where it is finite and not too large.
fn units(x: f32) -> Option<i128> {
    let field = (x.to_bits() >> 23 & 0xff) as i32;
    if !(0..=90).contains(&field) {
        return None;
    }
    let fraction = i128::from(x.to_bits() & 0x7f_ffff);
    let magnitude = if field == 0 { fraction } else { (fraction | 1 << 23) << (field - 1) };
    Some(if x.is_sign_negative() { -magnitude } else { magnitude })
}

/// The f32 that an exact value, in units of 2^-(149+shift), rounds to.
fn rounded(value: i128, shift: u32, mode: &str) -> f32 {
    let negative = value < 0;
    let magnitude = value.unsigned_abs();
    // Candidates: the largest f32 not above, and its successor.
    let (mut low, mut high) = (0u32, 0x7f7f_ffffu32);
    let exact = |bits: u32| {
        let field = bits >> 23;
        let fraction = u128::from(bits & 0x7f_ffff);
        let units = if field == 0 { fraction } else { (fraction | 1 << 23) << (field - 1).min(100) };
        units << shift.min(27)
    };
    while low < high {
        let middle = (low + high).div_ceil(2);
        if middle >> 23 <= 101 && exact(middle) <= magnitude { low = middle } else { high = middle - 1 }
    }
    let (below, above) = (exact(low), exact(low + 1));
    let up = match mode {
        _ if below == magnitude => false,
        "rz" => false,
        "rp" => !negative,
        "rm" => negative,
        _ => {
            let (left, right) = (magnitude - below, above - magnitude);
            left > right || left == right && low & 1 == 1
        }
    };
    let result = f32::from_bits(low + u32::from(up));
    if negative { -result } else { result }
}

#[test]
fn sums_and_products_round_to_nearest() {
    let operations: [(&str, fn(f32, f32) -> f32); 4] =
        [("add", |a, b| a + b), ("sub", |a, b| a - b), ("mul", |a, b| a * b), ("div.rn", |a, b| a / b)];
    for (name, wanted) in operations {
        let mut draws = Words::new(21);
        let text = format!(
            "{name}.f32 $0, $1, $2;\n{{ .reg .pred q; testp.notanumber.f32 q, $0; @q mov.b32 $0, 0x7fffffff; }}"
        );
        compare(
            &text,
            "f32",
            &["f32"; 2],
            |_| bits(draws.float()),
            |r| same(wanted(float(r[0]), float(r[1]))),
        );
    }
    let mut draws = Words::new(22);
    let positive = |x: f32| if x.is_nan() { 1.0 } else { x.abs() };
    compare(
        "sqrt.rn.f32 $0, $1;",
        "f32",
        &["f32"],
        |_| bits(positive(draws.float())),
        |r| bits(float(r[0]).sqrt()),
    );
    let mut draws = Words::new(23);
    compare(
        "rcp.rn.f32 $0, $1;",
        "f32",
        &["f32"],
        |_| bits(draws.next() as i32 as f32),
        |r| bits(1.0 / float(r[0])),
    );
}

#[test]
fn sums_round_as_their_mode_says() {
    for mode in ["rn", "rz", "rm", "rp"] {
        let mut draws = Words::new(24);
        // Values whose sums are exact in 128-bit integers of 2^-149.
        let draw = |draws: &mut Words| loop {
            let x = f32::from_bits((draws.next() as u32 % (90 << 23)) | ((draws.next() as u32) << 31));
            if units(x).is_some() {
                break bits(x);
            }
        };
        compare(
            &format!("add.{mode}.f32 $0, $1, $2;"),
            "f32",
            &["f32"; 2],
            |_| draw(&mut draws),
            |r| {
                let sum = units(float(r[0])).unwrap() + units(float(r[1])).unwrap();
                if sum == 0 { 0 } else { bits(rounded(sum, 0, mode)) }
            },
        );
        let mut draws = Words::new(25);
        compare(
            &format!("sub.{mode}.f32 $0, $1, $2;"),
            "f32",
            &["f32"; 2],
            |_| draw(&mut draws),
            |r| {
                let sum = units(float(r[0])).unwrap() - units(float(r[1])).unwrap();
                if sum == 0 { 0 } else { bits(rounded(sum, 0, mode)) }
            },
        );
    }
}

#[test]
fn products_with_a_sum_round_once() {
    let mut draws = Words::new(26);
    let text = "fma.rn.f32 $0, $1, $2, $3;\n{ .reg .pred q; testp.notanumber.f32 q, $0; @q mov.b32 $0, 0x7fffffff; }";
    for _ in 0..8 {
        compare(
            text,
            "f32",
            &["f32"; 3],
            |_| bits(draws.float()),
            |r| same(float(r[0]).mul_add(float(r[1]), float(r[2]))),
        );
    }
    // Halfway cases that two roundings get wrong: 1 + 2^-24 exactly, nudged by a tiny product.
    let tiny = f32::from_bits(0x0080_0000);
    let half = 2f32.powi(-24);
    for (a, b, c) in [
        (half, 1.0, 1.0),
        (half, 1.0 + f32::EPSILON, 1.0),
        (tiny, tiny, 1.0 + f32::EPSILON),
        (-tiny, tiny, 1.0),
    ] {
        check(
            "fma.rn.f32 $0, $1, $2, $3;",
            "f32",
            &["f32"; 3],
            &[&[bits(a), bits(b), bits(c), bits(a.mul_add(b, c))]],
        );
    }
    // Directed: products of short numbers are exact in units of 2^-20.
    for mode in ["rz", "rm", "rp"] {
        let mut draws = Words::new(27);
        compare(
            &format!("fma.{mode}.f32 $0, $1, $2, $3;"),
            "f32",
            &["f32"; 3],
            |i| {
                let word = draws.next() as i32;
                bits(if i < 2 { (word >> 8) as f32 } else { word as f32 / 1024.0 })
            },
            |r| {
                let product = float(r[0]) as i128 * float(r[1]) as i128;
                let sum = product * 1024 + (f64::from(float(r[2])) * 1024.0) as i128;
                // In units of 2^-10; the answer is scaled back exactly.
                if sum == 0 {
                    return 0;
                }
                let scaled = rounded(sum, 0, mode);
                bits((f64::from(scaled) * 2f64.powi(139)) as f32)
            },
        );
    }
    for mode in ["rz", "rm", "rp"] {
        let mut draws = Words::new(28);
        compare(
            &format!("mul.{mode}.f32 $0, $1, $2;"),
            "f32",
            &["f32"; 2],
            |_| bits((draws.next() as i32 >> 8) as f32),
            |r| {
                let product = float(r[0]) as i128 * float(r[1]) as i128;
                if product == 0 {
                    return r[0] & 0x8000_0000 ^ r[1] & 0x8000_0000;
                }
                bits((f64::from(rounded(product, 0, mode)) * 2f64.powi(149)) as f32)
            },
        );
    }
}

#[test]
fn quotients_and_roots_round_as_their_mode_says() {
    let third = [("rn", 0x3eaa_aaab), ("rz", 0x3eaa_aaaa), ("rm", 0x3eaa_aaaa), ("rp", 0x3eaa_aaab)];
    for (mode, wanted) in third {
        check(
            &format!("div.{mode}.f32 $0, $1, $2;"),
            "f32",
            &["f32"; 2],
            &[&[bits(1.0), bits(3.0), wanted], &[bits(8.0), bits(2.0), bits(4.0)]],
        );
        check(
            &format!("rcp.{mode}.f32 $0, $1;"),
            "f32",
            &["f32"],
            &[&[bits(3.0), wanted], &[bits(4.0), bits(0.25)]],
        );
    }
    for (mode, wanted) in [("rn", 0x3fb5_04f3), ("rz", 0x3fb5_04f3), ("rm", 0x3fb5_04f3), ("rp", 0x3fb5_04f4)]
    {
        check(
            &format!("sqrt.{mode}.f32 $0, $1;"),
            "f32",
            &["f32"],
            &[&[bits(2.0), wanted], &[bits(9.0), bits(3.0)]],
        );
    }
    // Overflow stops at the largest number where rounding goes toward zero.
    check("mul.rz.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[bits(f32::MAX), bits(2.0), bits(f32::MAX)]]);
    check("mul.rp.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[bits(f32::MAX), bits(2.0), bits(f32::INFINITY)]]);
}

#[test]
fn flushing_and_saturation() {
    let small = bits(1e-40);
    check(
        "add.ftz.f32 $0, $1, $2;",
        "f32",
        &["f32"; 2],
        &[&[small, small, 0], &[small | 0x8000_0000, bits(1.0), bits(1.0)]],
    );
    check("add.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[small, 0, small]]);
    check(
        "mul.ftz.f32 $0, $1, $2;",
        "f32",
        &["f32"; 2],
        &[&[bits(1e-20), bits(1e-20), 0], &[bits(-1e-20), bits(1e-20), 0x8000_0000]],
    );
    check(
        "fma.rn.ftz.f32 $0, $1, $2, $3;",
        "f32",
        &["f32"; 3],
        &[&[small, bits(1e30), bits(2.0), bits(2.0)]],
    );
    check(
        "fma.rn.sat.f32 $0, $1, $2, $3;",
        "f32",
        &["f32"; 3],
        &[
            &[bits(2.0), bits(2.0), 0, bits(1.0)],
            &[bits(-2.0), bits(2.0), 0, 0],
            &[bits(0.5), bits(0.5), 0, bits(0.25)],
            &[0x7fc0_0000, 0, 0, 0],
        ],
    );
    check("add.sat.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[bits(0.75), bits(0.75), bits(1.0)]]);
    check("add.rz.ftz.sat.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[bits(-0.75), bits(0.25), 0]]);
    check("sub.ftz.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[small, small, 0]]);
    check("neg.ftz.f32 $0, $1;", "f32", &["f32"], &[&[small, 0x8000_0000], &[bits(1.0), bits(-1.0)]]);
    check("abs.ftz.f32 $0, $1;", "f32", &["f32"], &[&[small | 0x8000_0000, 0]]);
    check("sqrt.rn.ftz.f32 $0, $1;", "f32", &["f32"], &[&[small, 0], &[bits(4.0), bits(2.0)]]);
    check("div.rn.ftz.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[small, bits(1.0), 0]]);
    check("rcp.rn.ftz.f32 $0, $1;", "f32", &["f32"], &[&[small, bits(f32::INFINITY)]]);
    check("max.ftz.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[small, 0, 0]]);
    check("min.ftz.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[small, bits(1.0), 0]]);
    check("setp.gt.ftz.f32 $0, $1, $2;", "pred", &["f32"; 2], &[&[small, 0, 0]]);
    check("setp.gt.f32 $0, $1, $2;", "pred", &["f32"; 2], &[&[small, 0, 1]]);
}

#[test]
fn signs_and_extremes() {
    let nan = 0x7fc0_0000;
    check("neg.f32 $0, $1;", "f32", &["f32"], &[&[bits(1.5), bits(-1.5)]]);
    check("abs.f32 $0, $1;", "f32", &["f32"], &[&[bits(-1.5), bits(1.5)]]);
    check(
        "min.f32 $0, $1, $2;",
        "f32",
        &["f32"; 2],
        &[
            &[bits(1.0), bits(2.0), bits(1.0)],
            &[nan, bits(2.0), bits(2.0)],
            &[bits(2.0), nan, bits(2.0)],
            &[nan, nan, 0x7fff_ffff],
            &[0, 0x8000_0000, 0x8000_0000],
            &[0x8000_0000, 0, 0x8000_0000],
        ],
    );
    check(
        "max.f32 $0, $1, $2;",
        "f32",
        &["f32"; 2],
        &[&[bits(1.0), bits(2.0), bits(2.0)], &[nan, bits(-2.0), bits(-2.0)], &[0, 0x8000_0000, 0]],
    );
    check(
        "min.NaN.f32 $0, $1, $2;",
        "f32",
        &["f32"; 2],
        &[&[nan, bits(2.0), 0x7fff_ffff], &[bits(3.0), bits(2.0), bits(2.0)]],
    );
    check(
        "max.NaN.f32 $0, $1, $2;",
        "f32",
        &["f32"; 2],
        &[&[bits(2.0), nan, 0x7fff_ffff], &[bits(3.0), bits(2.0), bits(3.0)]],
    );
    check("copysign.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[bits(-1.0), bits(3.0), bits(-3.0)]]);
    for (name, row) in [
        ("finite", [1, 0, 0, 1, 1]),
        ("infinite", [0, 1, 0, 0, 0]),
        ("number", [1, 1, 0, 1, 1]),
        ("notanumber", [0, 0, 1, 0, 0]),
        ("normal", [1, 0, 0, 0, 0]),
        ("subnormal", [0, 0, 0, 1, 0]),
    ] {
        let rows: [&[u64]; 5] = [
            &[bits(1.0), row[0]],
            &[bits(f32::INFINITY), row[1]],
            &[nan, row[2]],
            &[bits(1e-40), row[3]],
            &[0, row[4]],
        ];
        check(&format!("testp.{name}.f32 $0, $1;"), "pred", &["f32"], &rows);
        let wide: Vec<Vec<u64>> = [1.0, f64::INFINITY, f64::NAN, 1e-310, 0.0]
            .iter()
            .zip(row)
            .map(|(x, answer)| vec![x.to_bits(), answer])
            .collect();
        let wide: Vec<&[u64]> = wide.iter().map(Vec::as_slice).collect();
        check(&format!("testp.{name}.f64 $0, $1;"), "pred", &["f64"], &wide);
    }
}

#[test]
fn comparisons() {
    let (one, two, nan) = (bits(1.0), bits(2.0), 0x7fc0_0000);
    // Answers for (1, 1), (1, 2), (2, 1), (1, NaN).
    let table = [
        ("eq", [1, 0, 0, 0]),
        ("ne", [0, 1, 1, 0]),
        ("lt", [0, 1, 0, 0]),
        ("le", [1, 1, 0, 0]),
        ("gt", [0, 0, 1, 0]),
        ("ge", [1, 0, 1, 0]),
        ("equ", [1, 0, 0, 1]),
        ("neu", [0, 1, 1, 1]),
        ("ltu", [0, 1, 0, 1]),
        ("leu", [1, 1, 0, 1]),
        ("gtu", [0, 0, 1, 1]),
        ("geu", [1, 0, 1, 1]),
        ("num", [1, 1, 1, 0]),
        ("nan", [0, 0, 0, 1]),
    ];
    for (name, answers) in table {
        let rows: [&[u64]; 4] = [
            &[one, one, answers[0]],
            &[one, two, answers[1]],
            &[two, one, answers[2]],
            &[one, nan, answers[3]],
        ];
        check(&format!("setp.{name}.f32 $0, $1, $2;"), "pred", &["f32"; 2], &rows);
        let wide = |x: u64| f64::from(float(x)).to_bits();
        let rows: Vec<Vec<u64>> = rows.iter().map(|r| vec![wide(r[0]), wide(r[1]), r[2]]).collect();
        let rows: Vec<&[u64]> = rows.iter().map(Vec::as_slice).collect();
        check(&format!("setp.{name}.f64 $0, $1, $2;"), "pred", &["f64"; 2], &rows);
        for (ty, narrow) in [("f16", [0x3c00, 0x4000, 0x7e00]), ("bf16", [0x3f80, 0x4000, 0x7fc0])] {
            let [one, two, nan] = narrow;
            let rows: [&[u64]; 4] = [
                &[one, one, answers[0]],
                &[one, two, answers[1]],
                &[two, one, answers[2]],
                &[one, nan, answers[3]],
            ];
            check(&format!("setp.{name}.{ty} $0, $1, $2;"), "pred", &[ty; 2], &rows);
        }
    }
}

#[test]
fn doubles() {
    let operations: [(&str, fn(f64, f64) -> f64); 6] = [
        ("add.rn", |a, b| a + b),
        ("sub", |a, b| a - b),
        ("mul.rn", |a, b| a * b),
        ("div.rn", |a, b| a / b),
        ("min", f64::min),
        ("max", f64::max),
    ];
    for (name, wanted) in operations {
        let mut draws = Words::new(31);
        compare(
            &format!("{name}.f64 $0, $1, $2;"),
            "f64",
            &["f64"; 2],
            |_| (draws.next() as i64 as f64 * 1e-9).to_bits(),
            |r| wanted(f64::from_bits(r[0]), f64::from_bits(r[1])).to_bits(),
        );
    }
    let mut draws = Words::new(32);
    compare(
        "fma.rn.f64 $0, $1, $2, $3;",
        "f64",
        &["f64"; 3],
        |_| (draws.next() as i64 as f64 * 1e-9).to_bits(),
        |r| f64::from_bits(r[0]).mul_add(f64::from_bits(r[1]), f64::from_bits(r[2])).to_bits(),
    );
    let (one, third) = (1f64.to_bits(), (1.0f64 / 3.0).to_bits());
    check("sqrt.rn.f64 $0, $1;", "f64", &["f64"], &[&[9f64.to_bits(), 3f64.to_bits()]]);
    check("rcp.rn.f64 $0, $1;", "f64", &["f64"], &[&[3f64.to_bits(), third]]);
    check("div.rp.f64 $0, $1, $2;", "f64", &["f64"; 2], &[&[one, 3f64.to_bits(), third + 1]]);
    check("div.rz.f64 $0, $1, $2;", "f64", &["f64"; 2], &[&[one, 3f64.to_bits(), third]]);
    check("rcp.rp.f64 $0, $1;", "f64", &["f64"], &[&[3f64.to_bits(), third + 1]]);
    check("sqrt.rm.f64 $0, $1;", "f64", &["f64"], &[&[2f64.to_bits(), 2f64.sqrt().to_bits() - 1]]);
    let tiny = 1e-300f64.to_bits();
    check("add.rp.f64 $0, $1, $2;", "f64", &["f64"; 2], &[&[one, tiny, one + 1]]);
    check("add.rm.f64 $0, $1, $2;", "f64", &["f64"; 2], &[&[one, tiny | 1 << 63, one - 1]]);
    check("sub.rz.f64 $0, $1, $2;", "f64", &["f64"; 2], &[&[one, tiny, one - 1]]);
    check("mul.rp.f64 $0, $1, $2;", "f64", &["f64"; 2], &[&[third, 3f64.to_bits(), one]]);
    check("mul.rm.f64 $0, $1, $2;", "f64", &["f64"; 2], &[&[third, 3f64.to_bits(), one - 1]]);
    check("fma.rp.f64 $0, $1, $2, $3;", "f64", &["f64"; 3], &[&[tiny, one, one, one + 1]]);
    check("fma.rz.f64 $0, $1, $2, $3;", "f64", &["f64"; 3], &[&[tiny | 1 << 63, one, one, one - 1]]);
    check("neg.f64 $0, $1;", "f64", &["f64"], &[&[one, (-1f64).to_bits()]]);
    check("abs.f64 $0, $1;", "f64", &["f64"], &[&[(-1f64).to_bits(), one]]);
    check(
        "copysign.f64 $0, $1, $2;",
        "f64",
        &["f64"; 2],
        &[&[(-1f64).to_bits(), 3f64.to_bits(), (-3f64).to_bits()]],
    );
    check(
        "rcp.approx.ftz.f64 $0, $1;",
        "f64",
        &["f64"],
        &[&[4f64.to_bits(), 0.25f64.to_bits()], &[3f64.to_bits(), third & 0xffff_ffff_0000_0000]],
    );
    check("rsqrt.approx.ftz.f64 $0, $1;", "f64", &["f64"], &[&[4f64.to_bits(), 0.5f64.to_bits()]]);
}

/// The worst error of an approximation, in units of the last place of f32 or absolute.
fn worst(instruction: &str, inputs: &[f32], exact: impl Fn(f64) -> f64, absolute: bool) -> f64 {
    let mut worst = 0f64;
    for inputs in inputs.chunks(1024) {
        let rows: Vec<Vec<u64>> = inputs.iter().map(|&x| vec![bits(x)]).collect();
        for (&x, found) in inputs.iter().zip(evaluate(instruction, "f32", &["f32"], &rows)) {
            let (found, exact) = (f64::from(float(found)), exact(f64::from(x)));
            let unit =
                f64::from(f32::from_bits((exact as f32).to_bits() & 0x7f80_0000)) * f64::from(f32::EPSILON);
            let unit = if absolute { 1.0 } else { unit.max(f64::from(f32::from_bits(1))) };
            worst = worst.max((found - exact).abs() / unit);
        }
    }
    worst
}

#[test]
fn special_functions_stay_within_their_documented_error() {
    let mut draws = Words::new(41);
    let spread: Vec<f32> = (0..4096)
        .map(|_| f32::from_bits(draws.next() as u32 & 0x7fff_ffff))
        .filter(|x| x.is_finite() && *x > 0.0)
        .collect();
    let near: Vec<f32> = (0..4096).map(|_| draws.next() as i32 as f32 / 2f32.powi(31)).collect();
    let exponents: Vec<f32> = near.iter().map(|x| x * 126.0).collect();
    let small: Vec<f32> = near.iter().map(|x| x * std::f32::consts::PI).collect();
    // The manual: 2 units for ex2, rsqrt and 1 for rcp, sqrt; lg2 2^-22 in its log near 1; sin and cos 2^-20.5.
    assert!(worst("ex2.approx.f32 $0, $1;", &exponents, f64::exp2, false) < 1.0);
    assert!(worst("rcp.approx.f32 $0, $1;", &spread, |x| 1.0 / x, false) <= 0.51);
    assert!(worst("rsqrt.approx.f32 $0, $1;", &spread, |x| 1.0 / x.sqrt(), false) < 1.0);
    assert!(worst("sqrt.approx.f32 $0, $1;", &spread, f64::sqrt, false) <= 0.51);
    assert!(worst("lg2.approx.f32 $0, $1;", &spread, f64::log2, false) < 1.0);
    assert!(worst("sin.approx.f32 $0, $1;", &small, f64::sin, true) < 2f64.powf(-20.5));
    assert!(worst("cos.approx.f32 $0, $1;", &small, f64::cos, true) < 2f64.powf(-20.5));
    assert!(worst("tanh.approx.f32 $0, $1;", &small, f64::tanh, false) < 4096.0);
    let huge: Vec<f32> = near.iter().map(|x| x * 1e4).collect();
    assert!(worst("sin.approx.f32 $0, $1;", &huge, f64::sin, true) < 1e-5);
}

#[test]
fn special_functions_at_the_ends() {
    let (infinity, nan) = (bits(f32::INFINITY), 0x7fff_ffff);
    check(
        "ex2.approx.f32 $0, $1;",
        "f32",
        &["f32"],
        &[
            &[0, bits(1.0)],
            &[bits(200.0), infinity],
            &[bits(-200.0), 0],
            &[bits(f32::NEG_INFINITY), 0],
            &[0x7fc0_0000, nan],
            &[bits(-149.0), 1],
            &[bits(10.0), bits(1024.0)],
        ],
    );
    check("ex2.approx.ftz.f32 $0, $1;", "f32", &["f32"], &[&[bits(-127.0), 0], &[bits(-126.0), 0x0080_0000]]);
    check(
        "lg2.approx.f32 $0, $1;",
        "f32",
        &["f32"],
        &[
            &[0, bits(f32::NEG_INFINITY)],
            &[bits(-1.0), nan],
            &[infinity, infinity],
            &[bits(1.0), 0],
            &[1, bits(-149.0)],
        ],
    );
    check(
        "lg2.approx.ftz.f32 $0, $1;",
        "f32",
        &["f32"],
        &[&[1, bits(f32::NEG_INFINITY)], &[bits(8.0), bits(3.0)]],
    );
    check(
        "rcp.approx.ftz.f32 $0, $1;",
        "f32",
        &["f32"],
        &[&[0, infinity], &[0x8000_0000, bits(f32::NEG_INFINITY)], &[1, infinity]],
    );
    check(
        "rsqrt.approx.ftz.f32 $0, $1;",
        "f32",
        &["f32"],
        &[&[0, infinity], &[infinity, 0], &[bits(4.0), bits(0.5)]],
    );
    check("sqrt.approx.ftz.f32 $0, $1;", "f32", &["f32"], &[&[bits(4.0), bits(2.0)]]);
    check("sin.approx.ftz.f32 $0, $1;", "f32", &["f32"], &[&[0, 0], &[infinity, nan]]);
    check("cos.approx.ftz.f32 $0, $1;", "f32", &["f32"], &[&[0, bits(1.0)], &[infinity, nan]]);
    check(
        "tanh.approx.f32 $0, $1;",
        "f32",
        &["f32"],
        &[&[0, 0], &[infinity, bits(1.0)], &[bits(-50.0), bits(-1.0)]],
    );
    check(
        "div.approx.f32 $0, $1, $2;",
        "f32",
        &["f32"; 2],
        &[&[bits(6.0), bits(3.0), bits(2.0)], &[bits(1e38), bits(2e38), 0]],
    );
    check("div.full.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[bits(1e38), bits(2e38), bits(0.5)]]);
    check("div.full.ftz.f32 $0, $1, $2;", "f32", &["f32"; 2], &[&[bits(1e-40), bits(1.0), 0]]);
}

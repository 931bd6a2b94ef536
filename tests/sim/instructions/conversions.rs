//! `cvt` between every pair of types that it knows.

use super::{Words, check, compare, evaluate};
use half::{bf16, f16};

fn bits(x: f32) -> u64 {
    u64::from(x.to_bits())
}

#[test]
fn integers_to_integers() {
    let types = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"];
    let width = |ty: &str| ty[1..].parse::<u32>().unwrap();
    for from in types {
        for to in types {
            let value = |bits: u64| {
                let bits = i128::from(bits);
                if from.starts_with('s') && bits >> (width(from) - 1) & 1 == 1 {
                    bits - (1 << width(from))
                } else {
                    bits
                }
            };
            let mask = u64::MAX >> (64 - width(to));
            let mut draws = Words::new(61);
            compare(
                &format!("cvt.{to}.{from} $0, $1;"),
                to,
                &[from],
                |_| draws.word(),
                |r| value(r[0]) as u64 & mask,
            );
            let mut draws = Words::new(62);
            let (low, high) = if to.starts_with('s') {
                (-(1i128 << (width(to) - 1)), (1i128 << (width(to) - 1)) - 1)
            } else {
                (0, (1i128 << width(to)) - 1)
            };
            compare(
                &format!("cvt.sat.{to}.{from} $0, $1;"),
                to,
                &[from],
                |_| draws.word(),
                |r| value(r[0]).clamp(low, high) as u64 & mask,
            );
        }
    }
    // A signed byte fills its register with its sign, whatever the register's width.
    check("cvt.s8.s32 $0, $1;", "u32", &["u32"], &[&[0x180, 0xffff_ff80], &[0x17f, 0x7f]]);
    check("cvt.s16.s8 $0, $1;", "u16", &["u16"], &[&[0x80, 0xff80]]);
    check("cvt.u32.u16 $0, $1;", "u32", &["u16"], &[&[0xffff, 0xffff]]);
    check("cvt.u16.u64 $0, $1;", "u16", &["u64"], &[&[0x12_3456, 0x3456]]);
    check("cvt.u32.u32 $0, $1;", "u32", &["u64"], &[&[0x12_0000_3456, 0x3456]]);
}

#[test]
fn integers_to_floats() {
    let mut draws = Words::new(63);
    compare("cvt.rn.f32.s32 $0, $1;", "f32", &["u32"], |_| draws.word(), |r| bits(r[0] as i32 as f32));
    let mut draws = Words::new(64);
    compare("cvt.rn.f32.u32 $0, $1;", "f32", &["u32"], |_| draws.word(), |r| bits(r[0] as u32 as f32));
    let mut draws = Words::new(65);
    compare("cvt.rn.f32.s64 $0, $1;", "f32", &["u64"], |_| draws.word(), |r| bits(r[0] as i64 as f32));
    let mut draws = Words::new(66);
    compare("cvt.rn.f32.u64 $0, $1;", "f32", &["u64"], |_| draws.word(), |r| bits(r[0] as f32));
    let mut draws = Words::new(67);
    compare("cvt.rn.f64.s64 $0, $1;", "f64", &["u64"], |_| draws.word(), |r| (r[0] as i64 as f64).to_bits());
    let mut draws = Words::new(68);
    compare("cvt.rn.f64.u32 $0, $1;", "f64", &["u32"], |_| draws.word(), |r| (r[0] as f64).to_bits());
    check("cvt.rn.f64.s32 $0, $1;", "f64", &["u32"], &[&[0xffff_ffff, (-1f64).to_bits()]]);
    check("cvt.rz.f32.u32 $0, $1;", "f32", &["u32"], &[&[0xffff_ffff, 0x4f7f_ffff]]);
    check("cvt.rp.f32.u32 $0, $1;", "f32", &["u32"], &[&[0x0100_0001, 0x4b80_0001]]);
    check("cvt.rm.f32.s32 $0, $1;", "f32", &["u32"], &[&[0xfeff_ffff, 0xcb80_0001]]);
    check("cvt.rp.f64.u64 $0, $1;", "f64", &["u64"], &[&[u64::MAX, 18_446_744_073_709_551_616f64.to_bits()]]);
    check("cvt.rz.f64.u64 $0, $1;", "f64", &["u64"], &[&[u64::MAX, 18_446_744_073_709_549_568f64.to_bits()]]);
    check(
        "cvt.rn.f16.s32 $0, $1;",
        "f16",
        &["u32"],
        &[&[2049, 0x6800], &[0xffff_ffff, 0xbc00], &[100_000, 0x7c00]],
    );
    check("cvt.rn.f16.u16 $0, $1;", "f16", &["u16"], &[&[3, 0x4200]]);
    check("cvt.rn.bf16.u32 $0, $1;", "bf16", &["u32"], &[&[3, 0x4040]]);
    check("cvt.rn.f32.u8 $0, $1;", "f32", &["u16"], &[&[0x1ff, bits(255.0)]]);
    check("cvt.rn.f32.s8 $0, $1;", "f32", &["u16"], &[&[0xff, bits(-1.0)]]);
    check("cvt.rn.f32.s16 $0, $1;", "f32", &["u16"], &[&[0xffff, bits(-1.0)]]);
}

#[test]
fn floats_to_integers() {
    let values = [2.5f32, -2.5, 3.5, -0.5, 0.49, 1e20, -1e20, f32::NAN, f32::INFINITY, 0.0];
    let modes: [(&str, fn(f64) -> f64); 4] =
        [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];
    for (mode, round) in modes {
        let rows: Vec<Vec<u64>> = values.iter().map(|&x| vec![bits(x)]).collect();
        let run = |to: &str| evaluate(&format!("cvt.{mode}.{to}.f32 $0, $1;"), to, &["f32"], &rows);
        for (i, &x) in values.iter().enumerate() {
            let x = round(f64::from(x));
            assert_eq!(run("s32")[i], u64::from(x as i32 as u32), "{mode} s32 of {x}");
            assert_eq!(run("u32")[i], u64::from(x as u32), "{mode} u32 of {x}");
            assert_eq!(run("s64")[i], x as i64 as u64, "{mode} s64 of {x}");
            assert_eq!(run("u64")[i], x as u64, "{mode} u64 of {x}");
            assert_eq!(run("u16")[i], u64::from(x as u16), "{mode} u16 of {x}");
            assert_eq!(run("s16")[i], u64::from(x as i16 as u16), "{mode} s16 of {x}");
            assert_eq!(run("s8")[i], u64::from(x as i8 as u8), "{mode} s8 of {x}");
        }
    }
    check("cvt.rzi.ftz.s32.f32 $0, $1;", "u32", &["f32"], &[&[bits(-7.9), 0xffff_fff9]]);
    check("cvt.rzi.s32.f64 $0, $1;", "u32", &["f64"], &[&[(-7.9f64).to_bits(), 0xffff_fff9]]);
    check("cvt.rni.s32.f16 $0, $1;", "u32", &["f16"], &[&[0x4100, 2], &[0x4300, 4]]);
    check("cvt.rzi.u32.bf16 $0, $1;", "u32", &["bf16"], &[&[0x4060, 3]]);
}

#[test]
fn floats_to_integral_floats() {
    let rows: [(&str, [f32; 4]); 4] = [
        ("rni", [2.0, -2.0, 4.0, -0.0]),
        ("rzi", [2.0, -2.0, 3.0, -0.0]),
        ("rmi", [2.0, -3.0, 3.0, -1.0]),
        ("rpi", [3.0, -2.0, 4.0, -0.0]),
    ];
    for (mode, wanted) in rows {
        let inputs = [2.5f32, -2.5, 3.5, -0.5];
        let table: Vec<Vec<u64>> = inputs.iter().zip(wanted).map(|(&x, y)| vec![bits(x), bits(y)]).collect();
        let table: Vec<&[u64]> = table.iter().map(Vec::as_slice).collect();
        check(&format!("cvt.{mode}.f32.f32 $0, $1;"), "f32", &["f32"], &table);
        let table: Vec<Vec<u64>> = inputs
            .iter()
            .zip(wanted)
            .map(|(&x, y)| vec![f64::from(x).to_bits(), f64::from(y).to_bits()])
            .collect();
        let table: Vec<&[u64]> = table.iter().map(Vec::as_slice).collect();
        check(&format!("cvt.{mode}.f64.f64 $0, $1;"), "f64", &["f64"], &table);
    }
    check("cvt.rni.f16.f16 $0, $1;", "f16", &["f16"], &[&[0x4100, 0x4000]]);
}

#[test]
fn floats_to_floats() {
    // Every half-precision number, and back.
    let rows: Vec<Vec<u64>> = (0..1024u64).map(|i| vec![i * 64 + i % 64]).collect();
    for (row, found) in rows.iter().zip(evaluate("cvt.f32.f16 $0, $1;", "f32", &["f16"], &rows)) {
        let wanted = f16::from_bits(row[0] as u16).to_f32();
        assert!(
            found == bits(wanted) || wanted.is_nan() && f32::from_bits(found as u32).is_nan(),
            "{row:x?}"
        );
    }
    for (row, found) in rows.iter().zip(evaluate("cvt.f32.bf16 $0, $1;", "f32", &["bf16"], &rows)) {
        assert_eq!(found, row[0] << 16);
    }
    let mut draws = Words::new(71);
    let mut near = move |_| match draws.next() % 3 {
        0 => bits(draws.float()),
        // Near halfway between two numbers of either format.
        1 => (draws.next() & 0xffff_e000 | 0x1000) ^ draws.next() & 1,
        _ => (draws.next() & 0xffff_0000 | 0x8000) ^ draws.next() & 1,
    };
    for _ in 0..8 {
        compare("cvt.rn.f16.f32 $0, $1;", "f16", &["f32"], &mut near, |r| {
            let x = f32::from_bits(r[0] as u32);
            u64::from(if x.is_nan() { 0x7fff } else { f16::from_f32(x).to_bits() })
        });
        compare("cvt.rn.bf16.f32 $0, $1;", "bf16", &["f32"], &mut near, |r| {
            let x = f32::from_bits(r[0] as u32);
            u64::from(if x.is_nan() { 0x7fff } else { bf16::from_f32(x).to_bits() })
        });
    }
    let mut draws = Words::new(72);
    compare(
        "cvt.rn.f32.f64 $0, $1;",
        "f32",
        &["f64"],
        |_| (draws.next() as i64 as f64 * 1e-9).to_bits(),
        |r| bits(f64::from_bits(r[0]) as f32),
    );
    let mut draws = Words::new(73);
    compare(
        "cvt.rn.f16.f64 $0, $1;",
        "f16",
        &["f64"],
        |_| (draws.next() as i64 as f64 * 1e-16).to_bits(),
        |r| u64::from(f16::from_f64(f64::from_bits(r[0])).to_bits()),
    );
    check("cvt.f64.f32 $0, $1;", "f64", &["f32"], &[&[bits(1.5), 1.5f64.to_bits()]]);
    check("cvt.f64.f16 $0, $1;", "f64", &["f16"], &[&[0x3e00, 1.5f64.to_bits()]]);
    check(
        "cvt.rz.f32.f64 $0, $1;",
        "f32",
        &["f64"],
        &[&[(1.0 + 1e-8f64).to_bits(), bits(1.0)], &[(2.0 - 1e-9f64).to_bits(), 0x3fff_ffff]],
    );
    check("cvt.rp.f32.f64 $0, $1;", "f32", &["f64"], &[&[(1.0 + 1e-10f64).to_bits(), 0x3f80_0001]]);
    check("cvt.rz.f16.f32 $0, $1;", "f16", &["f32"], &[&[bits(1.9999), 0x3fff], &[bits(1e9), 0x7bff]]);
    check(
        "cvt.rz.bf16.f32 $0, $1;",
        "bf16",
        &["f32"],
        &[&[bits(1.999_999), 0x3fff], &[bits(f32::INFINITY), 0x7f80]],
    );
    check(
        "cvt.sat.f32.f32 $0, $1;",
        "f32",
        &["f32"],
        &[&[bits(2.0), bits(1.0)], &[bits(-2.0), 0], &[bits(0.5), bits(0.5)], &[0x7fc0_0000, 0]],
    );
    check("cvt.ftz.f32.f32 $0, $1;", "f32", &["f32"], &[&[1, 0], &[bits(3.0), bits(3.0)]]);
    check("cvt.rn.relu.f16.f32 $0, $1;", "f16", &["f32"], &[&[bits(-1.0), 0], &[bits(1.0), 0x3c00]]);
    check("cvt.rn.relu.bf16.f32 $0, $1;", "bf16", &["f32"], &[&[bits(-1.0), 0], &[bits(1.0), 0x3f80]]);
}

#[test]
fn pairs_and_tf32() {
    let (one, two) = (bits(1.0), bits(-2.0));
    // The first operand goes to the upper half.
    check("cvt.rn.bf16x2.f32 $0, $1, $2;", "bf16x2", &["f32"; 2], &[&[one, two, 0x3f80_c000]]);
    check("cvt.rn.f16x2.f32 $0, $1, $2;", "f16x2", &["f32"; 2], &[&[one, two, 0x3c00_c000]]);
    check("cvt.rn.relu.bf16x2.f32 $0, $1, $2;", "bf16x2", &["f32"; 2], &[&[one, two, 0x3f80_0000]]);
    check("cvt.rn.relu.f16x2.f32 $0, $1, $2;", "f16x2", &["f32"; 2], &[&[one, two, 0x3c00_0000]]);
    check("cvt.rz.bf16x2.f32 $0, $1, $2;", "bf16x2", &["f32"; 2], &[&[bits(1.999_999), one, 0x3fff_3f80]]);
    check("cvt.rz.f16x2.f32 $0, $1, $2;", "f16x2", &["f32"; 2], &[&[bits(1.9999), one, 0x3fff_3c00]]);
    let rows: [&[u64]; 4] = [
        &[0x3f80_0fff, 0x3f80_0000],
        &[0x3f80_1000, 0x3f80_2000],
        &[0xbf80_1000, 0xbf80_2000],
        &[0x7f80_0000, 0x7f80_0000],
    ];
    check("cvt.rna.tf32.f32 $0, $1;", "b32", &["f32"], &rows);
}

//! Every instruction form, by itself: tiny PTX and answers that are known from elsewhere.

// Tables of operations and what they should give.
#![allow(clippy::type_complexity)]

mod bits;
mod control;
mod conversions;
mod floats;
mod halves;
mod integers;
mod lanes;
mod matrices;
mod memory;
mod warpgroups;

use latch::sim::{Fault, Launch, Machine, Options, Program};

/// A PTX file around some text.
pub fn file(text: &str) -> String {
    format!(".version 8.1\n.target sm_80\n.address_size 64\n{text}")
}

/// An entry `f` with the given number of `.u64` parameters, named %p0, %p1, ... in its body.
pub fn entry(parameters: usize, body: &str) -> String {
    let list: Vec<String> = (0..parameters).map(|i| format!(".param .u64 f_{i}")).collect();
    let loads: String = (0..parameters).map(|i| format!("ld.param.u64 %p{i}, [f_{i}];\n")).collect();
    file(&format!(".visible .entry f({})\n{{\n.reg .b64 %p<9>;\n{loads}{body}\nret;\n}}\n", list.join(", ")))
}

/// Runs entry `f` of a text with one block on one host thread.
pub fn run(text: &str, threads: u32, arrays: &mut [Vec<u8>]) -> Result<(), Fault> {
    launch(text, [1, 1, 1], [threads, 1, 1], 0, arrays)
}

/// Runs entry `f` of a text; each array becomes device memory and comes back.
pub fn launch(
    text: &str,
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    arrays: &mut [Vec<u8>],
) -> Result<(), Fault> {
    let program = Program::parse("test.ptx", text)?;
    let machine = Machine::new(Options::default());
    let mut parameters = Vec::new();
    let mut addresses = Vec::new();
    for array in arrays.iter() {
        let address = machine.allocate(array.len() as u64)?;
        machine.write(address, array)?;
        parameters.extend(address.to_le_bytes());
        addresses.push(address);
    }
    let launch =
        Launch { entry: "f", grid, block, dynamic_shared, parameters: &parameters, sample: None, seed: 0 };
    machine.launch(&program, &launch)?;
    for (array, address) in arrays.iter_mut().zip(addresses) {
        machine.read(address, array)?;
    }
    Ok(())
}

/// Bytes of 32-bit words.
pub fn words(values: impl IntoIterator<Item = u32>) -> Vec<u8> {
    values.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// 32-bit words of bytes.
pub fn as_words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn bytes_of(ty: &str) -> usize {
    match ty {
        "pred" => 4,
        "f16x2" | "bf16x2" => 4,
        _ if ty.ends_with("16") => 2,
        _ if ty.ends_with("64") => 8,
        _ if ty.ends_with('8') => 1,
        _ => 4,
    }
}

/// The type of a register that holds a type.
fn register(ty: &str) -> &str {
    match (ty, bytes_of(ty)) {
        ("pred", _) => "pred",
        (_, 1 | 2) => "b16",
        (_, 4) => "b32",
        _ => "b64",
    }
}

/// Runs one instruction on rows of operands, a thread for each row. In the text, `$0` stands for the result and `$1`,
/// `$2`, ... for the operands; types are those of registers and of memory. Values are bits.
pub fn evaluate(instruction: &str, result: &str, operands: &[&str], rows: &[Vec<u64>]) -> Vec<u64> {
    let mut body = String::from(
        ".reg .b32 %t; .reg .b64 %w, %a; .reg .b32 %s;\nmov.u32 %t, %tid.x;\ncvt.u64.u32 %w, %t;\n",
    );
    let mut text = instruction.replace("$0", "%d");
    body += &format!(".reg .{} %d;\n", register(result));
    let mut arrays = Vec::new();
    for (i, ty) in operands.iter().enumerate() {
        let bytes = bytes_of(ty);
        body += &format!(".reg .{} %x{i};\nmad.lo.s64 %a, %w, {bytes}, %p{i};\n", register(ty));
        body += &match *ty {
            "pred" => format!("ld.global.u32 %s, [%a];\nsetp.ne.u32 %x{i}, %s, 0;\n"),
            _ => format!("ld.global.u{} %x{i}, [%a];\n", 8 * bytes),
        };
        text = text.replace(&format!("${}", i + 1), &format!("%x{i}"));
        arrays.push(rows.iter().flat_map(|row| row[i].to_le_bytes()[..bytes].to_vec()).collect::<Vec<u8>>());
    }
    let bytes = bytes_of(result);
    let out = operands.len();
    body += &format!("{text}\nmad.lo.s64 %a, %w, {bytes}, %p{out};\n");
    body += &match result {
        "pred" => "selp.u32 %s, 1, 0, %d;\nst.global.u32 [%a], %s;\n".to_string(),
        _ => format!("st.global.b{} [%a], %d;\n", 8 * bytes),
    };
    arrays.push(vec![0; bytes * rows.len()]);
    let threads = rows.len() as u32;
    if let Err(fault) = run(&entry(out + 1, &body), threads, &mut arrays) {
        panic!("{instruction}: {fault}");
    }
    let word = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(word)
    };
    arrays[out].chunks_exact(bytes).map(word).collect()
}

/// Checks one instruction on rows that end in the right answer.
pub fn check(instruction: &str, result: &str, operands: &[&str], rows: &[&[u64]]) {
    let inputs: Vec<Vec<u64>> = rows.iter().map(|row| row[..operands.len()].to_vec()).collect();
    let found = evaluate(instruction, result, operands, &inputs);
    for (row, found) in rows.iter().zip(found) {
        let (inputs, wanted) = row.split_at(operands.len());
        assert_eq!(
            found, wanted[0],
            "{instruction} on {inputs:x?}: found {found:#x}, wanted {:#x}",
            wanted[0]
        );
    }
}

/// Numbers for tests, always the same.
pub struct Words(u64);

impl Words {
    pub fn new(seed: u64) -> Words {
        Words(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A word of a kind that finds mistakes: any bits, few bits, a sign change, an end of the range.
    pub fn word(&mut self) -> u64 {
        let word = self.next();
        match self.next() % 6 {
            0 => word & 0xff,
            1 => (word & 0xff).wrapping_neg(),
            2 => [0, 1, u64::MAX, 1 << 31, 1 << 63, 0x7fff_ffff, i64::MAX as u64, 0xffff_ffff]
                [word as usize % 8],
            3 => word >> (word & 63),
            _ => word,
        }
    }

    /// A float of a kind that finds mistakes.
    pub fn float(&mut self) -> f32 {
        let bits = self.next() as u32;
        match self.next() % 8 {
            0 => [0.0, -0.0, 1.0, -1.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MIN_POSITIVE]
                [bits as usize % 8],
            // A subnormal number.
            1 => f32::from_bits(bits & 0x807f_ffff),
            // Near one, where sums cancel.
            2 | 3 => f32::from_bits(0x3f80_0000 ^ bits & 0x8000_000f),
            4 => f32::from_bits(bits),
            _ => (bits as i32 as f32) / 65_536.0,
        }
    }
}

/// Compares an instruction with a function on many rows of bits.
pub fn compare(
    instruction: &str,
    result: &str,
    operands: &[&str],
    mut draw: impl FnMut(usize) -> u64,
    wanted: impl Fn(&[u64]) -> u64,
) {
    for _ in 0..4 {
        let rows: Vec<Vec<u64>> = (0..512)
            .map(|_| {
                (0..operands.len())
                    .map(|i| draw(i) & (u64::MAX >> (64 - 8 * bytes_of(operands[i]).min(8) as u32)))
                    .collect()
            })
            .collect();
        let found = evaluate(instruction, result, operands, &rows);
        for (row, found) in rows.iter().zip(found) {
            let wanted = wanted(row);
            assert_eq!(found, wanted, "{instruction} on {row:x?}: found {found:#x}, wanted {wanted:#x}");
        }
    }
}

#[test]
fn a_wrong_answer_is_noticed() {
    let wrong =
        std::panic::catch_unwind(|| check("add.s32 $0, $1, $2;", "s32", &["s32", "s32"], &[&[2, 2, 5]]));
    assert!(wrong.is_err());
}

//! Text that is not what the simulator expects: every fault names the file and the line, and nothing panics.

use super::instructions::{entry, file};
use latch::sim::{Kind, Program};

fn fault_of(text: &str) -> latch::sim::Fault {
    let fault = Program::parse("some.ptx", text).unwrap_err();
    assert_eq!(fault.site.file, "some.ptx", "{fault}");
    fault
}

#[test]
fn unknown_instructions_name_file_and_line() {
    let cases = [
        "add.u128 %r1, %r1, %r1;",
        "frobnicate.b32 %r1, %r1;",
        "add.s32 %r1, %r1;",
        "add.s32 %r1, %r1, %r1, %r1;",
        "add.s32 %d1, %r1, %r1;",
        "add.rn.s32 %r1, %r1, %r1;",
        "add.f32.approx %r1, %r1, %r1;",
        "mul.s32 %r1, %r1, %r1;",
        "cvt.bf16.f32 %h1, %r1;",
        "cvt.s32.f32 %r1, %r1;",
        "ex2.f32 %r1, %r1;",
        "shfl.down.b32 %r1, %r1, 1, 31;",
        "ld.surface.u32 %r1, [%d1];",
        "ld.global.u64 %r1, [%d1];",
        "ld.global.v3.u32 {%r1, %r2, %r3}, [%d1];",
        "ld.global.v4.u32 {%r1, %r2}, [%d1];",
        "txq.width.b32 %r1, [%d1];",
        "call.uni (%r1), f, (%r1);",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1, %r1, %r1, %r1}, {%r1, %r1, %r1, %r1}, {%r1, %r1}, {%r1, %r1, %r1, %r1};",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r1, %r1, %r1, %r1}, {%r1, %r1}, {%r1, %r1}, {%r1, %r1, %r1, %r1};",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r1}, [%d1];",
        "cp.async.cg.shared.global [%r1], [%d1], 8;",
        "cp.async.bulk.commit_group;",
        "setp.almost.s32 %q1, %r1, %r1;",
        "setp.ltu.s32 %q1, %r1, %r1;",
        "atom.global.sub.u32 %r1, [%d1], 1;",
        "atom.global.add.b32 %r1, [%d1], 1;",
        "bar.sync;",
        "mov.u32 %r1, %smid.q;",
        "mov.u32 %r1, %envreg3;",
        "wgmma.fence.sync.aligned;",
        "@%q1 vadd.u32.u32.u32 %r1, %r1, %r1;",
        "selp.f32 %r1, %r1, %r1, %r1;",
        "membar;",
        "vote.ballot.b32 %r1, %q1;",
    ];
    for case in cases {
        let text = entry(
            1,
            &format!(
                ".reg .pred %q<3>; .reg .b16 %h<3>; .reg .b32 %r<9>; .reg .b64 %d<3>;\nmov.u32 %r1, 0;\n{case}"
            ),
        );
        let fault = fault_of(&text);
        let line = text.lines().position(|line| line == case).unwrap() as u32 + 1;
        assert_eq!((fault.kind, fault.site.line), (Kind::UnknownInstruction, line), "{case}: {fault}");
        let opcode = case.trim_start_matches("@%q1 ").split([' ', ';']).next().unwrap();
        let sentence = fault.to_string();
        assert!(
            sentence.contains(&format!("some.ptx:{line}")) && sentence.contains(&format!("`{opcode}`")),
            "{sentence}"
        );
    }
}

#[test]
fn broken_text_is_a_fault() {
    let body = |text: &str| entry(0, text);
    let cases: [(String, &str); 22] = [
        (String::new(), "begins with `.version`"),
        ("int main() {}".into(), "begins with `.version`"),
        (".version 8.1".into(), ".target"),
        (".version eight".into(), "number"),
        (".version 8.1\n.target sm_80\n.address_size 32\n".into(), "64-bit"),
        (file("nonsense"), "`nonsense` outside an entry"),
        (file(".global .u32 x"), "expected `;`"),
        (file(".global x;"), "without a type"),
        (file(".global .align 3 .u32 x;"), "no power of two"),
        (file(".global .u32 x[99999999999][99999999999];"), "too large"),
        (file(".global .u32 x[1] = {1, 2};"), "8 bytes for 4 bytes"),
        (file(".global .u64 x = other;"), "`other`"),
        (file(".extern .global .u32 x;"), "another file"),
        (file(".visible .entry f(.param .align 8 .b8 p[5000]) { ret; }"), "4096 bytes of parameters"),
        (file(".entry f() { ret; }\n.entry f() { ret; }"), "twice"),
        (body("bra NOWHERE;"), "no label `NOWHERE`"),
        (body("A:\nA:"), "`A` stands there twice"),
        (body("@%p77 ret;"), "no predicate"),
        (body(".reg .f128 %x;"), "`.f128`"),
        (body(".shared .align 4 .b8 room[9999999];"), "more shared memory"),
        (body("/* no end"), "does not end"),
        (body("\u{e9};"), "no place in PTX"),
    ];
    for (text, words) in cases {
        let fault = fault_of(&text);
        assert_eq!(fault.kind, Kind::Syntax, "{text}: {fault}");
        assert!(fault.to_string().contains(words), "{text}: {fault}");
    }
}

/// A file that uses most of the grammar.
const SAMPLE: &str = include_str!("../../ptx/rmsnorm.ptx");

#[test]
fn no_prefix_of_a_file_panics() {
    assert!(Program::parse("whole.ptx", SAMPLE).unwrap().entries().len() >= 2);
    // The middle of the first entry, byte by byte; the rest in larger steps.
    let start = SAMPLE.find(".visible .entry").unwrap();
    let ends =
        (0..start).step_by(97).chain(start..start + 2500).chain((start + 2500..SAMPLE.len() - 1).step_by(61));
    let mut complete = 0;
    for end in ends.filter(|&end| SAMPLE.is_char_boundary(end)) {
        match Program::parse("cut.ptx", &SAMPLE[..end]) {
            // A cut between two things leaves a file that is shorter and whole.
            Ok(program) => {
                complete += 1;
                assert!(
                    program.entries().len() < Program::parse("whole.ptx", SAMPLE).unwrap().entries().len()
                );
            }
            Err(fault) => assert_eq!(fault.site.file, "cut.ptx"),
        }
    }
    assert!(complete < 100);
}

#[test]
fn no_corrupt_byte_panics() {
    let start = SAMPLE.find(".visible .entry").unwrap();
    let sample = format!(
        ".version 8.1\n.target sm_80\n.address_size 64\n{}",
        &SAMPLE[start..SAMPLE[start..].find("\n}").unwrap() + start + 2]
    );
    assert!(Program::parse("whole.ptx", &sample).is_ok());
    let mut state = 1u64;
    for round in 0..3000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut bytes = sample.clone().into_bytes();
        let at = (state >> 33) as usize % bytes.len();
        let marks = b"{}[]();,.@%|!-+x0 9f\"/*:\n_$~";
        let other = marks[round % marks.len()];
        match round % 3 {
            0 => bytes[at] = other,
            1 => bytes.insert(at, other),
            _ => {
                bytes.drain(at..(at + 1 + round % 40).min(bytes.len()));
            }
        }
        if let Err(fault) = Program::parse("bad.ptx", &String::from_utf8(bytes).unwrap()) {
            assert_eq!(fault.site.file, "bad.ptx", "{fault}");
        }
    }
}

#[test]
fn what_compilers_write_around_code() {
    let text = file(
        "\n\t// .globl\tf\n.file 1 \"kernel.cu\"\n.extern .func (.param .b32 func_retval0) vprintf\n(\n\t.param .b64 vprintf_param_0,\n\t.param .b64 vprintf_param_1\n)\n;\n\
         .func (.param .b32 r) helper(.param .b32 x)\n{\n\t{ ret; }\n}\n.weak .func other;\n.section .debug_str { .b8 1 }\n\
         .visible .global .align 4 .u32 X = 256;\n.visible .entry f(\n\t.param .u64 .ptr .global .align 16 f_param_0,\n\t.param .u32 f_param_1\n)\n.maxntid 256, 1, 1\n.minnctapersm 2\n{\n\
         .loc 1 3 0\n\t.reg .pred \t%p<2>;\n\t.reg .b32 a, b;\n\t.pragma \"nounroll\";\n/* a comment\nof two lines */\n\t.loc\t1 4 1, function_name $L__info_string0, inlined_at 1 2 3\n\
         \t// begin inline asm\n\t{ .reg .pred p; setp.ne.b32 p, 0, 1; @p mov.b32 a, 7; L: mov.b32 b, a; }\n\t// end inline asm\n\t{ L: mov.b32 b, a; bra L2; L2: }\n\tret;\n}\n",
    );
    let program = Program::parse("some.ptx", &text).unwrap();
    let entry = program.entry("f").unwrap();
    assert_eq!((entry.parameters.len(), entry.parameter_bytes, entry.maxntid), (2, 12, Some([256, 1, 1])));
    assert_eq!(entry.parameters[0].ty.to_string(), ".u64");
}

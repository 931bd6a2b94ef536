//! Branches, divergence and reconvergence, barriers, fences.

use super::{as_words, entry, file, launch, run, words};
use latch::sim::{Kind, Launch, Machine, Options, Program};

/// A body that starts with %t = the thread, %a = its place in array 0 of words, and ends by storing %r there.
fn body(text: &str) -> String {
    format!(
        ".reg .pred %q<9>; .reg .b32 %t, %r, %s, %u, %l; .reg .b64 %a, %w;\n\
         mov.u32 %t, %tid.x;\nmov.u32 %l, %laneid;\nmul.wide.u32 %w, %t, 4;\nadd.s64 %a, %p0, %w;\nmov.u32 %r, 0;\n{text}\n"
    )
}

fn stored(text: &str) -> String {
    entry(1, &body(&format!("{text}\nst.global.u32 [%a], %r;")))
}

/// What each thread stores.
fn results(text: &str, threads: u32) -> Vec<u32> {
    let mut arrays = [words(std::iter::repeat_n(0xdead, threads as usize))];
    if let Err(fault) = run(&stored(text), threads, &mut arrays) {
        panic!("{fault}");
    }
    as_words(&arrays[0])
}

#[test]
fn loops_with_other_counts_in_each_lane() {
    // Thread t adds 1 + 2 + ... + t.
    let text = "mov.u32 %s, 0;\nLOOP:\nsetp.ge.u32 %q1, %s, %t;\n@%q1 bra DONE;\nadd.u32 %s, %s, 1;\nadd.u32 %r, %r, %s;\nbra LOOP;\nDONE:";
    let wanted: Vec<u32> = (0..70).map(|t| t * (t + 1) / 2).collect();
    assert_eq!(results(text, 70), wanted);
}

#[test]
fn nested_branches_meet_again() {
    // After both branches parted and met, all lanes vote together.
    let text = "setp.lt.u32 %q1, %l, 20;\n@%q1 bra LOW;\nadd.u32 %r, %r, 1000;\nbra MEET;\nLOW:\n\
                and.b32 %s, %l, 1;\nsetp.eq.u32 %q2, %s, 0;\n@!%q2 bra ODD;\nadd.u32 %r, %r, 100;\nbra INNER;\nODD:\nadd.u32 %r, %r, 10;\n\
                INNER:\nadd.u32 %r, %r, 1;\nMEET:\nactivemask.b32 %s;\npopc.b32 %s, %s;\nmul.lo.u32 %s, %s, 10000;\nadd.u32 %r, %r, %s;";
    let wanted: Vec<u32> = (0..32)
        .map(|t| {
            320_000
                + if t >= 20 {
                    1000
                } else if t % 2 == 0 {
                    101
                } else {
                    11
                }
        })
        .collect();
    assert_eq!(results(text, 32), wanted);
}

#[test]
fn a_cold_path_behind_the_code_comes_back() {
    // The branch target lies behind the exit; its lanes come back to a shuffle that names all lanes.
    let text = "setp.eq.u32 %q1, %l, 7;\n@%q1 bra COLD;\nBACK:\nadd.u32 %r, %r, %l;\n\
                shfl.sync.idx.b32 %r, %r, 7, 31, -1;\nst.global.u32 [%a], %r;\nret;\nCOLD:\nmov.u32 %r, 500;\nbra BACK;";
    let mut arrays = [words([0; 32])];
    run(&entry(1, &body(text)), 32, &mut arrays).unwrap();
    assert_eq!(as_words(&arrays[0]), vec![507; 32]);
}

#[test]
fn early_exits_and_guards() {
    let text = "setp.ge.u32 %q1, %t, 40;\n@%q1 ret;\nmov.u32 %r, 1;\nsetp.lt.u32 %q2, %t, 10;\n@%q2 mov.u32 %r, 2;\n@!%q2 add.u32 %r, %r, 4;";
    let found = results(text, 64);
    let wanted: Vec<u32> = (0..64)
        .map(|t| {
            if t >= 40 {
                0xdead
            } else if t < 10 {
                2
            } else {
                5
            }
        })
        .collect();
    assert_eq!(found, wanted);
    let text = "setp.ge.u32 %q1, %t, 40;\nmov.u32 %r, 3;\n@!%q1 st.global.u32 [%a], %r;\nexit;";
    let mut arrays = [words([7; 64])];
    run(&entry(1, &body(text)), 64, &mut arrays).unwrap();
    assert_eq!(as_words(&arrays[0]), [vec![3; 40], vec![7; 24]].concat());
}

#[test]
fn branches_through_a_table() {
    let text = "rem.u32 %s, %t, 3;\nTABLE: .branchtargets A, B, C;\nbrx.idx %s, TABLE;\n\
                A: mov.u32 %r, 10;\nbra.uni END;\nB: mov.u32 %r, 20;\nbra.uni END;\nC: mov.u32 %r, 30;\nEND:";
    let wanted: Vec<u32> = (0..32).map(|t| 10 * (t % 3 + 1)).collect();
    assert_eq!(results(text, 32), wanted);
    let text = "mov.u32 %s, 9;\nTABLE: .branchtargets A;\nbrx.idx %s, TABLE;\nA:";
    let fault = run(&stored(text), 32, &mut [words([0; 32])]).unwrap_err();
    assert!(fault.to_string().contains("entry 9 of a table of 1"), "{fault}");
}

#[test]
fn lanes_that_wait_for_a_lane_of_their_own_warp() {
    // Each lane takes a lock in turn; the holder is behind the others.
    let text = "AGAIN:\natom.global.cas.b32 %s, [%p1], 0, 1;\nsetp.ne.u32 %q1, %s, 0;\n@%q1 bra AGAIN;\n\
                ld.volatile.global.u32 %u, [%p1+4];\nadd.u32 %u, %u, 1;\nst.volatile.global.u32 [%p1+4], %u;\n\
                membar.gl;\natom.global.exch.b32 %s, [%p1], 0;\nmov.u32 %r, %u;";
    let text = format!("{}\n", body(&format!("{text}\nst.global.u32 [%a], %r;")));
    let mut arrays = [words([0; 32]), words([0, 0])];
    run(&entry(2, &text), 32, &mut arrays).unwrap();
    assert_eq!(as_words(&arrays[1]), [0, 32]);
    let mut order = as_words(&arrays[0]);
    order.sort();
    assert_eq!(order, (1..=32).collect::<Vec<u32>>());
}

#[test]
fn special_registers() {
    let text = file(
        ".visible .entry f(.param .u64 f_0)\n{\n.reg .b64 %p, %w; .reg .b32 %r<20>;\nld.param.u64 %p, [f_0];\n\
         mov.u32 %r0, %tid.x; mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z;\n\
         mov.u32 %r3, %ntid.x; mov.u32 %r4, %ntid.y; mov.u32 %r5, %ntid.z;\n\
         mov.u32 %r6, %ctaid.x; mov.u32 %r7, %ctaid.y; mov.u32 %r8, %ctaid.z;\n\
         mov.u32 %r9, %nctaid.x; mov.u32 %r10, %nctaid.y; mov.u32 %r11, %nctaid.z;\n\
         mad.lo.u32 %r12, %r8, %r10, %r7; mad.lo.u32 %r12, %r12, %r9, %r6;\n\
         mad.lo.u32 %r13, %r2, %r4, %r1; mad.lo.u32 %r13, %r13, %r3, %r0;\n\
         mul.lo.u32 %r14, %r3, %r4; mul.lo.u32 %r14, %r14, %r5; mad.lo.u32 %r14, %r14, %r12, %r13;\n\
         mul.wide.u32 %w, %r14, 16; add.s64 %p, %p, %w;\n\
         mov.u32 %r15, %laneid; mov.u32 %r16, %warpid; mov.u32 %r17, %lanemask_lt; mov.u32 %r18, %nwarpid;\n\
         st.global.v4.u32 [%p], {%r15, %r16, %r17, %r18};\nret;\n}\n",
    );
    let mut arrays = [vec![0; 16 * 2 * 3 * 4 * 5 * 4 * 3]];
    launch(&text, [2, 3, 4], [5, 4, 3], 0, &mut arrays).unwrap();
    for (index, row) in as_words(&arrays[0]).chunks(4).enumerate() {
        let thread = index as u32 % 60;
        assert_eq!(row, [thread % 32, thread / 32, (1 << (thread % 32)) - 1, 2]);
    }
    for (name, wanted) in [("eq", 1u32 << 5), ("le", 63), ("ge", !31), ("gt", !63), ("lt", 31)] {
        assert_eq!(results(&format!("mov.u32 %r, %lanemask_{name};"), 32)[5], wanted);
    }
    let found =
        results("mov.u32 %s, %clock;\nadd.u32 %u, %s, 1;\nmov.u32 %r, %clock;\nsub.u32 %r, %r, %s;", 32);
    assert!(found.iter().all(|&ticks| ticks > 0 && ticks < 100));
}

/// A body with an array of 64 words in shared memory, %b this thread's place in it.
fn with_shared(text: &str) -> String {
    format!(".shared .align 4 .b8 room[256]; .reg .b64 %b;\nmov.u64 %b, room;\nadd.s64 %b, %b, %w;\n{text}")
}

#[test]
fn barriers_order_the_warps_of_a_block() {
    let text = with_shared(
        "st.shared.u32 [%b], %t;\nbar.sync 0;\nxor.b32 %s, %t, 63;\nmul.wide.u32 %w, %s, 4;\nmov.u64 %b, room;\nadd.s64 %b, %b, %w;\nld.shared.u32 %r, [%b];",
    );
    assert_eq!(results(&text, 64), (0..64).rev().collect::<Vec<u32>>());
    // Without the barrier the other warp's words are not there yet.
    let without = text.replace("bar.sync 0;", "");
    assert_ne!(results(&without, 64), (0..64).rev().collect::<Vec<u32>>());
    for form in [
        "barrier.sync 3;",
        "barrier.sync.aligned 3;",
        "bar.sync 5, 64;",
        "barrier.cta.sync.aligned 0, 64;",
        "mov.u32 %s, 2;\nbar.sync %s;",
    ] {
        assert_eq!(
            results(&text.replace("bar.sync 0;", form), 64),
            (0..64).rev().collect::<Vec<u32>>(),
            "{form}"
        );
    }
}

#[test]
fn named_barriers_of_some_warps() {
    // Warp 1 produces and goes on; warp 0 waits for it. Warp 2 takes no part.
    let text = with_shared(
        "setp.ge.u32 %q1, %t, 64;\n@%q1 bra END;\nsetp.ge.u32 %q2, %t, 32;\n@%q2 bra PRODUCE;\n\
         bar.sync 1, 64;\nld.shared.u32 %r, [%b+128];\nbra END;\nPRODUCE:\nst.shared.u32 [%b], %t;\nmembar.cta;\nbar.arrive 1, 64;\nmov.u32 %r, 1;\nEND:",
    );
    let found = results(&text.replace("room[256]", "room[512]"), 96);
    assert_eq!(found, [(32..64).collect::<Vec<u32>>(), vec![1; 32], vec![0; 32]].concat());
}

#[test]
fn barriers_that_compute() {
    let count = "setp.lt.u32 %q1, %t, 11;\nbar.red.popc.u32 %r, 0, %q1;";
    assert_eq!(results(count, 64), vec![11; 64]);
    let not = "setp.lt.u32 %q1, %t, 11;\nbarrier.red.popc.aligned.u32 %r, 0, 64, !%q1;";
    assert_eq!(results(not, 64), vec![53; 64]);
    let and = "setp.lt.u32 %q1, %t, 64;\nbar.red.and.pred %q2, 0, %q1;\nselp.u32 %r, 1, 0, %q2;";
    assert_eq!(results(and, 64), vec![1; 64]);
    let or = "setp.eq.u32 %q1, %t, 40;\nbar.red.or.pred %q2, 0, %q1;\nselp.u32 %r, 1, 0, %q2;";
    assert_eq!(results(or, 64), vec![1; 64]);
    let none = "setp.eq.u32 %q1, %t, 99;\nbar.red.or.pred %q2, 0, %q1;\nselp.u32 %r, 1, 0, %q2;";
    assert_eq!(results(none, 64), vec![0; 64]);
}

#[test]
fn threads_that_exited_do_not_hold_a_barrier() {
    let text = "setp.ge.u32 %q1, %t, 32;\n@%q1 ret;\nbar.sync 0;\nmov.u32 %r, 1;";
    assert_eq!(results(text, 64), [vec![1; 32], vec![0xdead; 32]].concat());
}

#[test]
fn threads_that_wait_for_nothing_are_a_fault() {
    let text = "setp.ge.u32 %q1, %t, 32;\n@%q1 bra B;\nbar.sync 1;\nbra END;\nB:\nbar.sync 2;\nEND:";
    let fault = run(&stored(text), 64, &mut [words([0; 64])]).unwrap_err();
    assert_eq!(fault.kind, Kind::Deadlock);
    assert!(
        fault.to_string().contains("wait at barrier 1") && fault.to_string().contains("wait at barrier 2"),
        "{fault}"
    );
    // A mask that names a lane which went another way.
    let text = "setp.eq.u32 %q1, %l, 3;\n@%q1 bra END;\nshfl.sync.idx.b32 %r, %t, 0, 31, -1;\nEND:\nbar.warp.sync 0xffffffff;\nmov.u32 %r, 1;";
    let fault = run(&stored(text), 32, &mut [words([0; 32])]).unwrap_err();
    assert_eq!(fault.kind, Kind::SyncMask, "{fault}");
    // A barrier that does not exist.
    let fault = run(&stored("bar.sync 16;"), 32, &mut [words([0; 32])]).unwrap_err();
    assert!(fault.to_string().contains("barrier 16 does not exist"), "{fault}");
    // A loop without an end.
    let program = Program::parse("test.ptx", &stored("LOOP:\nbra LOOP;")).unwrap();
    let machine = Machine::new(Options { patience: 1 << 20, ..Options::default() });
    let launch = Launch {
        entry: "f",
        grid: [1; 3],
        block: [32, 1, 1],
        dynamic_shared: 0,
        parameters: &[0; 8],
        sample: None,
        seed: 0,
    };
    let fault = machine.launch(&program, &launch).unwrap_err();
    assert_eq!(fault.kind, Kind::Deadlock);
    assert!(fault.to_string().contains("without an end"), "{fault}");
}

#[test]
fn traps_name_their_place() {
    let fault = run(&stored("setp.eq.u32 %q1, %t, 37;\n@%q1 trap;"), 64, &mut [words([0; 64])]).unwrap_err();
    assert_eq!(fault.kind, Kind::Trap);
    assert_eq!(fault.site.thread, Some([37, 0, 0]));
    assert_eq!(fault.site.block, Some([0, 0, 0]));
    assert_eq!(fault.site.kernel, "f");
    assert_eq!(
        fault.site.line,
        stored("setp.eq.u32 %q1, %t, 37;\n@%q1 trap;").lines().position(|l| l.contains("trap")).unwrap()
            as u32
            + 1
    );
}

#[test]
fn fences_and_hints_change_nothing() {
    let text = "membar.cta;\nmembar.gl;\nmembar.sys;\nfence.sc.cta;\nfence.acq_rel.gpu;\nfence.acq_rel.sys;\nfence.sc.gpu;\nnanosleep.u32 20;\nprefetch.global.L2 [%a];\nprefetchu.L1 [%a];\n.pragma \"nounroll\";\nmov.u32 %r, 4;";
    assert_eq!(results(text, 32), vec![4; 32]);
}

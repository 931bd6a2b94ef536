//! Shuffles, votes, matches and reductions of a warp.

use super::{as_words, entry, run, words};

/// What each of 32 lanes stores from %r; %t and %l are the lane.
fn results(text: &str) -> Vec<u32> {
    let body = format!(
        ".reg .pred %q<9>; .reg .b32 %t, %r, %s, %u, %l; .reg .b64 %a, %w;\nmov.u32 %t, %tid.x;\nmov.u32 %l, %laneid;\n\
         mul.wide.u32 %w, %t, 4;\nadd.s64 %a, %p0, %w;\nmov.u32 %r, 0;\n{text}\nst.global.u32 [%a], %r;"
    );
    let mut arrays = [words([0xdead; 32])];
    if let Err(fault) = run(&entry(1, &body), 32, &mut arrays) {
        panic!("{fault}");
    }
    as_words(&arrays[0])
}

fn each(f: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..32).map(f).collect()
}

#[test]
fn shuffles() {
    assert_eq!(results("shfl.sync.bfly.b32 %r, %t, 5, 31, -1;"), each(|l| l ^ 5));
    assert_eq!(results("shfl.sync.idx.b32 %r, %t, 9, 31, -1;"), each(|_| 9));
    assert_eq!(results("sub.u32 %s, 31, %t;\nshfl.sync.idx.b32 %r, %t, %s, 31, -1;"), each(|l| 31 - l));
    assert_eq!(
        results("shfl.sync.down.b32 %r, %t, 4, 31, -1;"),
        each(|l| if l + 4 < 32 { l + 4 } else { l })
    );
    assert_eq!(results("shfl.sync.up.b32 %r, %t, 4, 0, -1;"), each(|l| if l >= 4 { l - 4 } else { l }));
    // Segments of eight lanes: the segment's mask stands above the clamp.
    let segments = (32 - 8) << 8;
    assert_eq!(
        results(&format!("shfl.sync.down.b32 %r, %t, 3, {}, -1;", segments | 31)),
        each(|l| if l % 8 + 3 < 8 { l + 3 } else { l })
    );
    assert_eq!(
        results(&format!("shfl.sync.up.b32 %r, %t, 3, {segments}, -1;")),
        each(|l| if l % 8 >= 3 { l - 3 } else { l })
    );
    assert_eq!(
        results(&format!("shfl.sync.idx.b32 %r, %t, 2, {}, -1;", segments | 31)),
        each(|l| l / 8 * 8 + 2)
    );
    assert_eq!(
        results(&format!("shfl.sync.bfly.b32 %r, %t, 12, {}, -1;", segments | 31)),
        each(|l| if l ^ 12 <= l | 7 { l ^ 12 } else { l })
    );
    // The predicate says whether the source lane was in range.
    assert_eq!(
        results("shfl.sync.down.b32 %s|%q1, %t, 4, 31, -1;\nselp.u32 %r, 1, 0, %q1;"),
        each(|l| u32::from(l < 28))
    );
    assert_eq!(
        results("shfl.sync.up.b32 %s|%q1, %t, 4, 0, -1;\nselp.u32 %r, 1, 0, %q1;"),
        each(|l| u32::from(l >= 4))
    );
}

#[test]
fn masks_of_some_lanes() {
    // Two halves shuffle by themselves, in different branches.
    let text = "setp.lt.u32 %q1, %l, 16;\n@%q1 bra LOW;\nshfl.sync.bfly.b32 %r, %t, 1, 31, 0xffff0000;\nbra END;\nLOW:\nshfl.sync.bfly.b32 %r, %t, 2, 31, 0x0000ffff;\nEND:";
    assert_eq!(results(text), each(|l| if l < 16 { l ^ 2 } else { l ^ 1 }));
    // bar.warp.sync in different places brings the lanes of one mask together.
    let text = "setp.lt.u32 %q1, %l, 16;\n@%q1 bra LOW;\nbar.warp.sync -1;\nbra END;\nLOW:\nbar.warp.sync 0xffffffff;\nEND:\nmov.u32 %r, 1;";
    assert_eq!(results(text), each(|_| 1));
    // Lanes that exited are not waited for.
    let text = "setp.ge.u32 %q1, %l, 16;\n@%q1 ret;\nshfl.sync.bfly.b32 %r, %t, 1, 31, 0x0000ffff;";
    assert_eq!(results(text), each(|l| if l < 16 { l ^ 1 } else { 0xdead }));
}

#[test]
fn votes() {
    let odd = "and.b32 %s, %l, 1;\nsetp.eq.u32 %q1, %s, 1;\n";
    assert_eq!(results(&format!("{odd}vote.sync.ballot.b32 %r, %q1, -1;")), each(|_| 0xaaaa_aaaa));
    assert_eq!(results(&format!("{odd}vote.sync.ballot.b32 %r, !%q1, -1;")), each(|_| 0x5555_5555));
    for (mode, answer) in [("any", 1), ("all", 0), ("uni", 0)] {
        assert_eq!(
            results(&format!("{odd}vote.sync.{mode}.pred %q2, %q1, -1;\nselp.u32 %r, 1, 0, %q2;")),
            each(|_| answer)
        );
    }
    let all = "setp.lt.u32 %q1, %l, 32;\n";
    for (mode, answer) in [("any", 1), ("all", 1), ("uni", 1)] {
        assert_eq!(
            results(&format!("{all}vote.sync.{mode}.pred %q2, %q1, -1;\nselp.u32 %r, 1, 0, %q2;")),
            each(|_| answer)
        );
    }
    let none = "setp.ge.u32 %q1, %l, 32;\n";
    for (mode, answer) in [("any", 0), ("all", 0), ("uni", 1)] {
        assert_eq!(
            results(&format!("{none}vote.sync.{mode}.pred %q2, %q1, -1;\nselp.u32 %r, 1, 0, %q2;")),
            each(|_| answer)
        );
    }
}

#[test]
fn matches() {
    let third = "rem.u32 %s, %l, 3;\n";
    let group =
        |l: u32| (0..32).filter(|other| other % 3 == l % 3).fold(0, |mask, other| mask | 1u32 << other);
    assert_eq!(results(&format!("{third}match.any.sync.b32 %r, %s, -1;")), each(group));
    assert_eq!(results(&format!("{third}cvt.u64.u32 %w, %s;\nmatch.any.sync.b64 %r, %w, -1;")), each(group));
    assert_eq!(results(&format!("{third}match.all.sync.b32 %r|%q1, %s, -1;")), each(|_| 0));
    assert_eq!(
        results("mov.u32 %s, 4;\nmatch.all.sync.b32 %r|%q1, %s, -1;\n@%q1 add.u32 %r, %r, 1;"),
        each(|_| 0)
    );
    assert_eq!(results("mov.u64 %w, 4;\nmatch.all.sync.b64 %r, %w, -1;"), each(|_| u32::MAX));
}

#[test]
fn reductions() {
    assert_eq!(results("redux.sync.add.u32 %r, %t, -1;"), each(|_| 31 * 16));
    assert_eq!(results("redux.sync.add.s32 %r, %t, -1;"), each(|_| 31 * 16));
    assert_eq!(results("redux.sync.min.u32 %r, %t, -1;"), each(|_| 0));
    assert_eq!(results("redux.sync.max.u32 %r, %t, -1;"), each(|_| 31));
    assert_eq!(results("sub.s32 %s, %t, 9;\nredux.sync.min.s32 %r, %s, -1;"), each(|_| (-9i32) as u32));
    assert_eq!(results("sub.s32 %s, %t, 9;\nredux.sync.max.s32 %r, %s, -1;"), each(|_| 22));
    assert_eq!(results("redux.sync.and.b32 %r, %t, -1;"), each(|_| 0));
    assert_eq!(results("redux.sync.or.b32 %r, %t, -1;"), each(|_| 31));
    assert_eq!(results("add.u32 %s, %t, 64;\nredux.sync.xor.b32 %r, %s, -1;"), each(|_| 0));
}

#[test]
fn active_lanes() {
    assert_eq!(results("activemask.b32 %r;"), each(|_| u32::MAX));
    let text = "setp.lt.u32 %q1, %l, 3;\n@!%q1 bra END;\nactivemask.b32 %r;\nEND:";
    assert_eq!(results(text), each(|l| if l < 3 { 7 } else { 0 }));
}

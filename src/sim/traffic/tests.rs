//! Every rule of `traffic` on accesses whose cost is known.

use super::super::access::{Order, Place, Range};
use super::*;

#[test]
fn runs_are_lent_as_they_were_touched() {
    let ranges = [0x1000, 0x2000].map(|base| Range { base, bytes: 200, variable: false });
    let meter = TrafficMeter::new(&ranges);
    let touch = |action, active, at: fn(u64) -> u64| {
        let addresses = std::array::from_fn(|lane| at(lane as u64));
        meter.touch(&warp_access(Space::Global, action, 4, active, &addresses));
    };
    touch(Action::Read, !0, |lane| 0x1000 + 4 * lane);
    touch(Action::Read, 0xff, |lane| 0x1000 + 128 + 4 * lane);
    touch(Action::Write, 0b1111, |lane| 0x2000 + 60 + 8 * lane);
    touch(Action::Atomic, 1, |_| 0x2000 + 196);
    let mut found = Vec::new();
    meter.each_range(|base, written, runs| found.push((base, written, runs.collect::<Vec<_>>())));
    assert_eq!(
        found,
        [
            (0x1000, false, vec![(0, 160)]),
            (0x2000, false, vec![(196, 200)]),
            (0x2000, true, vec![(60, 64), (68, 72), (76, 80), (84, 88), (196, 200)]),
        ]
    );
}

fn access(space: Space, bytes: u32, active: u32, at: impl Fn(u64) -> u64) -> Traffic {
    let addresses = std::array::from_fn(|lane| at(lane as u64));
    let mut traffic = Traffic::default();
    traffic.count(&warp_access(space, Action::Read, bytes, active, &addresses));
    traffic
}

fn warp_access(
    space: Space,
    action: Action,
    bytes: u32,
    active: u32,
    addresses: &[u64; LANES],
) -> WarpAccess<'_> {
    let at = Place { line: 1, block: [0; 3], warp: 0 };
    WarpAccess { space, action, order: Order::Weak, active, addresses, bytes, read_bytes: None, range: 0, at }
}

fn sectors_of(bytes: u32, active: u32, at: impl Fn(u64) -> u64) -> (u64, u64) {
    let loads = access(Space::Global, bytes, active, at).loads;
    assert_eq!(loads.requests, 1);
    (loads.sectors, loads.ideal)
}

#[test]
fn sectors_of_known_patterns() {
    assert_eq!(sectors_of(4, !0, |l| 4 * l), (4, 4), "side by side");
    assert_eq!(sectors_of(16, !0, |l| 16 * l), (16, 16), "side by side, 128 bits");
    assert_eq!(sectors_of(2, !0, |l| 2 * l), (2, 2), "side by side, bf16");
    assert_eq!(sectors_of(4, !0, |l| 8 * l), (8, 4), "every second");
    assert_eq!(sectors_of(4, !0, |l| 128 * l), (32, 4), "a column");
    assert_eq!(sectors_of(4, !0, |_| 64), (1, 1), "all the same");
    assert_eq!(sectors_of(4, !0, |l| 4 + 4 * l), (5, 4), "off by one element");
    assert_eq!(sectors_of(4, !0, |l| 4 * (31 - l)), (4, 4), "backwards");
    assert_eq!(sectors_of(4, 1, |_| 0), (1, 1), "one lane");
    assert_eq!(sectors_of(4, 0xffff, |l| 4 * l), (2, 2), "half a warp");
    assert_eq!(sectors_of(4, !0, |l| 4 * (l % 4)), (1, 1), "four values");
}

#[test]
fn copies_that_fill_with_zeros_ask_for_what_they_read() {
    let addresses = std::array::from_fn(|lane| 16 * lane as u64);
    let read = std::array::from_fn(|lane| if lane < 4 { 16 } else { 0 });
    let mut traffic = Traffic::default();
    let access = warp_access(Space::Global, Action::CopyRead, 16, !0, &addresses);
    traffic.count(&WarpAccess { read_bytes: Some(&read), ..access });
    assert_eq!((traffic.loads.sectors, traffic.loads.ideal), (2, 2));
}

fn banks_of(bytes: u32, active: u32, at: impl Fn(u64) -> u64) -> (u64, u64) {
    let loads = access(Space::Shared, bytes, active, at).shared_loads;
    (loads.phases, loads.accesses)
}

#[test]
fn banks_of_known_patterns() {
    assert_eq!(banks_of(4, !0, |l| 4 * l), (1, 1), "a row");
    assert_eq!(banks_of(4, !0, |_| 40), (1, 1), "a broadcast");
    assert_eq!(banks_of(4, !0, |l| 8 * l), (1, 2), "every second word");
    assert_eq!(banks_of(4, !0, |l| 128 * l), (1, 32), "a column of 32 words");
    assert_eq!(banks_of(4, !0, |l| 132 * l), (1, 1), "a column of a padded tile");
    assert_eq!(banks_of(2, !0, |l| 2 * l), (1, 1), "halves of words");
    assert_eq!(banks_of(2, !0, |l| 64 * l), (1, 16), "a column of bf16, 32 wide");
    assert_eq!(banks_of(8, !0, |l| 8 * l), (2, 2), "64 bits");
    assert_eq!(banks_of(16, !0, |l| 16 * l), (4, 4), "128 bits");
    assert_eq!(banks_of(16, 0xff, |l| 16 * l), (1, 1), "a quarter of the warp");
    assert_eq!(banks_of(16, !0, |l| 128 * l), (4, 32), "rows of 64 bf16 without a swizzle");
    assert_eq!(banks_of(16, !0, |l| 128 * l + 16 * (l % 8)), (4, 4), "the same, swizzled");
    assert_eq!(banks_of(16, !0, |l| 144 * l), (4, 4), "the same, padded by 16 bytes");
}

#[test]
fn bytes_count_once() {
    let range = Range { base: 0x1000, bytes: 1000, variable: false };
    let meter = TrafficMeter::new(&[range]);
    let addresses = std::array::from_fn(|lane| 0x1000 + 4 * lane as u64);
    for _ in 0..3 {
        meter.touch(&warp_access(Space::Global, Action::Read, 4, !0, &addresses));
    }
    meter.touch(&warp_access(Space::Global, Action::Write, 4, 0xff, &addresses));
    let overlapping = std::array::from_fn(|lane| 0x1040 + 16 * lane as u64);
    meter.touch(&warp_access(Space::Global, Action::Read, 16, 0xff, &overlapping));
    let mut traffic = Traffic::default();
    meter.finish(&mut traffic);
    assert_eq!((traffic.unique_read_bytes, traffic.unique_written_bytes), (64 + 128, 32));
    assert_eq!((traffic.unique_read_sectors, traffic.unique_written_sectors), (6, 1));
    let mut rest = traffic.clone();
    rest.subtract(&traffic);
    assert_eq!((rest, traffic.moved_once()), (Traffic::default(), 7 * 32));
}

#[test]
fn the_table_leaves_out_what_did_not_happen() {
    let text = access(Space::Global, 4, !0, |l| 8 * l).to_string();
    assert!(text.contains("loads") && text.contains("2.000") && !text.contains("stores"), "{text}");
}

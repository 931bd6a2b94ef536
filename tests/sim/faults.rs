//! Planted faults: for each kind a tiny kernel with the fault and its corrected twin. The checker stops the fault at
//! the right line and names the right thread; the twin passes.
//!
//! `faults/*.ptx` hold both twins: a line that ends in `//-` is missing in the faulty one, a line that begins with
//! `//+` exists only there. `FAULT` marks where the checker must stop, `OTHER` what the other party did.

use latch::sim::check::Checker;
use latch::sim::fault::{Fault, Kind, Result};
use latch::sim::{Launch, Machine, Options, Program};
use std::sync::Arc;

const FILES: [(&str, &str); 8] = [
    ("bounds", include_str!("faults/bounds.ptx")),
    ("uninitialised", include_str!("faults/uninitialised.ptx")),
    ("shared_races", include_str!("faults/shared_races.ptx")),
    ("global_races", include_str!("faults/global_races.ptx")),
    ("barriers", include_str!("faults/barriers.ptx")),
    ("copies", include_str!("faults/copies.ptx")),
    ("masks", include_str!("faults/masks.ptx")),
    ("products", include_str!("faults/products.ptx")),
];

/// What the host does wrong in the faulty run.
#[derive(Clone, Copy, PartialEq)]
enum Host {
    Right,
    LeavesInputUnwritten,
    FreesInput,
}

#[derive(Clone, Copy)]
struct Case {
    file: &'static str,
    entry: &'static str,
    kind: Kind,
    blocks: u32,
    threads: u32,
    n: u32,
    input_bytes: u64,
    dynamic_shared: u32,
    /// The thread that must be named, where only one can be.
    thread: Option<u32>,
    host: Host,
    /// Blocks wait for each other, so they need host threads of their own.
    spins: bool,
}

const fn case(file: &'static str, entry: &'static str, kind: Kind) -> Case {
    let (blocks, threads, n, input_bytes) = (1, 64, 64, 256);
    let (dynamic_shared, thread, host, spins) = (0, None, Host::Right, false);
    Case { file, entry, kind, blocks, threads, n, input_bytes, dynamic_shared, thread, host, spins }
}

const fn bounds(entry: &'static str, kind: Kind, thread: u32) -> Case {
    Case { thread: Some(thread), ..case("bounds", entry, kind) }
}

const fn race(entry: &'static str) -> Case {
    case("shared_races", entry, Kind::SharedRace)
}

const fn between(entry: &'static str) -> Case {
    Case { blocks: 4, n: 256, input_bytes: 1024, ..case("global_races", entry, Kind::GlobalRace) }
}

const fn copy(entry: &'static str, kind: Kind) -> Case {
    Case { input_bytes: 1024, ..case("copies", entry, kind) }
}

const fn product(entry: &'static str, kind: Kind) -> Case {
    Case { threads: 128, n: 128, input_bytes: 10240, ..case("products", entry, kind) }
}

const CASES: &[Case] = &[
    Case { n: 60, input_bytes: 240, ..bounds("guard_off_by_one", Kind::OutOfBounds, 60) },
    Case { n: 62, input_bytes: 248, ..bounds("vector_past_the_end", Kind::OutOfBounds, 15) },
    bounds("before_the_start", Kind::OutOfBounds, 0),
    bounds("wrong_stride", Kind::OutOfBounds, 32),
    bounds("misaligned_vector", Kind::Misaligned, 0),
    bounds("past_shared_memory", Kind::OutOfBounds, 1),
    Case { dynamic_shared: 256, ..bounds("past_dynamic_shared_memory", Kind::OutOfBounds, 63) },
    bounds("past_local_memory", Kind::OutOfBounds, 0),
    Case { host: Host::FreesInput, ..bounds("reads_freed_memory", Kind::UseAfterFree, 0) },
    Case {
        host: Host::LeavesInputUnwritten,
        ..case("uninitialised", "unwritten_input", Kind::Uninitialised)
    },
    case("uninitialised", "accumulates_into_nothing", Kind::Uninitialised),
    case("uninitialised", "atomic_on_nothing", Kind::Uninitialised),
    case("uninitialised", "half_of_a_word", Kind::Uninitialised),
    case("uninitialised", "unwritten_shared_memory", Kind::Uninitialised),
    race("no_barrier_after_the_write"),
    race("no_barrier_before_the_next_write"),
    race("lanes_in_lockstep"),
    race("volatile_is_no_barrier"),
    race("a_shuffle_orders"),
    race("the_mask_names_others"),
    race("same_value"),
    race("tree_reduction"),
    race("histogram"),
    race("plain_count"),
    race("producer_and_consumer"),
    race("matrix_rows_of_others"),
    between("two_writers"),
    between("reads_a_neighbours_output"),
    between("plain_sum"),
    Case { blocks: 1, ..between("no_barrier_within_the_block") },
    Case { blocks: 1, ..between("no_sync_within_the_warp") },
    between("last_block_without_fence"),
    between("last_block_with_a_fence_of_the_block"),
    Case { blocks: 2, spins: true, ..between("flag_without_fence") },
    Case { blocks: 2, spins: true, ..between("release_and_acquire") },
    case("barriers", "branch_within_a_warp", Kind::Barrier),
    Case { n: 50, ..case("barriers", "early_return", Kind::Barrier) },
    case("barriers", "a_warp_returns", Kind::Barrier),
    case("barriers", "different_barriers", Kind::Deadlock),
    Case { threads: 128, n: 128, input_bytes: 512, ..case("barriers", "different_counts", Kind::Barrier) },
    case("barriers", "a_count_that_is_no_multiple", Kind::Barrier),
    case("barriers", "waits_for_ever", Kind::Barrier),
    copy("read_before_its_wait", Kind::CopyNotVisible),
    copy("read_before_the_barrier", Kind::SharedRace),
    copy("barrier_before_the_wait", Kind::CopyNotVisible),
    copy("waits_for_one_group_too_few", Kind::CopyNotVisible),
    copy("group_never_closed", Kind::CopyNotVisible),
    copy("overwritten_on_its_way", Kind::CopyDisturbed),
    copy("source_changed_on_its_way", Kind::CopyDisturbed),
    copy("next_stage_too_early", Kind::SharedRace),
    case("masks", "full_mask_in_a_branch", Kind::SyncMask),
    Case { n: 50, ..case("masks", "names_lanes_that_exited", Kind::SyncMask) },
    Case { thread: Some(31), ..case("masks", "does_not_name_itself", Kind::SyncMask) },
    case("masks", "matrix_in_a_branch", Kind::SyncMask),
    product("no_proxy_fence", Kind::ProxyFence),
    product("proxy_fence_before_the_copies_arrive", Kind::ProxyFence),
    product("proxy_fence_of_the_reader", Kind::ProxyFence),
    product("copies_not_waited_for", Kind::CopyNotVisible),
    product("no_barrier_before_the_product", Kind::SharedRace),
    product("registers_read_before_the_wait", Kind::ProductRegisters),
    product("registers_written_before_the_wait", Kind::ProductRegisters),
    product("group_never_closed", Kind::ProductRegisters),
    product("one_group_too_few_is_waited_for", Kind::ProductRegisters),
    product("no_fence_after_the_registers_were_set", Kind::ProductRegisters),
    product("no_fence_at_all", Kind::ProductRegisters),
    product("no_fence_after_the_result_was_read", Kind::ProductRegisters),
    product("registers_of_another_shape", Kind::ProductRegisters),
    product("operand_written_under_way", Kind::ProductDisturbed),
    product("operand_copied_over_under_way", Kind::ProductDisturbed),
    product("operand_written_before_the_others_waited", Kind::SharedRace),
    product("a_warp_takes_another_way", Kind::Warpgroup),
    product("warps_with_other_descriptors", Kind::Warpgroup),
];

/// The text of the faulty twin; line numbers stay.
fn faulty(text: &str) -> String {
    let twin = text.lines().map(|line| match line.strip_prefix("//+") {
        Some(only_here) => only_here,
        None if line.ends_with("//-") => "",
        None => line,
    });
    twin.collect::<Vec<_>>().join("\n")
}

/// Line numbers of an entry that bear a mark.
fn marked(text: &str, entry: &str, mark: &str) -> Vec<u32> {
    let start = text.lines().position(|line| line.contains(&format!(".entry {entry}("))).expect("the entry");
    let within = text.lines().enumerate().skip(start).take_while(|(_, line)| *line != "}");
    let bears = |line: &str| line.split_once("// ").is_some_and(|(_, comment)| comment.contains(mark));
    within.filter(|(_, line)| bears(line)).map(|(number, _)| number as u32 + 1).collect()
}

fn run(case: &Case, text: &str, host: Host, host_threads: usize, seed: u64) -> Result<()> {
    let observer = Arc::new(Checker::new());
    let machine =
        Machine::new(Options { threads: host_threads, observer: Some(observer), ..Options::default() });
    let program = Program::parse(&format!("{}.ptx", case.file), text)?;
    let input = machine.allocate(case.input_bytes)?;
    let output = machine.allocate(case.input_bytes + 4)?;
    if host != Host::LeavesInputUnwritten {
        machine.fill(input, 0, case.input_bytes)?;
    }
    if case.file != "uninitialised" {
        machine.fill(output, 0, case.input_bytes + 4)?;
    }
    if host == Host::FreesInput {
        machine.free(input)?;
    }
    let mut parameters = Vec::new();
    parameters.extend(input.to_le_bytes());
    parameters.extend(output.to_le_bytes());
    parameters.extend(case.n.to_le_bytes());
    let launch = Launch {
        entry: case.entry,
        grid: [case.blocks, 1, 1],
        block: [case.threads, 1, 1],
        dynamic_shared: case.dynamic_shared,
        parameters: &parameters,
        sample: None,
        seed,
    };
    machine.launch(&program, &launch).map(|_| ())
}

/// What is wrong with a fault that was found, if anything.
fn judge(case: &Case, text: &str, fault: &Fault) -> Option<String> {
    let site = &fault.site;
    if fault.kind != case.kind {
        return Some(format!("kind {:?}, expected {:?}", fault.kind, case.kind));
    }
    let lines = marked(text, case.entry, "FAULT");
    if !lines.contains(&site.line) {
        return Some(format!("line {}, expected one of {lines:?}", site.line));
    }
    if site.kernel != case.entry || site.block.is_none() {
        return Some(format!("kernel `{}`, block {:?}", site.kernel, site.block));
    }
    match site.thread {
        None => return Some("no thread".into()),
        Some(thread) if case.thread.is_some_and(|expected| thread != [expected, 0, 0]) => {
            return Some(format!("thread {thread:?}, expected {:?}", case.thread));
        }
        Some(_) => {}
    }
    let others = marked(text, case.entry, "OTHER");
    let races = matches!(
        case.kind,
        Kind::SharedRace
            | Kind::GlobalRace
            | Kind::CopyNotVisible
            | Kind::CopyDisturbed
            | Kind::ProxyFence
            | Kind::ProductDisturbed
    );
    match &site.other {
        None if races => Some("no other party".into()),
        Some(other) if races && !others.is_empty() && !others.contains(&other.line) => {
            Some(format!("the other party at line {}, expected one of {others:?}", other.line))
        }
        _ => None,
    }
}

#[test]
fn each_planted_fault_is_found_where_it_stands_and_its_twin_passes() {
    let mut wrong = Vec::new();
    for case in CASES {
        let text = FILES.iter().find(|(name, _)| *name == case.file).expect("the file").1;
        let twin = faulty(text);
        let mut said = String::new();
        for (host_threads, seed) in [(1, 0), (1, 1), (2, 0), (2, 7)] {
            if case.spins && host_threads == 1 {
                continue;
            }
            let what = format!("{}/{} on {host_threads} host threads, seed {seed}", case.file, case.entry);
            if let Err(fault) = run(case, text, Host::Right, host_threads, seed) {
                wrong.push(format!("{what}: false alarm: {fault}"));
            }
            match run(case, &twin, case.host, host_threads, seed) {
                Ok(()) => wrong.push(format!("{what}: not found")),
                Err(fault) => {
                    if let Some(reason) = judge(case, text, &fault) {
                        wrong.push(format!("{what}: {reason}\n    {fault}"));
                    }
                    said = fault.sentence();
                }
            }
        }
        println!("{:<14} {:<38} {said}", case.file, case.entry);
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn every_entry_of_the_files_is_a_case() {
    for (file, text) in FILES {
        for line in text.lines().filter(|line| line.starts_with(".visible .entry")) {
            let entry = line.trim_start_matches(".visible .entry ").trim_end_matches('(');
            assert!(CASES.iter().any(|c| c.file == file && c.entry == entry), "{file}/{entry} is never run");
        }
    }
}

#[test]
fn leaks_are_reported() {
    let checker = Arc::new(Checker::new());
    let machine = Machine::new(Options { observer: Some(checker.clone()), ..Options::default() });
    let (kept, freed) = (machine.allocate(100).unwrap(), machine.allocate(200).unwrap());
    machine.free(freed).unwrap();
    let leaks = checker.leaks();
    assert_eq!(leaks.len(), 1);
    assert_eq!((leaks[0].kind, leaks[0].site.address), (Kind::Leak, Some(kept)));
    assert!(leaks[0].to_string().contains("100 bytes"), "{}", leaks[0]);
    machine.free(kept).unwrap();
    assert!(checker.leaks().is_empty());
}

#[test]
fn the_host_may_not_read_what_nobody_wrote() {
    let machine = Machine::new(Options { observer: Some(Arc::new(Checker::new())), ..Options::default() });
    let (from, to) = (machine.allocate(64).unwrap(), machine.allocate(64).unwrap());
    machine.write(from, &[1; 32]).unwrap();
    machine.copy(from, to, 64).unwrap();
    let mut bytes = [0; 64];
    machine.read(to, &mut bytes[..32]).unwrap();
    let fault = machine.read(to, &mut bytes).unwrap_err();
    assert_eq!((fault.kind, fault.site.address), (Kind::Uninitialised, Some(to + 32)));
}

#[test]
fn what_lies_between_pieces_is_out_of_bounds() {
    let case = CASES.iter().find(|c| c.entry == "guard_off_by_one").unwrap();
    let program = Program::parse("bounds.ptx", &faulty(FILES[0].1)).unwrap();
    let machine = Machine::new(Options { observer: Some(Arc::new(Checker::new())), ..Options::default() });
    let pool = machine.allocate(4096).unwrap();
    // Two pieces of a pool with room between them, and the one behind never given out.
    machine.carve(pool, 240).unwrap();
    machine.carve(pool + 256, 244).unwrap();
    machine.fill(pool, 0, 240).unwrap();
    let mut parameters = Vec::new();
    parameters.extend(pool.to_le_bytes());
    parameters.extend((pool + 256).to_le_bytes());
    parameters.extend(case.n.to_le_bytes());
    let launch = Launch {
        entry: case.entry,
        grid: [1, 1, 1],
        block: [64, 1, 1],
        dynamic_shared: 0,
        parameters: &parameters,
        sample: None,
        seed: 0,
    };
    let fault = machine.launch(&program, &launch).unwrap_err();
    assert_eq!((fault.kind, fault.site.address), (Kind::OutOfBounds, Some(pool + 240)));
}

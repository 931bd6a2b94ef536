//! Bytes cross between host and device unchanged, whatever their number and whichever stream carries them.

use super::launcher;
use latch::device::{Device, SimulatorOptions, Stream};
use latch::sim::access::Observer;
use latch::sim::check::Checker;
use std::sync::Arc;

/// Bytes that repeat at no power of two.
fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|i| (i % 251) as u8).collect()
}

#[test]
fn uploads_and_downloads_of_any_size() {
    let gpu = launcher(SimulatorOptions::default());
    // The middle of a piece, its end, one byte more, and several pieces.
    for count in [1, 3, 4097, 1 << 20, (1 << 20) + 1, (5 << 20) + 17] {
        let address = gpu.allocate(count).unwrap();
        assert_eq!(address % 256, 0);
        let mut back = vec![7; count];
        gpu.download(address, &mut back).unwrap();
        assert!(back.iter().all(|&b| b == 0), "fresh memory is zero");
        gpu.upload(address, &pattern(count)).unwrap();
        gpu.download(address, &mut back).unwrap();
        assert_eq!(back, pattern(count));
        gpu.clear(address + 1, count - 1).unwrap();
        gpu.download(address, &mut back).unwrap();
        assert!(back[1..].iter().all(|&b| b == 0) && back[0] == pattern(1)[0]);
        gpu.free(address, count);
    }
}

#[test]
fn memory_that_comes_back_is_zero() {
    let gpu = launcher(SimulatorOptions::default());
    let first = gpu.allocate(1000).unwrap();
    gpu.upload(first, &pattern(1000)).unwrap();
    gpu.free(first, 1000);
    let second = gpu.allocate(1000).unwrap();
    assert_eq!(first, second, "the block is used again");
    let mut back = vec![7; 1000];
    gpu.download(second, &mut back).unwrap();
    assert!(back.iter().all(|&b| b == 0));
}

#[test]
fn the_host_may_change_its_bytes_after_an_upload() {
    for seed in 0..8 {
        let gpu = launcher(SimulatorOptions { schedule: seed, ..Default::default() });
        let address = gpu.allocate(300_000).unwrap();
        let mut bytes = pattern(300_000);
        // So many small uploads that staging memory is used again while copies wait.
        for (index, piece) in bytes.chunks_mut(1000).enumerate() {
            let stream = Stream::ALL[index % 2];
            gpu.upload_on(stream, address + 1000 * index as u64, piece).unwrap();
            piece.fill(0xee);
        }
        gpu.synchronise().unwrap();
        let mut back = vec![0; 300_000];
        gpu.download(address, &mut back).unwrap();
        assert!(back == pattern(300_000), "seed {seed}");
    }
}

#[test]
fn staging_memory_is_used_again_only_behind_its_copies() {
    for seed in 0..4 {
        let gpu = launcher(SimulatorOptions { schedule: seed, ..Default::default() });
        let (count, rounds) = (700_000, 24);
        let address = gpu.allocate(count * rounds).unwrap();
        for round in 0..rounds {
            let bytes = vec![round as u8; count];
            gpu.upload_on(Stream::Copy, address + (count * round) as u64, &bytes).unwrap();
        }
        let pinned = gpu.statistics().pinned_bytes;
        assert!(pinned <= 8 << 20, "{pinned} bytes of staging");
        gpu.synchronise().unwrap();
        let mut back = vec![0; count * rounds];
        gpu.download(address, &mut back).unwrap();
        for (round, piece) in back.chunks(count).enumerate() {
            assert!(piece.iter().all(|&b| b == round as u8), "seed {seed}, round {round}");
        }
    }
}

#[test]
fn downloads_arrive_beside_other_work() {
    let gpu = launcher(SimulatorOptions::default());
    let address = gpu.allocate(5000).unwrap();
    gpu.upload(address, &pattern(5000)).unwrap();
    let written = gpu.record(Stream::Compute).unwrap();
    gpu.wait(Stream::Copy, &written).unwrap();
    let first = gpu.download_on(Stream::Copy, address, 5000).unwrap();
    let second = gpu.download_on(Stream::Copy, address + 100, 10).unwrap();
    let read = gpu.record(Stream::Copy).unwrap();
    gpu.wait(Stream::Compute, &read).unwrap();
    gpu.clear(address, 5000).unwrap();
    let mut back = vec![0; 10];
    gpu.receive(second, &mut back).unwrap();
    assert_eq!(back, pattern(5000)[100..110]);
    let mut back = vec![0; 5000];
    gpu.receive(first, &mut back).unwrap();
    assert_eq!(back, pattern(5000));
    gpu.download(address, &mut back).unwrap();
    assert!(back.iter().all(|&b| b == 0));
}

#[test]
fn a_missing_event_is_noticed() {
    let mut early = 0;
    for seed in 0..8 {
        for with_event in [true, false] {
            // The checker would stop the device before anybody sees what the copy read.
            let observer: Option<Arc<dyn Observer>> = Some(Arc::new(Checker::only_counters()));
            let gpu = launcher(SimulatorOptions { schedule: seed, observer, ..Default::default() });
            let address = gpu.allocate(64).unwrap();
            gpu.synchronise().unwrap();
            gpu.upload(address, &[1; 64]).unwrap();
            if with_event {
                let written = gpu.record(Stream::Compute).unwrap();
                gpu.wait(Stream::Copy, &written).unwrap();
            }
            // The copy stream has touched the block before: the pool's own order does not hide the fault.
            let under_way = gpu.download_on(Stream::Copy, address, 64).unwrap();
            let mut back = [9; 64];
            gpu.receive(under_way, &mut back).unwrap();
            if with_event {
                assert_eq!(back, [1; 64], "seed {seed}: an event orders the copy behind the upload");
            } else {
                early += usize::from(back == [0; 64]);
            }
        }
    }
    assert!(early > 0, "no seed showed that the event is missing");
}

#[test]
fn crossings_are_counted_once() {
    let device = Device::simulated();
    let Device::Gpu(gpu) = &device else { unreachable!() };
    let address = gpu.allocate(100).unwrap();
    gpu.upload(address, &[1; 100]).unwrap();
    gpu.upload_on(Stream::Copy, address, &[1; 50]).unwrap();
    let uploaded = gpu.record(Stream::Copy).unwrap();
    gpu.wait(Stream::Compute, &uploaded).unwrap();
    let download = gpu.download_on(Stream::Compute, address, 20).unwrap();
    gpu.receive(download, &mut [0; 20]).unwrap();
    gpu.download(address, &mut [0; 7]).unwrap();
    let count = device.traffic().count();
    assert_eq!((count.uploads, count.bytes_up), (2, 150));
    assert_eq!((count.downloads, count.bytes_down), (2, 27));
    assert_eq!((count.allocations, count.bytes_held), (1, 100));
    gpu.free(address, 100);
    assert_eq!(device.traffic().count().bytes_held, 0);
}

#[test]
fn a_download_nobody_wants_costs_nothing() {
    let gpu = launcher(SimulatorOptions::default());
    let address = gpu.allocate(5000).unwrap();
    for _ in 0..100 {
        drop(gpu.download_on(Stream::Copy, address, 5000).unwrap());
        gpu.synchronise().unwrap();
    }
    let pinned = gpu.statistics().pinned_allocations;
    assert!(pinned <= 2, "{pinned} landing places");
}

#[test]
fn a_fault_while_clearing_up_is_not_swallowed() {
    let gpu = launcher(SimulatorOptions::default());
    let address = gpu.allocate(100).unwrap();
    // Beyond its block, and nobody waits for it.
    drop(gpu.download_on(Stream::Compute, address, 101).unwrap());
    let failed = (0..10).find_map(|_| gpu.upload(address, &[1]).err());
    let message = failed.expect("the fault shows at a later call").to_string();
    assert!(message.contains("101 bytes outside every live allocation"), "{message}");
}

#[test]
fn copies_inside_the_device() {
    let gpu = launcher(SimulatorOptions::default());
    let (from, to) = (gpu.allocate(1000).unwrap(), gpu.allocate(1000).unwrap());
    gpu.upload(from, &pattern(1000)).unwrap();
    gpu.copy(from + 10, to + 20, 900).unwrap();
    let mut back = vec![0; 1000];
    gpu.download(to, &mut back).unwrap();
    assert_eq!(back[20..920], pattern(1000)[10..910]);
    assert!(back[..20].iter().chain(&back[920..]).all(|&b| b == 0));
}

#[test]
fn tickets_of_another_device_are_refused() {
    let (ours, other) = (launcher(SimulatorOptions::default()), launcher(SimulatorOptions::default()));
    let event = other.record(Stream::Compute).unwrap();
    let message = ours.wait(Stream::Copy, &event).unwrap_err().to_string();
    assert!(message.contains("an event of another device"), "{message}");
    let address = other.allocate(8).unwrap();
    let download = other.download_on(Stream::Compute, address, 8).unwrap();
    let message = ours.receive(download, &mut [0; 8]).unwrap_err().to_string();
    assert!(message.contains("a download of another device"), "{message}");
}

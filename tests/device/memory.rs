//! The memory pool: nothing is taken from the driver after the first turn, every byte is booked, faults are named.

use super::launcher;
use latch::base::Dtype;
use latch::device::{Arena, Device, SimulatorOptions, Stream};

#[test]
fn nothing_is_taken_from_the_driver_after_the_first_turn() {
    let gpu = launcher(SimulatorOptions::default());
    let turn = || {
        let mut held = Vec::new();
        for (index, bytes) in [1, 300, 4096, 70_000, 1_500_000, 9_000_000, 70_000].into_iter().enumerate() {
            let address = gpu.allocate(bytes).unwrap();
            gpu.upload(address, &vec![index as u8; bytes]).unwrap();
            held.push((address, bytes));
            if index % 3 == 2 {
                let (address, bytes) = held.remove(0);
                gpu.free(address, bytes);
            }
        }
        for (address, bytes) in held {
            gpu.download(address, &mut vec![0; bytes]).unwrap();
            gpu.free(address, bytes);
        }
    };
    turn();
    let warm = gpu.statistics();
    assert!(warm.driver_allocations > 0 && warm.driver_bytes > 0);
    for _ in 0..10 {
        turn();
    }
    let after = gpu.statistics();
    assert_eq!(
        (after.driver_allocations, after.driver_bytes, after.pinned_allocations),
        (warm.driver_allocations, warm.driver_bytes, warm.pinned_allocations)
    );
}

#[test]
fn arenas_are_booked_apart() {
    let device = Device::simulated();
    let Device::Gpu(gpu) = &device else { unreachable!() };
    let weights = {
        let _weights = Arena::Weights.enter();
        device.allocate(Dtype::F32, 1000).unwrap()
    };
    let tape = {
        let _tape = Arena::Tape.enter();
        device.allocate(Dtype::Bf16, 500).unwrap()
    };
    let other = device.allocate(Dtype::U32, 10).unwrap();
    let of = |arena| gpu.statistics().arenas.into_iter().find(|count| count.arena == arena).unwrap();
    assert_eq!((of(Arena::Weights).held, of(Arena::Weights).blocks), (4000, 1));
    assert_eq!((of(Arena::Tape).held, of(Arena::Other).held, of(Arena::Masks).held), (1000, 40, 0));
    drop(tape);
    assert_eq!((of(Arena::Tape).held, of(Arena::Tape).high_water), (0, 1000));
    // A block goes back to the arena it came from, whatever the current arena.
    let _masks = Arena::Masks.enter();
    drop((weights, other));
    assert_eq!((of(Arena::Weights).held, of(Arena::Weights).high_water, of(Arena::Other).held), (0, 4000, 0));
}

#[test]
fn what_is_still_held_is_reported_when_a_device_is_closed() {
    let device = Device::simulated();
    let Device::Gpu(gpu) = device.clone() else { unreachable!() };
    let kept = {
        let _cache = Arena::KvCache.enter();
        gpu.allocate(123).unwrap()
    };
    let buffer = device.allocate(Dtype::F32, 4).unwrap();
    drop(buffer);
    let leaks = device.close().unwrap();
    assert_eq!(leaks.len(), 1);
    assert_eq!((leaks[0].arena, leaks[0].address, leaks[0].bytes), (Arena::KvCache, kept, 123));
    gpu.free(kept, 123);
    assert!(Device::Gpu(gpu).close().unwrap().is_empty());
    assert!(Device::cpu().close().unwrap().is_empty());
}

#[test]
fn a_step_beyond_a_block_is_a_fault() {
    let gpu = launcher(SimulatorOptions::default());
    let (first, second) = (gpu.allocate(1000).unwrap(), gpu.allocate(1000).unwrap());
    gpu.upload(first, &[1; 1001]).unwrap();
    let error = gpu.synchronise().unwrap_err().to_string();
    assert!(error.contains("1001 bytes outside every live allocation"), "{error}");
    // The device is lost: whatever follows says what happened.
    let later = gpu.upload(second, &[1; 8]).unwrap_err().to_string();
    assert!(later.contains("sim was lost") && later.contains("1001 bytes outside"), "{later}");
    gpu.free(first, 1000);
}

#[test]
fn memory_given_back_is_a_fault_to_use() {
    let gpu = launcher(SimulatorOptions::default());
    let address = gpu.allocate(1000).unwrap();
    gpu.free(address, 1000);
    let error = gpu.download(address, &mut [0; 8]).unwrap_err().to_string();
    assert!(error.contains("memory that was given back"), "{error}");
}

#[test]
fn a_full_device_says_what_fills_it() {
    let gpu = launcher(SimulatorOptions { memory_bytes: 64 << 20, ..Default::default() });
    let weights = {
        let _weights = Arena::Weights.enter();
        gpu.allocate(30 << 20).unwrap()
    };
    let _tape = Arena::Tape.enter();
    let tape = gpu.allocate(20 << 20).unwrap();
    let error = gpu.allocate(40 << 20).unwrap_err().to_string();
    for says in [
        "sim is out of memory",
        "of 64.0 MiB are free",
        "weights 30.0 MiB",
        "tape 20.0 MiB",
        "40.0 MiB for tape asked for",
    ] {
        assert!(error.contains(says), "{says}: {error}");
    }
    // Nothing is lost, nothing leaked: what is given back can be had again, in other sizes too.
    gpu.free(weights, 30 << 20);
    gpu.free(tape, 20 << 20);
    let big = gpu.allocate(40 << 20).unwrap();
    gpu.upload(big, &[1; 100]).unwrap();
    gpu.free(big, 40 << 20);
    assert!(gpu.statistics().held.is_empty());
    let message = gpu.allocate(usize::MAX).unwrap_err().to_string();
    assert!(message.contains("out of memory"), "{message}");
}

#[test]
fn a_block_is_used_again_only_behind_the_copy_stream() {
    for seed in 0..16 {
        let gpu = launcher(SimulatorOptions { schedule: seed, ..Default::default() });
        let address = gpu.allocate(4096).unwrap();
        gpu.upload_on(Stream::Copy, address, &[5; 4096]).unwrap();
        let download = gpu.download_on(Stream::Copy, address, 4096).unwrap();
        gpu.free(address, 4096);
        let again = gpu.allocate(4096).unwrap();
        assert_eq!(address, again);
        gpu.upload(again, &[6; 4096]).unwrap();
        let mut back = [0; 4096];
        gpu.receive(download, &mut back).unwrap();
        assert!(
            back.iter().all(|&b| b == 5),
            "seed {seed}: the old owner's copy reads the old owner's bytes"
        );
        gpu.download(again, &mut back).unwrap();
        assert!(back.iter().all(|&b| b == 6), "seed {seed}");
    }
}

#[test]
fn the_copy_stream_waits_before_it_touches_a_new_block() {
    for seed in 0..16 {
        let gpu = launcher(SimulatorOptions { schedule: seed, ..Default::default() });
        // The block's last owner still reads it on the compute stream when the next owner's upload is asked for.
        let old = gpu.allocate(4096).unwrap();
        gpu.upload(old, &[5; 4096]).unwrap();
        let seen = gpu.allocate(4096).unwrap();
        gpu.copy(old, seen, 4096).unwrap();
        gpu.free(old, 4096);
        let new = gpu.allocate(4096).unwrap();
        assert_eq!(old, new);
        gpu.upload_on(Stream::Copy, new, &[6; 4096]).unwrap();
        gpu.synchronise().unwrap();
        let mut back = [0; 4096];
        gpu.download(seen, &mut back).unwrap();
        assert!(back.iter().all(|&b| b == 5), "seed {seed}");
        gpu.download(new, &mut back).unwrap();
        assert!(back.iter().all(|&b| b == 6), "seed {seed}: the block's zeros come before the upload");
    }
}

#[test]
fn buffers_without_elements() {
    let device = Device::simulated();
    let mut empty = device.allocate(Dtype::F32, 0).unwrap();
    assert_ne!(empty.address(0), Some(0), "0 is the address of what is absent");
    empty.upload::<f32>(0, &[]).unwrap();
    empty.clear().unwrap();
    empty.download::<f32>(0, &mut []).unwrap();
    drop(empty);
    assert!(device.close().unwrap().is_empty());
}

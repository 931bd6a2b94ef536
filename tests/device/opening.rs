//! Opening devices, here without a GPU: every name has its device or its sentence. What the CUDA side does with a driver
//! is in driver.rs, against one that we made.

use latch::device::{Device, Signatures};
use std::fs;
use std::path::Path;

/// A real GPU, or a line that says there is none; with `REQUIRE_CUDA=1` its absence is a failure.
pub fn real_gpu() -> Option<Device> {
    match Device::open("cuda") {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("REQUIRE_CUDA").is_ok_and(|value| value == "1");
            assert!(!required, "REQUIRE_CUDA=1: {error}");
            println!("skipped: no CUDA driver ({error})");
            None
        }
    }
}

#[test]
fn names_of_devices() {
    assert_eq!(Device::open("cpu").unwrap().name(), "cpu");
    assert_eq!(Device::open("sim").unwrap().name(), "sim");
    for (name, says) in [
        ("tpu", "unknown device `tpu`"),
        ("cuda:", "`` is not a device number"),
        ("cuda:-1", "`-1` is not a device number"),
        ("simulator", "known devices: auto, cpu, cuda, cuda:N, sim"),
    ] {
        let message = Device::open(name).unwrap_err().to_string();
        assert!(message.contains(says), "{says}: {message}");
    }
}

#[test]
fn auto_takes_a_gpu_where_there_is_one() {
    let (auto, choice) = Device::choose("auto").unwrap();
    let choice = choice.unwrap();
    match real_gpu() {
        Some(gpu) => assert_eq!((auto.name(), choice.aloud), (gpu.name(), true)),
        None => assert_eq!(auto.name(), "cpu"),
    }
    assert!(choice.sentence.contains(&auto.name()), "{}", choice.sentence);
}

#[test]
fn a_device_number_that_is_not_there_is_a_sentence() {
    let message = Device::open("cuda:4096").unwrap_err().to_string();
    assert!(message.contains("--device cpu"), "{message}");
}

/// Drivers from 530 on read PTX 8.1 (CUDA 12.1), and every GPU since Ampere runs sm_80; files for Hopper say so.
#[test]
fn every_shipped_file_is_for_driver_530_and_sm_80() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("ptx");
    let mut files = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "ptx") {
            continue;
        }
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let file = Signatures::read(&stem, &fs::read_to_string(&path).unwrap()).unwrap();
        assert!(file.version <= (8, 1), "{stem}: PTX {:?}", file.version);
        assert_eq!(file.target, if stem.ends_with("_sm90a") { "sm_90a" } else { "sm_80" }, "{stem}");
        files += 1;
    }
    assert!(files > 0, "no PTX in {}", folder.display());
}

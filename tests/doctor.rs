//! The examination of a machine: devices that are here, that are not, and that are wrong.

use latch::device::Device;
use latch::run::doctor::{Examined, Options, examine};
use std::process::Command;

/// What `read` makes of every device that is examined.
fn examined<T>(options: &Options, mut read: impl FnMut(&Examined) -> T) -> Vec<T> {
    let mut all = Vec::new();
    examine(options, &mut |examined| all.push(read(examined))).unwrap();
    all
}

fn of(devices: &[&str]) -> Options {
    Options { devices: devices.iter().map(|name| name.to_string()).collect(), ..Options::default() }
}

#[test]
fn the_cpu_and_the_simulator_are_well() {
    let found = examined(&of(&["cpu", "sim"]), |device| (device.is_well(), device.json(), device.lines()));
    for (well, json, lines) in &found {
        assert!(*well, "{lines:?}");
        // A row a tensor and one for the direction over all of them.
        assert!(json["test"]["tensors"].as_u64().unwrap() > 40, "{json}");
        let worst = json["test"]["worst_f32"].as_f64().unwrap();
        assert!(0.0 < worst && worst < 1e-3, "{json}");
        assert!(lines.iter().any(|line| line.starts_with("self-test passed")), "{lines:?}");
    }
    assert_eq!(found[0].1["vectors"], latch::ops::vector_instructions());
    assert_eq!(found[1].1["compute_capability"], "8.0");
}

#[test]
fn a_wrong_gradient_is_found() {
    for (name, kind) in [("model gpt2", ":f32"), ("model qwen3", "")] {
        let fault = format!("{name}, latent scope, shared prompt{kind}");
        let options = Options { fault: Some(fault.parse().unwrap()), ..of(&["cpu"]) };
        let found = examined(&options, |device| (device.is_well(), device.json(), device.lines()));
        let (well, json, lines) = &found[0];
        assert!(!well, "{lines:?}");
        let wrong = json["test"]["wrong"].as_array().unwrap();
        assert!(!wrong.is_empty());
        assert!(wrong.iter().all(|tensor| tensor.as_str().unwrap().starts_with(name)), "{json}");
        assert!(lines.iter().any(|line| line.starts_with("self-test FAILED")), "{lines:?}");
    }
}

#[test]
fn a_card_that_is_not_here() {
    if let Ok(count) = Device::cuda_count() {
        println!("skipped: this machine has a CUDA driver and {count} devices");
        return;
    }
    let asked = examined(&Options { no_test: true, ..of(&["cuda"]) }, |device| {
        (device.is_well(), device.lines().join("\n"))
    });
    assert!(!asked[0].0);
    assert!(asked[0].1.starts_with("error: no CUDA driver"), "{}", asked[0].1);
    // Nobody asked for it: a machine without one is in order.
    let all = Options { no_test: true, ..Options::default() };
    let all = examined(&all, |device| (device.name.clone(), device.is_well(), device.lines().join("\n")));
    assert_eq!(all.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), ["cpu", "sim", "cuda"]);
    assert!(all.iter().all(|(_, well, _)| *well), "{all:?}");
    assert!(all[2].2.starts_with("not here: no CUDA driver") && all[2].2.contains("install"), "{}", all[2].2);
}

#[test]
fn the_command_says_it_in_its_exit_code() {
    let run =
        |arguments: &[&str]| Command::new(env!("CARGO_BIN_EXE_doctor")).args(arguments).output().unwrap();
    let output = run(&["--device", "cpu", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&all["well"], &all["devices"][0]["device"]), (&true.into(), &"cpu".into()));
    assert_eq!(all["machine"]["latch"], env!("CARGO_PKG_VERSION"));
    let output = run(&["--device", "sim", "--no-test"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("sim     sim") && !text.contains("self-test"), "{text}");
    let output = run(&["--device", "tpu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("unknown device `tpu`"));
    let output = run(&["--device", "cuda:99", "--no-test"]);
    assert_eq!(output.status.code(), Some(1), "no machine has that many cards");
}

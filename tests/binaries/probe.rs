//! `probe`: results as golden files have them, and places that cannot be written.

use super::{golden, refuses, run, stdout};
use safetensors::SafeTensors;

#[test]
fn probe_writes_what_golden_files_hold() {
    let folder = golden("llama_head_dim");
    let work = tempfile::tempdir().unwrap();
    let out = work.path().join("out.safetensors");
    let input = folder.join("cases/masked.in.safetensors");
    let output = run(
        env!("CARGO_BIN_EXE_probe"),
        &[
            "--model",
            folder.to_str().unwrap(),
            "--input",
            input.to_str().unwrap(),
            "--output",
            out.to_str().unwrap(),
        ],
    );
    stdout(&output);
    let (found, expected) =
        (std::fs::read(&out).unwrap(), std::fs::read(folder.join("cases/masked.out.safetensors")).unwrap());
    let (found, expected) =
        (SafeTensors::deserialize(&found).unwrap(), SafeTensors::deserialize(&expected).unwrap());
    let mut names: Vec<&str> = found.names();
    let mut golden: Vec<&str> = expected.names();
    names.sort_unstable();
    golden.sort_unstable();
    assert_eq!(names, golden);
    for name in names {
        assert_eq!(found.tensor(name).unwrap().shape(), expected.tensor(name).unwrap().shape(), "{name}");
    }
    let missing =
        run(env!("CARGO_BIN_EXE_probe"), &["--model", "x", "--input", "/nonexistent", "--output", "y"]);
    refuses(&missing, 2, &["/nonexistent", "cannot read"]);
    let unwritable = run(
        env!("CARGO_BIN_EXE_probe"),
        &[
            "--model",
            folder.to_str().unwrap(),
            "--input",
            input.to_str().unwrap(),
            "--output",
            "/nonexistent/out",
        ],
    );
    refuses(&unwritable, 2, &["/nonexistent/out", "cannot write", "no such folder"]);
    // A device is not replaced by a file; a folder stays one. Said before the model is opened.
    let link = work.path().join("device");
    #[cfg(unix)]
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    #[cfg(not(unix))]
    std::fs::create_dir(&link).unwrap();
    for place in [link.as_path(), work.path()] {
        let arguments = ["--model", "/nonexistent", "--input", input.to_str().unwrap(), "--output"];
        let place = place.to_str().unwrap();
        let output = run(env!("CARGO_BIN_EXE_probe"), &[&arguments[..], &[place]].concat());
        refuses(&output, 2, &[place, "cannot write", "what is there is no file"]);
    }
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink() || cfg!(not(unix)));
}

/// A disk that is full is no mistake of the command.
#[cfg(unix)]
#[test]
fn what_does_not_fit_the_disk_is_a_failure() {
    let folder = golden("llama_head_dim");
    let work = tempfile::tempdir().unwrap();
    // As a full disk: files may not be longer than a few KiB.
    let script = "trap '' XFSZ; ulimit -f 8; exec \"$@\"";
    let (input, out) = (folder.join("cases/masked.in.safetensors"), work.path().join("out.safetensors"));
    let output = std::process::Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_probe"), "--model"])
        .arg(&folder)
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(&out)
        .output()
        .unwrap();
    refuses(&output, 1, &["out.safetensors: cannot write: "]);
    assert!(!out.exists(), "a part is of no use");
}

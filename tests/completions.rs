//! `completions`: every flag of every command is in the scripts and pages, and shells take them.

use crate::binaries::{refuses, run, stdout};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

const COMPLETIONS: &str = env!("CARGO_BIN_EXE_completions");

/// The commands that Cargo.toml names.
fn commands() -> BTreeSet<String> {
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap();
    let sections = manifest.split("[[bin]]").skip(1);
    let name = |section: &str| section.split('"').nth(1).map(String::from).unwrap();
    sections.map(name).collect()
}

/// Long flags of a command, from its help.
fn flags(command: &str) -> Vec<String> {
    let help = stdout(&run(Path::new(COMPLETIONS).with_file_name(command).to_str().unwrap(), &["--help"]));
    let flag = |line: &str| {
        let line = line.trim_start();
        let line = line.split_once(", --").map_or(line, |(_, rest)| &line[line.len() - rest.len() - 2..]);
        let name: String =
            line.strip_prefix("--")?.chars().take_while(|c| c.is_alphanumeric() || *c == '-').collect();
        (!name.is_empty()).then_some(name)
    };
    help.lines().filter(|line| line.trim_start().starts_with('-')).filter_map(flag).collect()
}

#[test]
fn every_flag_of_every_command_is_in_every_script() {
    let home = tempfile::tempdir().unwrap();
    let commands = commands();
    assert!(commands.len() >= 12 && commands.contains("train"), "{commands:?}");
    for (form, begin, end) in
        [("bash", "", ".bash"), ("zsh", "_", ""), ("fish", "", ".fish"), ("man", "", ".1")]
    {
        let folder = home.path().join(form);
        stdout(&run(COMPLETIONS, &[form, "--out", folder.to_str().unwrap()]));
        let found: BTreeSet<String> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(found, commands.iter().map(|name| format!("{begin}{name}{end}")).collect(), "{form}");
        let mut seen = 0;
        for name in &commands {
            let text = fs::read_to_string(folder.join(format!("{begin}{name}{end}"))).unwrap();
            for flag in flags(name) {
                let word = match form {
                    "fish" => format!(" -l {flag}"),
                    "man" => format!("\\-\\-{}", flag.replace('-', "\\-")),
                    _ => format!("--{flag}"),
                };
                let whole = |at: usize| {
                    !text[at + word.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '-')
                };
                assert!(
                    text.match_indices(&word).any(|(at, _)| whole(at)),
                    "--{flag} of {name} is missing for {form}"
                );
                seen += 1;
            }
        }
        assert!(seen > 100, "only {seen} flags found");
    }
}

#[test]
fn shells_take_the_scripts_and_complete() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&run(COMPLETIONS, &[shell]));
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("script");
        fs::write(&path, script).unwrap();
        match Command::new(shell).arg("-n").arg(&path).output() {
            Ok(output) => assert!(output.status.success(), "{shell}: {output:?}"),
            Err(error) => {
                eprintln!("SKIPPED: there is no {shell} here: {error}");
                continue;
            }
        }
        if shell == "bash" {
            let ask = "source \"$0\"; COMP_WORDS=(train --resu); COMP_CWORD=1; _train train --resu train; echo \"${COMPREPLY[@]}\"";
            let output = Command::new(shell).args(["-c", ask, path.to_str().unwrap()]).output().unwrap();
            assert_eq!(stdout(&output).trim(), "--resume");
        }
    }
}

#[test]
fn what_is_no_shell_is_refused() {
    refuses(&run(COMPLETIONS, &[]), 2, &["SHELL"]);
    refuses(&run(COMPLETIONS, &["csh"]), 2, &["csh", "bash"]);
    refuses(&run(COMPLETIONS, &["man"]), 2, &["--out"]);
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    refuses(
        &run(COMPLETIONS, &["bash", "--out", file.to_str().unwrap()]),
        2,
        &["file", "cannot create the folder"],
    );
}

//! `completions SHELL`: what a shell needs to complete the commands' flags, and their man pages. It asks each command's own
//! source for its flags, so none is written down twice.
// Every command brings the shared modules that it is made of.
#![allow(clippy::duplicate_mod)]

#[path = "doctor.rs"]
#[allow(dead_code)]
mod doctor;
#[path = "shared/ending.rs"]
mod ending;
#[path = "evaluate.rs"]
#[allow(dead_code)]
mod evaluate;
#[path = "experiment.rs"]
#[allow(dead_code)]
mod experiment;
#[path = "generate.rs"]
#[allow(dead_code)]
mod generate;
#[path = "inspect.rs"]
#[allow(dead_code)]
mod inspect;
#[path = "../../tools/kernel_report.rs"]
#[allow(dead_code)]
mod kernel_report;
#[path = "shared/output.rs"]
mod output;
#[path = "probe.rs"]
#[allow(dead_code)]
mod probe;
#[path = "report.rs"]
#[allow(dead_code)]
mod report;
#[path = "train.rs"]
#[allow(dead_code)]
mod train;
#[path = "../../tools/verify_grad.rs"]
#[allow(dead_code)]
mod verify_grad;
#[path = "watch.rs"]
#[allow(dead_code)]
mod watch;
#[path = "shared/words.rs"]
mod words;

use clap::{Command, CommandFactory, Parser, ValueEnum};
use clap_complete::Shell;
use latch::base::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Bash,
    Elvish,
    Fish,
    Powershell,
    Zsh,
    /// Pages for man (with --out)
    Man,
}

/// Writes completions of all commands' flags for a shell, or their man pages. It needs no model and no device.
///
/// For this session: `source <(completions bash)`, or zsh; `completions fish | source`. For good: --out with the folder that
/// the shell reads, e.g. ~/.local/share/bash-completion/completions.
#[derive(Parser)]
#[command(version)]
pub struct Arguments {
    /// Shell that is to complete, or man
    #[arg(value_name = "SHELL")]
    form: Form,
    /// Folder to write a file a command into, instead of all to stdout
    #[arg(long, value_name = "DIR", required_if_eq("form", "man"))]
    out: Option<PathBuf>,
}

fn main() -> ExitCode {
    ending::ended(run(&Arguments::parse()).map(|()| ExitCode::SUCCESS))
}

/// Every command, as its own source describes it.
fn commands() -> Vec<Command> {
    let all = [
        ("completions", Arguments::command()),
        ("doctor", doctor::Arguments::command()),
        ("evaluate", evaluate::Arguments::command()),
        ("experiment", experiment::Arguments::command()),
        ("generate", generate::Arguments::command()),
        ("inspect", inspect::Arguments::command()),
        ("kernel_report", kernel_report::Arguments::command()),
        ("probe", probe::Arguments::command()),
        ("report", report::Arguments::command()),
        ("train", train::Arguments::command()),
        ("verify_grad", verify_grad::Arguments::command()),
        ("watch", watch::Arguments::command()),
    ];
    all.into_iter().map(|(name, command)| command.name(name).bin_name(name)).collect()
}

fn run(arguments: &Arguments) -> Result<()> {
    let mut all = Vec::new();
    for command in commands() {
        let name = command.get_name().to_string();
        let file = match shell(arguments.form) {
            Some(shell) => clap_complete::Generator::file_name(&shell, &name),
            None => format!("{name}.1"),
        };
        all.push((file, text(arguments.form, command)?));
    }
    match &arguments.out {
        None => output::write(&all.into_iter().map(|(_, text)| text + "\n").collect::<String>()).map(drop),
        Some(folder) => {
            fs::create_dir_all(folder).map_err(Error::io(folder, "cannot create the folder"))?;
            for (file, text) in all {
                let path = folder.join(file);
                fs::write(&path, text).map_err(Error::io(&path, "cannot write"))?;
            }
            output::write(&format!("{}\n", folder.display())).map(drop)
        }
    }
}

fn shell(form: Form) -> Option<Shell> {
    match form {
        Form::Bash => Some(Shell::Bash),
        Form::Elvish => Some(Shell::Elvish),
        Form::Fish => Some(Shell::Fish),
        Form::Powershell => Some(Shell::PowerShell),
        Form::Zsh => Some(Shell::Zsh),
        Form::Man => None,
    }
}

fn text(form: Form, mut command: Command) -> Result<String> {
    let (name, mut bytes) = (command.get_name().to_string(), Vec::new());
    match shell(form) {
        Some(shell) => clap_complete::generate(shell, &mut command, name, &mut bytes),
        None => {
            let page = clap_mangen::Man::new(command).render(&mut bytes);
            page.map_err(Error::io(Path::new(&name), "cannot write the page of"))?;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

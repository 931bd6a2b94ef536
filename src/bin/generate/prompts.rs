//! Prompts: ids, texts, lines of a file or of stdin, with or without the chat template.

use super::Arguments;
use latch::base::{Error, Result};
use latch::model::weights::Source;
use latch::text::{Message, Tokenizer};
use std::io::Read;
use std::path::Path;

/// The prompts of the command line, as token ids, in the order ids, texts, files.
///
/// # Errors
/// A file that cannot be read, an id or a text that is none, a template that is missing or refuses, nothing at all.
pub fn read(arguments: &Arguments, source: &Source, tokenizer: Option<&Tokenizer>) -> Result<Vec<Vec<u32>>> {
    let mut prompts = Vec::new();
    for list in &arguments.prompt_ids {
        let ids = list.split(',').map(|id| {
            id.trim().parse::<u32>().map_err(|_| {
                Error::input(
                    "--prompt-ids",
                    format!("`{}` is no token id", id.trim()),
                    "write ids separated by commas: 1,2,3",
                )
            })
        });
        prompts.push(ids.collect::<Result<Vec<u32>>>()?);
    }
    let mut texts = Vec::new();
    for text in &arguments.prompt {
        match text.as_str() {
            "-" => texts.extend(lines(Path::new("-"))?),
            text => texts.push(text.to_string()),
        }
    }
    if let Some(path) = &arguments.prompt_file {
        texts.extend(lines(path)?);
    }
    let Some(tokenizer) = tokenizer else { return Ok(prompts) };
    let template = match arguments.chat {
        false => None,
        true => Some(source.chat_template()?.ok_or_else(|| {
            Error::input(
                "--chat",
                "the model has no chat template",
                "leave --chat out, or add chat_template.jinja to the model's folder",
            )
        })?),
    };
    for text in texts {
        let ids = match &template {
            None => tokenizer.encode(&text, true)?,
            Some(template) => {
                let system = arguments.system.iter().map(|content| Message::new("system", content.as_str()));
                let messages: Vec<Message> = system.chain([Message::new("user", text)]).collect();
                tokenizer.encode(&template.render(&messages, true)?, false)?
            }
        };
        if ids.is_empty() {
            return Err(Error::input(
                "prompt",
                "is empty",
                "give at least one character of text, or --prompt-ids",
            ));
        }
        prompts.push(ids);
    }
    if prompts.is_empty() {
        return Err(Error::input("prompt", "there are no lines to continue", "write one prompt a line"));
    }
    Ok(prompts)
}

/// The lines of a file (`-` = stdin) that are not empty. A byte order mark, as some editors write, is no part of them.
fn lines(path: &Path) -> Result<Vec<String>> {
    let bytes = match path == Path::new("-") {
        true => {
            let mut bytes = Vec::new();
            std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
        }
        false => std::fs::read(path),
    };
    let bytes = bytes.map_err(Error::io(path, "cannot read prompts"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        Error::file(path, format!("line {line}: is not UTF-8"), "convert the file to UTF-8")
    })?;
    let text = text.trim_start_matches('\u{feff}');
    Ok(text.lines().filter(|line| !line.is_empty()).map(String::from).collect())
}

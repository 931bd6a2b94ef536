//! Reading tokens one after the other, with faults that name file and line.

use super::lexer::{At, Token};
use crate::sim::fault::{Fault, Kind, Result};

/// A place in the tokens of a file.
pub(in crate::sim) struct Cursor<'a> {
    pub file: &'a str,
    tokens: &'a [At<'a>],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(file: &'a str, tokens: &'a [At<'a>]) -> Cursor<'a> {
        Cursor { file, tokens, at: 0 }
    }

    /// The token `ahead` places on.
    pub fn look(&self, ahead: usize) -> Option<Token<'a>> {
        self.tokens.get(self.at + ahead).map(|at| at.token)
    }

    pub fn peek(&self) -> Option<Token<'a>> {
        self.look(0)
    }

    /// The line of the next token, or of the last one.
    pub fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |at| at.line)
    }

    pub fn done(&self) -> bool {
        self.at >= self.tokens.len()
    }

    pub fn fault(&self, problem: impl Into<String>) -> Fault {
        let advice =
            "compile the source again with tools/ptx.py; this file is not PTX as its compiler writes it";
        Fault::text(Kind::Syntax, self.file, self.line(), problem, advice)
    }

    fn found(&self) -> String {
        match self.peek() {
            Some(Token::Word(word)) => format!("`{word}`"),
            Some(Token::Mark(mark)) => format!("`{mark}`"),
            Some(_) => "a literal".to_string(),
            None => "the end of the file".to_string(),
        }
    }

    pub fn next(&mut self) -> Result<Token<'a>> {
        match self.peek() {
            Some(token) => {
                self.at += 1;
                Ok(token)
            }
            None => Err(self.fault("the file ends in the middle of a statement")),
        }
    }

    pub fn word(&mut self, what: &str) -> Result<&'a str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            _ => Err(self.fault(format!("expected {what}, found {}", self.found()))),
        }
    }

    /// A non-negative integer literal.
    pub fn integer(&mut self, what: &str) -> Result<u64> {
        match self.peek() {
            Some(Token::Integer(value)) => {
                self.at += 1;
                Ok(value)
            }
            _ => Err(self.fault(format!("expected {what}, found {}", self.found()))),
        }
    }

    /// Takes the mark if it comes next.
    pub fn takes(&mut self, mark: char) -> bool {
        let here = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(here);
        here
    }

    /// Takes the word if it comes next.
    pub fn takes_word(&mut self, word: &str) -> bool {
        let here = self.peek() == Some(Token::Word(word));
        self.at += usize::from(here);
        here
    }

    pub fn expect(&mut self, mark: char) -> Result<()> {
        if self.takes(mark) {
            return Ok(());
        }
        Err(self.fault(format!("expected `{mark}`, found {}", self.found())))
    }

    /// Skips the rest of the line that the last token stands on.
    pub fn skip_line(&mut self, line: u32) {
        while self.tokens.get(self.at).is_some_and(|at| at.line == line) {
            self.at += 1;
        }
    }

    /// Skips a group in braces, the opening one already taken.
    pub fn skip_braces(&mut self) -> Result<()> {
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }
}

//! Text of PTX to tokens.

use crate::sim::fault::{Fault, Kind, Result};

/// One token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::sim) enum Token<'a> {
    /// A name, a directive with its dot, or an opcode with all its dots.
    Word(&'a str),
    /// An integer literal, without a sign.
    Integer(u64),
    /// `0f` and eight hexadecimal digits.
    Single(u32),
    /// `0d` and sixteen hexadecimal digits, or a decimal literal with a point or an exponent.
    Double(u64),
    /// What stands between quotes.
    Text(&'a str),
    /// Any other character.
    Mark(char),
}

/// A token and the line it stands on.
#[derive(Clone, Copy, Debug)]
pub(in crate::sim) struct At<'a> {
    pub token: Token<'a>,
    pub line: u32,
}

/// Splits text into tokens; comments vanish.
pub(in crate::sim) fn tokens<'a>(file: &str, text: &'a str) -> Result<Vec<At<'a>>> {
    let mut lexer = Lexer { file, text, at: 0, line: 1 };
    let mut found = Vec::with_capacity(text.len() / 4);
    while let Some(token) = lexer.next()? {
        found.push(token);
    }
    Ok(found)
}

struct Lexer<'a, 'f> {
    file: &'f str,
    text: &'a str,
    at: usize,
    line: u32,
}

impl<'a> Lexer<'a, '_> {
    fn fault(&self, problem: String) -> Fault {
        let advice =
            "compile the source again with tools/ptx.py; this file is not PTX as its compiler writes it";
        Fault::text(Kind::Syntax, self.file, self.line, problem, advice)
    }

    fn peek(&self, ahead: usize) -> u8 {
        self.text.as_bytes().get(self.at + ahead).copied().unwrap_or(0)
    }

    fn skip_blanks(&mut self) -> Result<()> {
        loop {
            match (self.peek(0), self.peek(1)) {
                (b'\n', _) => {
                    self.line += 1;
                    self.at += 1;
                }
                (b' ' | b'\t' | b'\r', _) => self.at += 1,
                (b'/', b'/') => {
                    while self.at < self.text.len() && self.peek(0) != b'\n' {
                        self.at += 1;
                    }
                }
                (b'/', b'*') => {
                    let Some(length) = self.text.get(self.at + 2..).and_then(|rest| rest.find("*/")) else {
                        return Err(self.fault("a comment that does not end".to_string()));
                    };
                    let end = self.at + 2 + length + 2;
                    self.line +=
                        self.text.as_bytes()[self.at..end].iter().filter(|&&b| b == b'\n').count() as u32;
                    self.at = end;
                }
                _ => return Ok(()),
            }
        }
    }

    fn next(&mut self) -> Result<Option<At<'a>>> {
        self.skip_blanks()?;
        if self.at >= self.text.len() {
            return Ok(None);
        }
        let (line, start) = (self.line, self.at);
        let token = match self.peek(0) {
            b'0'..=b'9' => self.number()?,
            b'"' => {
                let rest = self.text.get(start + 1..).unwrap_or("");
                let Some(length) = rest.find('"') else {
                    return Err(self.fault("a quoted text that does not end".to_string()));
                };
                self.at += length + 2;
                let inside = &rest[..length];
                self.line += inside.bytes().filter(|&b| b == b'\n').count() as u32;
                Token::Text(inside)
            }
            byte if starts_word(byte) => {
                self.at += 1;
                loop {
                    if continues_word(self.peek(0)) {
                        self.at += 1;
                    } else if self.peek(0) == b':' && self.peek(1) == b':' && continues_word(self.peek(2)) {
                        self.at += 2;
                    } else {
                        break;
                    }
                }
                Token::Word(&self.text[start..self.at])
            }
            byte if byte.is_ascii_graphic() => {
                self.at += 1;
                Token::Mark(byte as char)
            }
            byte => return Err(self.fault(format!("a byte {byte:#04x} that has no place in PTX"))),
        };
        Ok(Some(At { token, line }))
    }

    fn number(&mut self) -> Result<Token<'a>> {
        let start = self.at;
        while self.peek(0).is_ascii_alphanumeric() || self.peek(0) == b'_' {
            self.at += 1;
        }
        // A decimal point or a signed exponent makes it a floating-point literal.
        let hexadecimal = matches!(
            self.text.as_bytes().get(start..start + 2),
            Some(b"0x" | b"0X" | b"0f" | b"0F" | b"0d" | b"0D")
        );
        let mut decimal = false;
        while !hexadecimal
            && (self.peek(0) == b'.'
                || matches!(self.peek(0), b'+' | b'-') && self.text[start..self.at].ends_with(['e', 'E']))
        {
            decimal = true;
            self.at += 1;
            while self.peek(0).is_ascii_alphanumeric() {
                self.at += 1;
            }
        }
        let text = &self.text[start..self.at];
        let value = if decimal {
            text.parse::<f64>().ok().map(|value| Token::Double(value.to_bits()))
        } else {
            integer(text)
        };
        value.ok_or_else(|| self.fault(format!("`{text}` is no number")))
    }
}

/// The literals without a point: decimal, octal, hexadecimal, binary, and floats by their bits.
fn integer(text: &str) -> Option<Token<'static>> {
    let digits = text.get(2..).unwrap_or("");
    match text.get(..2) {
        Some("0f" | "0F") if digits.len() == 8 => u32::from_str_radix(digits, 16).ok().map(Token::Single),
        Some("0d" | "0D") if digits.len() == 16 => u64::from_str_radix(digits, 16).ok().map(Token::Double),
        _ => {
            let text = text.strip_suffix(['U', 'u']).unwrap_or(text);
            let (digits, radix) = match text.get(..2) {
                Some("0x" | "0X") => (&text[2..], 16),
                Some("0b" | "0B") => (&text[2..], 2),
                _ if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
                _ => (text, 10),
            };
            u64::from_str_radix(digits, radix).ok().map(Token::Integer)
        }
    }
}

fn starts_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

fn continues_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'.')
}

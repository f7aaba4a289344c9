//! Text into tokens.

use super::TemplateError;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Text(String),
    /// `{{`
    Open,
    /// `}}`
    Close,
    /// A bare word: a function or a keyword.
    Word(String),
    /// `$` or `$name`.
    Variable(String),
    /// `.name`; whether a space stood before tells an argument from a chain.
    Field {
        name: String,
        spaced: bool,
    },
    Dot,
    Str(String),
    Int(i64),
    Float(f64),
    Left,
    Right,
    Pipe,
    Comma,
    Declare,
    Assign,
}

#[derive(Debug, Clone)]
pub(super) struct Spanned {
    pub(super) token: Token,
    pub(super) line: usize,
}

pub(super) fn lex(text: &str) -> Result<Vec<Spanned>, TemplateError> {
    let mut lexer = Lexer {
        rest: text,
        line: 1,
        tokens: Vec::new(),
    };
    lexer.text()?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    tokens: Vec<Spanned>,
}

impl Lexer<'_> {
    fn push(&mut self, token: Token) {
        self.tokens.push(Spanned {
            token,
            line: self.line,
        });
    }

    fn error(&self, message: impl Into<String>) -> TemplateError {
        TemplateError::Parse {
            line: self.line,
            message: message.into(),
        }
    }

    fn skip(&mut self, bytes: usize) {
        let (skipped, rest) = self.rest.split_at(bytes);
        self.line += skipped.matches('\n').count();
        self.rest = rest;
    }

    fn text(&mut self) -> Result<(), TemplateError> {
        let mut trim_next = false;
        loop {
            let end = self.rest.find("{{").unwrap_or(self.rest.len());
            let mut text = &self.rest[..end];
            if trim_next {
                text = text.trim_start();
            }
            let after = self.rest.get(end + 2..).unwrap_or("");
            let trims = after.starts_with('-') && after[1..].starts_with(char::is_whitespace);
            if trims {
                text = text.trim_end();
            }
            if !text.is_empty() {
                let text = text.to_owned();
                self.push(Token::Text(text));
            }
            if end == self.rest.len() {
                return Ok(());
            }
            self.skip(end + 2 + usize::from(trims));
            trim_next = self.action()?;
        }
    }

    /// One action up to its end; whether that end trims the text after it.
    fn action(&mut self) -> Result<bool, TemplateError> {
        if self.rest.trim_start().starts_with("/*") {
            return self.comment();
        }
        self.push(Token::Open);
        let mut spaced = true;
        loop {
            let trimmed = self.rest.trim_start();
            if trimmed.len() < self.rest.len() {
                let space = self.rest.len() - trimmed.len();
                self.skip(space);
                spaced = true;
            }
            if spaced && self.rest.starts_with("-}}") {
                self.push(Token::Close);
                self.skip(3);
                return Ok(true);
            }
            if self.rest.starts_with("}}") {
                self.push(Token::Close);
                self.skip(2);
                return Ok(false);
            }
            let Some(first) = self.rest.chars().next() else {
                return Err(self.error("unclosed action"));
            };
            self.token(first, spaced)?;
            spaced = false;
        }
    }

    fn comment(&mut self) -> Result<bool, TemplateError> {
        let Some(end) = self.rest.find("*/") else {
            return Err(self.error("unclosed comment"));
        };
        self.skip(end + 2);
        for (close, trims) in [("}}", false), (" -}}", true)] {
            if self.rest.starts_with(close) {
                self.skip(close.len());
                return Ok(trims);
            }
        }
        Err(self.error("comment ends before closing delimiter"))
    }

    fn token(&mut self, first: char, spaced: bool) -> Result<(), TemplateError> {
        match first {
            '(' => self.single(Token::Left),
            ')' => self.single(Token::Right),
            '|' => self.single(Token::Pipe),
            ',' => self.single(Token::Comma),
            '=' => self.single(Token::Assign),
            ':' if self.rest.starts_with(":=") => {
                self.push(Token::Declare);
                self.skip(2);
            }
            '"' => return self.quoted('"'),
            '\'' => return self.quoted('\''),
            '`' => {
                let Some(end) = self.rest[1..].find('`') else {
                    return Err(self.error("unterminated raw quoted string"));
                };
                let raw = self.rest[1..=end].to_owned();
                self.push(Token::Str(raw));
                self.skip(end + 2);
            }
            '$' => {
                let end = word_end(&self.rest[1..]) + 1;
                let name = self.rest[..end].to_owned();
                self.push(Token::Variable(name));
                self.skip(end);
            }
            '.' if !self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                let end = word_end(&self.rest[1..]) + 1;
                let name = self.rest[1..end].to_owned();
                self.push(if name.is_empty() {
                    Token::Dot
                } else {
                    Token::Field { name, spaced }
                });
                self.skip(end);
            }
            c if c.is_ascii_digit() || matches!(c, '+' | '-' | '.') => return self.number(),
            c if c.is_alphabetic() || c == '_' => {
                let end = word_end(self.rest);
                let word = self.rest[..end].to_owned();
                self.push(Token::Word(word));
                self.skip(end);
            }
            c => {
                return Err(self.error(format!(
                    "unrecognized character in action: U+{:04X} '{c}'",
                    u32::from(c)
                )));
            }
        }
        Ok(())
    }

    fn single(&mut self, token: Token) {
        self.push(token);
        self.skip(1);
    }

    fn number(&mut self) -> Result<(), TemplateError> {
        let sign = usize::from(self.rest.starts_with(['+', '-']));
        let mut end = sign;
        let mut last = ' ';
        for c in self.rest[sign..].chars() {
            let exponent = matches!(last, 'e' | 'E') && matches!(c, '+' | '-');
            if !(c.is_ascii_alphanumeric() || c == '.' || c == '_' || exponent) {
                break;
            }
            end += c.len_utf8();
            last = c;
        }
        let text = self.rest[..end].to_owned();
        let token = crate::opts::int(&text.replace('_', ""))
            .ok()
            .map(Token::Int)
            .or_else(|| {
                text.parse::<f64>()
                    .ok()
                    .filter(|number| number.is_finite())
                    .map(Token::Float)
            });
        match token {
            Some(token) => {
                self.push(token);
                self.skip(end);
                Ok(())
            }
            None => Err(self.error(format!("bad number syntax: {text:?}"))),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<(), TemplateError> {
        let unterminated = if quote == '"' {
            "unterminated quoted string"
        } else {
            "unterminated character constant"
        };
        let mut value = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                c if c == quote => {
                    let mut all = value.chars();
                    let token = match (quote, all.next(), all.next()) {
                        ('"', ..) => Token::Str(value),
                        (_, Some(c), None) => Token::Int(i64::from(u32::from(c))),
                        _ => return Err(self.error("malformed character constant")),
                    };
                    self.push(token);
                    self.skip(at + 1);
                    return Ok(());
                }
                '\n' => return Err(self.error(unterminated)),
                '\\' => {
                    let Some((_, escape)) = chars.next() else {
                        return Err(self.error(unterminated));
                    };
                    let digits = match escape {
                        'n' => Err('\n'),
                        't' => Err('\t'),
                        'r' => Err('\r'),
                        '\\' | '"' | '\'' => Err(escape),
                        'x' => Ok(2),
                        'u' => Ok(4),
                        'U' => Ok(8),
                        _ => return Err(self.error("invalid syntax")),
                    };
                    match digits {
                        Err(c) => value.push(c),
                        Ok(count) => {
                            let hex: String = chars.by_ref().take(count).map(|(_, c)| c).collect();
                            let code = u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32);
                            let valid = hex.chars().all(|c| c.is_ascii_hexdigit());
                            match code.filter(|_| valid) {
                                Some(c) => value.push(c),
                                None => return Err(self.error("invalid syntax")),
                            }
                        }
                    }
                }
                c => value.push(c),
            }
        }
        Err(self.error(unterminated))
    }
}

fn word_end(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_')
        .unwrap_or(text.len())
}

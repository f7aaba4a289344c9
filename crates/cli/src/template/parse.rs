//! Tokens into a tree.

use super::{
    TemplateError, functions,
    lex::{Spanned, Token},
};

/// How deep parentheses and blocks may nest; the evaluator recurses as deep.
pub(super) const MAX_DEPTH: usize = 64;

#[derive(Debug, Clone)]
pub(super) enum Node {
    Text(String),
    Action(Pipeline),
    If(Branch),
    With(Branch),
    Range(Branch),
    Break,
    Continue,
}

#[derive(Debug, Clone)]
pub(super) struct Branch {
    pub(super) pipeline: Pipeline,
    pub(super) body: Vec<Node>,
    pub(super) otherwise: Vec<Node>,
}

#[derive(Debug, Clone)]
pub(super) struct Pipeline {
    /// Variables that take the result.
    pub(super) variables: Vec<String>,
    /// `=` rather than `:=`.
    pub(super) assigns: bool,
    /// Each gets the result of the one before as its last argument.
    pub(super) commands: Vec<Vec<Operand>>,
}

#[derive(Debug, Clone)]
pub(super) struct Operand {
    pub(super) base: Base,
    pub(super) fields: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) enum Base {
    Dot,
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Variable(String),
    Function(String),
    Group(Box<Pipeline>),
}

pub(super) fn parse(tokens: &[Spanned]) -> Result<Vec<Node>, TemplateError> {
    let mut parser = Parser {
        tokens,
        at: 0,
        depth: 0,
        loops: 0,
        variables: vec!["$".to_owned()],
    };
    let (nodes, end) = parser.nodes()?;
    match end {
        End::File => Ok(nodes),
        End::Block => Err(parser.error("unexpected {{end}}")),
        End::Else(_) => Err(parser.error("unexpected {{else}}")),
    }
}

/// What ended a list of nodes.
enum End {
    File,
    Block,
    /// `{{else}}`, or `{{else if …}}` whose keyword is named; the parser stands behind the keyword.
    Else(Option<String>),
}

struct Parser<'a> {
    tokens: &'a [Spanned],
    at: usize,
    depth: usize,
    loops: usize,
    variables: Vec<String>,
}

impl Parser<'_> {
    fn error(&self, message: impl Into<String>) -> TemplateError {
        let last = self
            .tokens
            .get(self.at.min(self.tokens.len().saturating_sub(1)));
        TemplateError::Parse {
            line: last.map_or(1, |token| token.line),
            message: message.into(),
        }
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at).map(|spanned| &spanned.token)
    }

    fn take(&mut self, token: &Token) -> bool {
        let taken = self.peek() == Some(token);
        self.at += usize::from(taken);
        taken
    }

    fn word(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }

    fn deeper(&mut self) -> Result<(), TemplateError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), TemplateError> {
        match self.peek() {
            Some(Token::Close) => {
                self.at += 1;
                Ok(())
            }
            Some(Token::Right) => Err(self.error("unexpected right paren")),
            Some(_) => Err(self.error("unexpected token in action")),
            None => Err(self.error("unclosed action")),
        }
    }

    fn nodes(&mut self) -> Result<(Vec<Node>, End), TemplateError> {
        let mut nodes = Vec::new();
        loop {
            match self.peek() {
                None => return Ok((nodes, End::File)),
                Some(Token::Text(text)) => {
                    nodes.push(Node::Text(text.clone()));
                    self.at += 1;
                    continue;
                }
                Some(_) => self.at += 1,
            }
            let keyword = self.word().unwrap_or("").to_owned();
            match keyword.as_str() {
                "if" | "with" | "range" => {
                    self.at += 1;
                    nodes.push(self.block(&keyword)?);
                }
                "end" => {
                    self.at += 1;
                    self.close()?;
                    return Ok((nodes, End::Block));
                }
                "else" => {
                    self.at += 1;
                    let chained = self.word().filter(|word| matches!(*word, "if" | "with"));
                    let chained = chained.map(str::to_owned);
                    if chained.is_some() {
                        self.at += 1;
                    } else {
                        self.close()?;
                    }
                    return Ok((nodes, End::Else(chained)));
                }
                "break" | "continue" => {
                    if self.loops == 0 {
                        return Err(self.error(format!("{{{{{keyword}}}}} outside {{{{range}}}}")));
                    }
                    self.at += 1;
                    self.close()?;
                    nodes.push(if keyword == "break" {
                        Node::Break
                    } else {
                        Node::Continue
                    });
                }
                "define" | "template" | "block" => {
                    return Err(self.error("named templates are not supported here"));
                }
                _ => {
                    let pipeline = self.pipeline()?;
                    self.close()?;
                    nodes.push(Node::Action(pipeline));
                }
            }
        }
    }

    /// The rest of a block whose keyword was read, up to and with its `{{end}}`.
    fn block(&mut self, keyword: &str) -> Result<Node, TemplateError> {
        self.deeper()?;
        let known = self.variables.len();
        let pipeline = self.pipeline()?;
        self.close()?;
        self.loops += usize::from(keyword == "range");
        let (body, end) = self.nodes()?;
        self.loops -= usize::from(keyword == "range");
        let otherwise = match end {
            End::Block => Vec::new(),
            End::Else(Some(_)) if keyword == "range" => {
                return Err(self.error("unexpected {{else if}} in range"));
            }
            // The chained block eats the one `{{end}}` of both.
            End::Else(Some(chained)) => vec![self.block(&chained)?],
            End::Else(None) => {
                let (nodes, end) = self.nodes()?;
                match end {
                    End::Block => nodes,
                    End::Else(_) => return Err(self.error("expected end; found {{else}}")),
                    End::File => return Err(self.error("unexpected EOF")),
                }
            }
            End::File => return Err(self.error("unexpected EOF")),
        };
        self.variables.truncate(known);
        self.depth -= 1;
        let branch = Branch {
            pipeline,
            body,
            otherwise,
        };
        Ok(match keyword {
            "if" => Node::If(branch),
            "with" => Node::With(branch),
            _ => Node::Range(branch),
        })
    }

    fn pipeline(&mut self) -> Result<Pipeline, TemplateError> {
        let (variables, assigns) = self.declaration()?;
        let mut commands = Vec::new();
        loop {
            let command = self.command()?;
            if command.is_empty() {
                return Err(self.error("missing value for command"));
            }
            if let [
                Operand {
                    base: Base::Nil, ..
                },
            ] = command.as_slice()
            {
                return Err(self.error("nil is not a command"));
            }
            let starts_with_value = !matches!(
                command[0].base,
                Base::Function(_) | Base::Dot | Base::Variable(_) | Base::Group(_)
            );
            if starts_with_value && (command.len() > 1 || !commands.is_empty()) {
                return Err(self.error("non executable command in pipeline"));
            }
            commands.push(command);
            if !self.take(&Token::Pipe) {
                break;
            }
        }
        if !assigns {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipeline {
            variables,
            assigns,
            commands,
        })
    }

    /// `$x :=`, `$x =` or `$i, $v :=`, if the pipeline begins with one.
    fn declaration(&mut self) -> Result<(Vec<String>, bool), TemplateError> {
        let start = self.at;
        let mut variables = Vec::new();
        while let Some(Token::Variable(name)) = self.peek() {
            variables.push(name.clone());
            self.at += 1;
            if !self.take(&Token::Comma) {
                break;
            }
        }
        if variables.is_empty() {
            return Ok((variables, false));
        }
        if variables.len() <= 2 && self.take(&Token::Declare) {
            return Ok((variables, false));
        }
        if variables.len() <= 2 && self.take(&Token::Assign) {
            for name in &variables {
                self.known(name)?;
            }
            return Ok((variables, true));
        }
        self.at = start;
        Ok((Vec::new(), false))
    }

    fn known(&self, name: &str) -> Result<(), TemplateError> {
        if self.variables.iter().any(|known| known == name) {
            Ok(())
        } else {
            Err(self.error(format!("undefined variable {name:?}")))
        }
    }

    fn command(&mut self) -> Result<Vec<Operand>, TemplateError> {
        let mut operands = Vec::new();
        loop {
            let base = match self.peek() {
                Some(Token::Word(word)) => match word.as_str() {
                    "true" => Base::Bool(true),
                    "false" => Base::Bool(false),
                    "nil" => Base::Nil,
                    name if functions::exists(name) => Base::Function(name.to_owned()),
                    name => {
                        return Err(self.error(format!("function {name:?} not defined")));
                    }
                },
                Some(Token::Int(value)) => Base::Int(*value),
                Some(Token::Float(value)) => Base::Float(*value),
                Some(Token::Str(value)) => Base::Str(value.clone()),
                Some(Token::Dot | Token::Field { .. }) => Base::Dot,
                Some(Token::Variable(name)) => {
                    self.known(name)?;
                    Base::Variable(name.clone())
                }
                Some(Token::Left) => {
                    self.at += 1;
                    self.deeper()?;
                    let pipeline = self.pipeline()?;
                    self.depth -= 1;
                    if self.peek() != Some(&Token::Right) {
                        return Err(self.error("unclosed left paren"));
                    }
                    Base::Group(Box::new(pipeline))
                }
                _ => return Ok(operands),
            };
            // A field is its own first link; anything else is a token that links may follow.
            let mut first = matches!(self.peek(), Some(Token::Field { .. }));
            if !first {
                self.at += 1;
            }
            let mut fields = Vec::new();
            while let Some(Token::Field { name, spaced }) = self.peek() {
                if *spaced && !first {
                    break;
                }
                first = false;
                fields.push(name.clone());
                self.at += 1;
            }
            operands.push(Operand { base, fields });
        }
    }
}

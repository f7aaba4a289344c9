//! Runs a tree over a value.

use serde_json::{Map, Value};

use super::{
    Scope, TemplateError, functions,
    parse::{Base, Branch, Node, Operand, Pipeline},
    print,
};

/// Most bytes that a template may print, and most rounds that its loops may take.
pub(super) const MAX_OUTPUT: usize = 64 << 20;
const MAX_ROUNDS: usize = 10_000_000;

pub(super) fn execute(
    nodes: &[Node],
    data: &Value,
    scope: Scope<'_>,
) -> Result<String, TemplateError> {
    let mut run = Run {
        scope,
        variables: vec![("$".to_owned(), data.clone())],
        output: String::new(),
        rounds: 0,
    };
    run.nodes(nodes, data, true)?;
    Ok(run.output)
}

#[derive(PartialEq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Run<'a> {
    scope: Scope<'a>,
    variables: Vec<(String, Value)>,
    output: String,
    rounds: usize,
}

impl Run<'_> {
    /// `root`: whether `dot` is still the value that the template was given.
    fn nodes(&mut self, nodes: &[Node], dot: &Value, root: bool) -> Result<Flow, TemplateError> {
        for node in nodes {
            let flow = match node {
                Node::Text(text) => {
                    self.write(text)?;
                    Flow::On
                }
                Node::Action(pipeline) => {
                    let value = self.pipeline(pipeline, dot, root)?;
                    if pipeline.variables.is_empty() {
                        self.write(&print::display(&value))?;
                    }
                    Flow::On
                }
                Node::If(branch) | Node::With(branch) => {
                    let known = self.variables.len();
                    let value = self.pipeline(&branch.pipeline, dot, root)?;
                    let flow = if !functions::truth(&value) {
                        self.nodes(&branch.otherwise, dot, root)?
                    } else if matches!(node, Node::With(_)) {
                        self.nodes(&branch.body, &value, false)?
                    } else {
                        self.nodes(&branch.body, dot, root)?
                    };
                    self.variables.truncate(known);
                    flow
                }
                Node::Range(branch) => self.range(branch, dot, root)?,
                Node::Break => Flow::Break,
                Node::Continue => Flow::Continue,
            };
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn write(&mut self, text: &str) -> Result<(), TemplateError> {
        if self.output.len() + text.len() > MAX_OUTPUT {
            return Err(fail("range", "the output is too long"));
        }
        self.output.push_str(text);
        Ok(())
    }

    fn range(&mut self, branch: &Branch, dot: &Value, root: bool) -> Result<Flow, TemplateError> {
        let known = self.variables.len();
        let mut over = branch.pipeline.clone();
        let variables = std::mem::take(&mut over.variables);
        let value = self.pipeline(&over, dot, root)?;
        let items: Box<dyn Iterator<Item = (Value, Value)>> = match value {
            Value::Array(items) => Box::new(
                items
                    .into_iter()
                    .enumerate()
                    .map(|(index, item)| (index.into(), item)),
            ),
            Value::Object(map) => Box::new(map.into_iter().map(|(key, item)| (key.into(), item))),
            Value::Null => Box::new(std::iter::empty()),
            Value::Number(number) if number.is_i64() => {
                let end = number.as_i64().unwrap_or(0);
                Box::new((0..end).map(|index| (index.into(), index.into())))
            }
            other => {
                let shown = print::display(&other);
                return Err(fail("range", format!("range can't iterate over {shown}")));
            }
        };
        let mut any = false;
        for (key, item) in items {
            any = true;
            self.rounds += 1;
            if self.rounds > MAX_ROUNDS {
                return Err(fail("range", "too many rounds"));
            }
            let outer = self.variables.len();
            match variables.as_slice() {
                [one] => self.bind(one, item.clone(), branch.pipeline.assigns),
                [first, second] => {
                    self.bind(first, key, branch.pipeline.assigns);
                    self.bind(second, item.clone(), branch.pipeline.assigns);
                }
                _ => {}
            }
            let flow = self.nodes(&branch.body, &item, false)?;
            self.variables.truncate(outer);
            if flow == Flow::Break {
                break;
            }
        }
        self.variables.truncate(known);
        if any {
            Ok(Flow::On)
        } else {
            self.nodes(&branch.otherwise, dot, root)
        }
    }

    fn bind(&mut self, name: &str, value: Value, assigns: bool) {
        if assigns
            && let Some((_, slot)) = self
                .variables
                .iter_mut()
                .rev()
                .find(|(known, _)| known == name)
        {
            *slot = value;
            return;
        }
        self.variables.push((name.to_owned(), value));
    }

    fn pipeline(
        &mut self,
        pipeline: &Pipeline,
        dot: &Value,
        root: bool,
    ) -> Result<Value, TemplateError> {
        let mut value = None;
        for command in &pipeline.commands {
            value = Some(self.command(command, value, dot, root)?);
        }
        let value = value.unwrap_or(Value::Null);
        for name in &pipeline.variables {
            self.bind(name, value.clone(), pipeline.assigns);
        }
        Ok(value)
    }

    fn command(
        &mut self,
        command: &[Operand],
        piped: Option<Value>,
        dot: &Value,
        root: bool,
    ) -> Result<Value, TemplateError> {
        let Some((first, rest)) = command.split_first() else {
            return Ok(Value::Null);
        };
        if let Base::Function(name) = &first.base {
            return self.call(name, &first.fields, rest, piped, dot, root);
        }
        let mut arguments = Vec::with_capacity(rest.len() + 1);
        for operand in rest {
            arguments.push(self.operand(operand, dot, root)?);
        }
        arguments.extend(piped);
        if arguments.is_empty() {
            return self.operand(first, dot, root);
        }
        self.method(first, &arguments)
    }

    fn call(
        &mut self,
        name: &str,
        fields: &[String],
        operands: &[Operand],
        piped: Option<Value>,
        dot: &Value,
        root: bool,
    ) -> Result<Value, TemplateError> {
        let mut arguments = Vec::with_capacity(operands.len() + 1);
        for operand in operands {
            let value = self.operand(operand, dot, root)?;
            // `and` and `or` stop at the first argument that decides.
            let decides = match name {
                "and" => !functions::truth(&value),
                "or" => functions::truth(&value),
                _ => false,
            };
            if decides {
                return Ok(value);
            }
            arguments.push(value);
        }
        arguments.extend(piped);
        let result = functions::call(name, arguments, self.scope.header)
            .map_err(|message| fail(name, format!("error calling {name}: {message}")))?;
        self.fields(result, fields, false, name)
    }

    /// The one method there is: `.Label "name"`.
    fn method(&self, operand: &Operand, arguments: &[Value]) -> Result<Value, TemplateError> {
        let shown = shown(operand);
        let named = operand.fields.last().is_some_and(|name| name == "Label");
        match arguments {
            [Value::String(label)] if named && self.scope.header => {
                let last = label.rsplit('.').next().unwrap_or(label);
                Ok(last.replace(['-', '_'], " ").into())
            }
            [Value::String(label)] if named && self.scope.labels.is_some() => Ok(self
                .scope
                .labels
                .and_then(|labels| labels.get(label))
                .cloned()
                .unwrap_or_else(|| "".into())),
            _ => Err(fail(
                &shown,
                format!("{shown} has arguments but cannot be invoked as function"),
            )),
        }
    }

    fn operand(
        &mut self,
        operand: &Operand,
        dot: &Value,
        root: bool,
    ) -> Result<Value, TemplateError> {
        let shown = shown(operand);
        // Paths are followed by reference, so that one field of a large value costs one copy.
        let (value, root) = match &operand.base {
            Base::Dot => return self.path(dot, &operand.fields, root, &shown),
            Base::Variable(name) => {
                let Some((_, value)) = self.variables.iter().rev().find(|(known, _)| known == name)
                else {
                    return Err(fail(name, "undefined variable"));
                };
                return self.path(value, &operand.fields, name == "$", &shown);
            }
            Base::Nil => (Value::Null, false),
            Base::Bool(value) => ((*value).into(), false),
            Base::Int(value) => ((*value).into(), false),
            Base::Float(value) => ((*value).into(), false),
            Base::Str(value) => (value.clone().into(), false),
            Base::Function(name) => {
                return self.call(name, &operand.fields, &[], None, dot, root);
            }
            Base::Group(pipeline) => (self.pipeline(pipeline, dot, root)?, false),
        };
        self.fields(value, &operand.fields, root, &shown)
    }

    fn fields(
        &self,
        value: Value,
        fields: &[String],
        root: bool,
        shown: &str,
    ) -> Result<Value, TemplateError> {
        if fields.is_empty() {
            return Ok(value);
        }
        self.path(&value, fields, root, shown)
    }

    fn path(
        &self,
        value: &Value,
        fields: &[String],
        root: bool,
        shown: &str,
    ) -> Result<Value, TemplateError> {
        let mut current = value;
        for (depth, name) in fields.iter().enumerate() {
            current = match current {
                Value::Object(map) => match find(map, name) {
                    Some(value) => value,
                    None => match self.scope.strict {
                        Some(kind) if root && depth == 0 && !self.scope.header => {
                            return Err(cannot(shown, name, kind));
                        }
                        _ => &Value::Null,
                    },
                },
                Value::Null => &Value::Null,
                other => return Err(cannot(shown, name, print::kind(other))),
            };
        }
        Ok(current.clone())
    }
}

fn find<'a>(map: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    map.get(name)
}

fn cannot(shown: &str, name: &str, kind: &str) -> TemplateError {
    fail(shown, format!("can't evaluate field {name} in type {kind}"))
}

fn fail(at: &str, message: impl Into<String>) -> TemplateError {
    TemplateError::Execute {
        at: at.to_owned(),
        message: message.into(),
    }
}

fn shown(operand: &Operand) -> String {
    let mut text = match &operand.base {
        Base::Variable(name) | Base::Function(name) => name.clone(),
        Base::Group(_) => "(…)".to_owned(),
        _ => String::new(),
    };
    for field in &operand.fields {
        text.push('.');
        text.push_str(field);
    }
    if text.is_empty() {
        text.push('.');
    }
    text
}

//! `${VARIABLE}` in the texts of a file.

use super::node::{Data, Entry, Fault, Node};

/// Where variables come from.
pub(super) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Replaces variables in every text of `node`; keys stay as they are.
pub(super) fn interpolate(node: &mut Node, lookup: Lookup<'_>) -> Result<(), Fault> {
    let replaced = match &mut node.data {
        Data::Text(text) => substitute(text, lookup).map_err(|template| {
            format!(
                "has an invalid interpolation format: {template:?}; you may need to escape any $ with another $"
            )
        }),
        Data::List(items) => {
            for (index, item) in items.iter_mut().enumerate() {
                interpolate(item, lookup).map_err(|fault| fault.under(index))?;
            }
            return Ok(());
        }
        Data::Map(entries) => {
            for Entry { key, value, .. } in entries {
                interpolate(value, lookup).map_err(|fault| fault.under(&*key))?;
            }
            return Ok(());
        }
        _ => return Ok(()),
    };
    let replaced = replaced.map_err(|message| node.fault(message))?;
    if node.as_text() != Some(&replaced) {
        node.data = Data::Substituted(replaced);
    }
    Ok(())
}

/// The text with its variables replaced; else the part that cannot be.
///
/// `$$` is a dollar; after a name in braces, `:-` and `-` give a default, `:?` and `?` what to say when
/// there is no value; the colon takes an empty value for none.
fn substitute(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let (braced, inner) = match after.strip_prefix('{') {
            Some(inner) => (true, inner),
            None => (false, after),
        };
        let end = inner
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(inner.len());
        let (name, tail) = inner.split_at(end);
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(text.to_owned());
        }
        let (operation, tail) = if braced {
            tail.split_once('}').ok_or_else(|| text.to_owned())?
        } else {
            ("", tail)
        };
        let value = value(name, operation, lookup);
        out.push_str(&value.map_err(|own| own.unwrap_or_else(|| text.into()))?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// The value of a variable; the error is what the file wants said, or nothing when `operation` is none.
fn value(name: &str, operation: &str, lookup: Lookup<'_>) -> Result<String, Option<String>> {
    let value = lookup(name);
    let (strict, operation) = match operation.strip_prefix(':') {
        Some(operation) => (true, operation),
        None => (false, operation),
    };
    let given = value.filter(|value| !(strict && value.is_empty()));
    if let Some(default) = operation.strip_prefix('-') {
        return Ok(given.unwrap_or_else(|| default.to_owned()));
    }
    if let Some(message) = operation.strip_prefix('?') {
        return given.ok_or_else(|| {
            Some(format!(
                "required variable {name} is missing a value: {message}"
            ))
        });
    }
    if strict || !operation.is_empty() {
        return Err(None);
    }
    Ok(given.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "A" => Some("a".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    #[test]
    fn variables_are_replaced_as_in_compose() {
        for (text, replaced) in [
            ("plain", "plain"),
            ("$A-${A}x", "a-ax"),
            ("$$A $${A}", "$A ${A}"),
            ("${NO}|$NO|", "||"),
            ("${NO-d}${EMPTY-d}", "d"),
            ("${NO:-d}${EMPTY:-e}${A:-f}", "dea"),
            ("${A?no}${EMPTY?no}", "a"),
            ("${NO:-a:-b}", "a:-b"),
            ("${NO:-}", ""),
        ] {
            assert_eq!(substitute(text, &env).as_deref(), Ok(replaced), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_named() {
        for (text, template) in [
            ("a$", "a$"),
            ("${", "${"),
            ("${A", "${A"),
            ("$1", "$1"),
            ("${A!x}", "${A!x}"),
            ("${A:}", "${A:}"),
            ("${NO?why}", "required variable NO is missing a value: why"),
            ("${EMPTY:?}", "required variable EMPTY is missing a value: "),
        ] {
            assert_eq!(substitute(text, &env), Err(template.to_owned()), "{text}");
        }
    }

    #[test]
    fn faults_have_a_path_and_a_line() {
        let mut node = Node::parse("a:\n  - x\n  - b: ${\n").unwrap();
        let fault = interpolate(&mut node, &env).unwrap_err();
        assert_eq!(fault.line, 3);
        assert!(
            fault.to_string().starts_with("a.1.b has an invalid"),
            "{fault}"
        );
    }
}

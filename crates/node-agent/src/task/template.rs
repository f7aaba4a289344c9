//! Placeholders in a task's environment, hostname and mounts (SwarmKit `template/`).
//!
//! SwarmKit runs Go templates over `.Service`, `.Node` and `.Task`. Specs in the field use plain
//! references to these, and `index` for labels; that is what is understood here, and anything else is
//! an error that names the expression.

use shoal_types::object::{NodeDescription, Task, TaskPlace};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error(
        "template {text:?}: {{{{{expression}}}}} is not one of .Service.ID, .Service.Name, \
         .Service.Labels.KEY, .Node.ID, .Node.Hostname, .Node.Platform.Architecture, \
         .Node.Platform.OS, .Task.ID, .Task.Name, .Task.Slot"
    )]
    Unknown { text: String, expression: String },
    #[error("template {text:?}: a {{{{ has no }}}}")]
    Unclosed { text: String },
}

/// `text` as the container of `task` sees it, for people to read: as it is when it cannot be filled in, since
/// then there is no container.
pub fn expanded(text: &str, task: &Task, node: &NodeDescription) -> String {
    expand(text, task, node).unwrap_or_else(|_| text.to_owned())
}

/// `text` with every `{{…}}` replaced by what it names.
pub(crate) fn expand(
    text: &str,
    task: &Task,
    node: &NodeDescription,
) -> Result<String, TemplateError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("{{") {
        out.push_str(&rest[..start]);
        let inside = &rest[start + 2..];
        let Some(end) = inside.find("}}") else {
            return Err(TemplateError::Unclosed {
                text: text.to_owned(),
            });
        };
        let expression = inside[..end].trim();
        let value = value(expression, task, node).ok_or_else(|| TemplateError::Unknown {
            text: text.to_owned(),
            expression: expression.to_owned(),
        })?;
        out.push_str(&value);
        rest = &inside[end + 2..];
    }
    out.push_str(rest);
    Ok(out)
}

fn value(expression: &str, task: &Task, node: &NodeDescription) -> Option<String> {
    let label = |key: &str| task.service_labels.get(key).cloned().unwrap_or_default();
    if let Some(key) = expression.strip_prefix(".Service.Labels.") {
        return Some(label(key));
    }
    if let Some(key) = expression.strip_prefix("index .Service.Labels ") {
        return Some(label(key.trim().strip_prefix('"')?.strip_suffix('"')?));
    }
    Some(match expression {
        ".Service.ID" => task.service.to_string(),
        ".Service.Name" => task.service_name.clone(),
        ".Node.ID" => task.node?.to_string(),
        ".Node.Hostname" => node.hostname.clone(),
        ".Node.Platform.Architecture" => node.platform.architecture.clone(),
        ".Node.Platform.OS" => node.platform.os.clone(),
        ".Task.ID" => task.id.to_string(),
        ".Task.Name" => task.name(),
        ".Task.Slot" => match task.place {
            TaskPlace::Slot(slot) => slot.to_string(),
            TaskPlace::Node(node) => node.to_string(),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::tests::{node, task};

    #[test]
    fn names_of_service_node_and_task_are_filled_in() {
        let (task, node) = (task(), node());
        let expanded = expand(
            "{{.Service.Name}}-{{ .Task.Slot }}@{{.Node.Hostname}}",
            &task,
            &node,
        );
        assert_eq!(expanded.as_deref(), Ok("web-3@host-a"));
        assert_eq!(expand("plain", &task, &node).as_deref(), Ok("plain"));
        assert_eq!(
            expand(
                "{{index .Service.Labels \"tier\"}}/{{.Service.Labels.none}}",
                &task,
                &node
            )
            .as_deref(),
            Ok("front/")
        );
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let (task, node) = (task(), node());
        let error = expand("x{{ .Foo }}", &task, &node).expect_err("unknown");
        assert!(
            error.to_string().contains("{{.Foo}} is not one of"),
            "{error}"
        );
        assert!(matches!(
            expand("{{.Task.ID", &task, &node),
            Err(TemplateError::Unclosed { .. })
        ));
    }
}

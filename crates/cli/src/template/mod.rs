//! Go's text templates over JSON values: what people write after `--format`.
//!
//! Everything that a format string can say is here but named templates (`define`, `template`, `block`). No input
//! makes it panic or run away: nesting is bounded by [`parse::MAX_DEPTH`], widths and output by [`eval::MAX_OUTPUT`].

mod eval;
mod functions;
mod lex;
mod parse;
mod print;

use serde_json::{Map, Value};

/// A template that was parsed.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    nodes: Vec<parse::Node>,
}

/// What a template meets while it runs, beside its data.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scope<'a> {
    /// The type's name in an error about an unknown field; `None`: a missing field prints `<no value>`.
    pub(crate) strict: Option<&'a str>,
    /// What `.Label "name"` looks into.
    pub(crate) labels: Option<&'a Map<String, Value>>,
    /// Runs over column titles: functions leave their input as it is, `.Label` names the label.
    pub(crate) header: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("template: :{line}: {message}")]
    Parse { line: usize, message: String },
    #[error("template: :1: executing \"\" at <{at}>: {message}")]
    Execute { at: String, message: String },
}

impl Template {
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let tokens = lex::lex(text)?;
        let nodes = parse::parse(&tokens)?;
        Ok(Self { nodes })
    }

    pub(crate) fn execute(&self, data: &Value, scope: Scope<'_>) -> Result<String, TemplateError> {
        eval::execute(&self.nodes, data, scope)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn run(text: &str, data: &Value) -> Result<String, TemplateError> {
        Template::parse(text)?.execute(data, Scope::default())
    }

    fn data() -> Value {
        json!({
            "ID": "abc", "Name": "web", "Count": 3, "Ratio": 0.5, "On": true, "Off": false,
            "Spec": {"Name": "inner", "Labels": {"b": "2", "a": "1"}},
            "List": ["x", "y", "z"], "Empty": [], "Nothing": null,
            "Ports": [{"Port": 80}, {"Port": 81}], "Quote": "<a & \"b\">",
        })
    }

    #[test]
    fn templates_read_as_in_go() {
        let cases = [
            ("{{.ID}}", "abc"),
            ("a {{ .Spec.Name }} b", "a inner b"),
            ("{{json .List}}", r#"["x","y","z"]"#),
            ("{{json .Quote}}", r#""<a & \"b\">""#),
            ("{{range .List}}{{.}},{{end}}", "x,y,z,"),
            (
                "{{range $i, $v := .List}}{{$i}}={{$v}} {{end}}",
                "0=x 1=y 2=z ",
            ),
            (
                "{{range $k, $v := .Spec.Labels}}{{$k}}={{$v}};{{end}}",
                "a=1;b=2;",
            ),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{range .Ports}}{{.Port}}{{println}}{{end}}", "80\n81\n"),
            ("{{if .On}}yes{{else}}no{{end}}", "yes"),
            (
                "{{if .Off}}a{{else if eq .Name \"web\"}}b{{else}}c{{end}}",
                "b",
            ),
            ("{{if and .On (not .Off)}}x{{end}}", "x"),
            ("{{with .Spec}}{{.Name}}{{$.ID}}{{end}}", "innerabc"),
            ("{{with .Nothing}}x{{else}}y{{end}}", "y"),
            ("{{len .List}} {{len .Name}} {{len .Spec.Labels}}", "3 3 2"),
            ("{{index .List 1}}{{index .Spec.Labels \"a\"}}", "y1"),
            ("{{(index .Ports 0).Port}}", "80"),
            ("{{join .List \"-\"}}", "x-y-z"),
            (
                "{{upper .Name}}{{lower \"ABC\"}}{{title \"a bc\"}}",
                "WEBabcA Bc",
            ),
            ("{{.Name | upper | printf \"%s!\"}}", "WEB!"),
            (
                "{{printf \"%5d|%-4s|%q|%v|%05.2f|%x\" .Count .ID .Name .List .Ratio 255}}",
                "    3|abc |\"web\"|[x y z]|00.50|ff",
            ),
            ("{{$x := .Name}}{{$x}}{{$x = \"b\"}}{{$x}}", "webb"),
            ("a  {{- .ID -}}  b", "aabcb"),
            ("{{/* note */}}x", "x"),
            ("{{split \"a:b\" \":\"}}", "[a b]"),
            ("{{join (split \"a:b\" \":\") \"/\"}}", "a/b"),
            ("{{pad .ID 1 2}}|{{truncate .ID 2}}", " abc  |ab"),
            (
                "{{.Spec.Labels}} {{.Nothing}} {{.Count}} {{.Ratio}} {{.On}}",
                "map[a:1 b:2] <no value> 3 0.5 true",
            ),
            ("{{.Missing}}{{.Missing.Deep}}", "<no value><no value>"),
            (
                "{{eq .Count 3}}{{ne .Name \"x\"}}{{lt .Count 4}}{{ge .Count 4}}",
                "truetruetruefalse",
            ),
            ("{{eq .Name \"a\" \"web\"}}", "true"),
            ("{{or .Nothing \"d\"}}{{and .On .Name}}", "dweb"),
            ("{{slice .Name 1 2}}{{slice .List 1}}", "e[y z]"),
            (
                "{{range .List}}{{if eq . \"y\"}}{{continue}}{{end}}{{if eq . \"z\"}}{{break}}{{end}}{{.}}{{end}}",
                "x",
            ),
            ("{{`raw {{`}}{{'a'}}{{\"\\t\\u0041\"}}", "raw {{97\tA"),
            ("{{html \"<a>\"}}{{urlquery \"a b\"}}", "&lt;a&gt;a+b"),
            ("{{print 1 2 \"a\" \"b\" 3}}", "1 2ab3"),
            ("{{range 3}}{{.}}{{end}}", "012"),
            (
                "{{not true}}{{true}}{{-5}}{{1.5}}{{0x10}}",
                "falsetrue-51.516",
            ),
            (
                "{{.}}",
                "map[Count:3 Empty:[] ID:abc List:[x y z] Name:web Nothing:<nil> Off:false On:true Ports:[map[Port:80] map[Port:81]] Quote:<a & \"b\"> Ratio:0.5 Spec:map[Labels:map[a:1 b:2] Name:inner]]",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(run(text, &data()).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn bad_templates_say_where() {
        let cases = [
            ("{{", "template: :1: unclosed action"),
            ("{{.ID", "template: :1: unclosed action"),
            ("a\n{{foo}}", "template: :2: function \"foo\" not defined"),
            ("{{if .On}}", "template: :1: unexpected EOF"),
            ("{{end}}", "template: :1: unexpected {{end}}"),
            ("{{else}}", "template: :1: unexpected {{else}}"),
            ("{{}}", "template: :1: missing value for command"),
            ("{{$x}}", "template: :1: undefined variable \"$x\""),
            ("{{(.ID}}", "template: :1: unclosed left paren"),
            ("{{.ID)}}", "template: :1: unexpected right paren"),
            ("{{\"a}}", "template: :1: unterminated quoted string"),
            (
                "{{define \"x\"}}",
                "template: :1: named templates are not supported here",
            ),
            ("{{break}}", "template: :1: {{break}} outside {{range}}"),
            ("{{/* a}}", "template: :1: unclosed comment"),
            ("{{nil}}", "template: :1: nil is not a command"),
        ];
        for (text, message) in cases {
            let error = Template::parse(text).expect_err(text).to_string();
            assert_eq!(error, message, "{text}");
        }
        let at = |text: &str| run(text, &data()).expect_err(text).to_string();
        assert_eq!(
            at("{{index .List 9}}"),
            "template: :1: executing \"\" at <index>: error calling index: index out of range: 9"
        );
        assert_eq!(
            at("{{.Name.Foo}}"),
            "template: :1: executing \"\" at <.Name.Foo>: can't evaluate field Foo in type string"
        );
        assert_eq!(
            at("{{range .Name}}{{end}}"),
            "template: :1: executing \"\" at <range>: range can't iterate over web"
        );
    }

    #[test]
    fn unknown_columns_are_errors_in_strict_scope() {
        let scope = Scope {
            strict: Some("*service.serviceContext"),
            ..Scope::default()
        };
        let template = Template::parse("{{.Foo}}").unwrap();
        assert_eq!(
            template.execute(&data(), scope).unwrap_err().to_string(),
            "template: :1: executing \"\" at <.Foo>: can't evaluate field Foo in type *service.serviceContext"
        );
    }

    #[test]
    fn labels_are_asked_for_by_name() {
        let labels = json!({"com.docker.tier": "web"});
        let mut scope = Scope {
            labels: labels.as_object(),
            ..Scope::default()
        };
        let template = Template::parse("{{.Label \"com.docker.tier\"}}").unwrap();
        assert_eq!(template.execute(&data(), scope).unwrap(), "web");
        scope.header = true;
        assert_eq!(template.execute(&json!({}), scope).unwrap(), "tier");
    }

    #[test]
    fn deep_nesting_and_wide_padding_are_refused() {
        let deep = format!("{{{{{}.ID{}}}}}", "(".repeat(5000), ")".repeat(5000));
        assert!(Template::parse(&deep).is_err());
        let nested = format!("{}{}", "{{if .On}}".repeat(5000), "{{end}}".repeat(5000));
        assert!(Template::parse(&nested).is_err());
        assert!(run("{{printf \"%999999999d\" 1}}", &data()).is_err());
        assert!(run("{{pad .ID 999999999 9}}", &data()).is_err());
        assert!(
            run(
                "{{range 99999}}{{range 99999}}aaaaaaaaaa{{end}}{{end}}",
                &data()
            )
            .is_err()
        );
        assert!(
            run(
                "{{range 999999999}}{{range 999999999}}{{end}}{{end}}",
                &data()
            )
            .is_err()
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,60}") {
            if let Ok(template) = Template::parse(&text) {
                let _ = template.execute(&data(), Scope::default());
            }
        }

        #[test]
        fn no_sequence_of_words_panics(words in proptest::collection::vec(prop::sample::select(vec![
            "{{", "}}", "{{-", "-}}", ".", ".ID", ".List", ".Spec.Labels", "$", "$x", ":=", "=", ",",
            "range", "if", "else", "end", "with", "break", "continue", "index", "slice", "len",
            "printf", "print", "\"%d %s %v %q %x %5.2f %*d %[2]d\"", "json", "join", "split", "pad",
            "truncate", "eq", "lt", "and", "or", "not", "(", ")", "|", "1", "-1", "0.5", "\"a\"",
            "'é'", "`x`", "true", "nil", " ", "é", "title", "urlquery", "99999999999999999999", ".Label",
        ]), 0..24)) {
            let text = words.join(" ");
            if let Ok(template) = Template::parse(&text) {
                let _ = template.execute(&data(), Scope::default());
                let _ = template.execute(&data(), Scope { header: true, ..Scope::default() });
            }
        }
    }
}

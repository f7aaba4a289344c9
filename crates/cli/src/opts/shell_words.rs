//! `--entrypoint` and `--args`: one text split into words as a shell does (google/shlex): quotes, escapes, comments.

use std::str::FromStr;

use super::BadValue;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShellWords(pub(crate) Vec<String>);

impl FromStr for ShellWords {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let mut words = Vec::new();
        let mut word: Option<String> = None;
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                ' ' | '\t' | '\r' | '\n' => words.extend(word.take()),
                '#' if word.is_none() => {
                    for c in chars.by_ref() {
                        if c == '\n' {
                            break;
                        }
                    }
                }
                '\\' => match chars.next() {
                    Some(c) => word.get_or_insert_default().push(c),
                    None => {
                        return Err(BadValue::new("EOF found after escape character"));
                    }
                },
                '\'' => {
                    let word = word.get_or_insert_default();
                    loop {
                        match chars.next() {
                            Some('\'') => break,
                            Some(c) => word.push(c),
                            None => {
                                return Err(BadValue::new(
                                    "EOF found when expecting closing quote",
                                ));
                            }
                        }
                    }
                }
                '"' => {
                    let word = word.get_or_insert_default();
                    loop {
                        match chars.next() {
                            Some('"') => break,
                            Some('\\') => match chars.next() {
                                Some(c) => word.push(c),
                                None => {
                                    return Err(BadValue::new("EOF found after escape character"));
                                }
                            },
                            Some(c) => word.push(c),
                            None => {
                                return Err(BadValue::new(
                                    "EOF found when expecting closing quote",
                                ));
                            }
                        }
                    }
                }
                c => word.get_or_insert_default().push(c),
            }
        }
        words.extend(word);
        Ok(Self(words))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_split_as_in_a_shell() {
        let cases: [(&str, &[&str]); 6] = [
            ("a b  c", &["a", "b", "c"]),
            ("sh -c 'echo \"x y\"'", &["sh", "-c", "echo \"x y\""]),
            (r#"a "b \" c" d\ e"#, &["a", "b \" c", "d e"]),
            ("a '' b", &["a", "", "b"]),
            ("a # rest\nb", &["a", "b"]),
            ("", &[]),
        ];
        for (text, words) in cases {
            let ShellWords(split) = text.parse().unwrap();
            assert_eq!(split, words, "{text}");
        }
        assert_eq!(
            "'a".parse::<ShellWords>().unwrap_err().to_string(),
            "EOF found when expecting closing quote"
        );
        assert_eq!(
            "a\\".parse::<ShellWords>().unwrap_err().to_string(),
            "EOF found after escape character"
        );
    }
}

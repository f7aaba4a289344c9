//! Docker's `user` words, resolved in the container's own `/etc/passwd` and `/etc/group`.

use std::fs;

use super::ChildFailure;
use crate::plan::ProcessPlan;

/// Who the program runs as.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups; the primary one is among them (CVE-2022-36109).
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

pub(super) fn resolve(process: &ProcessPlan) -> Result<User, ChildFailure> {
    // An image without these files knows numbers only.
    let read = |path| {
        fs::read(path)
            .map(|b| String::from_utf8_lossy(&b).into_owned())
            .unwrap_or_default()
    };
    resolve_in(process, &read("/etc/passwd"), &read("/etc/group"))
}

/// The rules of runc's `libcontainer/user`: a word is looked up as a name and as a number, and taken as a number only when
/// there is no such name. Groups of a user count only when no group is asked for.
fn resolve_in(process: &ProcessPlan, passwd: &str, group: &str) -> Result<User, ChildFailure> {
    let by_number = process.user.is_empty() && (process.uid, process.gid) != (0, 0);
    let words = if by_number {
        format!("{}:{}", process.uid, process.gid)
    } else {
        process.user.clone()
    };
    let (user_word, group_word) = words.split_once(':').unwrap_or((&words, ""));
    let user_word = if user_word.is_empty() { "0" } else { user_word };

    let entry = passwd.lines().map(fields).find(|entry| {
        entry.len() >= 4 && !entry[0].is_empty() && (entry[0] == user_word || entry[2] == user_word)
    });
    let mut user = match &entry {
        Some(entry) => User {
            uid: number(entry[2], "user")?,
            gid: number(entry[3], "group")?,
            groups: Vec::new(),
            home: entry.get(5).copied().unwrap_or("/").to_owned(),
        },
        None if is_number(user_word) => User {
            uid: number(user_word, "user")?,
            gid: 0,
            groups: Vec::new(),
            home: "/".to_owned(),
        },
        None => {
            return Err(ChildFailure::new(format!(
                "unable to find user {user_word}: no matching entries in passwd file"
            )));
        }
    };
    let find_group = |word: &str| -> Result<u32, ChildFailure> {
        let entry = group.lines().map(fields).find(|entry| {
            entry.len() >= 3 && !entry[0].is_empty() && (entry[0] == word || entry[2] == word)
        });
        match entry {
            Some(entry) => number(entry[2], "group"),
            None if is_number(word) => number(word, "group"),
            None => Err(ChildFailure::new(format!(
                "unable to find group {word}: no matching entries in group file"
            ))),
        }
    };
    let mut supplementary = Vec::new();
    if group_word.is_empty() {
        if let Some(entry) = &entry {
            let member = |list: &str| list.split(',').any(|name| name == entry[0]);
            for row in group
                .lines()
                .map(fields)
                .filter(|row| row.len() >= 4 && member(row[3]))
            {
                supplementary.push(number(row[2], "group")?);
            }
        }
    } else {
        user.gid = find_group(group_word)?;
    }
    for word in &process.groups {
        supplementary.push(find_group(word)?);
    }
    user.groups.push(user.gid);
    for gid in supplementary {
        if !user.groups.contains(&gid) {
            user.groups.push(gid);
        }
    }
    if user.home.is_empty() {
        "/".clone_into(&mut user.home);
    }
    Ok(user)
}

fn fields(line: &str) -> Vec<&str> {
    line.trim().split(':').map(str::trim).collect()
}

fn is_number(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_digit())
}

/// Ids are 0 to 2^31-1, as in Docker.
fn number(word: &str, what: &str) -> Result<u32, ChildFailure> {
    word.parse::<u32>()
        .ok()
        .filter(|id| i32::try_from(*id).is_ok())
        .ok_or_else(|| {
            ChildFailure::new(format!(
                "{what} id {word}: uids and gids must be in range 0-2147483647"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::CapabilitySets;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33::/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:root\nwww:x:33:\nextra:x:100:www,other\nwheel:x:10:root\n";

    fn process(user: &str, groups: &[&str]) -> ProcessPlan {
        ProcessPlan {
            args: Vec::new(),
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: user.to_owned(),
            uid: 0,
            gid: 0,
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            umask: 0o022,
            capabilities: CapabilitySets::default(),
            rlimits: Vec::new(),
            no_new_privileges: false,
            oom_score_adj: None,
            init: false,
        }
    }

    fn ids(user: &str, groups: &[&str]) -> (u32, u32, Vec<u32>) {
        let user = resolve_in(&process(user, groups), PASSWD, GROUP).expect("resolves");
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn names_and_numbers_resolve_as_in_docker() {
        assert_eq!(ids("", &[]), (0, 0, vec![0, 10]));
        assert_eq!(ids("www", &[]), (33, 33, vec![33, 100]));
        assert_eq!(ids("33", &[]), (33, 33, vec![33, 100]));
        assert_eq!(ids("www:extra", &[]), (33, 100, vec![100]));
        assert_eq!(ids("1234", &[]), (1234, 0, vec![0]));
        assert_eq!(
            ids("1234:55", &["wheel", "77"]),
            (1234, 55, vec![55, 10, 77])
        );
        let home = resolve_in(&process("www", &[]), PASSWD, GROUP)
            .expect("resolves")
            .home;
        assert_eq!(home, "/var/www");
    }

    #[test]
    fn unknown_names_are_refused_in_dockers_words() {
        let text = |user, groups: &[&str]| {
            resolve_in(&process(user, groups), PASSWD, GROUP)
                .expect_err("unknown")
                .message
        };
        assert_eq!(
            text("nobody", &[]),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            text("www:x", &[]),
            "unable to find group x: no matching entries in group file"
        );
        assert!(text("4294967295", &[]).contains("range 0-2147483647"));
    }
}

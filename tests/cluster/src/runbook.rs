//! Commands of a page of documentation, run on hosts as an operator would.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{DEADLINE, Host, Output, command::ok};

/// The fenced `sh` blocks of a page, by the second-level heading above them.
#[derive(Debug)]
pub struct Runbook {
    blocks: Vec<Block>,
}

#[derive(Debug, Clone)]
struct Block {
    heading: String,
    script: String,
}

impl Runbook {
    /// Reads a page below the root of the repository.
    pub fn read(page: &str) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .join(page);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut blocks = Vec::new();
        let (mut heading, mut open) = (String::new(), None::<String>);
        for line in text.lines() {
            match &mut open {
                Some(script) if line == "```" => {
                    let (heading, script) = (heading.clone(), std::mem::take(script));
                    blocks.push(Block { heading, script });
                    open = None;
                }
                Some(script) => {
                    script.push_str(line);
                    script.push('\n');
                }
                None if line == "```sh" => open = Some(String::new()),
                None => {
                    if let Some(title) = line.strip_prefix("## ") {
                        title.clone_into(&mut heading);
                    }
                }
            }
        }
        Ok(Self { blocks })
    }

    /// How many blocks the page has.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The block below this heading whose first line is the comment `# PLACE`, or begins with it.
    ///
    /// # Panics
    ///
    /// Unless there is exactly one.
    #[track_caller]
    pub fn block(&self, heading: &str, place: &str) -> &str {
        let wanted: Vec<&Block> = self
            .blocks
            .iter()
            .filter(|block| {
                let first = block.script.lines().next().unwrap_or_default();
                let comment = first.strip_prefix("# ").unwrap_or_default();
                let rest = comment.strip_prefix(place);
                block.heading == heading
                    && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([':', ',']))
            })
            .collect();
        let [block] = wanted[..] else {
            panic!("not one block of {heading:?} for {place:?}: {wanted:#?}");
        };
        &block.script
    }
}

/// A host as its operator sees it: `shoal` and `systemctl` on the path, the daemon's directories where
/// the package puts them. All of it is in a mount namespace of the command alone.
impl Host {
    /// Runs a script on this host, with these variables; `systemctl start|stop|restart shoal` is done by
    /// the test. Its working directory is [`Host::desk`].
    #[track_caller]
    pub fn operate(&mut self, script: &str, variables: &[(&str, &str)]) -> String {
        let output = self.try_operate(script, variables).expect("run a script");
        output.success(script)
    }

    /// Where the operator of this host keeps files.
    pub fn desk(&self) -> PathBuf {
        self.dir().join("desk")
    }

    fn try_operate(&mut self, script: &str, variables: &[(&str, &str)]) -> Result<Output> {
        let bin = self.installed()?;
        let asked = self.desk().join("systemctl.asked");
        let (stdout, stderr) = (self.desk().join("stdout"), self.desk().join("stderr"));
        // /var/lib is hidden, so that the real one stays as it is.
        let setting = "mount -t tmpfs none /var/lib && mkdir /var/lib/shoal && mkdir -p \"$DATA\" && \
             mount --bind \"$DATA\" /var/lib/shoal && mount --bind \"$BIN\" /usr/local/bin && \
             cd \"$DESK\" && exec sh -eu -c \"$SCRIPT\"";
        let mut shell = self.in_network("unshare");
        shell
            .args(["--mount", "--", "sh", "-eu", "-c", setting])
            .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("DATA", self.data_root())
            .env("BIN", bin)
            .env("DESK", self.desk())
            .env("SCRIPT", script)
            .env("SHOAL_HOST", self.socket())
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(fs::File::create(&stdout)?)
            .stderr(fs::File::create(&stderr)?);
        let mut shell = shell.spawn()?;
        let end = Instant::now() + DEADLINE;
        let status = loop {
            if let Some(status) = shell.try_wait()? {
                break status;
            }
            if let Ok(verb) = fs::read_to_string(&asked) {
                match verb.trim() {
                    "stop" => self.stop_daemon(),
                    "start" => self.start(),
                    "restart" => {
                        self.stop_daemon();
                        self.start();
                    }
                    other => panic!("systemctl {other} is not known here"),
                }
                fs::remove_file(&asked)?;
            }
            if Instant::now() > end {
                shell.kill()?;
                break shell.wait()?;
            }
            thread::sleep(Duration::from_millis(20));
        };
        Ok(Output {
            status,
            stdout: fs::read_to_string(stdout)?,
            stderr: fs::read_to_string(stderr)?,
        })
    }

    /// Puts the program under test where an installation has it, once, and has the daemon run from there
    /// at its next start.
    fn installed(&mut self) -> Result<PathBuf> {
        let bin = self.dir().join("bin-of-shoal");
        if !bin.exists() {
            fs::create_dir(&bin)?;
            fs::create_dir_all(self.desk())?;
            ok(std::process::Command::new("install")
                .arg(crate::host::binary())
                .arg(bin.join("shoal")))?;
            let asked = self.desk().join("systemctl.asked");
            let systemctl = format!(
                "#!/bin/sh -eu\n[ \"$2\" = shoal ]\necho \"$1\" >{0}.new\nmv {0}.new {0}\n\
                 while [ -e {0} ]; do sleep 0.02; done\n",
                asked.display()
            );
            fs::write(bin.join("systemctl"), systemctl)?;
            fs::set_permissions(bin.join("systemctl"), fs::Permissions::from_mode(0o755))?;
            self.set_binary(&bin.join("shoal"));
        }
        Ok(bin)
    }
}

/// Another build of the program under test, as far as anybody can tell: the same, with a byte more.
pub fn another_build(into: &Path) -> Result<PathBuf> {
    let path = into.join("shoal");
    let mut program = fs::read(crate::host::binary())?;
    program.push(b'\n');
    fs::write(&path, program)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

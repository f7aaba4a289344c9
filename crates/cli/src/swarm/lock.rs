//! `shoal swarm unlock` and `unlock-key`.

use std::io::{BufRead, IsTerminal};

use clap::Args;
use serde_json::json;

use super::update_request;
use crate::{
    api::Request,
    error::{CliError, Result},
    json::text,
    output,
    session::Session,
};

#[derive(Debug, Args)]
pub(crate) struct UnlockKeyArgs {
    /// Only display token
    #[arg(short, long)]
    quiet: bool,
    /// Rotate unlock key
    #[arg(long)]
    rotate: bool,
}

pub(super) async fn unlock(session: &Session) -> Result {
    let info = session.api.json(Request::get(&["info"])).await?;
    match text(&info, "/Swarm/LocalNodeState") {
        "inactive" => return Err(CliError::message("Error: This node is not part of a swarm")),
        "pending" | "active" | "error" => {
            return Err(CliError::message("Error: swarm is not locked"));
        }
        _ => {}
    }
    let stdin = std::io::stdin();
    let hidden = stdin.is_terminal().then(|| {
        output::write_error("Enter unlock key: ");
        HiddenInput::begin()
    });
    let mut key = String::new();
    let read = stdin.lock().read_line(&mut key);
    if hidden.is_some() {
        output::note("");
    }
    drop(hidden);
    read.map_err(CliError::file("standard input"))?;
    let request = Request::post(&["swarm", "unlock"]).json(&json!({ "UnlockKey": key.trim() }));
    session.api.done(request).await
}

/// A terminal that does not show what is typed, until this is dropped.
struct HiddenInput;

impl HiddenInput {
    fn begin() -> Self {
        Self::echo("-echo");
        Self
    }

    /// Without `stty` the key is shown, which is no reason to refuse it.
    fn echo(mode: &str) {
        let _ = std::process::Command::new("stty").arg(mode).status();
    }
}

impl Drop for HiddenInput {
    fn drop(&mut self) {
        Self::echo("echo");
    }
}

pub(super) async fn unlock_key(session: &Session, args: &UnlockKeyArgs) -> Result {
    if args.rotate {
        let swarm = session.api.json(Request::get(&["swarm"])).await?;
        if swarm["Spec"]["EncryptionConfig"]["AutoLockManagers"] != true {
            return Err(CliError::message(
                "cannot rotate because autolock is not turned on",
            ));
        }
        let request =
            update_request(&swarm, &swarm["Spec"]).query("rotateManagerUnlockKey", "true");
        session.api.done(request).await?;
        if !args.quiet {
            output::line("Successfully rotated manager unlock key.")?;
        }
    }
    if args.quiet {
        return output::line(current_unlock_key(session).await?);
    }
    print_unlock_command(session).await
}

async fn current_unlock_key(session: &Session) -> Result<String> {
    let answer = session
        .api
        .json(Request::get(&["swarm", "unlockkey"]))
        .await;
    let answer = answer
        .map_err(|error| CliError::message(format!("could not fetch unlock key: {error}")))?;
    match text(&answer, "/UnlockKey") {
        "" => Err(CliError::message("no unlock key is set")),
        key => Ok(key.to_owned()),
    }
}

pub(super) async fn print_unlock_command(session: &Session) -> Result {
    let key = current_unlock_key(session).await?;
    output::line(format!(
        "To unlock a swarm manager after it restarts, run the `shoal swarm unlock`\ncommand and provide the following key:\n\n    {key}\n\nRemember to store this key in a password manager, since without it you\nwill not be able to restart the manager."
    ))
}

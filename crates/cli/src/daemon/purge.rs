//! Takes away every trace of a daemon: containers, networks, cgroups and directories.

use std::path::Path;

use anyhow::{Context, Result, bail};
use shoal_node_agent::{datapath::Datapath, runtime::Runtime};

use super::{
    home::{Home, remove_tree},
    network_config, runtime_config,
};

/// Removes everything the daemon of these directories made. It must not run; nothing is wrong with
/// directories that do not exist. Goes on after an error, and reports all of them.
pub(crate) async fn purge(data: &Path, exec: &Path) -> Result<()> {
    let Some(home) = Home::open_existing(data, exec)? else {
        for directory in [data, exec] {
            if directory.exists() {
                bail!(
                    "{} was not made by a daemon: nothing is removed",
                    directory.display()
                );
            }
        }
        return Ok(());
    };
    let mut errors = Vec::new();
    if let Err(error) = remove_containers(&home).await {
        errors.push(format!("{error:#}"));
    }
    for error in Datapath::remove_all(network_config(&home, Vec::new())).await {
        errors.push(super::translate::chain(&error));
    }
    if errors.is_empty() {
        for directory in [exec, data] {
            if let Err(error) = remove_tree(directory) {
                errors.push(super::translate::chain(&error));
            }
        }
    }
    drop(home);
    if errors.is_empty() {
        Ok(())
    } else {
        bail!("not everything was removed:\n  {}", errors.join("\n  "))
    }
}

async fn remove_containers(home: &Home) -> Result<()> {
    let runtime = Runtime::open(runtime_config(home)?)
        .await
        .context("reach the supervisor")?;
    let containers = runtime.list().await.context("list the containers")?;
    let mut deleting = tokio::task::JoinSet::new();
    for container in containers {
        let runtime = runtime.clone();
        deleting.spawn(async move {
            let deleted = runtime.delete(&container.id).await;
            deleted.with_context(|| format!("remove container {}", container.id))
        });
    }
    let mut failed = Vec::new();
    while let Some(deleted) = deleting.join_next().await {
        if let Err(error) = deleted? {
            failed.push(format!("{error:#}"));
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    runtime
        .shutdown_supervisor()
        .await
        .context("end the supervisor")
}

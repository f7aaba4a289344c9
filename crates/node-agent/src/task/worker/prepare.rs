//! Everything a task's container needs before it can be started.

use std::sync::Arc;

use shoal_image::{Image, ProgressSink, RegistryAuth};
use shoal_runtime::CreateError;
use shoal_types::{ContainerId, TaskState, object::Task};
use tokio::sync::watch;
use tracing::warn;

use super::{StepError, Wanted, Worker};
use crate::{
    error_chain,
    task::{
        container::{self, ImageDefaults, Prepared, SpecError, Surroundings},
        files::{self, FilesError},
        machine::Container,
        mounts::{self, MountSource, TaskMount},
    },
    volumes::{VolumeError, Volumes},
};

impl Worker {
    /// Image, sandbox, networks; then Ready. May be cut short at any point when the task is no longer
    /// wanted: each part can be done again, and is taken away by what comes next.
    pub(super) async fn prepare(&mut self, task: &Task) -> Result<(), StepError> {
        let made = tokio::select! {
            made = self.make(task) => made,
            // What was half made, and does not show yet, goes too.
            () = unwanted(self.wanted.clone()) => return self.delete().await,
        };
        match made {
            Ok(image) => {
                self.show(|shown| shown.image = Some(image));
                self.attach(task).await?;
                if self.status().state < TaskState::Ready {
                    self.enter(TaskState::Ready, "prepared", String::new())
                        .await?;
                }
                Ok(())
            }
            Err(StepError::Final(err)) => {
                self.delete().await?;
                self.enter(TaskState::Rejected, "preparing", err).await
            }
            Err(passing) => Err(passing),
        }
    }

    async fn make(&self, task: &Task) -> Result<Arc<Image>, StepError> {
        let image = self.image(task).await?;
        let Some(files) = self.files(task).await? else {
            return Ok(image);
        };
        let mounts = self.mounts(task, &image).await?;
        let around = Surroundings {
            node: self.tools.description.borrow().clone(),
            search: self.tools.search.clone(),
            log: self.tools.log.clone(),
        };
        let prepared = Prepared { mounts, files };
        let volumes = &self.tools.volumes;
        let defaults = self.defaults(&image);
        let request = container::request(task, &defaults, &around, volumes, prepared)?;
        match self.tools.runtime.create(request).await {
            Ok(_sandbox) => Ok(image),
            Err(error @ CreateError::Invalid(_)) => Err(StepError::Final(error_chain(&error))),
            Err(error) => Err(StepError::passing(error)),
        }
    }

    /// The task's secrets and configs as files. Waits while they are not at hand because no manager has
    /// been heard since this agent started; `None` when there is a sandbox already, which has them.
    async fn files(
        &self,
        task: &Task,
    ) -> Result<Option<Vec<shoal_runtime::ContainerFile>>, StepError> {
        let mut assignments = self.tools.assignments.clone();
        let message = self.status().message;
        loop {
            assignments.mark_unchanged();
            let (set, from_manager) = self.tools.newest();
            // A set that does not want the task run any more has nothing for it: no reason to reject it.
            let wants = |other: &Arc<Task>| other.id == task.id && other.desired.wants_run();
            let is_told = from_manager && set.tasks.iter().any(wants);
            match files::files(task, &set) {
                Ok(files) => {
                    if self.status().message != message {
                        self.show(|shown| shown.status.message = message);
                    }
                    return Ok(Some(files));
                }
                Err(FilesError::Missing { kind, name, .. }) if !is_told => {
                    if self.observe().await?.0 == Container::Created {
                        return Ok(None);
                    }
                    if self.status().message == message {
                        let reason = format!(
                            "waiting for a manager to send {kind} {name}: it is kept in memory \
                             only, and this node's daemon was restarted"
                        );
                        warn!(reason, "the task is not started yet");
                        self.show(|shown| shown.status.message = reason);
                    }
                }
                Err(error) => return Err(StepError::Final(error_chain(&error))),
            }
            if assignments.changed().await.is_err() {
                let reason = "the agent goes down".to_owned();
                return Err(StepError::Passing(reason));
            }
        }
    }

    /// The task's mounts, with what they mount there.
    async fn mounts(&self, task: &Task, image: &Image) -> Result<Vec<TaskMount>, StepError> {
        let config = image.config.oci().config().clone().unwrap_or_default();
        let of_image = config.volumes().clone().unwrap_or_default();
        let node = self.tools.description.borrow().clone();
        let mounts = mounts::mounts(task, &of_image, &node).map_err(SpecError::from)?;
        let (volumes, container) = (self.tools.volumes.clone(), self.container);
        let provide = move || {
            for mount in &mounts {
                provide(&volumes, mount, container)?;
            }
            Ok(mounts)
        };
        let provided = tokio::task::spawn_blocking(provide).await;
        provided.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// The task's image: the node's own when it has one of that name, else the registry's.
    async fn image(&self, task: &Task) -> Result<Arc<Image>, StepError> {
        let spec = &task.spec.container;
        if let Ok(image) = self.tools.images.get(&spec.image) {
            return Ok(image);
        }
        let auth = spec
            .registry_auth
            .as_deref()
            .map(RegistryAuth::from_header)
            .transpose();
        let auth = auth
            .map_err(|error| StepError::Final(error_chain(&error)))?
            .flatten();
        let pulled = self
            .tools
            .images
            .pull(&spec.image, auth, ProgressSink::none())
            .await;
        pulled.map_err(|error| {
            StepError::Final(format!(
                "No such image: {}: {}",
                spec.image,
                error_chain(&error)
            ))
        })
    }

    fn defaults(&self, image: &Image) -> ImageDefaults {
        let config = image.config.oci().config().clone().unwrap_or_default();
        ImageDefaults {
            entrypoint: config.entrypoint().clone().unwrap_or_default(),
            cmd: config.cmd().clone().unwrap_or_default(),
            env: config.env().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
            dir: config.working_dir().clone().unwrap_or_default(),
            layers_dir: self.tools.images.layers_dir().to_owned(),
            lower: image.lower.clone(),
        }
    }
}

/// Ends when the task is no longer to run, or the agent goes down.
async fn unwanted(mut wanted: watch::Receiver<Wanted>) {
    // An error says that the agent is going down: preparing ends, too.
    let _ = wanted.wait_for(|wanted| !wanted.wants_run()).await;
}

/// Sees that there is something to mount.
fn provide(volumes: &Volumes, mount: &TaskMount, container: ContainerId) -> Result<(), StepError> {
    match &mount.source {
        MountSource::Tmpfs(_) => Ok(()),
        MountSource::Bind(bind) => {
            if bind.source.exists() {
                return Ok(());
            }
            let source = bind.source.display();
            if bind.create_mountpoint {
                let made = std::fs::create_dir_all(&bind.source);
                return made.map_err(|error| {
                    let error = error_chain(&error);
                    StepError::Final(format!(
                        "error while creating mount source path '{source}': {error}"
                    ))
                });
            }
            // Docker's words.
            Err(StepError::Final(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {source}"
            )))
        }
        MountSource::Volume(volume) => {
            let owner = volume.anonymous.then_some(container);
            match volumes.ensure(&volume.name, &volume.labels, owner) {
                Ok(_) => Ok(()),
                Err(error @ (VolumeError::TooShort | VolumeError::Name { .. })) => {
                    let error = error_chain(&error);
                    Err(StepError::Final(format!("create {}: {error}", volume.name)))
                }
                Err(error) => Err(StepError::passing(error)),
            }
        }
    }
}

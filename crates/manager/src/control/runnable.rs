//! What agents of this release can run. Anything else is refused when it is asked for, by name: a task
//! that silently lacks its secret would be worse than none.

use shoal_types::spec::{ContainerSpec, MountKind};

use super::ControlError;

/// Refuses what no agent can do yet.
pub(super) fn check(spec: &ContainerSpec) -> Result<(), ControlError> {
    let has_volume_options = spec.mounts.iter().any(|mount| {
        matches!(&mount.kind, MountKind::Volume { driver_options, .. } if !driver_options.is_empty())
    });
    let missing = [
        (
            has_volume_options,
            "TaskTemplate.ContainerSpec.Mounts.VolumeOptions.DriverConfig.Options",
            "options of the local volume driver",
        ),
        (spec.tty, "TaskTemplate.ContainerSpec.TTY", "terminals"),
        (
            spec.open_stdin,
            "TaskTemplate.ContainerSpec.OpenStdin",
            "standard input",
        ),
    ];
    match missing.into_iter().find(|(asked, ..)| *asked) {
        None => Ok(()),
        Some((_, field, what)) => Err(ControlError::NotSupported {
            message: format!("{what} are not supported by shoal yet ({field})"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_run_is_named() {
        let mut spec = ContainerSpec::new("busybox");
        assert!(check(&spec).is_ok());
        spec.tty = true;
        let error = check(&spec).expect_err("not yet");
        assert_eq!(
            error.to_string(),
            "terminals are not supported by shoal yet (TaskTemplate.ContainerSpec.TTY)"
        );
    }
}

//! Docker's client configuration, `~/.docker/config.json`: formats of lists, and credentials of registries.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use base64::Engine;
use serde_json::{Value, json};

use crate::{
    error::{CliError, Result},
    json::text,
    output,
};

/// What the file says; nothing when there is none.
#[derive(Debug, Default)]
pub(crate) struct Config(Value);

impl Config {
    /// Reads `config.json` of `dir`, of `$DOCKER_CONFIG`, or of `~/.docker`.
    pub(crate) fn load(dir: Option<PathBuf>) -> Self {
        let dir = dir
            .or_else(|| std::env::var_os("DOCKER_CONFIG").map(PathBuf::from))
            .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")));
        let Some(path) = dir.map(|dir| dir.join("config.json")) else {
            return Self::default();
        };
        let Ok(file) = std::fs::read(&path) else {
            return Self::default();
        };
        match serde_json::from_slice(&file) {
            Ok(config) => Self(config),
            Err(error) => {
                output::note(format!(
                    "WARNING: Error loading config file: {}: {error}",
                    path.display()
                ));
                Self::default()
            }
        }
    }

    /// The format of a list: what the command line says, else what the file says under `key`.
    pub(crate) fn format(&self, given: &str, quiet: bool, key: &str) -> String {
        if !given.is_empty() || quiet {
            return given.to_owned();
        }
        self.0[key].as_str().unwrap_or("").to_owned()
    }

    /// `X-Registry-Auth` for a registry; without credentials it is an empty login.
    pub(crate) fn registry_auth(&self, registry: &str) -> Result<String> {
        let mut login = self.login(registry)?.unwrap_or_else(|| json!({}));
        login["serveraddress"] = registry.into();
        Ok(base64::engine::general_purpose::URL_SAFE.encode(login.to_string()))
    }

    fn login(&self, registry: &str) -> Result<Option<Value>> {
        let helper = match text(
            &self.0["credHelpers"],
            &format!("/{}", registry.replace('~', "~0").replace('/', "~1")),
        ) {
            "" => text(&self.0, "/credsStore"),
            helper => helper,
        };
        if !helper.is_empty() {
            return ask_helper(helper, registry);
        }
        let entry = &self.0["auths"][registry];
        let encoded = text(entry, "/auth");
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(encoded)
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let mut login = json!({});
        if let Some((user, password)) = decoded.as_deref().and_then(|pair| pair.split_once(':')) {
            login["username"] = user.into();
            login["password"] = password.trim_end_matches('\0').into();
        }
        for key in ["identitytoken", "registrytoken"] {
            if let Some(token) = entry[key].as_str() {
                login[key] = token.into();
            }
        }
        Ok(login
            .as_object()
            .is_some_and(|login| !login.is_empty())
            .then_some(login))
    }
}

/// Asks `docker-credential-HELPER get`; a helper that does not know the registry is no error.
fn ask_helper(helper: &str, registry: &str) -> Result<Option<Value>> {
    let program = format!("docker-credential-{helper}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(CliError::file(&program))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading says so by its status.
        let _ = stdin.write_all(registry.as_bytes());
    }
    let answer = child.wait_with_output().map_err(CliError::file(&program))?;
    if !answer.status.success() {
        return Ok(None);
    }
    let answer: Value = serde_json::from_slice(&answer.stdout)
        .map_err(|error| CliError::message(format!("{program}: {error}")))?;
    let (user, secret) = (text(&answer, "/Username"), text(&answer, "/Secret"));
    Ok(Some(if user == "<token>" {
        json!({ "identitytoken": secret })
    } else {
        json!({"username": user, "password": secret})
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_come_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = r#"{"psFormat":"{{.ID}}","auths":{"r.io":{"auth":"dTpwOnc="}}}"#;
        std::fs::write(dir.path().join("config.json"), file).unwrap();
        let config = Config::load(Some(dir.path().to_owned()));
        assert_eq!(config.format("", false, "psFormat"), "{{.ID}}");
        assert_eq!(config.format("x", false, "psFormat"), "x");
        assert_eq!(config.format("", true, "psFormat"), "");
        let decode = |registry: &str| {
            let auth = config.registry_auth(registry).unwrap();
            let bytes = base64::engine::general_purpose::URL_SAFE
                .decode(auth)
                .unwrap();
            serde_json::from_slice::<Value>(&bytes).unwrap()
        };
        assert_eq!(
            decode("r.io"),
            json!({"username": "u", "password": "p:w", "serveraddress": "r.io"})
        );
        assert_eq!(decode("other.io"), json!({"serveraddress": "other.io"}));
    }
}

//! `stack deploy`: the objects of a project, made or brought up to date, one kind after another.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use serde_json::Value;

use super::{
    compose::{self, FileObject, Project, Service},
    convert::{self, IMAGE, Stack},
    stack_filter,
};
use crate::{
    api::Request,
    error::{CliError, Result},
    json::{number, text},
    opts::reference::Reference,
    output,
    service::{self, References},
    session::Session,
};

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Path to a Compose file, or "-" to read from stdin
    #[arg(
        short,
        long = "compose-file",
        value_name = "stringSlice",
        value_delimiter = ','
    )]
    compose_file: Vec<String>,
    /// Exit immediately instead of waiting for the stack services to converge (default true)
    #[arg(short, long, value_name = "bool", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    detach: Option<bool>,
    /// Prune services that are no longer referenced
    #[arg(long)]
    prune: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    /// Query the registry to resolve image digest and supported platforms ("always", "changed", "never")
    #[arg(long, value_name = "string", default_value = "always")]
    resolve_image: String,
    /// Send registry authentication details to Swarm agents
    #[arg(long)]
    with_registry_auth: bool,
    #[arg(hide = true, value_name = "STACK")]
    stack: String,
}

pub(super) async fn run(session: &Session, args: &DeployArgs) -> Result {
    super::check_name(&args.stack)?;
    let loaded = compose::load(&args.compose_file, true)?;
    loaded.warn();
    let project = &loaded.project;
    check_images(project)?;
    if !matches!(args.resolve_image.as_str(), "always" | "changed" | "never") {
        return Err(CliError::message(format!(
            "Invalid option {} for flag --resolve-image",
            args.resolve_image
        )));
    }
    if args.detach.is_none() {
        output::note(
            "Since --detach=false was not specified, tasks will be created in the background.\nIn a future release, --detach=false will become the default.",
        );
    }
    let info = session.api.json(Request::get(&["info"])).await?;
    if info["Swarm"]["ControlAvailable"] != true {
        return Err(CliError::message(
            "this node is not a swarm manager. Use \"shoal swarm init\" or \"shoal swarm join\" to connect this node to swarm and try again",
        ));
    }
    let deployment = Deployment {
        session,
        args,
        stack: Stack(&args.stack),
        project,
    };
    if args.prune {
        deployment.prune().await?;
    }
    deployment.networks().await?;
    deployment
        .files(References::Secrets, &project.secrets.0)
        .await?;
    deployment
        .files(References::Configs, &project.configs.0)
        .await?;
    let services = deployment.services().await?;
    if args.detach.unwrap_or(true) {
        return Ok(());
    }
    let mut errors = Vec::new();
    for id in services {
        if let Err(error) = service::wait(&session.api, &id, args.quiet).await {
            errors.push(CliError::message(format!("{id}: {error}")));
        }
    }
    CliError::all(errors)
}

fn check_images(project: &Project) -> Result {
    for (name, service) in &project.services.0 {
        let why = match service.image.as_str() {
            "" => "no image specified",
            image if Reference::parse(image).is_none() => "invalid reference format",
            _ => continue,
        };
        return Err(CliError::message(format!(
            "invalid image reference for service {name}: {why}"
        )));
    }
    Ok(())
}

struct Deployment<'a> {
    session: &'a Session,
    args: &'a DeployArgs,
    stack: Stack<'a>,
    project: &'a Project,
}

impl Deployment<'_> {
    async fn existing(&self, kind: &str) -> Result<Vec<Value>> {
        let filters = stack_filter(self.stack.0);
        let api = &self.session.api;
        api.list(Request::get(&[kind]).filters(&filters)).await
    }

    /// Removes the services that the project has no more.
    async fn prune(&self) -> Result {
        let wanted: BTreeSet<String> = self
            .project
            .services
            .0
            .keys()
            .map(|name| self.stack.scope(name))
            .collect();
        let mut services = self.existing("services").await?;
        services.retain(|service| !wanted.contains(text(service, "/Spec/Name")));
        super::remove(self.session, super::Kind::Service, services).await?;
        Ok(())
    }

    async fn networks(&self) -> Result {
        let api = &self.session.api;
        let (networks, external) = self.stack.networks(self.project);
        for name in external
            .iter()
            .filter(|name| convert::is_user_defined(name))
        {
            let network = match api.json(Request::get(&["networks", name])).await {
                Err(error) if error.is_not_found() => {
                    return Err(CliError::message(format!(
                        "network {name:?} is declared as external, but could not be found. You need to create a swarm-scoped network before the stack is deployed"
                    )));
                }
                network => network?,
            };
            let scope = text(&network, "/Scope");
            if scope != "swarm" {
                return Err(CliError::message(format!(
                    "network {name:?} is declared as external, but it is not in the right scope: {scope:?} instead of \"swarm\""
                )));
            }
        }
        let existing = self.existing("networks").await?;
        for network in networks {
            let name = text(&network, "/Name");
            if existing.iter().any(|other| text(other, "/Name") == name) {
                continue;
            }
            output::line(format!("Creating network {name}"))?;
            let request = Request::post(&["networks", "create"]).json(&network);
            api.json(request)
                .await
                .map_err(failed("create network", name))?;
        }
        Ok(())
    }

    /// Makes secrets or configs; of one that is there, only labels can change.
    async fn files(&self, kind: References, objects: &BTreeMap<String, FileObject>) -> Result {
        let api = &self.session.api;
        let (path, word) = (kind.path(), kind.word());
        for (name, object) in objects {
            if object.external.external {
                continue;
            }
            let spec = self
                .stack
                .file_object(name, object)
                .map_err(|why| CliError::message(format!("{word} {name}: {why}")))?;
            let name = text(&spec, "/Name");
            match api.json(Request::get(&[path, name])).await {
                Ok(found) => {
                    let version = number(&found, "/Version/Index").to_string();
                    let request = Request::post(&[path, text(&found, "/ID"), "update"])
                        .query("version", version)
                        .json(&spec);
                    let what = format!("update {word}");
                    api.done(request).await.map_err(failed(&what, name))?;
                }
                Err(error) if error.is_not_found() => {
                    output::line(format!("Creating {word} {name}"))?;
                    let request = Request::post(&[path, "create"]).json(&spec);
                    let what = format!("create {word}");
                    api.json(request).await.map_err(failed(&what, name))?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The ids of the services.
    async fn services(&self) -> Result<Vec<String>> {
        let mut specs = Vec::new();
        for (name, service) in &self.project.services.0 {
            let spec = self.spec(name, service).await;
            specs
                .push(spec.map_err(|error| CliError::message(format!("service {name}: {error}")))?);
        }
        let existing = self.existing("services").await?;
        let mut ids = Vec::new();
        for spec in specs {
            let name = text(&spec, "/Name");
            let found = existing
                .iter()
                .find(|service| text(service, "/Spec/Name") == name);
            ids.push(match found {
                Some(service) => self.update(service, spec).await?,
                None => self.create(spec).await?,
            });
        }
        Ok(ids)
    }

    async fn spec(&self, name: &str, service: &Service) -> Result<Value> {
        let api = &self.session.api;
        let (stack, project) = (&self.stack, self.project);
        let mut spec = stack
            .service(name, service, project)
            .map_err(CliError::message)?;
        let secrets = stack
            .file_references("secret", &service.secrets.0, &project.secrets.0)
            .map_err(CliError::message)?;
        let mut secrets = service::references(api, References::Secrets, &secrets).await?;
        let configs = stack
            .file_references("config", &service.configs.0, &project.configs.0)
            .map_err(CliError::message)?;
        let mut configs = service::references(api, References::Configs, &configs).await?;
        let credential = &service.credential_spec;
        let mut credential_config = String::new();
        if !credential.config.is_empty() {
            let config = stack
                .object_name("config", &credential.config, &project.configs.0)
                .map_err(CliError::message)?;
            let reference = service::runtime_config(api, &config).await?;
            text(&reference, "/ConfigID").clone_into(&mut credential_config);
            configs.push(reference);
        }
        // Another order of the same secrets is no reason to start tasks anew.
        let place = |reference: &Value, name| {
            let target = text(reference, "/File/Name").to_owned();
            (text(reference, name).to_owned(), target)
        };
        secrets.sort_by_key(|secret| place(secret, "/SecretName"));
        configs.sort_by_key(|config| place(config, "/ConfigName"));
        let credential =
            convert::credential_spec(credential, &credential_config).map_err(CliError::message)?;
        let container = &mut spec["TaskTemplate"]["ContainerSpec"];
        container["Secrets"] = secrets.into();
        container["Configs"] = configs.into();
        container["Privileges"] = service::privileges(&credential.unwrap_or_default());
        Ok(spec)
    }

    async fn create(&self, mut spec: Value) -> Result<String> {
        let session = self.session;
        let name = text(&spec, "/Name").to_owned();
        output::line(format!("Creating service {name}"))?;
        let auth = self.registry_auth(&spec)?;
        let ask = self.args.resolve_image != "never";
        service::pin_image(&session.api, &mut spec, ask, auth.as_deref()).await;
        let request = Request::post(&["services", "create"])
            .json(&spec)
            .registry_auth(auth.as_deref());
        let created = session.api.json(request).await;
        let created = created.map_err(failed("create service", &name))?;
        Ok(text(&created, "/ID").to_owned())
    }

    async fn update(&self, service: &Value, mut spec: Value) -> Result<String> {
        let session = self.session;
        let name = text(&spec, "/Name").to_owned();
        let id = text(service, "/ID").to_owned();
        output::line(format!("Updating service {name} (id: {id})"))?;
        let auth = self.registry_auth(&spec)?;
        let old = &service["Spec"];
        let image = text(&spec, "/TaskTemplate/ContainerSpec/Image");
        let is_same = old["Labels"][IMAGE] == image;
        let ask = match self.args.resolve_image.as_str() {
            "always" => true,
            "changed" => !is_same,
            _ => false,
        };
        if is_same && !ask {
            // With the digest that it was given when it was deployed, so that nothing has changed.
            spec["TaskTemplate"]["ContainerSpec"]["Image"] =
                old["TaskTemplate"]["ContainerSpec"]["Image"].clone();
        }
        spec["TaskTemplate"]["ForceUpdate"] = old["TaskTemplate"]["ForceUpdate"].clone();
        let warning = service::pin_image(&session.api, &mut spec, ask, auth.as_deref()).await;
        let request = service::update_request(service)
            .json(&spec)
            .registry_auth(auth.as_deref());
        let updated = session.api.json(request).await;
        let updated = updated.map_err(failed("update service", &name))?;
        output::warnings(&updated);
        warning.into_iter().for_each(output::note);
        Ok(id)
    }

    fn registry_auth(&self, spec: &Value) -> Result<Option<String>> {
        service::registry_auth(self.session, spec, self.args.with_registry_auth)
    }
}

/// Says of an error what was to be done to which object.
fn failed<'a>(what: &'a str, name: &'a str) -> impl FnOnce(CliError) -> CliError + 'a {
    move |error| CliError::message(format!("failed to {what} {name}: {error}"))
}

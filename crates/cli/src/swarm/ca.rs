//! `shoal swarm ca`, and what `init` and `update` say of the certificate authority.

use clap::Args;
use serde_json::{Map, Value};

use super::update_request;
use crate::{
    api::Request,
    error::{CliError, Result},
    json::{object, put, text},
    opts::{BadValue, GoDuration, csv},
    output::{
        self,
        progress::{Board, Fraction, POLL},
    },
    session::Session,
};

/// Settings of the certificate authority.
#[derive(Debug, Args, Default)]
pub(crate) struct CaSettings {
    /// Validity period for node certificates (ns|us|ms|s|m|h) (default 2160h0m0s)
    #[arg(long, value_name = "duration")]
    cert_expiry: Option<GoDuration>,
    /// Specifications of one or more certificate signing endpoints
    #[arg(long, value_name = "external-ca", value_parser = external_ca)]
    external_ca: Vec<ExternalCa>,
}

#[derive(Debug, Args)]
pub(crate) struct CaArgs {
    #[command(flatten)]
    settings: CaSettings,
    /// Path to the PEM-formatted root CA certificate to use for the new cluster
    #[arg(long, value_name = "pem-file", value_parser = pem_file)]
    ca_cert: Option<String>,
    /// Path to the PEM-formatted root CA key to use for the new cluster
    #[arg(long, value_name = "pem-file", value_parser = pem_file)]
    ca_key: Option<String>,
    /// Exit immediately instead of waiting for the root rotation to converge
    #[arg(short, long)]
    detach: bool,
    /// Suppress progress output
    #[arg(short, long)]
    quiet: bool,
    /// Rotate the swarm CA - if no certificate or key are provided, new ones will be generated
    #[arg(long)]
    rotate: bool,
}

/// A signing service outside of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct ExternalCa(Value);

fn pem(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    text.contains("-----BEGIN ") && text.contains("-----END ")
}

fn pem_file(path: &str) -> Result<String, BadValue> {
    let contents = std::fs::read(path).map_err(|e| BadValue::new(format!("open {path}: {e}")))?;
    if pem(&contents) {
        Ok(String::from_utf8_lossy(&contents).into_owned())
    } else {
        Err(BadValue::new("file contents must be in PEM format"))
    }
}

fn external_ca(spec: &str) -> Result<ExternalCa, BadValue> {
    let (mut url, mut protocol, mut cert) = (None, false, String::new());
    let mut options = Map::new();
    for field in csv::fields(spec)? {
        let (key, value) = field.split_once('=').ok_or_else(|| {
            BadValue::new(format!("invalid field '{field}' must be a key=value pair"))
        })?;
        match key.to_lowercase().as_str() {
            "protocol" if value.eq_ignore_ascii_case("cfssl") => protocol = true,
            "protocol" => {
                return Err(BadValue::new(format!(
                    "unrecognized external CA protocol {value}"
                )));
            }
            "url" => url = Some(value.to_owned()),
            "cacert" => cert = pem_file(value)?,
            _ => {
                options.insert(key.to_owned(), value.into());
            }
        }
    }
    if !protocol {
        return Err(BadValue::new(
            "the external-ca option needs a protocol= parameter",
        ));
    }
    let url = url.ok_or_else(|| BadValue::new("the external-ca option needs a url= parameter"))?;
    let mut ca = Map::from_iter([
        ("Protocol".to_owned(), "cfssl".into()),
        ("URL".to_owned(), url.into()),
        ("CACert".to_owned(), cert.into()),
    ]);
    put(&mut ca, "Options", options);
    Ok(ExternalCa(Value::Object(ca)))
}

pub(super) fn apply_ca(
    spec: &mut Map<String, Value>,
    settings: &CaSettings,
    trust_root: Option<&str>,
) {
    if let Some(GoDuration(expiry)) = settings.cert_expiry {
        put(object(spec, "CAConfig"), "NodeCertExpiry", expiry);
    }
    if !settings.external_ca.is_empty() {
        let cas: Vec<Value> = settings
            .external_ca
            .iter()
            .map(|ca| {
                let mut ca = ca.0.clone();
                if text(&ca, "/CACert").is_empty()
                    && let Some(root) = trust_root
                {
                    ca["CACert"] = root.into();
                }
                ca
            })
            .collect();
        put(object(spec, "CAConfig"), "ExternalCAs", cas);
    }
}

pub(super) async fn ca(session: &Session, args: &CaArgs) -> Result {
    let swarm = session.api.json(Request::get(&["swarm"])).await?;
    let external = !args.settings.external_ca.is_empty();
    if !args.rotate {
        let flags = [
            ("ca-cert", args.ca_cert.is_some()),
            ("ca-key", args.ca_key.is_some()),
            ("cert-expiry", args.settings.cert_expiry.is_some()),
            ("external-ca", external),
        ];
        return match flags.iter().find(|(_, given)| *given) {
            Some((flag, _)) => Err(CliError::message(format!(
                "`--{flag}` flag requires the `--rotate` flag to update the CA"
            ))),
            None => print_trust_root(&swarm),
        };
    }
    if external && args.ca_cert.is_none() {
        return Err(CliError::message(
            "rotating to an external CA requires the `--ca-cert` flag to specify the external CA's cert - to add an external CA with the current root CA certificate, use the `update` command instead",
        ));
    }
    if args.ca_cert.is_some() && !external && args.ca_key.is_none() {
        return Err(CliError::message(
            "the --ca-cert flag requires that a --ca-key flag and/or --external-ca flag be provided as well",
        ));
    }
    let mut spec = swarm["Spec"].clone();
    if let Some(spec) = spec.as_object_mut() {
        apply_ca(spec, &args.settings, args.ca_cert.as_deref());
        let config = object(spec, "CAConfig");
        put(
            config,
            "SigningCACert",
            args.ca_cert.as_deref().unwrap_or(""),
        );
        put(config, "SigningCAKey", args.ca_key.as_deref().unwrap_or(""));
        if args.ca_cert.is_none() && args.ca_key.is_none() {
            let rotations = config
                .get("ForceRotate")
                .and_then(Value::as_u64)
                .unwrap_or(0);
            put(config, "ForceRotate", rotations + 1);
        }
    }
    session.api.done(update_request(&swarm, &spec)).await?;
    if args.detach {
        return Ok(());
    }
    await_rotation(session, args.quiet).await?;
    let swarm = session.api.json(Request::get(&["swarm"])).await?;
    print_trust_root(&swarm)
}

/// Shows how many nodes have a certificate of the new root.
async fn await_rotation(session: &Session, quiet: bool) -> Result {
    let mut board = Board::new(quiet);
    loop {
        let swarm = session.api.json(Request::get(&["swarm"])).await?;
        let nodes = session.api.list(Request::get(&["nodes"])).await?;
        let ready = |node: &&Value| node["Description"]["TLSInfo"] == swarm["TLSInfo"];
        let fraction = Fraction {
            current: nodes.iter().filter(ready).count() as u64,
            total: nodes.len() as u64,
            counts: false,
        };
        let words = format!("{}/{} nodes", fraction.current, fraction.total);
        board.show("rotated TLS certificates", &words, Some(fraction))?;
        if swarm["RootRotationInProgress"] != true {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn print_trust_root(swarm: &Value) -> Result {
    match text(swarm, "/TLSInfo/TrustRoot").trim() {
        "" => Err(CliError::message("No CA information available")),
        root => output::line(root),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn external_cas_need_a_protocol_and_a_url() {
        let error = |text: &str| external_ca(text).unwrap_err().to_string();
        assert_eq!(
            error("url=x"),
            "the external-ca option needs a protocol= parameter"
        );
        assert_eq!(
            error("protocol=cfssl"),
            "the external-ca option needs a url= parameter"
        );
        assert_eq!(error("protocol=x"), "unrecognized external CA protocol x");
        let ExternalCa(ca) = external_ca("protocol=cfssl,url=https://x,a=b").unwrap();
        assert_eq!(
            ca,
            json!({"Protocol": "cfssl", "URL": "https://x", "CACert": "", "Options": {"a": "b"}})
        );
    }
}

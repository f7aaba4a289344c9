//! How many services a second one manager creates: `service_creates [DIRECTORY]`.

#![expect(clippy::print_stdout, reason = "it is what the example is for")]

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use shoal_manager::{DataKey, Founding, InitOptions, Manager, ManagerConfig, Tuning};
use shoal_transport::identity::NodeKey;
use shoal_types::{
    NodeId, RaftId,
    object::NodeDescription,
    spec::{
        ContainerSpec, EndpointSpec, Placement, Resources, RestartPolicy, ServiceMode, ServiceSpec,
        TaskSpec, UpdateConfig,
    },
};

const SPAN: Duration = Duration::from_secs(4);

fn spec(name: String) -> ServiceSpec {
    ServiceSpec {
        name,
        labels: std::collections::BTreeMap::new(),
        task: TaskSpec {
            container: ContainerSpec::new("shoal/hello"),
            limits: Resources::default(),
            reservations: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            networks: Vec::new(),
            force_update: 0,
            log_driver: None,
        }
        .into(),
        mode: ServiceMode::Replicated { replicas: 0 },
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec::default(),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let temporary = tempfile::tempdir()?;
    let base = std::env::args_os().nth(1).map(PathBuf::from);
    let base = base.unwrap_or_else(|| temporary.path().to_owned());
    for clients in [1, 16] {
        let dir = base.join(format!("creates-{clients}"));
        let manager = Manager::open(ManagerConfig {
            dir: dir.clone(),
            node: NodeId::from_random([1; 17]),
            raft: RaftId(1),
            tuning: Tuning::default(),
            cluster: None,
            key: DataKey::generate(),
            alone: false,
        })
        .await?;
        let key = NodeKey::generate();
        let founding = Founding::new(manager.node(), &key.signing_request())?;
        let options = InitOptions::new(&founding, NodeDescription::default());
        manager.init(options).await?;
        // The leadership is announced a moment after the cluster is there.
        manager.control().state().await?;
        let start = Instant::now();
        let work = (0..clients).map(|client| {
            let control = manager.control();
            tokio::spawn(async move {
                let mut made = 0u32;
                while start.elapsed() < SPAN {
                    let name = format!("c{client}-{made}");
                    control.create_service(spec(name)).await?;
                    made += 1;
                }
                Ok::<_, shoal_manager::ControlError>(made)
            })
        });
        let mut made = 0;
        for client in work.collect::<Vec<_>>() {
            made += client.await??;
        }
        let rate = f64::from(made) / start.elapsed().as_secs_f64();
        println!("{clients} clients: {rate:.0} services/s");
        manager.shutdown().await;
        std::fs::remove_dir_all(dir)?;
    }
    Ok(())
}

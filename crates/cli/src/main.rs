mod daemon;
fn main() -> std::process::ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    let get = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i+1)).map(|s| s.to_string_lossy().into_owned());
    match args.first().and_then(|a| a.to_str()) {
        Some("supervisor") => return shoal_runtime::supervisor_main(args[1..].to_vec()),
        Some("daemon") => {
            tracing_subscriber::fmt().with_env_filter("debug,openraft=warn,hyper=info,h2=info").with_writer(std::io::stderr).init();
            let rt = tokio::runtime::Runtime::new().unwrap();
            let s = daemon::Settings { hosts: vec![get("--host").unwrap()], data_root: get("--data-root").unwrap().into(), exec_root: get("--exec-root").unwrap().into(), pidfile: None, debug: true, local: args.iter().any(|a| a == "--local"), labels: Default::default(), insecure_registries: vec![], registry_mirrors: vec![] };
            if let Err(e) = rt.block_on(daemon::run(s)) { eprintln!("{e:#}"); return std::process::ExitCode::FAILURE; }
        }
        Some("purge") => {
            let rt = tokio::runtime::Runtime::new().unwrap();
            if let Err(e) = rt.block_on(daemon::purge(get("--data-root").unwrap().as_ref(), get("--exec-root").unwrap().as_ref())) { eprintln!("{e:#}"); return std::process::ExitCode::FAILURE; }
        }
        _ => {}
    }
    std::process::ExitCode::SUCCESS
}

//! `--log-opt`: how much of the output of containers is kept.

use anyhow::{Result, bail, ensure};
use shoal_node_agent::runtime::LogConfig;

use crate::opts::Bytes;

/// Reads `max-size=SIZE` and `max-file=NUMBER`, dockerd's options of `json-file`; sizes as for `--limit-memory`.
pub(super) fn parse(options: &[String]) -> Result<LogConfig> {
    let mut config = LogConfig::default();
    for option in options {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match key {
            "max-size" => {
                let size = value.parse::<Bytes>().ok();
                let size = size.and_then(|Bytes(size)| u64::try_from(size).ok());
                let Some(size) = size.filter(|size| *size > 0) else {
                    bail!("--log-opt {option}: max-size must be a positive number, such as 10m");
                };
                config.max_size = Some(size);
            }
            "max-file" => match value.parse() {
                Ok(files @ 1..) => config.max_files = files,
                _ => bail!("--log-opt {option}: max-file must be a number from 1"),
            },
            _ => bail!("--log-opt {option}: unknown log opt; there are max-size and max-file"),
        }
    }
    ensure!(
        config.max_files == 1 || config.max_size.is_some(),
        "--log-opt max-file={}: name a max-size as well",
        config.max_files
    );
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[&str]) -> Result<LogConfig> {
        let options: Vec<String> = options.iter().map(|text| (*text).to_owned()).collect();
        parse(&options)
    }

    #[test]
    fn options_are_dockers_and_what_makes_no_sense_is_refused() {
        assert_eq!(read(&[]).unwrap(), LogConfig::default());
        let both = read(&["max-size=10m", "max-file=3"]).unwrap();
        assert_eq!((both.max_size, both.max_files), (Some(10 << 20), 3));
        for bad in [
            &["max-size=0"][..],
            &["max-size=-1"],
            &["max-size=much"],
            &["max-size"],
            &["max-size=1m", "max-file=0"],
            &["max-file=3"],
            &["colour=blue"],
        ] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}

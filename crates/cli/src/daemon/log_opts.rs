//! `--log-driver` and `--log-opt`: where the output of containers goes whose service does not say otherwise.

use anyhow::{Result, ensure};
use shoal_types::spec::{LogDriver, LogKeeping};

/// Reads `max-size=SIZE` and `max-file=NUMBER` as dockerd does: `10m` are ten million bytes.
pub(super) fn parse(driver: &str, options: &[String]) -> Result<LogDriver> {
    let words = options
        .iter()
        .map(|option| option.split_once('=').unwrap_or((option, "")));
    let driver = LogDriver {
        name: driver.to_owned(),
        options: words.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
    };
    if let LogKeeping::Files {
        max_size: None,
        max_files: Some(files),
    } = driver.keeping()?
    {
        ensure!(
            files == 1,
            "--log-opt max-file={files}: name a max-size as well"
        );
    }
    Ok(driver)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(driver: &str, options: &[&str]) -> Result<LogDriver> {
        let options: Vec<String> = options.iter().map(|text| (*text).to_owned()).collect();
        parse(driver, &options)
    }

    #[test]
    fn options_are_dockers_and_what_makes_no_sense_is_refused() {
        let both = read("json-file", &["max-size=10m", "max-file=3"]).unwrap();
        assert_eq!(
            both.keeping().unwrap(),
            LogKeeping::Files {
                max_size: Some(10_000_000),
                max_files: Some(3)
            }
        );
        assert!(read("none", &[]).is_ok() && read("local", &["max-file=3"]).is_ok());
        for bad in [
            &["max-size=0"][..],
            &["max-size"],
            &["max-size=1m", "max-file=0"],
            &["max-file=3"],
            &["colour=blue"],
        ] {
            assert!(read("json-file", bad).is_err(), "{bad:?}");
        }
        assert!(read("syslog", &[]).is_err());
    }
}

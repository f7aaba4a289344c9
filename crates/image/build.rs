//! Compiles the program of the built-in image with the compiler that builds this crate.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=hello/main.rs");
    println!("cargo:rerun-if-changed=build.rs");
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let output = PathBuf::from(variable("OUT_DIR")).join("hello");
    // Static and not position independent: the layer holds no libc and no loader. Small, because
    // it is part of our own binary and unpacked on every node.
    let status = Command::new(variable("RUSTC"))
        .args(["--edition=2024", "--crate-name=hello", "--crate-type=bin"])
        .args(["--target", &variable("TARGET")])
        .args([
            "-C",
            "target-feature=+crt-static",
            "-C",
            "relocation-model=static",
        ])
        .args([
            "-C",
            "panic=abort",
            "-C",
            "opt-level=z",
            "-C",
            "strip=symbols",
        ])
        .args(["-C", "lto=fat", "-C", "codegen-units=1"])
        .arg("-o")
        .arg(&output)
        .arg("hello/main.rs")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => {
            panic!("compiling hello/main.rs: {status} (is the static C library installed?)")
        }
        Err(error) => panic!("start the Rust compiler: {error}"),
    }
}

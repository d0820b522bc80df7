//! Lists the files of `rules/` for `src/rule/load/shipped.rs`, so that adding a rule is adding its file; and names the commit that is
//! built.

use std::{env, error::Error, fmt::Write, fs, path::Path, process::Command};

#[expect(clippy::disallowed_methods, reason = "cargo tells build scripts by the environment")]
fn main() -> Result<(), Box<dyn Error>> {
    let rules = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("rules");
    let mut files = Vec::new();
    collect(&rules, &mut files)?;
    files.sort();
    let mut code = String::new();
    for (name, builtin) in [("SHIPPED", false), ("BUILTIN", true)] {
        let doc = if builtin { "The check rules that always run." } else { "The rules that `init` writes." };
        writeln!(code, "/// {doc}\npub const {name}: &[ShippedFile] = &[")?;
        for file in &files {
            let path = file.strip_prefix(rules.to_str().ok_or("the path of the project is not UTF-8")?).unwrap_or(file);
            let path = path.trim_start_matches('/');
            match (path.strip_prefix("builtin/"), builtin) {
                (Some(path), true) if path.ends_with(".rhai") => {
                    writeln!(code, "    ShippedFile {{ path: {path:?}, text: include_str!({file:?}) }},")?;
                }
                (None, false) => writeln!(code, "    ShippedFile {{ path: {path:?}, text: include_str!({file:?}) }},")?,
                _ => {}
            }
        }
        writeln!(code, "];")?;
    }
    fs::write(Path::new(&env::var("OUT_DIR")?).join("shipped.rs"), code)?;
    println!("cargo::rustc-env=WATCHBELL_VERSION={}", version(&env::var("CARGO_PKG_VERSION")?));
    Ok(())
}

/// The version, with the commit and its date where this is built from git.
fn version(package: &str) -> String {
    let git = |arguments: &[&str]| {
        let done = Command::new("git").args(arguments).output().ok().filter(|done| done.status.success())?;
        let text = String::from_utf8(done.stdout).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    // In a package's archive there may be a repository around it that is another's.
    if !Path::new(".git").exists() {
        return package.to_owned();
    }
    if let Some(head) = git(&["rev-parse", "--git-path", "HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    if let Some(branch) =
        git(&["symbolic-ref", "--quiet", "HEAD"]).and_then(|name| git(&["rev-parse", "--git-path", &name]))
    {
        println!("cargo::rerun-if-changed={branch}");
    }
    match git(&["log", "-1", "--format=%h %cs"]) {
        Some(commit) => format!("{package} ({commit})"),
        None => package.to_owned(),
    }
}

fn collect(directory: &Path, files: &mut Vec<String>) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", directory.display());
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rhai" || extension == "yaml") {
            println!("cargo::rerun-if-changed={}", path.display());
            files.push(path.to_str().ok_or("a path under rules/ is not UTF-8")?.to_owned());
        }
    }
    Ok(())
}

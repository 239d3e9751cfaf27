//! What programs see: functions and synthetic parents, each beside what a platform does without the
//! product, and beside a plain `fork()` of the same process.

pub(crate) mod criu;
pub(crate) mod fdk;
pub(crate) mod large;
pub(crate) mod learned;
mod parent;
pub(crate) mod sustained;
pub(crate) mod synthetic;
pub(crate) mod workloads;

use crate::cluster::own_binary;
use crate::container::Spec;
use crate::error::BenchError;
use std::path::PathBuf;
use std::time::Duration;

/// How long a first child stays: behind it its pager tells the owner what it touched, and its node
/// makes a template.
const REST: Duration = Duration::from_millis(500);

/// Where the packages of the workloads are; `scripts/setup.sh` installs them there.
fn packages() -> Result<PathBuf, BenchError> {
    let named = std::env::var_os("MITOSIS_BENCH_VENV").map(PathBuf::from);
    let beside = || Some(own_binary().ok()?.parent()?.parent()?.join("venv"));
    let venv = named.or_else(beside).unwrap_or_default();
    let found = std::fs::read_dir(venv.join("lib")).ok().and_then(|dirs| {
        let sites = dirs.filter_map(Result::ok).map(|dir| dir.path().join("site-packages"));
        sites.into_iter().find(|site| site.is_dir())
    });
    found.ok_or_else(|| {
        let cause = format!(
            "no Python packages at {}: run scripts/setup.sh, or name the virtual environment with \
             MITOSIS_BENCH_VENV",
            venv.display()
        );
        BenchError::wrong("packages", cause)
    })
}

/// Python with those packages, in a container too.
fn python_spec(args: Vec<String>) -> Result<Spec, BenchError> {
    let site = packages()?;
    let env = vec![
        format!("PYTHONPATH={}", site.display()),
        "PYTHONDONTWRITEBYTECODE=1".to_owned(),
        // A function has one processor; more threads would measure the scheduler.
        "OPENBLAS_NUM_THREADS=1".to_owned(),
    ];
    let args = [vec![crate::cluster::PYTHON.to_owned()], args].concat();
    Ok(Spec { args, env, binds: vec![(site, false)] })
}

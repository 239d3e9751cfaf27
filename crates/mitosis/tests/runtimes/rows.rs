//! The rows: what is started and how it is asked.

use std::path::PathBuf;
use std::process::Command;

use mitosis_lab::Node;

use crate::client::{FN_SOCKET, Protocol};
use crate::support::{PORT, root};

/// A runtime with its server.
pub struct Row {
    /// What `MITOSIS_RUNTIMES` calls it.
    pub name: &'static str,
    /// What the table calls it.
    pub title: &'static str,
    pub protocol: Protocol,
    /// The program, with words in braces as [`word`] knows them.
    pub command: &'static [&'static str],
    /// A command that prints its version somewhere, and what comes right before it there.
    pub version: (&'static [&'static str], &'static str),
    /// It has several processes: prepared with `--tree`.
    pub tree: bool,
    /// What is said today instead of forking it.
    pub refused: Option<&'static str>,
}

const PYTHON: (&[&str], &str) = (&["/usr/bin/python3", "--version"], "Python ");
const JAVA: (&[&str], &str) = (&["java", "-version"], "version \"");

const fn http(
    name: &'static str,
    title: &'static str,
    command: &'static [&'static str],
    version: (&'static [&'static str], &'static str),
) -> Row {
    Row { name, title, protocol: Protocol::Http, command, version, tree: false, refused: None }
}

/// All rows, in the order of the table.
pub const ROWS: &[Row] = &[
    http(
        "python",
        "CPython, `http.server` with threads",
        &["/usr/bin/python3", "{fixtures}/http_server.py", "{port}"],
        PYTHON,
    ),
    http(
        "asyncio",
        "CPython, `asyncio` with an executor",
        &["/usr/bin/python3", "{fixtures}/asyncio_executor.py", "{port}"],
        PYTHON,
    ),
    http(
        "numpy",
        "numpy with BLAS threads",
        &["{venv}/python", "{fixtures}/numpy_product.py", "{port}"],
        (&["{venv}/python", "-c", "import numpy; print('numpy', numpy.__version__)"], "numpy "),
    ),
    http(
        "sqlite",
        "SQLite under CPython",
        &["/usr/bin/python3", "{fixtures}/sqlite_memory.py", "{port}"],
        (
            &["/usr/bin/python3", "-c", "import sqlite3; print('sqlite', sqlite3.sqlite_version)"],
            "sqlite ",
        ),
    ),
    Row {
        protocol: Protocol::Fn,
        ..http(
            "fdk-python",
            "Fn project, `fdk` (PyPI)",
            &["{venv}/fdk", "{fixtures}/fdk_python.py", "handler"],
            (
                &[
                    "{venv}/python",
                    "-c",
                    "import importlib.metadata as m; print('fdk', m.version('fdk'))",
                ],
                "fdk ",
            ),
        )
    },
    http(
        "node",
        "Node, `http`",
        &["node", "{fixtures}/node_http.js", "{port}"],
        (&["node", "--version"], "v"),
    ),
    http(
        "perl",
        "Perl, `IO::Socket`",
        &["perl", "{fixtures}/perl_socket.pl", "{port}"],
        (&["perl", "--version"], "(v"),
    ),
    http(
        "ruby",
        "Ruby, WEBrick",
        &["ruby", "{fixtures}/ruby_webrick.rb", "{port}"],
        (&["ruby", "--version"], "ruby "),
    ),
    http(
        "php",
        "PHP, `php -S` with APCu",
        &["php", "-d", "apc.enable_cli=1", "-S", "0.0.0.0:{port}", "{fixtures}/php_apcu.php"],
        (&["php", "--version"], "PHP "),
    ),
    http(
        "go",
        "Go, `net/http`",
        &["{built}/go-http", "{port}"],
        (&["go", "version"], "version go"),
    ),
    http(
        "java-serial",
        "OpenJDK, Serial",
        &["java", "-XX:+UseSerialGC", "-cp", "{built}", "Server", "{port}"],
        JAVA,
    ),
    http(
        "java-g1",
        "OpenJDK, G1",
        &["java", "-XX:+UseG1GC", "-cp", "{built}", "Server", "{port}"],
        JAVA,
    ),
    Row {
        protocol: Protocol::Redis,
        ..http(
            "redis",
            "Redis",
            &[
                "redis-server",
                "--port",
                "{port}",
                "--bind",
                "0.0.0.0",
                "--protected-mode",
                "no",
                "--save",
                "",
            ],
            (&["redis-server", "--version"], "v="),
        )
    },
    Row {
        protocol: Protocol::Nginx,
        ..http(
            "nginx",
            "nginx, one process",
            &["nginx", "-c", "/tmp/runtimes/nginx.conf"],
            (&["nginx", "-v"], "nginx/"),
        )
    },
    Row {
        protocol: Protocol::Nginx,
        tree: true,
        ..http(
            "nginx-workers",
            "nginx, a master and two workers",
            &["nginx", "-c", "/tmp/runtimes/nginx.conf", "-g", "worker_processes 2;"],
            (&["nginx", "-v"], "nginx/"),
        )
    },
    Row {
        tree: true,
        ..http(
            "multiprocessing",
            "CPython, `multiprocessing.Pool`",
            &["/usr/bin/python3", "{fixtures}/pool.py", "{port}"],
            PYTHON,
        )
    },
    Row {
        protocol: Protocol::Postgres,
        tree: true,
        ..http(
            "postgresql",
            "PostgreSQL, a cluster with its processes",
            &[
                "setpriv",
                "--reuid=postgres",
                "--regid=postgres",
                "--init-groups",
                "{postgres}/postgres",
                "-D",
                CLUSTER,
                "-p",
                "{port}",
                "-k",
                "",
                "-c",
                "listen_addresses=*",
            ],
            (&["{postgres}/postgres", "--version"], "(PostgreSQL) "),
        )
    },
    http(
        "tokio",
        "Rust, tokio",
        &["{built}/tokio/release/runtime-tokio", "{port}"],
        (&["cat", "{fixtures}/tokio/Cargo.lock"], "name = \"tokio\"\nversion = \""),
    ),
    Row {
        protocol: Protocol::Fn,
        ..http(
            "fdk-node",
            "Fn project, `@fnproject/fdk` (npm)",
            &["node", "{fixtures}/fdk_node.js"],
            (&["cat", "{built}/node_modules/@fnproject/fdk/package.json"], "\"version\": \""),
        )
    },
];

/// The cluster of PostgreSQL.
pub const CLUSTER: &str = "/tmp/runtimes/cluster";

/// Where Debian puts the programs of the server: by its version, not on PATH.
fn postgres() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let newest = versions.filter_map(|entry| Some(entry.ok()?.path())).max();
    newest.unwrap_or_default().join("bin")
}

/// A cluster that anybody may ask.
fn make_cluster(node: &Node) {
    let line = format!(
        "install -d -o postgres {CLUSTER} && cd {CLUSTER} && \
         setpriv --reuid=postgres --regid=postgres --init-groups {}/initdb -A trust -N -D {CLUSTER} \
         --locale=C.UTF-8 && echo 'host all all all trust' >> {CLUSTER}/pg_hba.conf",
        postgres().display()
    );
    let made = node.sh(&line).unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// The directory that cargo builds into, where `scripts/setup-runtimes.sh` puts the servers too.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn word(word: &str) -> String {
    let path = |path: PathBuf| path.display().to_string();
    word.replace("{port}", &PORT.to_string())
        .replace("{fixtures}", &path(root().join("tests/runtimes")))
        .replace("{venv}", &path(root().join("target/venv/bin")))
        .replace("{postgres}", &path(postgres()))
        .replace("{built}", &path(target().join("runtimes")))
}

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(word(words[0]));
    command.args(words[1..].iter().map(|w| word(w)));
    command
}

impl Row {
    /// The server, ready to be spawned on `node`.
    pub fn server(&self, node: &Node) -> Command {
        if self.protocol == Protocol::Nginx {
            let secret = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
            let text = std::fs::read_to_string(root().join("tests/runtimes/nginx.conf")).unwrap();
            let text = text.replace("\"SECRET\"", &format!("\"{}\"", secret.trim()));
            let text =
                if self.tree { text.replace("master_process off;", "user root;") } else { text };
            std::fs::write(node.host_path("/tmp/runtimes/nginx.conf"), text).unwrap();
        }
        let mut command = command(self.command);
        if self.protocol == Protocol::Postgres {
            make_cluster(node);
            let secret = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
            command.args(["-c", &format!("cluster_name={}", secret.trim())]);
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        if self.protocol == Protocol::Fn {
            command.env("FN_LISTENER", format!("unix:{FN_SOCKET}")).env("FN_FORMAT", "http-stream");
            command.env("FN_FN_ID", "f").env("FN_APP_ID", "a");
            command.env("NODE_PATH", target().join("runtimes/node_modules"));
        }
        command
    }

    /// The version that is installed.
    pub fn version(&self) -> Result<String, String> {
        let (words, before) = self.version;
        let missing = "run scripts/setup-runtimes.sh";
        let output =
            command(words).output().map_err(|e| format!("{}: {e}; {missing}", words[0]))?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let after = text.split_once(before).ok_or_else(|| format!("{text}; {missing}"))?.1;
        let end = |c: char| c.is_whitespace() || "\")-+,".contains(c);
        Ok(after.split(end).next().unwrap_or_default().to_owned())
    }
}

//! Time to first response: from the decision to start a function to its HTTP answer.

use crate::cluster::{ANSWER_BOUND, PYTHON, exchange, python_command};
use crate::container::{Container, Spec};
use crate::error::BenchError;
use mitosis_lab::{LabProcess, Node};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// The function: arguments are the port and the MiB of state.
pub const HELLO: &str = include_str!("python/hello.py");

/// How long to wait before asking again a port at which nobody listens yet.
pub const RETRY: Duration = Duration::from_micros(200);

/// Asks the function once.
pub fn get(stream: TcpStream) -> Result<(), BenchError> {
    get_path(stream, "/first")
}

/// The same; a child of a plain `fork()` of it answers.
pub fn get_of_fork(stream: TcpStream) -> Result<(), BenchError> {
    get_path(stream, "/fork")
}

fn get_path(stream: TcpStream, path: &str) -> Result<(), BenchError> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n");
    let answer =
        exchange(stream, request.as_bytes()).map_err(BenchError::io("response", "HTTP"))?;
    let text = String::from_utf8_lossy(&answer);
    if text.starts_with("HTTP/1.1 200") && text.contains(&format!("\"hello\": \"{path}\"")) {
        return Ok(());
    }
    Err(BenchError::wrong("response", format!("{text:?}")))
}

/// Asks as soon as `connect` succeeds.
pub fn first(mut connect: impl FnMut() -> Result<TcpStream, BenchError>) -> Result<(), BenchError> {
    let end = Instant::now() + ANSWER_BOUND;
    loop {
        match connect() {
            Ok(stream) => return get(stream),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

/// Connects to `port` of `node` as a process of that node.
pub fn local(node: &Node, port: u16) -> Result<TcpStream, BenchError> {
    Ok(node.connect(SocketAddr::new(node.ip(), port), ANSWER_BOUND)?)
}

/// Milliseconds from the spawn of `command` on `node` to the first answer at `port`; the process
/// comes back too.
pub fn timed(node: &Node, command: Command, port: u16) -> Result<(f64, LabProcess), BenchError> {
    let start = Instant::now();
    let process = node.spawn(command)?;
    answered(node, port)?;
    Ok((start.elapsed().as_secs_f64() * 1000.0, process))
}

/// Milliseconds to the first response of the function in a new `python3`.
pub fn python_anew(node: &Node, port: u16, state_mib: &str) -> Result<f64, BenchError> {
    let (ms, mut process) = timed(node, python_command(HELLO, port, &[state_mib]), port)?;
    process.kill()?;
    Ok(ms)
}

/// The function in a container of `runtime`.
pub fn container<'lab>(
    node: &'lab Node,
    runtime: &'static str,
    port: u16,
    state_mib: &str,
) -> Result<Container<'lab>, BenchError> {
    let port = port.to_string();
    let args = [PYTHON, "-c", HELLO, &port, state_mib].map(str::to_owned).to_vec();
    Container::new(node, runtime, "function", &Spec { args, ..Spec::default() })
}

/// One question to what runs on `node`, which may not listen yet.
pub fn answered(node: &Node, port: u16) -> Result<(), BenchError> {
    get(node.connect_soon(SocketAddr::new(node.ip(), port), RETRY, ANSWER_BOUND)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mitosis_lab::Lab;

    #[test]
    fn the_function_answers_from_a_cold_start_of_either_kind() {
        let lab = Lab::new("cold", 1).expect("lab");
        assert!(python_anew(lab.node(0), 7001, "0").expect("python3") > 0.0);
        for runtime in ["runc", "crun"] {
            let container = container(lab.node(0), runtime, 7002, "0").expect("bundle");
            // Twice: the first must have left nothing that the second stumbles over.
            for _ in 0..2 {
                let ms = container.run(|| answered(lab.node(0), 7002)).expect(runtime);
                assert!(ms > 0.0);
            }
        }
    }
}

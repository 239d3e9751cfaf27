//! A function of the Fn project under its kit for Python: from the decision to start one to its answer
//! over its unix socket, beside its cold start in a container.

use super::{REST, python_spec};
use crate::chart::Chart;
use crate::cluster::{ANSWER_BOUND, exchange_unix};
use crate::container::{Container, retry};
use crate::core::Bed;
use crate::error::BenchError;
use crate::report::{Figure, Samples, Section, Target};
use mitosis_lab::Node;
use mitosis_proto::Net;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SOURCE: &str = include_str!("../python/fn.py");

/// The function's directory on each node, and the socket that it is told to listen at.
const DIR: &str = "/run/lab/fn";
/// The kit listens at a path of its own choice beside that, which becomes a link.
const SOCKET: &str = "phonyl.sock";

const REQUEST: &[u8] = b"POST /call HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
    Content-Length: 0\r\nContent-Type: text/plain\r\nFn-Call-Id: 1\r\n\
    Fn-Deadline: 2099-01-01T00:00:00Z\r\n\r\n";

pub fn run(bed: &mut Bed<'_>, section: &mut Section) -> Result<(), BenchError> {
    let (owner, host) = (bed.owner.node, bed.host.node);
    let site = super::packages()?;
    let fdk = site.join("../../../bin/fdk");
    let source = format!("{DIR}/fn.py");
    let args = [fdk.to_string_lossy().into_owned(), source, "handler".to_owned()].to_vec();
    let mut spec = python_spec(args)?;
    let told = format!("FN_LISTENER=unix:{DIR}/l.sock");
    let env = [told.as_str(), "FN_FORMAT=http-stream", "FN_FN_ID=f", "FN_APP_ID=a"];
    spec.env.extend(env.map(str::to_owned));
    spec.binds.extend([(fdk, false), (PathBuf::from(DIR), true)]);
    for node in [owner, host] {
        let dir = node.host_path(DIR);
        let failed = |error| BenchError::io("fdk", dir.display())(error);
        std::fs::create_dir_all(&dir).map_err(failed)?;
        std::fs::write(dir.join("fn.py"), SOURCE).map_err(failed)?;
    }
    let mut parent = owner.spawn(spec.command())?;
    retry(|| ask(owner))?;
    let seed = bed.owner.prepare(parent.node_pid()?)?;
    child(bed, &seed.reference, REST)?;
    let cold: Vec<Container<'_>> = ["runc", "crun"]
        .into_iter()
        .map(|runtime| Container::new(host, runtime, "fdk", &spec))
        .collect::<Result<_, _>>()?;
    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..bed.runs.div_ceil(2) {
        bed.quiet.wait(0);
        times[0].push(anew(host, &spec)?);
        for (container, values) in cold.iter().zip(&mut times[1..]) {
            clear(host)?;
            values.push(container.run(|| ask(host))?);
        }
        bed.host.renew()?;
        bed.quiet.wait(0);
        times[3].push(child(bed, &seed.reference, REST)?);
        for _ in 0..3 {
            times[4].push(child(bed, &seed.reference, Duration::ZERO)?);
        }
    }
    bed.owner.remove(&seed.seed)?;
    parent.kill()?;
    report(section, times.map(|values| Samples::new("ms", values)));
    Ok(())
}

fn report(section: &mut Section, times: [Samples; 5]) {
    let names =
        ["python3 anew", "runc run", "crun run", "first child on a fresh node", "n-th child"];
    let mut chart = Chart::cdf("answer", "time to first response, Fn's kit for Python", "ms");
    let cold = times[1].median();
    for (name, samples) in names.into_iter().zip(times) {
        chart.distribution(name, &samples);
        let figure = Figure::new(format!("first response, {name}"), samples);
        let figure = figure.beside("runc run", cold);
        let promise = Target::RatioMost(1.0 / 50.0);
        section.add(if name == "n-th child" { figure.promised(promise) } else { figure });
    }
    section.charts.push(chart);
}

/// Asks the function on `node` once.
fn ask(node: &Node) -> Result<(), BenchError> {
    let path = node.host_path(DIR).join(SOCKET);
    let answer = exchange_unix(&path, REQUEST, b"{\"hello\": \"fn\"}");
    answer.map(drop).map_err(BenchError::io("fdk", path.display()))
}

/// Nobody is to be asked through the socket of another function.
fn clear(node: &Node) -> Result<(), BenchError> {
    for name in [SOCKET, "l.sock"] {
        let path = node.host_path(DIR).join(name);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(BenchError::io("fdk", path.display())(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn anew(node: &Node, spec: &crate::container::Spec) -> Result<f64, BenchError> {
    clear(node)?;
    let start = Instant::now();
    let mut process = node.spawn(spec.command())?;
    retry(|| ask(node))?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    process.kill()?;
    Ok(ms)
}

fn child(bed: &Bed<'_>, reference: &str, rest: Duration) -> Result<f64, BenchError> {
    let node = bed.host.node;
    clear(node)?;
    let start = Instant::now();
    let child = bed.host.fork(reference, Net::Node)?;
    retry(|| ask(node))?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    std::thread::sleep(rest);
    bed.host.end(child.pid)?;
    // The node holds the listener for a moment more; the next child is to have one of its own.
    let path = node.host_path(DIR).join(SOCKET);
    let end = Instant::now() + ANSWER_BOUND;
    while UnixStream::connect(&path).is_ok() {
        if Instant::now() > end {
            return Err(BenchError::wrong("fdk", "the socket of an ended child stays open"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(ms)
}

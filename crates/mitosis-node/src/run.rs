//! The life of a daemon.

use crate::config::Config;
use crate::error::NodeError;
use crate::hashes::{Hashes, usual_files};
use crate::log::Log;
use crate::node::{Node, Parts};
use crate::pager::Pager;
use crate::store::Store;
use crate::{adopt, control, watch};
use mitosis_restore::NodeFacts;
use mitosis_transport::{SeedService, ServerConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Runs the daemon of a node until it is told to end.
///
/// Told by a signal, it ends its pager too when it has neither seeds nor children; else it leaves
/// them to the pager for the linger, for a daemon that comes after it.
///
/// # Errors
/// [`NodeError`] when it cannot start: a daemon already runs there, a privilege or a kernel
/// feature is missing, an address is taken.
pub fn run(config: Config) -> Result<(), NodeError> {
    if let Some(mistake) = config.mistake() {
        return Err(NodeError::Usage(mistake));
    }
    // Everything that the daemon creates is its owner's alone.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    if let Some(missing) = crate::check::missing() {
        return Err(NodeError::control(
            missing.name,
            format!("{}; {}", missing.reason, missing.knob),
        ));
    }
    mitosis_sys::warm::up();
    raise_limits();
    crate::generation::publish()?;
    let path = config.socket.clone();
    let made = missing_directories(&path);
    let done = control::bind(&path).and_then(|socket| {
        let done = with_socket(config, &socket);
        if done.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        done
    });
    // Those that are not empty stay: another daemon, or one to come, has something there.
    for dir in made {
        let _ = std::fs::remove_dir(dir);
    }
    done
}

/// Directories above the socket that are not there yet, the innermost first: they go with the daemon.
fn missing_directories(socket: &Path) -> Vec<PathBuf> {
    let above = socket.ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty());
    above.take_while(|dir| !dir.exists()).map(Path::to_path_buf).collect()
}

/// Children, guards and connections cost descriptors; and no child can have a higher hard limit than
/// what makes it. A daemon that may not raise its own leaves them as they are: there is room for fewer.
fn raise_limits() {
    for resource in RESOURCES {
        let Rlimit { current, .. } = getrlimit(resource);
        let _ = setrlimit(resource, Rlimit { current, maximum: None });
    }
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open");
    let most = most.ok().and_then(|text| text.trim().parse().ok());
    let set = |most| setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most });
    if most.is_none() || set(most).is_err() {
        let _ = set(getrlimit(Resource::Nofile).maximum);
    }
}

/// All but descriptors, which have a bound of their own.
const RESOURCES: [Resource; 15] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

fn with_socket(config: Config, socket: &UnixListener) -> Result<(), NodeError> {
    let state = config.state_dir.clone();
    let listen = config.listen;
    let pages = TcpListener::bind(listen)
        .map_err(|e| NodeError::control(format!("--listen {listen}"), e))?;
    // After that: what is refused leaves no directory behind.
    let store = Store::open(&state, config.run_path("children"), Log(config.log_level))?;
    let bound = pages.local_addr().map_err(|e| NodeError::control("--listen", e))?;
    let (ended, end) = sync_channel(4);
    let (templates, jobs) = crate::template::Templates::new()?;
    let node = Arc::new(Node::new(Parts {
        address: config.advertise.clone().unwrap_or_else(|| bound.to_string()),
        hashes: Hashes::start(usual_files()).map_err(|e| NodeError::control("thread", e))?,
        facts: NodeFacts::read()?,
        store,
        templates,
        stop: Arc::new(AtomicBool::new(false)),
        ended: ended.clone(),
        config,
    }));
    if let Some(why) = node.times.impossible() {
        node.log.warn(format_args!("no time namespaces, monotonic clocks of children jump: {why}"));
    }
    crate::rdma::set_up(&node.seeds, &node.config)?;
    signals(&ended)?;
    let pager = Arc::new(Pager::start(&node.config)?);
    adopt::seeds(&node, &pager);
    adopt::children(&node, &pager);
    node.pager.set(Some(pager));
    let threads = threads(&node, pages, socket, jobs)?;
    node.log.info(format_args!(
        "node {} serves {} and listens at {}",
        node.config.name,
        node.address,
        node.config.socket.display()
    ));
    // Ends with an error only if nobody is left who could end the daemon.
    let _ = end.recv();
    finish(&node);
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// SIGTERM and SIGINT end the daemon; a closed terminal does too.
fn signals(ended: &SyncSender<()>) -> Result<(), NodeError> {
    let mut signals = signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP])
        .map_err(|e| NodeError::control("signals", e))?;
    let ended = ended.clone();
    let thread = std::thread::Builder::new().name("signals".into());
    let watch = move || {
        for _ in signals.forever() {
            let _ = ended.try_send(());
        }
    };
    thread.spawn(watch).map(drop).map_err(|e| NodeError::control("thread", e))
}

fn threads(
    node: &Arc<Node>,
    pages: TcpListener,
    socket: &UnixListener,
    jobs: crate::template::Jobs,
) -> Result<Vec<JoinHandle<()>>, NodeError> {
    let thread = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let builder = std::thread::Builder::new().name(name.to_owned());
        builder.spawn(work).map_err(|e| NodeError::control("thread", e))
    };
    let service: Arc<dyn SeedService> = Arc::clone(&node.seeds) as Arc<dyn SeedService>;
    let socket = socket.try_clone().map_err(|e| NodeError::control("socket", e))?;
    let (a, b, c, d) = (node.clone(), node.clone(), node.clone(), node.clone());
    let (e, f) = (node.clone(), node.clone());
    Ok(vec![
        thread("pager-watch", Box::new(move || watch::pager(&a)))?,
        thread("time", Box::new(move || watch::time(&b)))?,
        thread("peers", Box::new(move || crate::peers::stand(&f)))?,
        thread("templates", Box::new(move || crate::template::work(&e, &jobs)))?,
        thread("control", Box::new(move || control::serve(&c, &socket)))?,
        thread(
            "pages",
            Box::new(move || {
                let config = ServerConfig::default();
                let served = mitosis_transport::serve(pages, service, config, d.stop.clone());
                d.note("page server", served);
                d.pages_closed.store(true, Ordering::Release);
            }),
        )?,
    ])
}

/// Ends the daemon: everything, or only itself.
fn finish(node: &Node) {
    if node.stopping() {
        return;
    }
    let (seeds, children) = (node.seeds.all().len(), node.children.live().len());
    if seeds == 0 && children == 0 {
        node.end_everything();
        node.log.info("ended");
        return;
    }
    node.stop.store(true, Ordering::Release);
    node.templates.clear();
    let _ = std::fs::remove_file(&node.config.socket);
    node.log.info(format_args!(
        "leaving {children} children and {seeds} seeds to the pager for {} s",
        node.config.linger.as_secs()
    ));
    // Ends the guards that wait for a child; those that have one stay with the pager.
    drop(node.pager.set(None));
}

//! The owner's side: one blocking thread per connection, because a hand-over costs more than a
//! read.

use crate::SeedService;
use crate::session::Session;
use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a blocked connection looks at the stop flag.
pub(crate) const TICK: Duration = Duration::from_millis(500);
/// How often the listener does.
const TICK_ACCEPT: Duration = Duration::from_millis(100);

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Most connections at once; further ones are closed at once.
    pub connections_max: usize,
    /// Time for the first frame of a connection.
    pub handshake_timeout: Duration,
    /// A connection that sends nothing for so long is closed.
    pub idle_timeout: Duration,
    /// A peer that takes no answer for so long is cut off.
    pub send_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            connections_max: 256,
            handshake_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(300),
            send_timeout: Duration::from_secs(20),
        }
    }
}

/// Live connections, so that a stop can end them.
#[derive(Default)]
struct Connections {
    count: AtomicUsize,
    next: AtomicUsize,
    streams: Mutex<HashMap<usize, TcpStream>>,
}

impl Connections {
    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a connection from the table however its thread ends.
struct Registered {
    all: Arc<Connections>,
    id: usize,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.streams().remove(&self.id);
        self.all.count.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Serves the seeds of a node until `stop` is set; then ends all connections and returns.
///
/// # Errors
/// If the listener itself fails. Trouble with one connection ends that connection only.
pub fn serve(
    listener: TcpListener,
    service: Arc<dyn SeedService>,
    config: ServerConfig,
    stop: Arc<AtomicBool>,
) -> io::Result<()> {
    let all = Arc::new(Connections::default());
    listener.set_nonblocking(true)?;
    while !stop.load(Ordering::Acquire) {
        if !readable(&listener, TICK_ACCEPT)? {
            continue;
        }
        match listener.accept() {
            Ok((stream, _)) => admit(stream, &all, &service, &config, &stop),
            // The peer may be gone again, or descriptors short for a moment: go on either way.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
    for stream in all.streams().values() {
        let _ = stream.shutdown(Shutdown::Both);
    }
    // Bounded: a shut-down socket ends its thread's next call.
    let deadline = Instant::now() + Duration::from_secs(5);
    while all.count.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn readable(listener: &TcpListener, timeout: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(listener, PollFlags::IN)];
    let timeout = Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn admit(
    stream: TcpStream,
    all: &Arc<Connections>,
    service: &Arc<dyn SeedService>,
    config: &ServerConfig,
    stop: &Arc<AtomicBool>,
) {
    if all.count.fetch_add(1, Ordering::AcqRel) >= config.connections_max {
        all.count.fetch_sub(1, Ordering::AcqRel);
        return;
    }
    let id = all.next.fetch_add(1, Ordering::Relaxed);
    let registered = Registered { all: Arc::clone(all), id };
    if let Ok(copy) = stream.try_clone() {
        all.streams().insert(id, copy);
    }
    let (service, config, stop) = (Arc::clone(service), config.clone(), Arc::clone(stop));
    // A thread that cannot be started drops its closure, and so the connection.
    let _ = std::thread::Builder::new().name("page-server".into()).stack_size(256 << 10).spawn(
        move || {
            let _registered = registered;
            if let Ok(mut session) = Session::new(stream, service, config, stop) {
                // The reason a connection ended is of no use here: its peer sees it end.
                let _ = session.run();
            }
        },
    );
}

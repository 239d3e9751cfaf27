//! The control socket: one thread for each connection, one request at a time.

use crate::error::NodeError;
use crate::fork::{self, Stdio};
use crate::node::Node;
use crate::prepare;
use mitosis_descriptor::{Reference, SeedId};
use mitosis_proto::{Connection, ErrorCode, Exited, LogInfo, NodeInfo, Reply, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{self, Timeout};
use rustix::process::Signal;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Most connections at once.
const CONNECTIONS_MAX: usize = 512;
/// How many threads wait for connections.
const WAITING: usize = 4;
/// How often a wait looks whether its caller is still there.
const TICK: Duration = Duration::from_millis(200);

/// Binds the control socket. Replaces one that nobody answers at, nothing else.
///
/// # Errors
/// A daemon answers there already, or the path cannot be bound.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, NodeError> {
    let shown = path.display().to_string();
    make_directory(path)?;
    match UnixStream::connect(path) {
        Ok(_) => {
            let cause = format!("a node is already running at {shown}");
            return Err(NodeError::control("socket", cause));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(_) => remove_stale(path, &shown)?,
    }
    // The umask is 077: nobody else can connect, from the first moment.
    let listener = match UnixListener::bind(path) {
        // A daemon that was ending has just removed the directory, which it had made.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            make_directory(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    };
    let listener = listener.map_err(|e| NodeError::control(shown.as_str(), e))?;
    let owner_only = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, owner_only).map_err(|e| NodeError::control(shown, e))?;
    Ok(listener)
}

fn make_directory(socket: &Path) -> Result<(), NodeError> {
    let Some(dir) = socket.parent() else { return Ok(()) };
    std::fs::create_dir_all(dir).map_err(|e| NodeError::control(dir.display().to_string(), e))
}

fn remove_stale(path: &Path, shown: &str) -> Result<(), NodeError> {
    use std::os::unix::fs::FileTypeExt;
    let meta = std::fs::symlink_metadata(path).map_err(|e| NodeError::control(shown, e))?;
    if !meta.file_type().is_socket() {
        return Err(NodeError::control(shown, "exists and is no socket"));
    }
    std::fs::remove_file(path).map_err(|e| NodeError::control(shown, e))
}

/// Who takes connections, and how many there are.
struct Desk {
    listener: UnixListener,
    open: AtomicUsize,
    idle: AtomicUsize,
}

/// Takes connections until the daemon ends. Each thread that waits for one answers it: a thread made
/// for it, or a second one that is woken, would be on the path of each request.
pub(crate) fn serve(node: &Arc<Node>, listener: &UnixListener) {
    let idle = AtomicUsize::new(0);
    let ready = listener.try_clone().and_then(|listener| {
        sockopt::set_socket_timeout(&listener, Timeout::Recv, Some(TICK))?;
        Ok(Arc::new(Desk { listener, open: AtomicUsize::new(0), idle }))
    });
    let desk = match ready {
        Ok(desk) => desk,
        Err(e) => return node.log.error(format_args!("control: {e}")),
    };
    for _ in 0..WAITING {
        hire(node, &desk);
    }
    // Not one of them: a caller may keep its connection for longer than the daemon lives.
    while !node.stopping() {
        std::thread::sleep(TICK);
    }
}

fn hire(node: &Arc<Node>, desk: &Arc<Desk>) {
    let (node, desk) = (Arc::clone(node), Arc::clone(desk));
    let work = move || attend_desk(&node, &desk);
    // Without it there are fewer that wait, until one of them is free again.
    let _ = std::thread::Builder::new().name("control".into()).spawn(work);
}

fn attend_desk(node: &Arc<Node>, desk: &Arc<Desk>) {
    while !node.stopping() {
        let idle = desk.idle.fetch_add(1, Ordering::AcqRel) + 1;
        if idle > WAITING {
            desk.idle.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let accepted = desk.listener.accept();
        let arrived = Instant::now();
        let idle = desk.idle.fetch_sub(1, Ordering::AcqRel) - 1;
        let Ok((stream, _)) = accepted else { continue };
        if idle == 0 {
            hire(node, desk);
        }
        if desk.open.fetch_add(1, Ordering::AcqRel) < CONNECTIONS_MAX {
            converse(node, Connection::new(stream), arrived);
        } else {
            let reply = failed("control: too many connections");
            let _ = Connection::new(stream).send(&reply, &[]);
        }
        desk.open.fetch_sub(1, Ordering::AcqRel);
    }
}

fn failed(message: impl Into<String>) -> Reply {
    Reply::Error { code: ErrorCode::Failed, message: message.into() }
}

fn error(error: &NodeError) -> Reply {
    let code = if error.is_usage() { ErrorCode::Usage } else { ErrorCode::Failed };
    // One line, whatever the cause said.
    Reply::Error { code, message: error.to_string().replace('\n', " ") }
}

fn converse(node: &Arc<Node>, mut connection: Connection, arrived: Instant) {
    let mut first = Some(arrived);
    loop {
        let (request, fds) = match connection.receive::<Request>() {
            Ok(received) => received,
            Err(mitosis_proto::ConnectionError::Malformed(e)) => {
                let message = format!("control: malformed request: {e}");
                let _ = connection.send(&Reply::Error { code: ErrorCode::Usage, message }, &[]);
                return;
            }
            Err(_) => return,
        };
        // The time of the first request runs from the connection: a caller feels that too.
        let arrived = first.take().unwrap_or_else(Instant::now);
        let stopping = request == Request::Stop;
        if answer(node, &mut connection, request, fds, arrived).is_err() {
            return;
        }
        if stopping {
            let _ = node.ended.try_send(());
            return;
        }
    }
}

/// The caller is gone.
struct Gone;

impl From<mitosis_proto::ConnectionError> for Gone {
    fn from(_: mitosis_proto::ConnectionError) -> Gone {
        Gone
    }
}

fn answer(
    node: &Arc<Node>,
    connection: &mut Connection,
    request: Request,
    fds: Vec<OwnedFd>,
    arrived: Instant,
) -> Result<(), Gone> {
    let reply = match request {
        Request::Node => Reply::Node(info(node)),
        Request::Prepare(request) => match prepare::prepare(node, request, arrived) {
            Ok(prepared) => return hand_over(node, connection, prepared),
            Err(e) => error(&e),
        },
        Request::Fork(request) => return fork(node, connection, &request, fds, arrived),
        Request::Seeds => {
            let all = node.seeds.all();
            let roots = all.iter().filter(|seed| seed.tree.is_none());
            Reply::Seeds(roots.map(|seed| node.seeds.row(seed)).collect())
        }
        Request::Seed { seed } => match find(node, &seed) {
            Ok(id) => {
                Reply::Seeds(node.seeds.get(id).iter().map(|seed| node.seeds.row(seed)).collect())
            }
            Err(e) => error(&e),
        },
        Request::RemoveSeed { seed } => match find(node, &seed).and_then(|id| node.revoke(id)) {
            Ok(()) => Reply::Done,
            Err(e) => error(&e),
        },
        Request::Children => {
            node.refresh();
            Reply::Children(node.children.rows())
        }
        Request::Wait { pid } => wait(node, connection, pid)?,
        Request::Kill { pid, signal } => kill(node, pid, signal),
        Request::Logs { pid } => return logs(node, connection, pid),
        Request::Stop => {
            node.log.info("stopping: all children and seeds end");
            node.end_everything();
            Reply::Done
        }
    };
    Ok(connection.send(&reply, &[])?)
}

/// Tells a caller of its seed. Nobody else has the reference: with a caller that has gone it goes, too.
fn hand_over(
    node: &Node,
    connection: &mut Connection,
    prepared: mitosis_proto::Prepared,
) -> Result<(), Gone> {
    let seed = prepared.seed.parse::<SeedId>();
    let told = connection.send(&Reply::Prepared(prepared), &[]).map_err(Gone::from);
    if let (Err(_), Ok(seed)) = (&told, seed) {
        node.note("remove the seed of a caller that went away", node.revoke(seed));
    }
    told
}

fn info(node: &Node) -> NodeInfo {
    NodeInfo {
        name: node.config.name.clone(),
        address: node.address.clone(),
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        pager_pid: node.pager.now().and_then(|pager| i32::try_from(pager.client.pid()).ok()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        children: node.children.running(),
    }
}

/// A seed of this node by reference or public id. A reference must be right in every part.
fn find(node: &Node, text: &str) -> Result<SeedId, NodeError> {
    let unknown = || NodeError::control("seed", "no such seed on this node");
    if let Ok(id) = text.parse::<SeedId>() {
        return node.seeds.get(id).map(|seed| seed.id).ok_or_else(unknown);
    }
    let reference: Reference =
        text.parse().map_err(|_| NodeError::Usage("neither a reference nor a seed's id".into()))?;
    let seed = node.seeds.find(reference.seed, &reference.secret).map_err(|_| unknown())?;
    Ok(seed.id)
}

fn no_child(pid: i32) -> Reply {
    failed(format!("control: pid {pid}: no child of this node"))
}

/// Waits as long as the child runs and the caller is there.
fn wait(node: &Node, connection: &Connection, pid: i32) -> Result<Reply, Gone> {
    loop {
        match node.children.wait(pid, TICK) {
            None => return Ok(no_child(pid)),
            Some(Some(end)) => return Ok(Reply::Exited(end)),
            Some(None) if hung_up(connection) || node.stopping() => return Err(Gone),
            Some(None) => {}
        }
    }
}

fn hung_up(connection: &Connection) -> bool {
    let mut fds = [PollFd::new(connection.stream(), PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}

fn kill(node: &Node, pid: i32, signal: i32) -> Reply {
    let Some(named) = Signal::from_named_raw(signal) else {
        return Reply::Error {
            code: ErrorCode::Usage,
            message: format!("control: signal {signal}: not one that can be sent"),
        };
    };
    match node.children.signal(pid, named) {
        None => no_child(pid),
        Some(Ok(())) => Reply::Done,
        Some(Err(rustix::io::Errno::SRCH)) => failed(format!("control: child {pid} has ended")),
        Some(Err(e)) => failed(format!("control: child {pid}: {e}")),
    }
}

fn logs(node: &Node, connection: &mut Connection, pid: i32) -> Result<(), Gone> {
    let Some(path) = node.children.log_of(pid) else {
        return Ok(connection.send(&no_child(pid), &[])?);
    };
    let opened = match File::open(&path) {
        // A child on its caller's terminal has no log, unless something was said about its end.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => File::open("/dev/null"),
        opened => opened,
    };
    match opened.and_then(|file| Ok((crate::logs::begin(&file)?, file))) {
        Ok((bytes, file)) => {
            Ok(connection.send(&Reply::Log(LogInfo { pid, bytes }), &[file.as_fd()])?)
        }
        Err(e) => {
            let reply = failed(format!("control: log of child {pid}: {e}"));
            Ok(connection.send(&reply, &[])?)
        }
    }
}

fn fork(
    node: &Arc<Node>,
    connection: &mut Connection,
    request: &mitosis_proto::ForkRequest,
    fds: Vec<OwnedFd>,
    arrived: Instant,
) -> Result<(), Gone> {
    let stdio = match (request.attach, <[OwnedFd; 3]>::try_from(fds)) {
        (true, Ok(fds)) => Stdio::Caller(fds),
        (true, Err(_)) => {
            let message = "control: fork: attach without three descriptors".to_owned();
            let reply = Reply::Error { code: ErrorCode::Usage, message };
            return Ok(connection.send(&reply, &[])?);
        }
        (false, _) => Stdio::Log,
    };
    let forked = match fork::fork(node, request, &stdio, arrived) {
        Ok(forked) => forked,
        Err(e) => return Ok(connection.send(&error(&e), &[])?),
    };
    // The child has them; with a copy here its caller would never see the end of a pipe.
    drop(stdio);
    let pids: Vec<i32> = forked.children.iter().map(|child| child.pid).collect();
    let sent = connection.send(&Reply::Forked(forked), &[]).map_err(Gone::from);
    let attended = match request.attach {
        true => sent.and_then(|()| attend(node, connection, &pids)),
        false => sent,
    };
    if attended.is_err() && !node.stopping() {
        for id in pids.iter().filter_map(|pid| node.children.id_of(*pid)) {
            node.end_child(id, "its caller went away");
        }
    }
    attended
}

/// Tells the caller of the end of each of its children, in the order of their ends.
fn attend(node: &Node, connection: &mut Connection, pids: &[i32]) -> Result<(), Gone> {
    let mut left = pids.to_vec();
    while let Some(first) = left.first().copied() {
        // Waits on one; looks at all, so that no end waits for an earlier child's.
        let limit = if left.len() == 1 { TICK } else { Duration::from_millis(20) };
        let mut ends: Vec<Exited> =
            node.children.wait(first, limit).flatten().into_iter().collect();
        let others = left.iter().skip(1);
        ends.extend(others.filter_map(|pid| node.children.wait(*pid, Duration::ZERO).flatten()));
        left.retain(|pid| !ends.iter().any(|end| end.pid == *pid));
        for end in ends {
            connection.send(&Reply::Exited(end), &[])?;
        }
        if hung_up(connection) || node.stopping() {
            return Err(Gone);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let path = std::env::temp_dir().join(format!("mitosis-bind-{}.sock", std::process::id()));
        let first = bind(&path).unwrap();
        let second = bind(&path).unwrap_err();
        assert!(second.to_string().contains("already running at"), "{second}");
        drop(first);
        let third = bind(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(third.is_ok());
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let path = std::env::temp_dir().join(format!("mitosis-file-{}", std::process::id()));
        std::fs::write(&path, "precious").unwrap();
        let refused = bind(&path).unwrap_err();
        let kept = std::fs::read_to_string(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(refused.to_string().contains("no socket"));
        assert_eq!(kept.unwrap(), "precious");
    }
}

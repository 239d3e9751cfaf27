//! A blocking client: one method per request.

use crate::{
    ChildRow, Connection, ConnectionError, ErrorCode, Exited, ForkRequest, Forked, ForkedChild,
    LogInfo, NodeInfo, PrepareRequest, Prepared, Reply, Request, SeedRow,
};
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("control: no node at {path}: {source}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The node refused or failed; the message is its own.
    #[error("{message}")]
    Node {
        /// Whose mistake it was.
        code: ErrorCode,
        /// One line for people.
        message: String,
    },
    /// The node answered something else.
    #[error("control: unexpected reply to {0}")]
    Unexpected(&'static str),
}

/// A connection to the daemon of a node.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
}

/// Children whose stdio, signals and exit status are the caller's.
#[derive(Debug)]
pub struct Attached {
    /// The children.
    pub children: Vec<ForkedChild>,
    connection: Connection,
}

macro_rules! expect {
    ($what:literal, $reply:expr, $pattern:pat => $value:expr) => {
        match $reply {
            $pattern => Ok($value),
            Reply::Error { code, message } => Err(ClientError::Node { code, message }),
            _ => Err(ClientError::Unexpected($what)),
        }
    };
}

impl Client {
    /// Connects to the control socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Connect`] when nobody listens there.
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        Ok(Client { connection: Connection::new(stream) })
    }

    /// The connection, for setting timeouts.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    fn call(
        &mut self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.connection.send(request, fds)?;
        Ok(self.connection.receive()?)
    }

    /// Who answers here.
    ///
    /// # Errors
    /// As every method: [`ClientError`].
    pub fn node(&mut self) -> Result<NodeInfo, ClientError> {
        expect!("node", self.call(&Request::Node, &[])?.0, Reply::Node(info) => info)
    }

    /// Makes a seed of a running process.
    ///
    /// # Errors
    /// [`ClientError::Node`] when the process cannot be captured; it then runs on untouched.
    pub fn prepare(&mut self, request: PrepareRequest) -> Result<Prepared, ClientError> {
        let reply = self.call(&Request::Prepare(request), &[])?.0;
        expect!("prepare", reply, Reply::Prepared(prepared) => prepared)
    }

    /// Starts children that do not depend on this caller.
    ///
    /// # Errors
    /// [`ClientError::Node`]; no child is left of a call that failed.
    pub fn fork(&mut self, request: ForkRequest) -> Result<Forked, ClientError> {
        let request = ForkRequest { attach: false, ..request };
        let reply = self.call(&Request::Fork(request), &[])?.0;
        expect!("fork", reply, Reply::Forked(forked) => forked)
    }

    /// Starts children on the given stdin, stdout and stderr.
    ///
    /// # Errors
    /// [`ClientError::Node`]; no child is left of a call that failed.
    pub fn fork_attached(
        mut self,
        request: ForkRequest,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<Attached, ClientError> {
        let request = ForkRequest { attach: true, ..request };
        let reply = self.call(&Request::Fork(request), &stdio)?.0;
        let forked = expect!("fork", reply, Reply::Forked(forked) => forked)?;
        Ok(Attached { children: forked.children, connection: self.connection })
    }

    /// Seeds of this node.
    ///
    /// # Errors
    /// As every method: [`ClientError`].
    pub fn seeds(&mut self) -> Result<Vec<SeedRow>, ClientError> {
        expect!("seed ls", self.call(&Request::Seeds, &[])?.0, Reply::Seeds(rows) => rows)
    }

    /// One seed of this node, by reference or public id.
    ///
    /// # Errors
    /// [`ClientError::Node`] when there is none.
    pub fn seed(&mut self, seed: &str) -> Result<SeedRow, ClientError> {
        let reply = self.call(&Request::Seed { seed: seed.to_owned() }, &[])?.0;
        let mut rows = expect!("seed", reply, Reply::Seeds(rows) => rows)?;
        rows.pop().ok_or(ClientError::Unexpected("seed"))
    }

    /// Revokes a seed of this node, by reference or public id.
    ///
    /// # Errors
    /// [`ClientError::Node`] when there is none.
    pub fn remove_seed(&mut self, seed: &str) -> Result<(), ClientError> {
        let reply = self.call(&Request::RemoveSeed { seed: seed.to_owned() }, &[])?.0;
        expect!("seed rm", reply, Reply::Done => ())
    }

    /// Children of this node, ended ones too for a bounded time.
    ///
    /// # Errors
    /// As every method: [`ClientError`].
    pub fn children(&mut self) -> Result<Vec<ChildRow>, ClientError> {
        expect!("ps", self.call(&Request::Children, &[])?.0, Reply::Children(rows) => rows)
    }

    /// Waits until a child has ended.
    ///
    /// # Errors
    /// [`ClientError::Node`] when there is no such child.
    pub fn wait(&mut self, pid: i32) -> Result<Exited, ClientError> {
        expect!("wait", self.call(&Request::Wait { pid }, &[])?.0, Reply::Exited(end) => end)
    }

    /// Sends a signal to a child.
    ///
    /// # Errors
    /// [`ClientError::Node`] when there is no such child, or it has ended.
    pub fn kill(&mut self, pid: i32, signal: i32) -> Result<(), ClientError> {
        let reply = self.call(&Request::Kill { pid, signal }, &[])?.0;
        expect!("kill", reply, Reply::Done => ())
    }

    /// The log of a child, open for reading.
    ///
    /// # Errors
    /// [`ClientError::Node`] when there is no such child.
    pub fn logs(&mut self, pid: i32) -> Result<(LogInfo, File), ClientError> {
        let (reply, mut fds) = self.call(&Request::Logs { pid }, &[])?;
        let info = expect!("logs", reply, Reply::Log(info) => info)?;
        let fd = fds.pop().ok_or(ClientError::Unexpected("logs"))?;
        Ok((info, File::from(fd)))
    }

    /// Ends every child and seed of the node, its pager and the daemon.
    ///
    /// # Errors
    /// As every method: [`ClientError`].
    pub fn stop(&mut self) -> Result<(), ClientError> {
        expect!("stop", self.call(&Request::Stop, &[])?.0, Reply::Done => ())
    }
}

impl Attached {
    /// Waits for the end of one more of the children.
    ///
    /// # Errors
    /// [`ConnectionError::Closed`] when the daemon went away: the child may live on, and
    /// [`Client::wait`] on a new connection finds it.
    pub fn wait(&mut self) -> Result<Exited, ClientError> {
        let reply = self.connection.receive()?.0;
        expect!("wait", reply, Reply::Exited(end) => end)
    }
}

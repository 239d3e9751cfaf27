//! Asking a server, from outside, in the protocol that it speaks.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use mitosis_lab::Node;

use crate::support::{PORT, SOON};

/// The sum of the squares below 1000: what each server computes anew for each answer.
const WORK: &str = "332833500";

/// Where a function of the Fn project is told to listen.
pub const FN_SOCKET: &str = "/tmp/runtimes/fn/l.sock";

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP on [`PORT`].
    Http,
    /// HTTP over a unix socket, as the Fn project's agent speaks it.
    Fn,
    /// Redis: the state is two keys, the work a script in Lua.
    Redis,
    /// nginx: the state is a text of its configuration and its counter of requests.
    Nginx,
    /// PostgreSQL: the state is a parameter of the server and a sequence that is not logged, which is
    /// counted in its shared memory.
    Postgres,
}

/// An answer. Its third part, the work, has been found right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the server drew or was told once, when it started.
    pub secret: String,
    /// Questions answered, this one included, times [`Protocol::step`].
    pub count: u64,
}

impl Protocol {
    /// By how much one question raises the count.
    pub fn step(self) -> u64 {
        if self == Self::Nginx { 2 } else { 1 }
    }

    /// Asks what runs on `node` once, over a new connection.
    pub fn ask(self, node: &Node) -> Result<Answer, String> {
        let answer = match self {
            Self::Http => parse(&http(node, "/", WORK)?),
            Self::Fn => parse(&function(node)?),
            Self::Redis => redis(node),
            Self::Nginx => nginx(node),
            Self::Postgres => query(node, ANSWER).and_then(|text| postgres(&text)),
        };
        answer.map_err(|error| format!("{}: {error}", node.name()))
    }

    /// Gives a server its state, where it has none of its own.
    pub fn begin(self, node: &Node) -> Result<(), String> {
        if self == Self::Redis {
            let secret = std::fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
            let text = exchange(connect(node)?, &format!("SET secret {secret}\r\n"), "+OK")?;
            return if text.starts_with("+OK") { Ok(()) } else { Err(text) };
        }
        if self == Self::Postgres {
            query(node, "CREATE UNLOGGED SEQUENCE IF NOT EXISTS count")?;
            // From here on nothing is written to the cluster's files.
            query(node, "CHECKPOINT")?;
        }
        Ok(())
    }
}

/// A connection.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn connect(node: &Node) -> Result<Box<dyn Stream>, String> {
    let stream = node.connect(SocketAddr::new(node.ip(), PORT), SOON);
    let stream = stream.map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    Ok(Box::new(stream))
}

/// Sends `question` and reads until `end` has come with what follows it at once, or all of it.
fn exchange(
    mut stream: Box<dyn Stream>,
    question: impl AsRef<[u8]>,
    end: &str,
) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("no answer: {error}");
    stream.write_all(question.as_ref()).map_err(failed)?;
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&all);
        if !end.is_empty() && text.contains(end) {
            return Ok(text.into_owned());
        }
        match stream.read(&mut piece) {
            Ok(0) if all.is_empty() => return Err("the connection was closed unanswered".into()),
            Ok(0) => return Ok(String::from_utf8_lossy(&all).into_owned()),
            Ok(n) => all.extend_from_slice(&piece[..n]),
            Err(error) => return Err(failed(error)),
        }
    }
}

fn http(node: &Node, path: &str, end: &str) -> Result<String, String> {
    exchange(connect(node)?, &format!("GET {path} HTTP/1.0\r\nHost: lab\r\n\r\n"), end)
}

/// The kits listen on a path of their own choice beside the one they were told, which is a link.
pub fn link_target(node: &Node) -> Option<std::path::PathBuf> {
    std::fs::read_link(node.host_path(FN_SOCKET)).ok()
}

fn function(node: &Node) -> Result<String, String> {
    let target = link_target(node).ok_or("no socket")?;
    let path = Path::new(FN_SOCKET).with_file_name(target.file_name().ok_or("a bad link")?);
    let stream = UnixStream::connect(node.host_path(path)).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(SOON)).unwrap();
    let question = "POST /call HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                    Content-Length: 0\r\nContent-Type: text/plain\r\nFn-Call-Id: 1\r\n\
                    Fn-Deadline: 2099-01-01T00:00:00Z\r\n\r\n";
    exchange(Box::new(stream), question, WORK)
}

/// `SECRET COUNT WORK` within an answer, whatever is around it.
fn parse(text: &str) -> Result<Answer, String> {
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let words: Vec<&str> = body.split(['"', ' ', '\r', '\n']).filter(|w| !w.is_empty()).collect();
    let at = words.iter().position(|word| *word == WORK).filter(|at| *at >= 2);
    let at = at.ok_or_else(|| format!("a wrong answer: {text}"))?;
    let count = words[at - 1].parse().map_err(|_| format!("a wrong answer: {text}"))?;
    Ok(Answer { secret: words[at - 2].to_owned(), count })
}

fn redis(node: &Node) -> Result<Answer, String> {
    let question = "INCR count\r\nGET secret\r\n\
                    EVAL \"local s = 0 for i = 0, 999 do s = s + i * i end return s\" 0\r\nQUIT\r\n";
    let text = exchange(connect(node)?, question, "")?;
    let lines: Vec<&str> = text.lines().collect();
    match lines[..] {
        [count, _, secret, work, "+OK"] if work.strip_prefix(':') == Some(WORK) => {
            let count = count.trim_start_matches(':').parse();
            Ok(Answer { secret: secret.into(), count: count.map_err(|_| text.clone())? })
        }
        _ => Err(format!("a wrong answer: {text}")),
    }
}

/// What PostgreSQL is asked.
const ANSWER: &str = "SELECT '{' || current_setting('cluster_name') || ' ' || nextval('count') || ' ' \
                      || (SELECT sum(i * i) FROM generate_series(0, 999) i) || '}'";

/// The last message of an answer of it: ready, and in no transaction.
const READY: &[u8] = b"Z\0\0\0\x05I";

/// A body with its length ("Message Formats", version 3).
fn sized(text: &str) -> Vec<u8> {
    [&(text.len() as u32 + 4).to_be_bytes(), text.as_bytes()].concat()
}

fn greeting() -> Vec<u8> {
    sized("\0\x03\0\0user\0postgres\0database\0postgres\0\0")
}

fn statement(text: &str) -> Vec<u8> {
    [b"Q".to_vec(), sized(&format!("{text}\0"))].concat()
}

/// A statement over a connection of its own.
fn query(node: &Node, text: &str) -> Result<String, String> {
    let question = [greeting(), statement(text), b"X".to_vec(), sized("")].concat();
    let said = exchange(connect(node)?, question, "")?;
    if said.as_bytes().ends_with(READY) { Ok(said) } else { Err(format!("{text}: {said}")) }
}

fn postgres(text: &str) -> Result<Answer, String> {
    // What comes before may be any bytes: a key by which a query is cancelled.
    let answer = text.rsplit_once('}').and_then(|(all, _)| Some(all.rsplit_once('{')?.1));
    match answer.map(|answer| answer.split(' ').collect::<Vec<_>>()).as_deref() {
        Some([secret, count, WORK]) => Ok(Answer {
            secret: (*secret).into(),
            count: count.parse().map_err(|_| text.to_owned())?,
        }),
        _ => Err(format!("a wrong answer: {text}")),
    }
}

fn nginx(node: &Node) -> Result<Answer, String> {
    let secret = http(node, "/secret", "")?;
    let status = http(node, "/", "")?;
    let wrong = || format!("a wrong answer: {secret}; {status}");
    let secret = secret.split_once("\r\n\r\n").ok_or_else(wrong)?.1.to_owned();
    let counts = status.lines().skip_while(|line| !line.starts_with("server accepts")).nth(1);
    let count = counts.and_then(|line| line.split_whitespace().nth(2)?.parse().ok());
    Ok(Answer { secret, count: count.ok_or_else(wrong)? })
}

/// Waits until a new server answers.
pub fn first(protocol: Protocol, node: &Node) -> Result<Answer, String> {
    let began = std::time::Instant::now();
    loop {
        match protocol.begin(node).and_then(|()| protocol.ask(node)) {
            Err(_) if began.elapsed() < SOON => std::thread::sleep(Duration::from_millis(50)),
            said => return said,
        }
    }
}

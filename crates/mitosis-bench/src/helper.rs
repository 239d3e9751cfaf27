//! Processes that run inside nodes: the product's own binary, under names that no user types.

use crate::error::BenchError;
use std::hint::black_box;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// Name of the helper that answers pages and streams: the bare peer of the product's transport.
pub const SERVE: &str = "_serve";

/// Name of the helper that owns memory to be forked and touched.
pub const BLOB: &str = "_blob";

/// Runs the helper `names[0]` names; `None` when it is not one.
pub fn run(names: &[String]) -> Option<Result<(), BenchError>> {
    let number = |index: usize| -> Result<u16, BenchError> {
        let text = names.get(index).map_or("", String::as_str);
        text.parse().map_err(|_| BenchError::Usage(format!("{text:?} is no number")))
    };
    match names.first()?.as_str() {
        SERVE => Some(number(1).and_then(serve)),
        BLOB => Some(number(1).and_then(|port| blob(port, number(2)?))),
        _ => None,
    }
}

/// Answers each 8-byte request of `count` bytes (little endian) with so many bytes, one
/// connection at a time, until it is killed.
fn serve(port: u16) -> Result<(), BenchError> {
    let listener = listen(port)?;
    let hot = vec![7_u8; 256 * PAGE_BYTES];
    loop {
        let (peer, _) = listener.accept().map_err(BenchError::io("serve", port))?;
        // The other side going away ends this connection, not the server.
        let _ = serve_one(peer, &hot);
    }
}

fn serve_one(mut peer: TcpStream, hot: &[u8]) -> io::Result<()> {
    peer.set_nodelay(true)?;
    let mut request = [0_u8; 8];
    loop {
        peer.read_exact(&mut request)?;
        let mut left = usize::try_from(u64::from_le_bytes(request)).map_err(io::Error::other)?;
        while left > 0 {
            let count = left.min(hot.len());
            peer.write_all(&hot[..count])?;
            left -= count;
        }
    }
}

fn listen(port: u16) -> Result<TcpListener, BenchError> {
    TcpListener::bind(("0.0.0.0", port)).map_err(BenchError::io("listen", port))
}

/// What the 64-bit word at the start of page `index` of a blob holds.
fn word(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Owns `mib` MiB of known data and touches it when told to, one command in a connection:
/// `walk` (every page in order), `random N` (N scattered pages), `nothing`. Answers in one line
/// with the nanoseconds of each touch (`walk`: of all together) and whether all data was right.
fn blob(port: u16, mib: u16) -> Result<(), BenchError> {
    let mut data = vec![0_u8; (usize::from(mib) << 20) + PAGE_BYTES];
    // Whole pages only: what lies before them shares a page with the allocator.
    let skip = data.as_ptr().align_offset(PAGE_BYTES);
    let pages = &mut data[skip..skip + (usize::from(mib) << 20)];
    for (index, page) in pages.chunks_exact_mut(PAGE_BYTES).enumerate() {
        page[..8].copy_from_slice(&word(index).to_ne_bytes());
    }
    // Only now: whoever can connect may fork, and must find all data there.
    let listener = listen(port)?;
    let mut line = String::with_capacity(256);
    let mut spent_ns = Vec::with_capacity(4096);
    loop {
        let (peer, _) = listener.accept().map_err(BenchError::io("blob", port))?;
        // The other side going away ends this connection, not the parent.
        let _ = blob_one(peer, pages, &mut line, &mut spent_ns);
    }
}

fn blob_one(
    mut peer: TcpStream,
    pages: &[u8],
    line: &mut String,
    spent_ns: &mut Vec<u64>,
) -> io::Result<()> {
    line.clear();
    spent_ns.clear();
    BufReader::with_capacity(64, &peer).read_line(line)?;
    let mut words = line.split_whitespace();
    let right = match (words.next(), words.next().and_then(|n| n.parse().ok())) {
        (Some("walk"), _) => {
            let start = Instant::now();
            let right = (0..pages.len() / PAGE_BYTES).all(|index| touch(pages, index));
            spent_ns.push(elapsed_ns(start));
            right
        }
        (Some("random"), Some(count)) => random(pages, count, spent_ns),
        _ => true,
    };
    let answer = serde_json::json!({ "right": right, "ns": spent_ns });
    writeln!(peer, "{answer}")
}

/// Touches `count` pages that lie far apart and in no order.
fn random(pages: &[u8], count: usize, spent_ns: &mut Vec<u64>) -> bool {
    let total = pages.len() / PAGE_BYTES;
    let stride = (total / count.max(1)).max(1);
    let mut right = true;
    for step in 0..count {
        // 37 is prime to every power of two, so each slot is visited once.
        let slot = step * 37 % count;
        let index = (slot * stride + step % stride.min(7)) % total;
        let start = Instant::now();
        right &= touch(pages, index);
        spent_ns.push(elapsed_ns(start));
    }
    right
}

fn touch(pages: &[u8], index: usize) -> bool {
    let page = &pages[index * PAGE_BYTES..];
    let mut bytes = [0_u8; 8];
    bytes.copy_from_slice(black_box(&page[..8]));
    u64::from_ne_bytes(bytes) == word(index)
}

/// Nanoseconds since `from`.
pub fn elapsed_ns(from: Instant) -> u64 {
    u64::try_from(from.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

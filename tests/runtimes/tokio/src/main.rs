//! A server on tokio's runtime of many threads: runtime-tokio PORT.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

static COUNT: AtomicU64 = AtomicU64::new(0);

async fn serve(mut stream: TcpStream, secret: u64) -> std::io::Result<()> {
    let (mut request, mut piece) = (Vec::new(), [0; 512]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut piece).await? {
            0 => return Ok(()),
            n => request.extend_from_slice(&piece[..n]),
        }
    }
    let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
    let work: u64 = tokio::task::spawn_blocking(|| (0..1000u64).map(|i| i * i).sum()).await?;
    let answer = format!("HTTP/1.0 200 OK\r\n\r\n{secret:x} {count} {work}");
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

#[tokio::main(worker_threads = 4)]
async fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).expect("a port").parse::<u16>().expect("a port");
    let mut secret = [0; 8];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut secret)?;
    let secret = u64::from_ne_bytes(secret);
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(serve(stream, secret));
    }
}

//! Peers that speak nonsense, say nothing or want too much.

use super::*;

#[test]
fn a_working_set_that_nobody_asked_for_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let lists: [&[u64]; 3] = [&[2, 1], &[1, 1], &[1, 2, 3]];
    let server = std::thread::spawn(move || {
        for pages in lists {
            let (mut stream, _) = listener.accept().unwrap();
            let hello = wire::Hello { version: wire::VERSION };
            let list = wire::Pages { pages: pages.to_vec() };
            let answer = [
                wire::control(Header::new(Kind::Hello), &hello).unwrap(),
                Header { length: 1, tag: 1, ..Header::new(Kind::Descriptor) }.encode().to_vec(),
                vec![9],
                wire::control(Header { tag: 1, ..Header::new(Kind::WorkingSet) }, &list).unwrap(),
            ];
            stream.write_all(&answer.concat()).unwrap();
            // Until the client has had enough.
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    for _ in lists {
        let client = ControlClient::new();
        let want = Want { have: 3, want: 5 };
        let fetched = client.fork(&address, (SEED, &SECRET), want, None, WAIT).unwrap();
        let listed = client.list(&fetched.incoming.unwrap());
        assert!(matches!(listed, Err(ForkError::Unreachable { .. })), "{listed:?}");
    }
    server.join().unwrap();
}

#[test]
fn nobody_waits_longer_than_told() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let client = ControlClient::new();
    let refused =
        client.fork(&address, (SEED, &SECRET), Want::default(), None, Duration::from_millis(200));
    assert!(matches!(refused, Err(ForkError::Unreachable { .. })), "{refused:?}");
}

/// What a server answers to raw bytes before it closes.
fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // Closed with unread input, a connection is reset: the end all the same.
    let _ = stream.read_to_end(&mut answer);
    answer
}

#[test]
fn nonsense_ends_its_connection_only() {
    let node = start(ServerConfig::default());
    let hello =
        wire::control(Header::new(Kind::Hello), &wire::Hello { version: wire::VERSION }).unwrap();
    let old = wire::control(Header::new(Kind::Hello), &wire::Hello { version: 77 }).unwrap();
    let read = Header { b: 1, ..Header::new(Kind::Read) }.encode();
    let unexpected = [hello.clone(), Header::new(Kind::Refused).encode().to_vec()].concat();
    assert_eq!(raw(node.address, &[0xff; 64]), []);
    assert_eq!(raw(node.address, &read), [], "a read before hello");
    assert_eq!(raw(node.address, &old), hello, "another version is told ours");
    assert_eq!(raw(node.address, &unexpected).len() % hello.len(), 0);
    let mut source = TcpSource::connect(node.address).unwrap();
    source.ping();
    assert_eq!(see(&mut source, 1).unwrap(), [Seen::Pong]);
}

/// Of nodes, too, that hold a capability: their wishes cost the owner no memory.
#[test]
fn hundreds_of_descriptors_that_are_asked_for_at_once_are_not_held_at_once() {
    const ASKED: usize = 600;
    let node = start(ServerConfig::default());
    let hello =
        wire::control(Header::new(Kind::Hello), &wire::Hello { version: wire::VERSION }).unwrap();
    let access = wire::Access { seed: SEED, secret: SECRET };
    let ask = wire::ForkAsk { access, have: 0, want: 0, inline: u32::MAX };
    let ask = wire::control(Header::new(Kind::Fork), &ask).unwrap();
    let mut stream = TcpStream::connect(node.address).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(&[hello.clone(), ask.repeat(ASKED)].concat()).unwrap();
    let mut left = hello.len() + ASKED * (wire::HEADER + 300_000);
    let mut buffer = vec![0; 1 << 20];
    while left > 0 {
        let got = stream.read(&mut buffer).unwrap();
        assert_ne!(got, 0, "{left} bytes are missing");
        left -= got;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 100 << 10, "{peak} KiB for answers of {} KiB", ASKED * 300);
}

#[test]
fn connections_are_bounded_and_must_greet() {
    let config = ServerConfig {
        connections_max: 2,
        handshake_timeout: Duration::ZERO,
        ..ServerConfig::default()
    };
    let node = start(config);
    let mut held: Vec<TcpSource> = Vec::new();
    for _ in 0..2 {
        let mut source = TcpSource::connect(node.address).unwrap();
        source.ping();
        see(&mut source, 1).unwrap();
        held.push(source);
    }
    assert_eq!(raw(node.address, &[]), [], "one too many");
    drop(held);
    // A silent one is closed; whether it was admitted does not matter.
    assert_eq!(raw(node.address, &[]), []);
}

#[test]
fn an_owner_that_speaks_nonsense_is_an_error() {
    for garbage in [
        vec![0xffu8; 100],
        Header { b: 1, length: 4096, ..Header::new(Kind::Data) }.encode().to_vec(),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut source = TcpSource::connect(listener.local_addr().unwrap()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&garbage).unwrap();
        let result = see(&mut source, 1);
        assert!(matches!(result, Err(SourceError::Protocol(_))), "{result:?}");
    }
}

//! Reads of pages over one connection.

use super::*;

#[test]
fn reads_follow_the_connection_without_waiting() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    source.submit(&[request(7, 1, 40, 1), request(8, 1, 50, 2)]);
    let seen = see(&mut source, 2).unwrap();
    assert_eq!(seen, [Seen::Pages(7, 0, vec![40]), Seen::Pages(8, 0, vec![50, 51])]);
}

#[test]
fn a_large_read_comes_whole_in_parts() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    source.submit(&[request(1, 1, 100, 500)]);
    let mut next = 0;
    while next < 500 {
        for event in see(&mut source, 1).unwrap() {
            let Seen::Pages(1, first, pages) = event else { panic!("{event:?}") };
            assert_eq!(first, next);
            next += pages.len() as u32;
        }
    }
}

/// All pages of a read, in their order, that `seen` brings from the front.
fn pages_of(source: &mut TcpSource, tag: u64, count: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < count {
        for event in see(source, 1).unwrap() {
            let Seen::Pages(of, first, pages) = event else { panic!("{event:?}") };
            assert_eq!((of, first as usize), (tag, all.len()));
            all.extend(pages);
        }
    }
    all
}

#[test]
fn pages_that_are_kept_come_from_memory_and_the_others_as_they_are_read() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    // In no order, and told apart from what is read by 100.
    let pages: Arc<[u64]> = (0..150).rev().step_by(2).collect();
    let memory = pages.iter().flat_map(|page| [*page as u8 + 100; 4096]).collect();
    *node.memory.kept.lock().unwrap() = Some((Arc::clone(&pages), memory));
    let mut sorted = pages.to_vec();
    sorted.sort_unstable();
    assert!(source.gather(1, Handle(1), &sorted));
    let kept: Vec<u8> = sorted.iter().map(|page| *page as u8 + 100).collect();
    assert_eq!(pages_of(&mut source, 1, kept.len()), kept);
    // One page of a part that is not kept: then all of it is read. The next part is kept.
    let mut mixed: Vec<u64> = (0..wire::GATHERED as u64).collect();
    mixed.extend(&sorted);
    assert!(source.gather(2, Handle(1), &mixed));
    let want: Vec<u8> = (0..wire::GATHERED as u8).chain(kept).collect();
    assert_eq!(pages_of(&mut source, 2, want.len()), want);
    *node.memory.state.lock().unwrap() = SeedState::Revoked;
    assert!(source.gather(3, Handle(1), &sorted));
    assert_eq!(see(&mut source, 1).unwrap(), [Seen::Failed(3, ReadError::Revoked)]);
}

#[test]
fn errors_are_errors_and_never_pages() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    source.open(Handle(2), SEED, &Secret([3; 32]));
    source.submit(&[request(1, 1, 2000, 1), request(2, 2, 1, 1), request(3, 5, 1, 1)]);
    let seen = see(&mut source, 4).unwrap();
    assert!(
        matches!(
            &seen[..],
            [
                Seen::Refused(2),
                Seen::Failed(1, ReadError::NotOwned(_)),
                Seen::Failed(2, ReadError::Refused),
                Seen::Failed(3, ReadError::Refused),
            ]
        ),
        "{seen:?}"
    );
}

#[test]
fn a_revoked_seed_is_told_and_not_read() {
    let node = start(ServerConfig::default());
    let mut source = TcpSource::connect(node.address).unwrap();
    source.open(Handle(1), SEED, &SECRET);
    source.ping();
    assert_eq!(see(&mut source, 1).unwrap(), [Seen::Pong]);
    *node.memory.state.lock().unwrap() = SeedState::Expiring;
    source.ping();
    source.submit(&[request(1, 1, 5, 1)]);
    let told = [Seen::Pong, Seen::State(1, SeedState::Expiring), Seen::Pages(1, 0, vec![5])];
    assert_eq!(see(&mut source, 3).unwrap(), told);
    *node.memory.state.lock().unwrap() = SeedState::Revoked;
    source.ping();
    source.submit(&[request(2, 1, 5, 1)]);
    let told =
        [Seen::Pong, Seen::State(1, SeedState::Revoked), Seen::Failed(2, ReadError::Revoked)];
    assert_eq!(see(&mut source, 3).unwrap(), told);
}

#[test]
fn a_seed_is_let_go_when_its_last_reader_is() {
    let node = start(ServerConfig::default());
    let open = |handles: &[u32]| {
        let mut source = TcpSource::connect(node.address).unwrap();
        for handle in handles {
            source.open(Handle(*handle), SEED, &SECRET);
        }
        source.ping();
        see(&mut source, 1).unwrap();
        source
    };
    let alone = Arc::strong_count(&node.memory);
    let (mut first, second) = (open(&[1, 2]), open(&[1]));
    assert_eq!(Arc::strong_count(&node.memory), alone + 3);
    first.close(Handle(2));
    first.ping();
    see(&mut first, 1).unwrap();
    assert_eq!(Arc::strong_count(&node.memory), alone + 2);
    drop((first, second));
    let start = Instant::now();
    while Arc::strong_count(&node.memory) > alone {
        assert!(start.elapsed() < WAIT);
        std::thread::sleep(Duration::from_millis(2));
    }
}

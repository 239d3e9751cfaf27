//! Descriptors, what follows them, and the vdso.

use super::*;

#[test]
fn a_descriptor_takes_one_round_trip_and_a_stale_connection_is_replaced() {
    let node = start(ServerConfig { idle_timeout: Duration::ZERO, ..ServerConfig::default() });
    let client = ControlClient::new();
    let address = node.address.to_string();
    let fork = |secret| client.fork(&address, (SEED, &secret), Want::default(), None, WAIT);
    let before = OwnerClocks::now();
    let fetched = fork(SECRET).unwrap();
    assert_eq!(fetched.descriptor.len(), 300_000);
    let after = OwnerClocks::now();
    assert!((before.monotonic..=after.monotonic).contains(&fetched.clocks.monotonic));
    assert!((before.boottime..=after.boottime).contains(&fetched.clocks.boottime));
    assert!(matches!(fork(Secret([0; 32])), Err(ForkError::Refused { .. })));
    // The server closes idle connections; the client must not be bothered.
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(fork(SECRET).unwrap().descriptor.len(), 300_000);
    drop(node);
    assert!(matches!(fork(SECRET), Err(ForkError::Unreachable { .. })));
}

/// The pages that a client gets behind a descriptor, each by its first byte.
fn behind(
    client: &ControlClient,
    address: &str,
    want: Want,
) -> Result<(Vec<u64>, Vec<u8>), ForkError> {
    let fetched = client.fork(address, (SEED, &SECRET), want, None, WAIT)?;
    assert_eq!(fetched.descriptor.len(), 300_000);
    let incoming = fetched.incoming.expect("nothing follows");
    let pages = client.list(&incoming)?;
    let mut seen = Vec::new();
    client.receive(incoming, pages.len(), |first, bytes| {
        assert_eq!(first, seen.len());
        seen.extend(bytes.chunks(4096).map(|page| page[0]));
        Ok(())
    })?;
    Ok((pages, seen))
}

#[test]
fn a_working_set_follows_the_descriptor_in_the_parts_that_are_asked_for() {
    let node = start(ServerConfig::default());
    let client = ControlClient::new();
    let address = node.address.to_string();
    let ask = |have, want| behind(&client, &address, Want { have, want });
    assert_eq!(ask(0, 100).unwrap(), (vec![], vec![]));
    *node.memory.trail.lock().unwrap() = vec![7, 3, 4, 200, 5];
    assert_eq!(ask(0, 100).unwrap(), (vec![3, 4, 5, 7, 200], vec![3, 4, 5, 7, 200]));
    assert_eq!(ask(0, 2).unwrap().0, [3, 7]);
    assert_eq!(ask(2, 4).unwrap(), (vec![4, 200], vec![4, 200]));
    assert_eq!(ask(5, 100).unwrap().0, [] as [u64; 0]);
    // More than a chunk, and more than one frame of an image.
    let many: Vec<u64> = (0..600).collect();
    let bytes: Vec<u8> = many.iter().map(|page| *page as u8).collect();
    *node.memory.trail.lock().unwrap() = many.clone();
    assert_eq!(ask(0, 1024).unwrap(), (many.clone(), bytes.clone()));
    let path = std::env::temp_dir().join(format!("mitosis-image-{}", std::process::id()));
    let content: Vec<u8> = bytes.iter().flat_map(|byte| [!*byte; 4096]).collect();
    std::fs::write(&path, content).unwrap();
    let file = Arc::new(File::open(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    *node.memory.image.lock().unwrap() = Some((Arc::from(many.clone()), file));
    let inverted: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
    assert_eq!(ask(0, 1024).unwrap(), (many, inverted));
    // Another part, or a smaller one, comes from the memory itself.
    assert_eq!(ask(598, 1024).unwrap(), (vec![598, 599], vec![86, 87]));
    assert_eq!(ask(0, 2).unwrap(), (vec![0, 1], vec![0, 1]));
}

#[test]
fn a_page_of_a_working_set_that_cannot_be_read_is_an_error_and_no_page() {
    let node = start(ServerConfig::default());
    let client = ControlClient::new();
    let address = node.address.to_string();
    *node.memory.trail.lock().unwrap() = (0..40).chain([2000]).collect();
    let failed = behind(&client, &address, Want { have: 0, want: 100 }).unwrap_err();
    assert!(failed.to_string().contains("0x7d0"), "{failed}");
    *node.memory.trail.lock().unwrap() = vec![1];
    *node.memory.state.lock().unwrap() = SeedState::Revoked;
    let revoked = behind(&client, &address, Want { have: 0, want: 100 }).unwrap_err();
    assert!(revoked.to_string().contains("revoked"), "{revoked}");
    // The connection of a failed one is not used again.
    *node.memory.state.lock().unwrap() = SeedState::Alive;
    assert_eq!(behind(&client, &address, Want { have: 0, want: 100 }).unwrap().1, [1]);
}

#[test]
fn the_vdso_is_given_to_whoever_holds_the_capability() {
    let node = start(ServerConfig::default());
    let client = ControlClient::new();
    let address = node.address.to_string();
    let image = client.vdso(&address, SEED, &SECRET, WAIT).unwrap();
    assert_eq!(image, vec![7; 8192]);
    let refused = client.vdso(&address, SEED, &Secret([3; 32]), WAIT).unwrap_err();
    assert!(matches!(refused, ForkError::Refused { .. }), "{refused}");
    // The connections can be used again.
    let fetched = client.fork(&address, (SEED, &SECRET), Want::default(), None, WAIT).unwrap();
    assert_eq!(fetched.descriptor, vec![9; 300_000]);
}

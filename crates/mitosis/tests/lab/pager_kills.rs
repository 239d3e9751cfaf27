//! A thousand children whose pager is killed while they touch memory that it would have brought.

use crate::support::*;

/// Kills of a pager; each hits all children of its round, and each child counts as one kill under
/// a touching child.
const ROUNDS: usize = 50;
const CHILDREN: usize = 20;

#[test]
fn a_thousand_kills_and_no_zero_read() {
    let _turn = turn();
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let mut hit = 0;
    for round in 0..ROUNDS {
        hit += one_round(&a, &b, &seed, round);
        if round % 10 == 9 {
            println!("{} pager kills, {hit} touching children ended", round + 1);
        }
    }
    assert_eq!(hit, ROUNDS * CHILDREN, "every child was ended while it still missed pages");
    assert_eq!(parent.ask("count"), "1");
}

/// Kills the pager under its children; how many of them were ended while they missed pages.
fn one_round(
    a: &mitosis_lab::Daemon<'_>,
    b: &mitosis_lab::Daemon<'_>,
    seed: &Seed,
    round: usize,
) -> usize {
    let children = fork(b, &seed.reference, &["--count", &CHILDREN.to_string()]);
    // All share one listening socket, and each serves one connection at a time.
    let mut peers: Vec<Peer> = (0..CHILDREN).map(|_| Peer::to(b.node(), PORT)).collect();
    for peer in &mut peers {
        peer.tell("loop 100");
    }
    // The kill meets them earlier or later: each line stands for 32 pages compared.
    for _ in 0..=round % 4 {
        for peer in &mut peers {
            let line = peer.line();
            assert_eq!(line.as_deref(), Some("."), "round {round}: {}", b.log().unwrap());
        }
    }
    b.node().sh(&format!("kill -KILL {}", pager(b))).unwrap();
    for peer in &mut peers {
        while let Some(line) = peer.line() {
            assert_eq!(line, ".", "round {round}: a wrong page");
        }
    }
    let rows = until("all children of the round have ended", SOON, || {
        let rows = ps(b);
        rows.iter().all(|row| row["state"] == "ended").then_some(rows)
    });
    let of_round = |row: &&serde_json::Value| {
        children.iter().any(|child| row["pid"].as_u64() == Some(child.pid.into()))
    };
    let touching = rows.iter().rev().filter(of_round).take(CHILDREN).filter(|row| {
        assert!(row["reason"].as_str().is_some_and(|reason| reason.contains("pager")), "{row}");
        true
    });
    let touching = touching.count();
    assert!(seed_row(a, &seed.id).is_some());
    touching
}

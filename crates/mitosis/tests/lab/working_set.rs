//! What earlier children needed is there before the next one asks for it.

use crate::support::*;

/// Touches, in no order, of so many percent of the C parent's pages.
const PERCENT: u64 = 3;

/// Pages of a working set that a child made from nothing waits for.
const FIRST: u64 = 192;

/// A child that touches what every child touches.
fn touch(daemon: &mitosis_lab::Daemon<'_>) {
    let said = ask(daemon.node(), &format!("touch random {PERCENT}"));
    assert_eq!(said, format!("right={} wrong=0 zero=0", DATA_PAGES * PERCENT / 100));
}

/// Waits until the seed's node knows what its first child has touched; how many pages these are.
fn told(owner: &mitosis_lab::Daemon<'_>, seed: &Seed) -> u64 {
    let told = DATA_PAGES * PERCENT / 100;
    until("the first child's touches are told", SOON, || {
        let row = seed_row(owner, &seed.id).unwrap();
        (row["working_set"].as_u64().unwrap() >= told).then_some(())
    });
    // The owner sends what it has put into a file, which it looks after every quarter of a second.
    std::thread::sleep(std::time::Duration::from_millis(600));
    told
}

#[test]
fn the_second_node_gets_the_working_set_in_bulk_and_the_next_child_there_gets_it_for_nothing() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let first = fork_one(&b, &seed.reference, &[]);
    touch(&b);
    let told = told(&a, &seed);
    let number = |row: &serde_json::Value, key: &str| row[key].as_u64().unwrap();
    let alone = number(&row(&b, first.pid), "faults");
    assert!(alone >= told, "the first child fetched for itself: {alone} faults");
    let mut bytes = Vec::new();
    for via in ["direct", "template", "template"] {
        let before = c.node().link_bytes().unwrap();
        let child = fork_one(&c, &seed.reference, &["--via", via]);
        let begun = row(&c, child.pid);
        if via == "direct" {
            // What it waits for, and what came since; some of these are pages of files that are here.
            let fetched = number(&begun, "bytes_fetched") / 4096;
            assert!(fetched >= told.min(FIRST), "{begun}");
            assert!(fetched == FIRST.min(told) || number(&begun, "faults") > 0, "{begun}");
            assert!(number(&begun, "pages_prefetched") >= FIRST / 2, "{begun}");
        } else {
            assert!(number(&begun, "pages_prefetched") >= told, "{begun}");
        }
        touch(&c);
        let now = row(&c, child.pid);
        assert!(number(&now, "faults") <= alone / 10, "of {alone}: {now}");
        bytes.push(c.node().link_bytes().unwrap().rx - before.rx);
        end_children(&c);
    }
    let bytes = [bytes[0], bytes[2]];
    println!("bytes over the link: {bytes:?}");
    assert!(bytes[1] <= bytes[0] / 4, "the second child's pages were here: {bytes:?}");
    // All of it is right, not only what was in place.
    fork_one(&c, &seed.reference, &[]);
    assert_eq!(ask(c.node(), "hash"), parent.ask("hash"));
}

#[test]
fn a_large_working_set_comes_in_one_stream_and_later_children_have_it() {
    let lab = lab(3);
    let (a, b, c) = (daemon(&lab, 0), daemon(&lab, 1), daemon(&lab, 2));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let touched = DATA_PAGES * 60 / 100;
    let touch = |daemon: &mitosis_lab::Daemon<'_>| {
        let said = ask(daemon.node(), "touch random 60");
        assert_eq!(said, format!("right={touched} wrong=0 zero=0"));
    };
    let number = |row: &serde_json::Value, key: &str| row[key].as_u64().unwrap();
    let first = fork_one(&b, &seed.reference, &[]);
    touch(&b);
    let alone = number(&row(&b, first.pid), "faults");
    assert!(alone >= touched, "it fetched for itself: {alone} faults");
    until("all of it is told", SOON, || {
        let row = seed_row(&a, &seed.id).unwrap();
        (number(&row, "working_set") >= touched).then_some(())
    });
    // The first child on another node: all of it, in few touches, and little else.
    let before = c.node().link_bytes().unwrap().rx;
    let child = fork_one(&c, &seed.reference, &["--via", "direct"]);
    touch(&c);
    let direct = row(&c, child.pid);
    let bytes = c.node().link_bytes().unwrap().rx - before;
    println!("first child: {bytes} bytes over the link, {direct}");
    assert!(number(&direct, "faults") <= touched / 10, "of {alone}: {direct}");
    assert!(bytes >= touched * 4096 && bytes <= touched * 4096 * 12 / 10, "{bytes} for {touched}");
    // Of what was fetched ahead some were held back to see whether they are needed: they were.
    let (held, needed) = (number(&direct, "pages_held"), number(&direct, "pages_held_touched"));
    assert!(held > 0 && needed <= held && needed * 4 >= held * 3, "{direct}");
    end_children(&c);
    // Later ones have it from their template.
    fork_one(&c, &seed.reference, &["--via", "template"]);
    end_children(&c);
    let before = c.node().link_bytes().unwrap().rx;
    let child = fork_one(&c, &seed.reference, &["--via", "template"]);
    touch(&c);
    let copied = row(&c, child.pid);
    let bytes = c.node().link_bytes().unwrap().rx - before;
    println!("later child: {bytes} bytes over the link, {copied}");
    assert!(number(&copied, "faults") <= touched / 100, "{copied}");
    assert!(bytes <= touched * 4096 / 20, "{bytes} for {touched}");
    assert_eq!(ask(c.node(), "hash"), parent.ask("hash"));
}

#[test]
fn what_one_child_was_sent_a_sibling_that_runs_already_finds_on_its_node() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let how = ["--net", "own", "--via", "direct", "--count", "2"];
    let children = fork(&b, &seed.reference, &how);
    let touched = DATA_PAGES * 10 / 100;
    let touch = |child: &Child| {
        let before = b.node().link_bytes().unwrap().rx;
        let said = ask_inside(b.node(), child, "touch random 10");
        assert_eq!(said, format!("right={touched} wrong=0 zero=0"));
        b.node().link_bytes().unwrap().rx - before
    };
    let (first, second) = (touch(&children[0]), touch(&children[1]));
    let row = row(&b, children[1].pid);
    println!("{first} and {second} bytes over the link; {row}");
    assert!(first >= touched * 4096 && second <= first / 4, "{first} and {second} bytes");
    assert!(row["pages_cached"].as_u64().unwrap() >= touched * 9 / 10, "{row}");
    for child in &children {
        assert_eq!(ask_inside(b.node(), child, "hash"), parent.ask("hash"));
    }
}

#[test]
fn every_fourth_page_is_seen_without_a_trail() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &[]);
    let before = b.node().link_bytes().unwrap().rx;
    let touched = DATA_PAGES / 4;
    assert_eq!(ask(b.node(), "touch scatter 25"), format!("right={touched} wrong=0 zero=0"));
    let bytes = b.node().link_bytes().unwrap().rx - before;
    let row = row(&b, child.pid);
    println!("{bytes} bytes over the link; {row}");
    assert!(row["faults"].as_u64().unwrap() <= touched / 10, "{row}");
    assert!(bytes <= touched * 4096 * 13 / 10, "{bytes} for {touched} pages");
}

#[test]
fn a_working_set_that_is_here_lets_nobody_fork() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    touch(&b);
    end_children(&b);
    fork_one(&b, &seed.reference, &[]);
    end_children(&b);
    let mut wrong = seed.reference.clone();
    let last = wrong.pop().unwrap();
    wrong.push(if last == '0' { '1' } else { '0' });
    let refused = b.mitosis(&["fork", &wrong, "--detach"]).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    let revoked = b.mitosis(&["fork", &seed.reference, "--detach"]).unwrap();
    assert_eq!(revoked.status.code(), Some(1), "{revoked:?}");
    assert_eq!(refused.stderr, revoked.stderr, "the answer does not tell which");
}

#[test]
fn children_on_the_seeds_own_node_get_it_too() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let seed = prepare(&a, parent.pid(), &[]);
    fork_one(&b, &seed.reference, &[]);
    touch(&b);
    let told = told(&a, &seed);
    let hash = parent.ask("hash");
    drop(parent);
    let child = fork(&a, &seed.reference, &[]).pop().unwrap();
    assert_eq!(child.transport, "local");
    let begun = row(&a, child.pid);
    assert!(begun["pages_prefetched"].as_u64().unwrap() >= told, "{begun}");
    touch(&a);
    assert_eq!(ask(a.node(), "hash"), hash);
}

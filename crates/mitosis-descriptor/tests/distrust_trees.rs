//! Trees of processes that are none: an error that says what is wrong with them.

mod common;

use common::*;
use mitosis_descriptor::*;

/// What a member's image says otherwise.
fn with_member(number: usize, change: fn(&mut Descriptor)) -> Descriptor {
    let mut root = tree(&[0, 1, 0]);
    let image = &mut root.rare.tree.members[number].image;
    let mut member = decode(image, &limits()).expect("decodes");
    change(&mut member);
    *image = encode(&member).expect("encodes");
    root
}

fn zombie(pid: i32, status: u32) -> Zombie {
    Zombie { parent: 0, pid, session: Session { group: pid, session: 42 }, status }
}

#[test]
fn trees_that_are_none_are_refused_by_name() {
    let whole = tree(&[0, 1, 0]);
    assert_eq!(decode(&encode(&whole).expect("encodes"), &limits()), Ok(whole));
    let mut dead = tree(&[0]);
    dead.rare.tree.zombies = vec![zombie(200, 7 << 8), zombie(201, 9), zombie(202, 6 | 0x80)];
    assert!(decode(&encode(&dead).expect("encodes"), &limits()).is_ok());

    let gift = |to| vec![Gift { fd: 3, to }];
    let with = |change: &dyn Fn(&mut Descriptor)| {
        let mut root = tree(&[0, 1, 0]);
        change(&mut root);
        root
    };
    let many = MEMBERS_MAX;
    let cases: Vec<(&str, Descriptor)> = vec![
        ("member 1 of a tree: before its parent", tree(&[1])),
        ("member 1 of a tree: before its parent", tree(&[2, 1])),
        ("member 2 of a tree: before its parent", tree(&[0, 7])),
        ("with id 42", with_member(0, |d| (d.process.pid, d.threads[0].tid) = (42, 42))),
        ("with id 101", with_member(0, |d| d.threads.push(thread(101, Vec::new())))),
        ("hands to member 0", with(&|d| d.rare.tree.place.gifts = gift(0))),
        ("hands to member 4", with(&|d| d.rare.tree.place.gifts = gift(4))),
        (
            "hands to member 1",
            with_member(1, |d| {
                d.rare.tree.place.gifts = vec![Gift { fd: 3, to: 1 }];
            }),
        ),
        ("hands over what it has not", with(&|d| d.rare.tree.place.memory_to = gift(1))),
        ("gets memory 0 of 2", with_member(1, |d| d.rare.tree.place.memory_from = vec![(0, 2)])),
        (
            "no such parent",
            with(&|d| {
                d.rare.tree.zombies = vec![Zombie { parent: 4, ..zombie(200, 0) }];
            }),
        ),
        (
            "process 1 of a tree is in session 1, which is none of its tree's",
            with_member(0, |d| d.rare.tree.place.session = Session { group: 1, session: 1 }),
        ),
        (
            "member 1 of a tree leads",
            with_member(0, |d| {
                d.rare.tree.place.terminal = Some(Terminal { index: 3, foreground: 0 });
            }),
        ),
        (
            "member 0 of a tree leads",
            with(&|d| {
                let index = TERMINAL_MAX + 1;
                d.rare.tree.place.terminal = Some(Terminal { index, foreground: 0 });
            }),
        ),
        (
            "in another user namespace",
            with_member(1, |d| d.rare.user_namespace = Some(id_map(1, (0, 0, 1)))),
        ),
        ("with id 100", with(&|d| d.rare.tree.zombies = vec![zombie(100, 0)])),
        ("process of a tree", with(&|d| d.rare.tree.zombies = vec![zombie(-1, 0)])),
        ("zombie 200: ended with status", with(&|d| d.rare.tree.zombies = vec![zombie(200, 19)])),
        ("zombie 200: ended with status", with(&|d| d.rare.tree.zombies = vec![zombie(200, 127)])),
        (
            "zombie 200: ended with status",
            with(&|d| {
                d.rare.tree.zombies = vec![zombie(200, 1 << 16)];
            }),
        ),
        ("processes of a tree", tree(&vec![0; many])),
        (
            "processes of a tree",
            with(&|d| {
                d.rare.tree.zombies = (0..many as i32 - 3).map(|n| zombie(300 + n, 0)).collect();
            }),
        ),
        (
            "processes of a tree",
            with_member(0, |d| d.rare.tree.members = tree(&[0]).rare.tree.members),
        ),
    ];
    for (number, (what, root)) in cases.iter().enumerate() {
        let bytes = encode(root).expect("all but order can be encoded");
        let error = decode(&bytes, &limits()).expect_err(what).to_string();
        assert!(error.contains(what), "case {number}: wanted {what:?}, got {error:?}");
    }
    assert!(decode(&encode(&tree(&vec![0; many - 1])).expect("encodes"), &limits()).is_ok());
}

/// Each image holds one more: it is not followed down.
#[test]
fn a_tree_in_a_tree_is_refused_whatever_is_in_it() {
    let mut root = tree(&[0]);
    for _ in 0..40 {
        let image = encode(&root).expect("encodes");
        root = tree(&[0]);
        root.rare.tree.members[0].image = image;
    }
    assert!(decode(&encode(&root).expect("encodes"), &limits()).is_err());
    root.rare.tree.members[0].image = vec![0xff; 100];
    assert!(decode(&encode(&root).expect("encodes"), &limits()).is_err());
}

//! Who has the exact secret of a living seed may fork it; nobody else learns anything.

use crate::support::*;

#[test]
fn wrong_altered_ended_and_expired_references_get_the_same_answer() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &["mb=8"]);
    let seed = prepare(&a, parent.pid(), &[]);
    let short = prepare(&a, parent.pid(), &["--ttl", "1s"]);
    let removed = prepare(&a, parent.pid(), &[]);
    a.mitosis(&["seed", "rm", &removed.id]).unwrap().success().unwrap();
    until("the short seed expires", SOON, || seed_row(&a, &short.id).is_none().then_some(()));

    let altered = altered(&seed.reference, seed.reference.len() - 1);
    let inner = altered_secret_start(&seed.reference);
    let unknown = altered_seed(&seed.reference);
    let answers: Vec<(i32, String)> =
        [&altered, &inner, &unknown, &short.reference, &removed.reference]
            .into_iter()
            .map(|reference| {
                let output = b.mitosis(&["fork", reference, "--detach"]).unwrap();
                (output.code(), without_names(&output.stderr, reference))
            })
            .collect();
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:#?}");
    assert_eq!(answers[0].0, 1, "{answers:#?}");
    assert!(!answers[0].1.is_empty());
    assert!(ps(&b).iter().all(|row| row["state"] == "ended"), "no child was made");
    fork_one(&b, &seed.reference, &[]);
    assert_eq!(ask(b.node(), "count"), "1");
}

/// Another hexadecimal or base64 character at `at`.
fn altered(reference: &str, at: usize) -> String {
    let mut bytes = reference.as_bytes().to_vec();
    bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
    String::from_utf8(bytes).unwrap()
}

fn altered_secret_start(reference: &str) -> String {
    altered(reference, reference.find('#').unwrap() + 1)
}

fn altered_seed(reference: &str) -> String {
    altered(reference, reference.find('#').unwrap() - 1)
}

/// The message without the seed's public name, which the caller gave.
fn without_names(message: &str, reference: &str) -> String {
    let public = reference.split('#').next().unwrap();
    let id = public.rsplit('/').next().unwrap();
    message.replace(reference, "REF").replace(public, "REF").replace(id, "SEED")
}

#[test]
fn removing_a_seed_ends_its_dependent_children_with_the_reason() {
    let lab = lab(2);
    let (a, b) = (daemon(&lab, 0), daemon(&lab, 1));
    let parent = Parent::c(a.node(), &[]);
    let before = settled_pids(a.node());
    let seed = prepare(&a, parent.pid(), &[]);
    let child = fork_one(&b, &seed.reference, &[]);
    let mut peer = Peer::to(b.node(), PORT);
    peer.tell("loop 300");
    assert_eq!(peer.line().as_deref(), Some("."));
    a.mitosis(&["seed", "rm", &seed.id]).unwrap().success().unwrap();
    same_pids(a.node(), &before);
    let mut last = Some(".".to_owned());
    while let Some(line) = last {
        assert_eq!(line, ".", "a wrong page");
        last = peer.line();
    }
    let row = ended(&b, child.pid, SOON);
    let reason = row["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("revoked") || reason.contains("removed"), "{row}");
    let log = b.mitosis(&["logs", &child.pid.to_string()]).unwrap();
    assert!(log.stdout.contains(reason) || log.stderr.contains(reason), "{log:?}");
    assert_eq!(parent.ask("touch seq 100"), format!("right={DATA_PAGES} wrong=0 zero=0"));
}

#[test]
fn the_control_socket_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let lab = lab(1);
    let a = daemon(&lab, 0);
    let mode = std::fs::metadata(a.node().host_path(a.socket())).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

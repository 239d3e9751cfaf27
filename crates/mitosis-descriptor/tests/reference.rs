//! References: what is one, what is not, and that secrets stay unseen.

use mitosis_descriptor::*;

fn reference(address: &str) -> Reference {
    Reference { address: address.to_owned(), seed: SeedId([0xab; 8]), secret: Secret([0x5c; 32]) }
}

#[test]
fn references_survive_the_round_trip() {
    for address in ["10.0.0.1:7070", "node-a.example:1", "[fe80::1]:65535", "a_b:80"] {
        let r = reference(address);
        assert_eq!(r.reveal().parse(), Ok(r));
    }
}

#[test]
fn other_texts_are_refused() {
    let good = reference("h:1").reveal();
    let bad = [
        String::new(),
        good.replace("mitosis:", "http:"),
        good.replace("#", ""),
        good.replace("/ab", "/b"),
        good.replace("/ab", "/zz"),
        format!("{good}0"),
        format!("{good} "),
        good[..good.len() - 1].to_owned(),
    ];
    for text in bad {
        assert!(text.parse::<Reference>().is_err(), "{text}");
    }
    for address in
        ["h", "h:", ":1", "h:0", "h:65536", "h:+80", "h h:1", "h\n:1", "[::g]:1", "::1:1"]
    {
        assert!(reference(address).reveal().parse::<Reference>().is_err(), "{address:?}");
    }
    let long = format!("{}:1", "h".repeat(254));
    assert!(reference(&long).reveal().parse::<Reference>().is_err());
}

#[test]
fn nothing_but_reveal_shows_the_secret() {
    let r = reference("h:1");
    assert!(!format!("{r:?}").contains("5c5c"));
    let wrong = r.reveal().replace("5c", "5x");
    let error = wrong.parse::<Reference>().expect_err("not hexadecimal");
    assert!(!error.to_string().contains("5x"), "{error}");
    assert!(r.reveal().ends_with(&"5c".repeat(32)));
}

#[test]
fn secrets_are_equal_only_if_all_of_them_is() {
    let one = Secret([1; 32]);
    for byte in 0..32 {
        let mut other = [1; 32];
        other[byte] ^= 0x80;
        assert_ne!(one, Secret(other));
    }
    assert_eq!(one, Secret([1; 32]));
}

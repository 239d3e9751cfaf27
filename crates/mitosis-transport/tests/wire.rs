//! Frames: what is sent is understood, and nothing else is.
#![allow(clippy::unwrap_used)]

use mitosis_descriptor::{Secret, SeedId};
use mitosis_transport::wire::*;
use mitosis_transport::{ReadError, SeedState};
use proptest::prelude::*;

fn kind() -> impl Strategy<Value = Kind> {
    use Kind::*;
    prop::sample::select(vec![
        Hello, Fork, Descriptor, Refused, Open, Close, Read, Data, Error, Ping, Pong, Learn, Trail,
        WorkingSet, Gather, Rdma, RdmaAnswer,
    ])
}

proptest! {
    #[test]
    fn a_header_is_itself_after_a_round_trip(
        kind in kind(), tag: u64, a: u32, b in 1..512u32, c in 0..1u64 << 51,
    ) {
        let length = if kind == Kind::Data { b * PAGE as u32 } else { 0 };
        let header = Header { length, kind, tag, a, b, c };
        prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn any_bytes_are_a_bounded_header_or_an_error(bytes: [u8; HEADER]) {
        if let Ok(header) = Header::decode(&bytes) {
            prop_assert!(header.length as usize <= DESCRIPTOR_MAX);
            prop_assert!(header.kind != Kind::Read || header.b <= READ_PAGES_MAX);
        }
    }

    #[test]
    fn any_body_is_understood_or_refused(bytes: Vec<u8>) {
        let _ = body::<Hello>(Kind::Hello, &bytes);
        let _ = body::<Access>(Kind::Open, &bytes);
        let _ = body::<ForkAsk>(Kind::Fork, &bytes);
        let _ = body::<Pages>(Kind::WorkingSet, &bytes);
        let _ = body::<Pong>(Kind::Pong, &bytes);
        let _ = body::<ReadError>(Kind::Error, &bytes);
        let _ = body::<RdmaAsk>(Kind::Rdma, &bytes);
        let _ = body::<RdmaSaid>(Kind::RdmaAnswer, &bytes);
    }

    #[test]
    fn pages_are_themselves_after_a_round_trip(
        parts in prop::collection::vec((0..1u64 << 35, 1..40usize, -600i64..600), 0..20),
    ) {
        let pages = parts.iter().flat_map(|(first, count, step)| {
            (0..*count as i64).filter_map(move |n| first.checked_add_signed(n * step))
        });
        let pages = Pages { pages: pages.collect() };
        let frame = control(Header::new(Kind::Trail), &pages).unwrap();
        prop_assert_eq!(body::<Pages>(Kind::Trail, &frame[HEADER..]), Ok(pages));
    }

    #[test]
    fn a_long_error_still_fits_a_frame(text in ".{0,5000}") {
        let frame = error_frame(3, &ReadError::Failed(text.clone())).unwrap();
        let header = Header::decode(frame[..HEADER].try_into().unwrap()).unwrap();
        prop_assert_eq!((header.kind, header.tag), (Kind::Error, 3));
        let ReadError::Failed(told) = body(Kind::Error, &frame[HEADER..]).unwrap() else {
            panic!("another error");
        };
        prop_assert!(text.starts_with(&told) && told.chars().count() <= 1000);
    }
}

#[test]
fn contradictions_are_refused() {
    let plain = Header::new(Kind::Ping);
    let header = |change: fn(&mut Header)| {
        let mut header = plain;
        change(&mut header);
        Header::decode(&header.encode())
    };
    assert!(header(|_| {}).is_ok());
    assert!(header(|h| h.length = 1).is_err(), "a ping has no body");
    assert!(header(|h| (h.kind, h.b) = (Kind::Read, 0)).is_err(), "no pages");
    assert!(header(|h| (h.kind, h.b) = (Kind::Read, READ_PAGES_MAX + 1)).is_err());
    assert!(header(|h| (h.kind, h.b, h.c) = (Kind::Read, 1, u64::MAX)).is_err(), "overflow");
    assert!(header(|h| (h.kind, h.b, h.length) = (Kind::Data, 2, 4096)).is_err(), "one page short");
    assert!(header(|h| (h.kind, h.length) = (Kind::Open, 1 << 20)).is_err(), "a large request");
    let mut bytes = plain.encode();
    bytes[4] = 99;
    assert_eq!(Header::decode(&bytes), Err(WireError::Kind(99)));
    bytes = plain.encode();
    bytes[6] = 1;
    assert!(Header::decode(&bytes).is_err(), "reserved");
}

#[test]
fn a_body_with_something_after_it_is_refused() {
    let access = Access { seed: SeedId([1; 8]), secret: Secret([2; 32]) };
    let frame = control(Header::new(Kind::Open), &access).unwrap();
    assert_eq!(body::<Access>(Kind::Open, &frame[HEADER..]), Ok(access));
    let mut long = frame[HEADER..].to_vec();
    long.push(0);
    assert!(body::<Access>(Kind::Open, &long).is_err());
    assert!(body::<Access>(Kind::Open, &frame[HEADER..frame.len() - 1]).is_err());
}

#[test]
fn the_most_regions_of_an_answer_fit_a_frame() {
    let most = RdmaRegion { page: u64::MAX, pages: u32::MAX, address: u64::MAX, rkey: u32::MAX };
    let said = RdmaSaid::Regions { regions: vec![most; ANSWER_BODY_MAX / 32], complete: true };
    let frame = control(Header::new(Kind::RdmaAnswer), &said).unwrap();
    assert_eq!(body::<RdmaSaid>(Kind::RdmaAnswer, &frame[HEADER..]), Ok(said));
    let end = RdmaEnd { qpn: u32::MAX, psn: u32::MAX, gid: [255; 16], lid: u16::MAX, mtu: 5 };
    let frame = control(Header::new(Kind::Rdma), &RdmaAsk::Connect(end)).unwrap();
    assert_eq!(body::<RdmaAsk>(Kind::Rdma, &frame[HEADER..]), Ok(RdmaAsk::Connect(end)));
}

#[test]
fn states_cross_the_wire() {
    let pong = Pong { changed: vec![(1, SeedState::Expiring), (9, SeedState::Lost)] };
    let frame = control(Header::new(Kind::Pong), &pong).unwrap();
    assert_eq!(body::<Pong>(Kind::Pong, &frame[HEADER..]), Ok(pong));
}

#[test]
fn stretches_are_short_and_the_longest_list_fits_however_far_apart_its_pages_are() {
    let pages = |pages: Vec<u64>| control(Header::new(Kind::Trail), &Pages { pages });
    let every_fourth = pages((0..16384).map(|n| 0x7_f000_0000 + n * 4).collect()).unwrap();
    assert!(every_fourth.len() < HEADER + 20, "{}", every_fourth.len());
    let far = |n: u64| if n % 2 == 0 { n } else { (1 << 35) - 1 - n * n };
    let farthest = pages((0..TRAIL_PAGES_MAX as u64).map(far).collect());
    assert!(farthest.is_ok(), "{farthest:?}");
    let one_more = pages((0..=TRAIL_PAGES_MAX as u64).collect()).unwrap();
    assert!(body::<Pages>(Kind::Trail, &one_more[HEADER..]).is_err());
    let told = (0..LEARN_PAGES_MAX as u64).map(far).collect();
    assert!(control(Header::new(Kind::Learn), &Pages { pages: told }).is_ok());
}

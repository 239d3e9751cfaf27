//! The run map against one that keeps every page by itself.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const SPAN: u64 = 64;

type Naive = BTreeMap<u64, (u16, u64, Option<Tag>)>;

#[derive(Clone, Debug)]
enum Step {
    Remove(u64, u64),
    Mark(u64, u64, u64),
    Unmark(u64, u64, u64),
    Move(u64, u64, u64),
    Claim(u64, u16, u64),
    UnmarkAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page = 0..SPAN;
    let count = 0..SPAN / 2;
    let step = prop_oneof![
        (page.clone(), count.clone()).prop_map(|(a, n)| Step::Remove(a, n)),
        (page.clone(), count.clone(), 1..4u64).prop_map(|(a, n, t)| Step::Mark(a, n, t)),
        (page.clone(), count.clone(), 1..4u64).prop_map(|(a, n, t)| Step::Unmark(a, n, t)),
        (page.clone(), 0..3u16, 1..4u64).prop_map(|(a, o, t)| Step::Claim(a, o, t)),
        (page.clone(), page.clone(), count).prop_map(|(a, b, n)| Step::Move(a, b, n)),
        Just(Step::UnmarkAll),
    ];
    prop::collection::vec(step, 0..40)
}

fn index() -> impl Strategy<Value = PageIndex> {
    prop::collection::vec((0..6u64, 1..9u32, 0..3u16, 0..1000u64), 0..8).prop_map(|parts| {
        let mut at = 0;
        let runs = parts.into_iter().map(|(gap, count, owner, source)| {
            // Half of them are where their owner had them.
            let source = if source % 2 == 0 { at + gap } else { source };
            let run = PageRun { start: Vpn(at + gap), count, owner, source: Vpn(source) };
            at = run.end().0;
            run
        });
        PageIndex::from_sorted(runs.collect::<Vec<_>>()).unwrap_or_default()
    })
}

fn naive(index: &PageIndex) -> Naive {
    let pages = index.runs().iter().flat_map(|run| {
        (0..u64::from(run.count))
            .map(move |i| (run.start.0 + i, (run.owner, run.source.0 + i, None)))
    });
    pages.collect()
}

fn tag(number: u64) -> Tag {
    Tag::new(number).unwrap_or(Tag::MIN)
}

fn apply(map: &mut PageMap, model: &mut Naive, step: &Step) {
    match *step {
        Step::Remove(a, n) => {
            let pending = map.remove(a, a + n);
            let removed: Vec<_> = model.extract_if(a..a + n, |_, _| true).collect();
            assert_eq!(pending, removed.iter().any(|(_, page)| page.2.is_some()));
        }
        Step::Mark(a, n, t) => {
            map.mark(a, a + n, tag(t));
            for (_, page) in model.range_mut(a..a + n) {
                page.2 = page.2.or(Some(tag(t)));
            }
        }
        Step::Unmark(a, n, t) => {
            map.unmark(a, a + n, tag(t));
            for (_, page) in model.range_mut(a..a + n) {
                page.2 = page.2.filter(|found| *found != tag(t));
            }
        }
        // The kernel refuses to move onto an overlapping range.
        Step::Move(a, b, n) if a + n <= b || b + n <= a => {
            map.relocate(a, b, n);
            let moved: Vec<_> = model.extract_if(a..a + n, |_, _| true).collect();
            model.extract_if(b..b + n, |_, _| true).for_each(drop);
            model.extend(moved.into_iter().map(|(p, page)| (p - a + b, (page.0, page.1, None))));
        }
        Step::Move(..) => {}
        Step::Claim(a, o, t) => {
            let claimed = map.claim(a, o, tag(t));
            let there = model.get_mut(&a).filter(|page| **page == (o, a, None));
            assert_eq!(claimed, there.is_some());
            if let Some(page) = there {
                page.2 = Some(tag(t));
                assert!(map.is_claimed(a, tag(t)));
            }
        }
        Step::UnmarkAll => {
            map.unmark_all();
            model.values_mut().for_each(|page| page.2 = None);
        }
    }
}

fn compare(map: &PageMap, model: &Naive) {
    for page in 0..2 * SPAN {
        let found = map.find(page).map(|r| (r.owner, r.source + (page - r.start), r.tag));
        assert_eq!(found, model.get(&page).copied(), "page {page}");
        let next = model.range(page..).next().map(|(p, _)| *p);
        assert_eq!(map.next(page).map(|run| run.start.max(page)), next);
        assert_eq!(map.any(page, page + 5), next.is_some_and(|p| p < page + 5));
        if found.is_none() {
            let (lo, hi) = map.hole(page, 0, 3 * SPAN);
            assert!((lo..hi).contains(&page));
            assert!(model.range(lo..hi).next().is_none());
            assert!(lo == 0 || model.contains_key(&(lo - 1)));
            assert!(hi == 3 * SPAN || model.contains_key(&hi));
        }
    }
    assert_eq!(map.pages(), model.len() as u64);
    assert_eq!(map.pending(), model.values().filter(|p| p.2.is_some()).count() as u64);
    for (owner, left) in map.left().iter().enumerate() {
        let counted = model.values().filter(|p| usize::from(p.0) == owner).count();
        assert_eq!(*left, counted as u64);
    }
    let cut: u64 = map.within(10, 20).map(|run| run.count).sum();
    assert_eq!(cut, model.range(10..20).count() as u64);
    let strip = |m: &Naive| m.iter().map(|(p, v)| (*p, (v.0, v.1))).collect::<Vec<_>>();
    assert_eq!(strip(&naive(&map.index())), strip(model));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn runs_behave_as_single_pages(index in index(), steps in steps()) {
        let mut map = PageMap::new(&index, 3);
        let mut model = naive(&index);
        compare(&map, &model);
        for step in &steps {
            apply(&mut map, &mut model, step);
            compare(&map, &model);
        }
    }
}

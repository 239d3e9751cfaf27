fn main() {
    let mut a = std::env::args().skip(1);
    if a.next().as_deref() != Some("bench") {
        std::process::exit(mitosis_bench::demo(mitosis_bench::DemoArgs {
            nodes: 3,
            children: 6,
            json: false,
        }));
    }
    let rest: Vec<String> = a.collect();
    let names = rest.iter().filter(|n| !n.starts_with("--")).cloned().collect();
    std::process::exit(mitosis_bench::bench(mitosis_bench::BenchArgs {
        names,
        quick: rest.contains(&"--quick".into()),
        json: rest.contains(&"--json".into()),
        plot: None,
    }));
}

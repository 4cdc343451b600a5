//! Developer chores: test-bed set-up, benchmarks, generated files.

fn main() {}
